"""Event files of TensorBoard become runs: by TensorBoard's own loader, with steps and times.

A folder is a run to TensorBoard, and a prefix of the names here, as TensorBoard's page shows it:
`train/events…` gives `train/loss`. Folders are read side by side, in the order of their events'
times; within a folder the order is that of the files.
"""

from __future__ import annotations

import heapq
import os
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metricbus._common.media_base import LogContext
from metricbus._common.records import Number, Rewind, Scalars
from metricbus._common.validation import check_name
from metricbus._importers.run_writer import ImportTarget, ImportResult, RunWriter, new_run
from metricbus._journal.segment_reader import OnProgress
from metricbus.errors import ConfigError, MissingPackageError

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

_PATTERN = "*tfevents*"
_DIGITS = re.compile(r"(\d+)", re.ASCII)
_FRAME = 16  # bytes of a record beside its data
_EVENTS_A_REPORT = 5_000
_MEDIA = ("histograms", "images", "audio", "text")
_QUIET = ("file_version", None)  # events that say nothing of a run


def import_tensorboard(
    path: Path,
    to: ImportTarget,
    *,
    each: bool = False,
    on_progress: OnProgress = lambda done, total: None,
) -> list[ImportResult]:
    """Makes a run of the event files in or below `path`; if `each`, one of every folder of them.

    Scalars, histograms, images, audio, texts and hyperparameters are taken.

    Raises `ConfigError` if there are none or the run cannot be made, `MissingPackageError` without
    tensorboard, and `OSError` for a file that cannot be read.
    """
    if find_spec("tensorboard") is None:
        raise MissingPackageError(
            "event files are read by tensorboard, which is not installed: "
            "pip install 'metricbus[tensorboard]'"
        )
    folders = event_files(path)
    root = path if path.is_dir() else path.parent
    if not each:
        by_prefix = {_prefix(one, root): files for one, files in folders.items()}
        return [_import(by_prefix, to, path, on_progress)]
    return [
        _import({"": files}, to._replace(name=_prefix(one, root)[:-1] or to.name), one, on_progress)
        for one, files in folders.items()
    ]


def event_files(path: Path) -> dict[Path, list[Path]]:
    """The event files in or below a folder, or the one given, by the folder that they are in."""
    if not path.exists():
        raise ConfigError(f"there is no {path}; give an event file or a folder of them")
    folders: dict[Path, list[Path]] = {}
    for file in sorted([path] if path.is_file() else _below(path), key=_by_numbers):
        folders.setdefault(file.parent, []).append(file)
    if not folders:
        raise ConfigError(f"there is no event file ({_PATTERN}) in {path} or below")
    return folders


def _below(folder: Path) -> Iterator[Path]:
    for inner, _, files in os.walk(folder, onerror=_refuse):
        yield from (Path(inner, file) for file in files if fnmatchcase(file, _PATTERN))


def _refuse(error: OSError) -> None:
    """A folder that cannot be read would otherwise count as empty."""
    raise error


def _by_numbers(path: Path) -> tuple[Path, list[str | int]]:
    """Writers number the files of a process: the tenth comes after the ninth."""
    parts = _DIGITS.split(path.name)
    return path.parent, [int(part) if i % 2 else part for i, part in enumerate(parts)]


def _prefix(folder: Path, root: Path) -> str:
    below = folder.relative_to(root).as_posix()
    return "" if below == "." else f"{below}/"


def _import(
    folders: Mapping[str, list[Path]], to: ImportTarget, source: Path, on_progress: OnProgress
) -> ImportResult:
    total = sum(file.stat().st_size for files in folders.values() for file in files)
    with new_run(to, source) as run:
        alone = len(folders) == 1
        readers = [_Folder(prefix, run, alone=alone) for prefix in folders]
        streams = map(_Folder.events, readers, folders.values())
        merged = heapq.merge(*streams, key=lambda pair: pair[0].wall_time)
        for number, (event, reader) in enumerate(merged):
            reader.take(event)
            if number % _EVENTS_A_REPORT == 0:
                on_progress(sum(one.read for one in readers), total)
        configs = {reader.prefix: reader.config for reader in readers if reader.config}
        if len(configs) == 1:
            (run.config,) = configs.values()
        else:
            run.config = {prefix[:-1] or ".": config for prefix, config in configs.items()}
        return run.end()


