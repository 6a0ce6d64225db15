"""Imports TensorBoard event files.

TensorBoard shows each folder as a run. Here a folder becomes a prefix of names, as on TensorBoard's
page: `train/events...` yields `train/loss`. The events of several folders are merged by time;
within a folder they keep the order of the files.
"""

from __future__ import annotations

import heapq
import os
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metricbus._common.media_base import LogContext
from metricbus._common.optional_imports import check_installed
from metricbus._common.records import Number, Rewind, ScalarRow
from metricbus._common.validation import check_name
from metricbus._importers.run_writer import ImportResult, ImportTarget, RunWriter
from metricbus._journal.segment_reader import OnProgress
from metricbus.errors import ConfigError

if TYPE_CHECKING:
    from metricbus._compat.tensorboard import Event, Summary

_FILE_PATTERN = "*tfevents*"
_DIGITS = re.compile(r"(\d+)", re.ASCII)
_EVENTS_PER_REPORT = 5_000
_MEDIA_PLUGINS = ("histograms", "images", "audio", "text")
_IGNORED_EVENTS = ("file_version", None)


def import_tensorboard(
    path: Path,
    target: ImportTarget,
    *,
    each: bool = False,
    on_progress: OnProgress = lambda done, total: None,
) -> list[ImportResult]:
    """Create one run from the event files in or below `path`, or one per folder if `each` is true.

    Imports scalars, histograms, images, audio, text and hyperparameters.

    Raises `ConfigError` if there are no event files or the run cannot be created,
    `MissingPackageError` without tensorboard, and `OSError` if a file cannot be read.
    """
    for package in ("tensorboard", "google_crc32c"):
        check_installed(package, "Importing event files", "'metricbus[tensorboard]'")
    files_by_folder = event_files(path)
    root = path if path.is_dir() else path.parent
    prefixes = {folder: _prefix(folder, root) for folder in files_by_folder}
    if not each:
        by_prefix = {prefixes[folder]: files for folder, files in files_by_folder.items()}
        return [_import(by_prefix, target, path, on_progress)]
    return [
        _import(
            {"": files},
            target._replace(name=prefixes[folder][:-1] or target.name),
            folder,
            on_progress,
        )
        for folder, files in files_by_folder.items()
    ]


def event_files(path: Path) -> dict[Path, list[Path]]:
    """Return the event files in or below a folder, or the given file, grouped by folder."""
    if not path.exists():
        raise ConfigError(f"{path} does not exist; expected an event file or a folder of them")
    folders: dict[Path, list[Path]] = {}
    for file in sorted([path] if path.is_file() else _find_files(path), key=_natural_order):
        folders.setdefault(file.parent, []).append(file)
    if not folders:
        raise ConfigError(f"No event files ({_FILE_PATTERN}) in or below {path}")
    return folders


def _find_files(root: Path) -> Iterator[Path]:
    for folder, _, files in os.walk(root, onerror=_raise):
        yield from (Path(folder, file) for file in files if fnmatchcase(file, _FILE_PATTERN))


def _raise(error: OSError) -> None:
    """Raise the error; `os.walk` skips unreadable folders by default."""
    raise error


def _natural_order(path: Path) -> tuple[Path, list[str | int]]:
    """Return a sort key that compares numbers by value: writers number their files."""
    parts = _DIGITS.split(path.name)
    return path.parent, [int(part) if i % 2 else part for i, part in enumerate(parts)]


def _prefix(folder: Path, root: Path) -> str:
    relative = folder.relative_to(root).as_posix()
    return "" if relative == "." else f"{relative}/"


def _import(
    folders: Mapping[str, list[Path]], target: ImportTarget, source: Path, on_progress: OnProgress
) -> ImportResult:
    total = sum(file.stat().st_size for files in folders.values() for file in files)
    with RunWriter(target, source) as run:
        importers = [_FolderImporter(prefix, run, is_only=len(folders) == 1) for prefix in folders]
        streams = map(_FolderImporter.events, importers, folders.values())
        merged = heapq.merge(*streams, key=lambda pair: pair[0].wall_time)
        for number, (event, importer) in enumerate(merged):
            importer.add(event)
            if number % _EVENTS_PER_REPORT == 0:
                on_progress(sum(importer.bytes_read for importer in importers), total)
        configs = {importer.prefix: importer.config for importer in importers if importer.config}
        if len(configs) == 1:
            (run.config,) = configs.values()
        else:
            run.config = {prefix[:-1] or ".": config for prefix, config in configs.items()}
        return run.finish()


