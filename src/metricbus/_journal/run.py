"""A run and its folder: who it is, where its files lie.

    run.json      what stands in `Run`
    journal/      segments
    offsets/      one small file per sink
    delivery/     what the delivery process and the training tell each other; its log
    csv/ …        what the file sinks write

An id is unique and names the folder; the name is a label that may come again.
"""

from __future__ import annotations

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
from metricbus._common.records import FORMAT_VERSION, Status
from metricbus.errors import ConfigError, JournalError, RunExistsError

_LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"  # 32, so that each is as likely as any other
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class Run(msgspec.Struct, kw_only=True, frozen=True):
    """Who a run is. Times are nanoseconds since 1970-01-01 UTC; `sinks` are without secrets.

    `host`, `pid` and `process_started` are the process of the newest `attempt`, `program` its
    script.
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
    launch: str = ""  # what tells the launch of its ranks from others; empty without a launcher
    format: int = FORMAT_VERSION

    @property
    def process(self) -> ProcessId:
        """The process of the newest attempt."""
        return ProcessId(self.host, self.pid, self.process_started)


class RunFolder:
    """The folder of one run: paths in it, and its `run.json`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def journal(self) -> Path:
        """Where the segments lie."""
        return self.path / "journal"

    @property
    def delivery(self) -> Path:
        """Where the delivery process and its run's process leave each other word."""
        return self.path / "delivery"

    @property
    def offsets(self) -> Path:
        """Where the sinks' progress is kept."""
        return self.path / "offsets"

    def load(self) -> Run:
        """What run.json says; `JournalError` when there is none that can be read."""
        file = self.path / "run.json"
        try:
            run = msgspec.json.decode(file.read_bytes(), type=Run)
        except (FileNotFoundError, NotADirectoryError):
            raise JournalError(
                f"{self.path} is no run's folder: there is no run.json in it; give a folder such "
                "as runs/<id>"
            ) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise JournalError(f"{file} cannot be read: {error}") from error
        if run.format > FORMAT_VERSION:
            raise JournalError(
                f"{file} is in format {run.format}, this metricbus reads up to {FORMAT_VERSION}: "
                "pip install --upgrade metricbus"
            )
        return run

    def save(self, run: Run) -> None:
        """Replaces run.json as a whole."""
        replace_file(self.path / "run.json", msgspec.json.format(msgspec.json.encode(run)) + b"\n")


def create_run(
    root: Path,
    *,
    id: str | None,
    name: str | None,
    config: Mapping[str, Any],
    **about: Any,
) -> tuple[RunFolder, Run]:
    """Makes a new run's folder under `root`.

    Raises `RunExistsError` when the id is taken and `ConfigError` when the folder cannot be made.
    """
    name = name or "run"
    owner = this_process()
    run = Run(
        id=_check_id(id) if id is not None else make_id(name),
        name=name,
        config=plain_config(config),
        host=owner.host,
        pid=owner.pid,
        process_started=owner.started,
        started=time.time_ns(),
        program=program(),
        **about,
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
                f"{root} is no folder; choose another by dir= or METRICBUS_DIR"
            ) from None
        raise RunExistsError(
            f"a run with the id {run.id!r} is already in {root}; go on with it by resume=True, or "
            "leave id= and METRICBUS_RUN_ID out to have a new one made"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"cannot make the run's folder {folder.path}: {error.strerror}; choose one that can be "
            "written to by dir= or METRICBUS_DIR"
        ) from error
    return folder, run


def make_id(name: str) -> str:
    """An id from the name, the time and a few random letters: `digits-cnn-20260131-142530-k3x9`."""
    letters = "".join(_LETTERS[byte % len(_LETTERS)] for byte in os.urandom(5))
    return f"{slugify(name)}-{time.strftime('%Y%m%d-%H%M%S')}-{letters}"


def slugify(name: str) -> str:
    """The name as a folder's name may begin: `Digits CNN!` becomes `digits-cnn`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "run"


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as plain JSON values; what JSON has no word for becomes its `str()`."""
    plain = msgspec.to_builtins(dict(config), str_keys=True, enc_hook=_plain)
    cleaned: dict[str, Any] = _spell_nonfinite(plain)
    _check_keys(config)
    flat_config(cleaned)
    return cleaned


def _check_keys(config: Mapping[Any, Any]) -> None:
    """JSON knows text alone, and `1` and `"1"` are the same there."""
    names = [str(key) for key in config]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"config= has {name!r} twice, as text and as something else")
    for value in config.values():
        if isinstance(value, Mapping):
            _check_keys(value)


def flat_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The config without nesting: `{"optimizer": {"lr": 0.1}}` becomes `{"optimizer/lr": 0.1}`.

    Raises `ConfigError` where that gives a name twice.
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, dict) and value
        part = flat_config(value, f"{prefix}{key}/") if nested else {prefix + key: value}
        if twice := flat.keys() & part.keys():
            raise ConfigError(f"config= has {min(twice)!r} twice, once nested; rename one of them")
        flat |= part
    return flat


def program() -> str:
    """The script that runs; empty in a notebook or an interactive session."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    return os.path.abspath(file) if file else ""


def _check_id(id: str) -> str:
    if not isinstance(id, str) or not _ID.fullmatch(id):
        raise ConfigError(
            f"the run id {id!r:.80} cannot name a folder; use letters, digits, '.', '_' and '-', "
            "at most 200, beginning with a letter or digit"
        )
    return id


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # numpy and torch: numbers and arrays
        return value.tolist()
    return str(value)


def _spell_nonfinite(value: Any) -> Any:
    """JSON has no NaN and no infinities; in a config they are written as text."""
    if isinstance(value, dict):
        return {key: _spell_nonfinite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_spell_nonfinite(inner) for inner in value]
    if isinstance(value, float) and value - value != 0:
        return str(value)
    return value
