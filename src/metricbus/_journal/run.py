"""A run's identity and its folder.

    run.json      the fields of `Run`
    journal/      the segments
    summary/      statistics of long segments
    media/        the files of media
    offsets/      each sink's cursor, and the leases
    delivery/     files by which training and delivery process communicate; the latter's log
    csv/ …        output of the sinks that write files

The id is unique and names the folder; the name is a label that several runs may share.
"""

from __future__ import annotations

import math
import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from metricbus._common.files import replace_file
from metricbus._common.processes import ProcessId, this_process
from metricbus._common.records import (
    FORMAT_VERSION,
    Best,
    Number,
    RunUpdate,
    Status,
    Values,
    number_from_json,
    number_to_json,
)
from metricbus.errors import ConfigError, JournalError, RunExistsError

_LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"  # 32: a byte modulo 32 is evenly distributed
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class Run(msgspec.Struct, kw_only=True, frozen=True):
    """The identity and the description of a run, as stored in run.json.

    Times are in nanoseconds since 1970-01-01 UTC. `summary` has final values by name. `sinks` are
    sink URLs without secrets. `host`, `pid`, `process_started` and `program`, the path of the
    script, describe the process of the newest `attempt`. `launch` is the id shared by all ranks
    that a launcher such as torchrun started together, empty without one.
    """

    id: str
    name: str
    project: str | None = None
    config: dict[str, Any] = {}
    tags: list[str] = []
    group: str | None = None
    notes: str | None = None
    sinks: list[str] = []
    host: str = ""
    pid: int = 0
    process_started: int = 0
    started: int = 0
    ended: int | None = None
    status: Status = "running"
    program: str = ""
    attempt: int = 1
    launch: str = ""
    format: int = FORMAT_VERSION
    summary: Values = {}

    @property
    def process(self) -> ProcessId:
        """The process of the newest attempt."""
        return ProcessId(self.host, self.pid, self.process_started)

    def updated(self, *updates: RunUpdate) -> Run:
        """Return the run with updates of its config, tags and summary applied in this order."""
        config, tags, summary = dict(self.config), dict.fromkeys(self.tags), dict(self.summary)
        for update in updates:
            # Another process may have added names that are the same after joining them with "/".
            flat = flat_config(update.config).keys()
            kept = [
                key
                for key in config
                if key in update.config or not flat & flat_config({key: config[key]}).keys()
            ]
            config = {key: config[key] for key in kept} | update.config
            tags |= dict.fromkeys(update.tags)
            for name, value in update.summary.items():
                if value is None:
                    summary.pop(name, None)
                elif not update.best or is_better(value, summary.get(name), update.best):
                    summary[name] = value
        return msgspec.structs.replace(self, config=config, tags=list(tags), summary=summary)

    def to_json(self) -> bytes:
        """Return the content of run.json."""
        summary = {name: number_to_json(value) for name, value in self.summary.items()}
        run = msgspec.structs.replace(self, summary=summary)
        return msgspec.json.format(msgspec.json.encode(run)) + b"\n"


def is_better(value: Number, than: Number | None, best: Best) -> bool:
    """Check whether a value is better than another one or none. A NaN never is."""
    if than is None:
        return not math.isnan(value)
    return value > than if best == "max" else value < than


_decode_run = msgspec.json.Decoder(Run).decode