class _Folder:
    """Brings the events of one folder into a run; `config` has its hyperparameters.

    Only one that is `alone` may supersede: a restart of its own is none of others.
    """

    def __init__(self, prefix: str, run: RunWriter, *, alone: bool) -> None:
        self.prefix = prefix
        self.config: dict[str, Any] = {}
        self.read = 0  # bytes
        self._run = run
        self._alone = alone
        self._plugins: dict[str, str] = {}  # by tag: only its first value has to tell

    def events(self, files: list[Path]) -> Iterator[tuple[Event, _Folder]]:
        """The events in the order of the files, each with whose it is; of a file that is torn or
        damaged, what stands before that.
        """
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
        from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
        from tensorboard.compat.proto.event_pb2 import Event

        for file in files:
            with open(file, "rb") as opened:  # the loader's own error names no reason
                size = os.fstat(opened.fileno()).st_size
            read = 0
            for data in RawEventFileLoader(str(file)).Load():
                read += len(data) + _FRAME
                self.read += len(data) + _FRAME
                try:
                    yield Event.FromString(data), self
                except DecodeError:
                    self._run.left_out.add("events that cannot be read", f"in {file}")
            if read < size:
                self._run.left_out.add("bytes of torn or damaged ends", f"in {file}", size - read)

    def take(self, event: Event) -> None:
        """Brings one event into the run."""
        what = event.WhichOneof("what")
        if what == "summary":
            self._take_summary(event)
        elif what == "session_log":
            self._take_session(event)
        elif what not in _QUIET:
            self._run.left_out.add(f"events of the kind {what}")

    def _take_session(self, event: Event) -> None:
        """A writer that began again at a step has TensorBoard forget what stood from there on."""
        if event.session_log.status != event.session_log.START or event.step <= 0:
            return
        if self._alone:
            self._run.rewind(Rewind(step=event.step - 1, epoch=0, time=_time(event)))
        else:
            self._run.left_out.add("restarts, of one folder beside others", f"in {self.prefix}")

    def _take_summary(self, event: Event) -> None:
        """One row of the event's numbers, and its media; a name that comes again, one row more."""
        row: dict[str, Number] = {}
        for value in event.summary.value:
            plugin = self._plugin_of(value)
            if plugin == "hparams":
                self._take_hparams(value)
                continue
            name = self.prefix + value.tag
            where = f"{name!r:.80} at step {event.step}"
            if not self._is_taken(name, event.step, plugin, where):
                continue
            if plugin in _MEDIA:
                self._take_media(event, value, plugin, where)
                continue
            number = self._number_of(value, where)
            if name in row:
                self._add(event, row)
                row = {}
            if number is not None:
                row[name] = number
        self._add(event, row)

    def _is_taken(self, name: str, step: int, plugin: str, where: str) -> bool:
        left_out = self._run.left_out
        try:
            check_name(name)
        except ValueError:
            left_out.add("values whose names no metric may have", where)
            return False
        if step < 0:
            left_out.add("values at negative steps", where)
        elif plugin not in ("scalars", *_MEDIA):
            left_out.add(f"values of the plugin {plugin}" if plugin else "tensors", where)
        else:
            return True
        return False

    def _number_of(self, value: Summary.Value, where: str) -> Number | None:
        from metricbus._importers.summaries import number_of

        try:
            return number_of(value)
        except (TypeError, ValueError):
            self._run.left_out.add("scalars that are no number", where)
            return None

    def _add(self, event: Event, row: dict[str, Number]) -> None:
        if row:
            self._run.row(Scalars(step=event.step, epoch=0, time=_time(event), values=row))

    def _take_media(self, event: Event, value: Summary.Value, plugin: str, where: str) -> None:
        from metricbus._importers.summaries import media_of

        stamp = LogContext(self.prefix + value.tag, event.step, 0, _time(event))
        try:
            for record in media_of(value, plugin, self._run.work(stamp)):
                self._run.medium(record)
        except (TypeError, ValueError) as error:
            self._run.left_out.add(f"{plugin} that cannot be read", f"{where} ({error})")

    def _plugin_of(self, value: Summary.Value) -> str:
        from metricbus._importers.summaries import OLD_FORMS

        form = value.WhichOneof("value")
        if form in OLD_FORMS:
            return OLD_FORMS[form]
        named = value.metadata.plugin_data.plugin_name
        return (
            self._plugins.setdefault(value.tag, named)
            if named
            else self._plugins.get(value.tag, "")
        )

    def _take_hparams(self, value: Summary.Value) -> None:
        from tensorboard.plugins.hparams import metadata, plugin_data_pb2

        data = plugin_data_pb2.HParamsPluginData.FromString(value.metadata.plugin_data.content)
        if value.tag == metadata.SESSION_START_INFO_TAG:
            for name, found in data.session_start_info.hparams.items():
                kind = found.WhichOneof("kind")
                if kind is not None:
                    self.config[name] = _plain(getattr(found, kind))
        elif value.tag == metadata.SESSION_END_INFO_TAG:
            self._take_end(data.session_end_info.status)

    def _take_end(self, status: int) -> None:
        from tensorboard.plugins.hparams import api_pb2

        if status == api_pb2.STATUS_FAILURE and self._alone:
            self._run.status = "failed"


def _plain(value: Any) -> Any:
    """A hyperparameter as JSON has it; a list of them is of a class of its own."""
    return list(value.items()) if hasattr(value, "items") else value


def _time(event: Event) -> int:
    """The event's time in nanoseconds; 0 where it has none that a clock could show."""
    return round(event.wall_time * 1e9) if 0 <= event.wall_time < 9e9 else 0
