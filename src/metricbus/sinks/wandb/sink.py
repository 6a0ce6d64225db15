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

import os
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from metricbus._common.media_records import MEDIA, MediumRecord
from metricbus._common.records import Rewind, Scalars, Status
from metricbus._journal.media_files import MediaFolder
from metricbus._journal.run import Run
from metricbus.errors import Unavailable
from metricbus.sinks.base import Sink
from metricbus.sinks.wandb.datastore import HistoryFile, files_of, mark_place
from metricbus.sinks.wandb.media import MediaColumns
from metricbus.sinks.wandb.names import (
    EPOCH,
    OURS,
    STEP,
    TIME,
    check_project,
    key_of,
)
from metricbus.sinks.wandb.service import WandbProcess, without_waiting
from metricbus.sinks.wandb.start import begin, choose_mode

if TYPE_CHECKING:
    import wandb

_EXIT_CODES = {
    "finished": 0,
    "running": 0,
    "failed": 1,
    "killed": 255,  # W&B's own for an interrupt
}
_LAST_WRITE_SECS = 20.0
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
    dedup = "position"
    prefers_subprocess = True
    Options = WandbOptions
    options: WandbOptions
    exclusive_reason = (
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
        self._process = WandbProcess()

    def open(self, run: Run, folder: Path, state: Mapping[str, Any]) -> None:
        """Begins the run, or goes on with it after the last row that its files have."""
        project = self._project or os.environ.get("WANDB_PROJECT") or run.project
        if project:
            check_project(project)
        self._folder = folder / "wandb"
        self._mode = choose_mode(self.options.mode)
        self._base: int = state.get("rows", 0)  # rows before those that come now
        self._given = 0
        self._known = max((HistoryFile(file).read_on() for file in self._files()), default=-1)
        self._logged = self._known  # the number of the last row that W&B has got
        self._next = self._known + 1  # the first number that was neither logged nor passed over
        self._axes: dict[str, str] = {}
        self._keys: dict[str, str] = {}
        if self._run is not None and not self._process.is_dead:  # another delivery had taken over
            with suppress(Exception):
                self._run.finish(exit_code=0)
        with self._process.alive():
            self._process.revive()
            self._run = begin(
                run,
                folder,
                entity=self._entity,
                project=project,
                mode=self._mode,
                group=self.options.group,
                tags=self.options.tags,
                notes=self.options.notes,
            )
            self._process.remember()
            self._run.define_metric("*", step_metric=STEP)
            self._media = MediaColumns(self._run, MediaFolder(folder), self.log_fallback)
        self._file: HistoryFile | None = None
        if not self._run.disabled:
            file = Path(self._run.settings.sync_file or "")
            mark_place(file, self._place)
            self._file = HistoryFile(file)

    def write(self, records: Sequence[Scalars | Rewind | MediumRecord]) -> None:
        """One history row each, with its number as W&B's step; those W&B has already are passed.

        Nothing is logged when a file of theirs is not what it was.
        """
        assert self._run is not None
        first = self._base + self._given
        new = [] if self._run.disabled else records[max(0, self._next - first) :]
        self._media.check(record for record in new if isinstance(record, MediumRecord))
        with self._process.alive():
            number = first + len(records) - len(new)
            with without_waiting(self._run):
                for record in new[:-1]:
                    self._log(record, number)
                    number += 1
            for record in new[-1:]:  # waits for all of them
                self._log(record, number)
        self._given += len(records)

    def _log(self, record: Scalars | Rewind | MediumRecord, number: int) -> None:
        assert self._run is not None
        self._run.log(self._row(record, number), step=number, commit=True)
        self._logged, self._next = number, number + 1

    def skip_rejected(self, count: int) -> None:
        """A rejected record has a number too: so it is the same when records come again."""
        self._given += count
        self._next = max(self._next, self._base + self._given)

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

    def acknowledged(self) -> int | None:
        """The rows that W&B's file has."""
        if self._file is None:
            return None
        newest = self._newest(self._file)
        return self._given if newest >= self._logged else max(0, newest + 1 - self._base)

    def _newest(self, file: HistoryFile) -> int:
        """The number of the last row that W&B's files have."""
        return max(self._known, file.read_on())

    def close(self, status: Status) -> None:
        """Ends the run; W&B's process writes, and online sends, all that it has.

        Its last write may come a little after W&B says that the run has ended.
        """
        assert self._run is not None
        with self._process.alive():
            self._run.finish(exit_code=_EXIT_CODES.get(status, 1))
        deadline = time.monotonic() + _LAST_WRITE_SECS
        file = self._file
        while file and not (self._newest(file) >= self._logged and file.ended):
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"W&B has ended the run, but has not written all into {self.where}"
                )
            time.sleep(_LOOK_AGAIN_SECS)

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