class RunFolder:
    """The folder of one run: paths in it, and its `run.json`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def journal(self) -> Path:
        """The folder of the segments."""
        return self.path / "journal"

    @property
    def delivery(self) -> Path:
        """The folder by which training and delivery process communicate."""
        return self.path / "delivery"

    @property
    def offsets(self) -> Path:
        """The folder of the sinks' cursors and leases."""
        return self.path / "offsets"

    def load(self) -> Run:
        """Read run.json; raise `JournalError` if it is missing, invalid or of a newer format."""
        file = self.path / "run.json"
        try:
            run = _decode_run(file.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise JournalError(
                f"{self.path} is not a run folder: it contains no run.json; expected a folder such "
                "as runs/<id>"
            ) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise JournalError(f"{file} cannot be read: {error}") from error
        if run.format > FORMAT_VERSION:
            raise JournalError(
                f"{file} has format {run.format}, but this metricbus reads formats up to "
                f"{FORMAT_VERSION}: pip install --upgrade metricbus"
            )
        run.summary.update({n: number_from_json(v) for n, v in run.summary.items()})
        return run

    def save(self, run: Run) -> None:
        """Write run.json, atomically."""
        replace_file(self.path / "run.json", run.to_json())


def create_run(
    root: Path, *, id: str | None, name: str | None, config: Mapping[str, Any], **fields: Any
) -> tuple[RunFolder, Run]:
    """Create a run and its folder under `root`; `fields` are further fields of `Run`.

    Without an id, one is made of the name and the time. Raises `RunExistsError` if the id is taken
    and `ConfigError` if the folder cannot be created.
    """
    name = name or "run"
    owner = this_process()
    run = Run(
        id=_check_id(id) if id is not None else _generate_id(name),
        name=name,
        config=plain_config(config),
        host=owner.host,
        pid=owner.pid,
        process_started=owner.started,
        started=time.time_ns(),
        program=main_script(),
        **fields,
    )
    folder = RunFolder(root.absolute() / run.id)
    try:
        folder.path.mkdir(parents=True)
        folder.journal.mkdir()
        folder.offsets.mkdir()
        folder.save(run)
    except FileExistsError:
        if not folder.path.is_dir():
            raise ConfigError(
                f"{root} is not a folder; choose another one with dir= or METRICBUS_DIR"
            ) from None
        raise RunExistsError(
            f"{root} already has a run with the id {run.id!r}; resume it with resume=True, or omit "
            "id= and METRICBUS_RUN_ID to generate a new id"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"cannot create the run folder {folder.path}: {error.strerror}; choose a writable "
            "folder with dir= or METRICBUS_DIR"
        ) from error
    return folder, run


def _generate_id(name: str) -> str:
    """Return an id of the name, the time and random letters: `digits-cnn-20260131-142530-k3x9a`."""
    letters = "".join(_LETTERS[byte % len(_LETTERS)] for byte in os.urandom(5))
    return f"{slugify(name)}-{time.strftime('%Y%m%d-%H%M%S')}-{letters}"


def slugify(name: str) -> str:
    """Return the name in a form that can start a folder name: `Digits CNN!` gives `digits-cnn`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "run"


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config as JSON values.

    Arrays become lists; NaN, the infinities, and values that JSON lacks become their `str()`.
    Raises `ConfigError` if two keys are the same in JSON or once nested keys are joined.
    """
    plain = msgspec.to_builtins(dict(config), str_keys=True, enc_hook=_to_jsonable)
    result: dict[str, Any] = _nonfinite_to_text(plain)
    _check_keys(config)
    flat_config(result)
    return result


def _check_keys(config: Mapping[Any, Any]) -> None:
    """Raise `ConfigError` for keys such as `1` and `"1"`, which are the same in JSON."""
    names = [str(key) for key in config]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"the config has the key {name!r} twice, as a string and as another type"
            )
    for value in config.values():
        if isinstance(value, Mapping):
            _check_keys(value)


def flat_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the config without nesting: `{"optimizer": {"lr": 1}}` gives `{"optimizer/lr": 1}`.

    Raises `ConfigError` if two values would get the same name.
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        is_nested = isinstance(value, dict) and value
        part = flat_config(value, f"{prefix}{key}/") if is_nested else {prefix + key: value}
        if duplicates := flat.keys() & part.keys():
            raise ConfigError(
                f"the config has the key {min(duplicates)!r} twice, once nested; rename one of them"
            )
        flat |= part
    return flat


def main_script() -> str:
    """Return the path of the running script; empty in a notebook or an interactive session."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    return os.path.abspath(file) if file else ""


def _check_id(id: str) -> str:
    if not isinstance(id, str) or not _ID.fullmatch(id):
        raise ConfigError(
            f"the run id {id!r:.80} is not a valid folder name; use up to 200 letters, digits, "
            "'.', '_' and '-', starting with a letter or digit"
        )
    return id


def _to_jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):  # scalars and arrays of numpy and torch
        return value.tolist()
    return str(value)


def _nonfinite_to_text(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nonfinite_to_text(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_nonfinite_to_text(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