class _FolderImporter:
    """Adds the events of one folder to a run; `config` collects its hyperparameters.

    Restarts and failures apply to the whole run, so they are imported only if `is_only` is true.
    """

    def __init__(self, prefix: str, run: RunWriter, *, is_only: bool) -> None:
        self.prefix = prefix
        self.config: dict[str, Any] = {}
        self.bytes_read = 0
        self._run = run
        self._is_only = is_only
        self._plugins: dict[str, str] = {}  # by tag: only the first value of a tag names its plugin

    def events(self, files: list[Path]) -> Iterator[tuple[Event, _FolderImporter]]:
        """Yield the events of all files, each with this importer.

        Of a torn or damaged file, the events before the damage are read.
        """
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

        from metricbus._compat.tensorboard import Event
        from metricbus.sinks.tensorboard.event_file import read_tfrecords

        for file in files:
            before, read = self.bytes_read, 0
            for data, read in read_tfrecords(file):
                self.bytes_read = before + read
                try:
                    yield Event.FromString(data), self
                except DecodeError:
                    self._run.skipped.add("events that cannot be decoded", f"in {file}")
            if (size := file.stat().st_size) > read:
                reason = "bytes in the torn or damaged ends of files"
                self._run.skipped.add(reason, f"in {file}", size - read)

    def add(self, event: Event) -> None:
        kind = event.WhichOneof("what")
        if kind == "summary":
            self._add_summary(event)
        elif kind == "session_log":
            self._add_restart(event)
        elif kind not in _IGNORED_EVENTS:
            self._run.skipped.add(f"events of kind {kind}")

    def _add_restart(self, event: Event) -> None:
        """Add a rewind if a writer restarted: TensorBoard then drops values from its step on."""
        if event.session_log.status != event.session_log.START or event.step <= 0:
            return
        if self._is_only:
            self._run.add_rewind(Rewind(step=event.step - 1, epoch=0, time=_time(event)))
        else:
            self._run.skipped.add("restarts of one of several folders", f"in {self.prefix}")

    def _add_summary(self, event: Event) -> None:
        """Add the media and the scalars of an event; a repeated name starts another row."""
        row: dict[str, Number] = {}
        for value in event.summary.value:
            plugin = self._plugin(value)
            if plugin == "hparams":
                self._add_hyperparameters(value)
                continue
            name = self.prefix + value.tag
            location = f"{name!r:.80} at step {event.step}"
            reason = _reason_to_skip(name, event.step, plugin)
            if reason:
                self._run.skipped.add(reason, location)
                continue
            if plugin in _MEDIA_PLUGINS:
                self._add_media(event, value, plugin, location)
                continue
            number = self._decode_scalar(value, location)
            if name in row:
                self._add_row(event, row)
                row = {}
            if number is not None:
                row[name] = number
        self._add_row(event, row)

    def _decode_scalar(self, value: Summary.Value, location: str) -> Number | None:
        from metricbus._importers.tensorboard_values import decode_scalar

        try:
            return decode_scalar(value)
        except (TypeError, ValueError):
            self._run.skipped.add("scalars that are not numbers", location)
            return None

    def _add_row(self, event: Event, row: dict[str, Number]) -> None:
        if row:
            self._run.add_row(ScalarRow(step=event.step, epoch=0, time=_time(event), values=row))

    def _add_media(self, event: Event, value: Summary.Value, plugin: str, location: str) -> None:
        from metricbus._importers.tensorboard_values import decode_media

        log_context = LogContext(self.prefix + value.tag, event.step, 0, _time(event))
        try:
            for record in decode_media(value, plugin, self._run.encode_context(log_context)):
                self._run.add_medium(record)
        except (TypeError, ValueError) as error:
            self._run.skipped.add(f"{plugin} that cannot be read", f"{location}: {error}")

    def _plugin(self, value: Summary.Value) -> str:
        from metricbus._importers.tensorboard_values import PLUGINS_OF_OLD_FIELDS

        field = value.WhichOneof("value")
        if field in PLUGINS_OF_OLD_FIELDS:
            return PLUGINS_OF_OLD_FIELDS[field]
        name = value.metadata.plugin_data.plugin_name
        if name:
            return self._plugins.setdefault(value.tag, name)
        return self._plugins.get(value.tag, "")

    def _add_hyperparameters(self, value: Summary.Value) -> None:
        from metricbus._compat.tensorboard import hparams_plugin

        if (plugin := hparams_plugin()) is None:
            self._run.skipped.add("hyperparameters")
            return
        data = plugin.data.HParamsPluginData.FromString(value.metadata.plugin_data.content)
        if value.tag == plugin.metadata.SESSION_START_INFO_TAG:
            for name, parameter in data.session_start_info.hparams.items():
                kind = parameter.WhichOneof("kind")
                if kind is not None:  # the first value counts, as on TensorBoard's page
                    self.config.setdefault(name, _to_json(getattr(parameter, kind)))
        elif value.tag == plugin.metadata.SESSION_END_INFO_TAG:
            has_failed = data.session_end_info.status == plugin.api.STATUS_FAILURE
            if has_failed and self._is_only:
                self._run.status = "failed"


def _reason_to_skip(name: str, step: int, plugin: str) -> str:
    """Return why a value cannot be imported; empty if it can."""
    try:
        check_name(name)
    except ValueError:
        return "values with invalid metric names"
    if step < 0:
        return "values at negative steps"
    if plugin in ("scalars", *_MEDIA_PLUGINS):
        return ""
    return f"values of plugin {plugin}" if plugin else "tensors"


def _to_json(value: Any) -> Any:
    """Convert a hyperparameter to a JSON value: a protobuf list to a Python list."""
    return list(value.items()) if hasattr(value, "items") else value


def _time(event: Event) -> int:
    """Return the time of the event in nanoseconds; 0 if it is not a plausible clock time."""
    return round(event.wall_time * 1e9) if 0 <= event.wall_time < 9e9 else 0
