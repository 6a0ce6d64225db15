"""Weights & Biases: one run of its own, one history row for each row and each medium.

W&B's own step only ever grows, and rows that come late are dropped. So its `_step` is the row's
number, and the x axis of every chart is a column of ours: `metricbus/step`; for what is reduced
over an epoch `metricbus/epoch`; for a series with an axis of its own `metricbus/x/<axis>`. Late and
repeated steps are kept. `metricbus/time` has the seconds since 1970, as has W&B's `_timestamp`.

Names that W&B or these columns need (`_…`, `metricbus/…`) are written as `logged/…`; all others are
as they are.

What W&B's own process has taken is in its file some 15 seconds later, or when the run ends. Until
then it does not count as settled, and comes again if that process dies. A run that is opened again
goes on after the last row that its files have.
"""

from __future__ import annotations

import logging
import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from metricbus.errors import ConfigError, Lost, Rejected, Unavailable
from metricbus.media import MediaFolder
from metricbus.media_records import MEDIA, MediumRecord
from metricbus.records import Rewind, Scalars, Status
from metricbus.run import Run
from metricbus.sinks.base import Sink
from metricbus.sinks.wandb_file import HistoryFile, files_of, mark_place
from metricbus.sinks.wandb_media import MediaColumns
from metricbus.sinks.wandb_names import (
    EPOCH,
    OURS,
    STEP,
    TIME,
    check_project,
    key_of,
    run_id,
    short_tags,
)

if TYPE_CHECKING:
    import wandb

_log = logging.getLogger("metricbus.sinks.wandb")

_EXIT_CODES = {
    "finished": 0,
    "running": 0,
    "failed": 1,
    "killed": 255,  # W&B's own for an interrupt
}
_LAST_WRITE_SECS = 20.0
_OF_THE_DEAD = frozenset(  # errors of W&B that mean that the connection to its process is gone
    (
        "AlreadyJoinedError",
        "HandleAbandonedError",
        "MailboxClosedError",
        "WandbServiceConnectionError",
    )
)
_LOOK_AGAIN_SECS = 0.01


class WandbOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the URL may say beside the location; what it leaves out, the run or W&B's settings say.

    `tags` are added to the run's own.
    """

    entity: str | None = None
    project: str | None = None
    mode: Literal["online", "offline"] | None = None
    group: str | None = None
    tags: list[str] = []
    notes: str | None = None


class WandbSink(Sink):
    """Logs to Weights & Biases; `wandb://team/project` says where to."""

    kinds = (Scalars, Rewind, *MEDIA)
    ordered = True
    heavy = True
    Options = WandbOptions
    options: WandbOptions
    only_one = (
        "W&B takes a run only once in a process; bring it to the second place when the run has "
        "ended: metricbus deliver RUN --sinks wandb:elsewhere"
    )
    requires = ("wandb",)
    install = "pip install 'metricbus[wandb]'"

    def __init__(self, location: str = "", options: Any = None) -> None:
        """Takes the location apart and checks the project's name."""
        super().__init__(location, options)
        entity, _, project = location.strip("/").rpartition("/")
        self._entity = self.options.entity or entity or None
        self._project = self.options.project or project or None
        self._place = f"{self._entity or ''}/{self._project or ''}"
        if self._project:
            check_project(self._project)
        self._run: wandb.Run | None = None
        self._is_dead = False  # W&B's own process
        self._setup: object = None  # and what it belonged to

    def open(self, run: Run, folder: Path, state: Mapping[str, Any]) -> None:
        """Begins the run, or goes on with it after the last row that its files have."""
        project = self._project or os.environ.get("WANDB_PROJECT") or run.project
        if project:
            check_project(project)
        self._folder = folder / "wandb"
        self._mode = self._choose_mode()
        self._base: int = state.get("rows", 0)  # rows before those that come now
        self._given = 0
        self._known = max((HistoryFile(file).read_on() for file in self._files()), default=-1)
        self._next = self._known + 1  # the number of the next row that W&B has not got
        self._axes: dict[str, str] = {}
        self._keys: dict[str, str] = {}
        if self._run is not None and not self._is_dead:  # another delivery had taken over
            with suppress(Exception):
                self._run.finish(exit_code=0)
        with self._alive():
            self._run = self._begin(run, folder, project)
            self._run.define_metric("*", step_metric=STEP)
            self._media = MediaColumns(self._run, MediaFolder(folder), self.tell_fallback)
        self._file: HistoryFile | None = None
        if not self._run.disabled:
            file = Path(self._run.settings.sync_file or "")
            mark_place(file, self._place)
            self._file = HistoryFile(file)

    def _begin(self, run: Run, folder: Path, project: str | None) -> wandb.Run:
        import wandb

        if self._is_dead:  # and with it every run of this script: a new one is started
            if wandb.setup() is self._setup:  # unless somebody has done so already
                with suppress(Exception, SystemExit):
                    wandb.teardown()
            self._is_dead = False
        begun = wandb.init(
            entity=self._entity,
            project=project,
            id=run_id(run.id),
            name=run.name,
            config=dict(run.config),
            group=self.options.group or run.group,
            tags=short_tags([*run.tags, *self.options.tags]),
            notes=self.options.notes or run.notes,
            dir=str(folder),
            mode=self._mode,
            resume="allow" if self._mode == "online" else None,
            reinit="create_new",  # a run of ours beside those that the script may have
            settings=wandb.Settings(
                console="off",
                silent=True,
                allow_media_symlink=True,  # no copies of media; by the next line hard links
                symlink=False,
                **_about_training(run),
            ),
        )
        self._setup = wandb.setup()
        with suppress(AttributeError):  # it is no part of W&B's public face
            # else `wandb.init()` in the script would give out our run, or end it
            self._setup.remove_active_run(begun)
        return begun

    def _choose_mode(self) -> Literal["online", "offline"] | None:
        """What the URL or W&B's own settings say; else online with a key, and offline without.

        W&B would ask for a missing key in the terminal, in the midst of training.
        """
        mode = self.options.mode or os.environ.get("WANDB_MODE") or None
        if mode not in (None, "online"):
            return self.options.mode
        if _has_key():
            return "online"
        if mode == "online":
            raise ConfigError(
                "W&B is to be online, but has no API key: run 'wandb login', set WANDB_API_KEY, or "
                "choose wandb?mode=offline"
            )
        return "offline"

    def write(self, records: Sequence[Scalars | Rewind | MediumRecord]) -> None:
        """One history row each, with its number as W&B's step; those W&B has already are passed.

        Nothing is logged when a file of theirs is not what it was.
        """
        assert self._run is not None
        first = self._base + self._given
        new = [] if self._run.disabled else records[max(0, self._next - first) :]
        self._media.check(record for record in new if isinstance(record, MediumRecord))
        with self._alive():
            for number, record in enumerate(new, first + len(records) - len(new)):
                self._run.log(self._row(record, number), step=number, commit=True)
                self._next = number + 1
        self._given += len(records)

    def _row(self, record: Scalars | Rewind | MediumRecord, number: int) -> dict[str, Any]:
        row: dict[str, Any] = {
            STEP: record.step,
            EPOCH: record.epoch,
            TIME: record.time / 1e9,
            "_timestamp": record.time / 1e9,
        }
        if isinstance(record, Rewind):
            row[f"{OURS}rewind"] = record.step
            return row
        axis = EPOCH if record.axis == "epoch" else STEP
        if record.axis not in ("", "epoch"):
            axis = f"{OURS}x/{record.axis}"
            row[axis] = record.x if record.at is None else record.at
        if isinstance(record, MediumRecord):
            columns = self._media.of(record, number)
            self._define_axis(next(iter(columns)), axis)
            return row | columns
        if record.partial:
            row[f"{OURS}partial"] = True
        for name, value in record.values.items():
            key = self._keys.get(name)
            if key is None:
                key = self._keys[name] = key_of(name)
            self._define_axis(key, axis)
            row[key] = value
        return row

    def _define_axis(self, key: str, axis: str) -> None:
        assert self._run is not None
        if self._axes.get(key, STEP) == axis:
            return
        self._axes[key] = axis
        if "*" not in key:  # W&B takes it for a pattern
            self._run.define_metric(key, step_metric=axis)

    def flush(self) -> Mapping[str, Any]:
        """How many rows the run has."""
        return {"rows": self._base + self._given}

    def settled(self) -> int | None:
        """The rows that W&B's file has."""
        if self._file is None:
            return None
        return max(0, self._newest(self._file) + 1 - self._base)

    def _newest(self, file: HistoryFile) -> int:
        """The number of the last row that W&B's files have."""
        return max(self._known, file.read_on())

    def close(self, status: Status) -> None:
        """Ends the run; W&B's process writes, and online sends, all that it has.

        Its last write may come a little after W&B says that the run has ended.
        """
        assert self._run is not None
        with self._alive():
            self._run.finish(exit_code=_EXIT_CODES.get(status, 1))
        deadline = time.monotonic() + _LAST_WRITE_SECS
        file = self._file
        while file and not (self._newest(file) >= self._next - 1 and file.ended):
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"W&B has ended the run, but has not written all into {self.where}"
                )
            time.sleep(_LOOK_AGAIN_SECS)

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """Around calls: `Lost` if W&B's own process is gone."""
        try:
            yield
        except Exception as error:
            if isinstance(error, PermissionError):
                raise Rejected(str(error)) from error  # the folder in which W&B keeps tables
            if isinstance(error, OSError) and error.filename is not None:
                raise  # a full disk, for one
            if isinstance(error, OSError) or type(error).__name__ in _OF_THE_DEAD:
                self._is_dead = True
                raise Lost(f"W&B's own process is gone ({type(error).__name__})") from error
            if type(error).__name__ == "UsageError" and "is finished" in str(error):
                raise Lost(f"somebody else has ended the run ({error})") from error
            raise

    @property
    def where(self) -> str:
        """The run's page, or its folder if it is offline."""
        assert self._run is not None
        return str(self._folder) if self._run.offline else self._run.url or ""

    @property
    def command(self) -> str:
        """Sends an offline run to W&B."""
        assert self._run is not None
        if not self._run.offline:
            return ""
        return "wandb sync " + " ".join(shlex.quote(str(file.parent)) for file in self._files())

    def _files(self) -> list[Path]:
        """W&B's files of this run that went to where this sink goes, the oldest first.

        What stands in the file of an offline run is not online.
        """
        return files_of(self._folder, self._place, offline=self._mode != "online")


def _about_training(run: Run) -> dict[str, Any]:
    """Settings that have W&B record the training rather than the process that delivers.

    Of a training that is over or elsewhere, there is nothing to record but its name.
    """
    is_here = run.process.is_here and run.process.is_alive()
    about: dict[str, Any] = {"x_disable_stats": not is_here, "disable_git": not is_here}
    if is_here:
        about["x_stats_pid"] = run.pid
        about["git_root"] = os.getcwd()  # W&B would look around the run's folder
    if run.program:
        about["program"] = run.program
    return about


def _has_key() -> bool:
    """Whether W&B finds an API key, or is in use by the script itself."""
    import wandb

    if wandb.run is not None:
        return not wandb.run.offline
    return wandb.login(prompt=False, verify=False)
