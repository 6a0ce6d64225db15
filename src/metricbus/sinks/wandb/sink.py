"""W&B sink: one W&B run for each metricbus run, one history row for each row and each medium.

W&B's own step only increases; W&B drops rows with a lower step. So `_step` is the number of the
row, and the x axis of every chart is a column of this sink: `metricbus/step`, or for a name with
another axis `metricbus/epoch` or `metricbus/x/<axis>`. Late and repeated steps are thus kept.
`metricbus/time` and W&B's `_timestamp` are in seconds since 1970.

Names that W&B or this sink reserves (`_…`, `metricbus/…`) become `logged/…`. Others are unchanged.

W&B's service process writes rows to its file about 15 seconds later, or when the run ends. Until
then they are not acknowledged, and they are sent again if that process dies. A resumed run
continues after the last row in its files.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metricbus._common.media_records import MEDIA_RECORD_TYPES, MediumRecord
from metricbus._common.records import Rewind, RunUpdate, ScalarRow, Status
from metricbus._compat.wandb import HistoryFile, find_files, save_destination, without_waiting
from metricbus._journal.media_files import MediaFolder
from metricbus._journal.run import Run
from metricbus.errors import BackendUnavailableError
from metricbus.sinks.base import Flushed, Sink
from metricbus.sinks.wandb.media import MediaConverter
from metricbus.sinks.wandb.names import EPOCH, PREFIX, STEP, TIME, check_project, column_name
from metricbus.sinks.wandb.service import WandbService
from metricbus.sinks.wandb.start import (
    WandbOptions,
    choose_mode,
    start_run,
    update_run,
    update_summary,
)

if TYPE_CHECKING:
    import wandb

_EXIT_CODES = {"finished": 0, "running": 0, "failed": 1, "killed": 255}  # 255 as W&B on Ctrl-C
_LAST_WRITE_SECS = 20.0
_POLL_SECS = 0.01


class WandbSink(Sink):
    """Logs to Weights & Biases: `wandb:PROJECT` or `wandb://TEAM/PROJECT`."""

    kinds = (ScalarRow, Rewind, RunUpdate, *MEDIA_RECORD_TYPES)
    dedup = "position"
    process = "delivery"
    Options = WandbOptions
    options: WandbOptions
    exclusive_reason = (
        "W&B allows a run only once in a process; when the run has ended, deliver it to the second "
        "project: metricbus deliver RUN --sinks wandb:elsewhere"
    )
    requires = ("wandb",)
    install = "pip install 'metricbus[wandb]'"

    _run: wandb.Run

    def __init__(self, location: str = "", options: Any = None) -> None:
        super().__init__(location, options)
        entity, _, project = location.strip("/").rpartition("/")
        self._entity = self.options.entity or entity or None
        self._project = self.options.project or project or None
        self._destination = f"{self._entity or ''}/{self._project or ''}"
        if self._project:
            check_project(self._project)
        self._is_open = False
        self._service = WandbService()

    def open(self, run: Run, folder: Path, state: Mapping[str, Any]) -> None:
        """Start or resume the W&B run, after the last row in its files."""
        project = self._project or os.environ.get("WANDB_PROJECT") or run.project
        if project:
            check_project(project)
        self._folder = folder / "wandb"
        self._source = run
        self._mode = choose_mode(self.options.mode)
        # Row numbers count all records ever written, `_base` of them before this open. W&B's files
        # already have the rows up to `_saved`; the next row to log is `_next` or higher.
        self._base: int = state.get("rows", 0)
        self._written = 0
        self._saved = max((HistoryFile(file).read_new() for file in self._files()), default=-1)
        self._last_logged = self._saved
        self._next = self._saved + 1
        self._axes: dict[str, str] = {}
        self._columns: dict[str, str] = {}
        if self._is_open and not self._service.is_dead:  # another process had the lease meanwhile
            with suppress(Exception):
                self._run.finish(exit_code=0)
        with self._service.map_errors():
            self._service.restart_if_dead()
            self._run = start_run(
                run, folder, self.options, entity=self._entity, project=project, mode=self._mode
            )
            self._is_open = True
            self._service.remember()
            self._run.define_metric("*", step_metric=STEP)
            self._media = MediaConverter(self._run, MediaFolder(folder), self.log_fallback)
        self._file: HistoryFile | None = None
        if not self._run.disabled:
            file = Path(self._run.settings.sync_file or "")
            save_destination(file, self._destination)
            self._file = HistoryFile(file)

    def write(self, records: Sequence[ScalarRow | Rewind | RunUpdate | MediumRecord]) -> None:
        """Log one history row for each record, except for those that W&B's files already have.

        An update of the run has a number too, but no row.

        Raises `MediaError` before the first row if a media file is missing or has changed.
        """
        first = self._base + self._written
        new = [] if self._run.disabled else records[max(0, self._next - first) :]
        self._media.check(record for record in new if isinstance(record, MediumRecord))
        with self._service.map_errors():
            number = first + len(records) - len(new)
            with without_waiting(self._run):
                for record in new[:-1]:
                    self._log(record, number)
                    number += 1
            for record in new[-1:]:  # waits for all of them
                self._log(record, number)
        self._written += len(records)

    def _log(self, record: ScalarRow | Rewind | RunUpdate | MediumRecord, number: int) -> None:
        if isinstance(record, RunUpdate):
            self._source = self._source.updated(record)
            update_run(self._run, self._source, record, self.options)
        else:
            self._run.log(self._row(record, number), step=number, commit=True)
            self._last_logged = number
        self._next = number + 1

    def _row(self, record: ScalarRow | Rewind | MediumRecord, number: int) -> dict[str, Any]:
        row: dict[str, Any] = {
            STEP: record.step,
            EPOCH: record.epoch,
            TIME: record.time / 1e9,
            "_timestamp": record.time / 1e9,
        }
        if isinstance(record, Rewind):
            row[f"{PREFIX}rewind"] = record.step
            return row
        axis = EPOCH if record.axis == "epoch" else STEP
        if record.axis not in ("", "epoch"):
            axis = f"{PREFIX}x/{record.axis}"
            row[axis] = record.x if record.at is None else record.at
        if isinstance(record, MediumRecord):
            columns = self._media.columns(record, number)
            self._define_axis(next(iter(columns)), axis)
            return row | columns
        if record.partial:
            row[f"{PREFIX}partial"] = True
        for name, value in record.values.items():
            column = self._columns.get(name)
            if column is None:
                column = self._columns[name] = column_name(name)
            self._define_axis(column, axis)
            row[column] = value
        return row

    def _define_axis(self, column: str, axis: str) -> None:
        if self._axes.get(column, STEP) == axis:
            return
        self._axes[column] = axis
        if "*" not in column:  # W&B treats it as a pattern
            self._run.define_metric(column, step_metric=axis)

    def flush(self) -> Flushed:
        """Return how many records have been written, and how many of them are in W&B's files."""
        state = {"rows": self._base + self._written}
        if self._file is None:
            return Flushed(state)
        saved = self._last_saved(self._file)
        is_all_saved = saved >= self._last_logged
        return Flushed(state, self._written if is_all_saved else max(0, saved + 1 - self._base))

    def _last_saved(self, file: HistoryFile) -> int:
        return max(self._saved, file.read_new())

    def close(self, status: Status) -> None:
        """Finish the W&B run: its service process saves (and, if online, uploads) all rows.

        W&B may report the end shortly before its last write, so wait for the end in its file.
        """
        with self._service.map_errors():
            # Otherwise later rows would have replaced final values of the same name.
            update_summary(self._run, self._source, self._source.summary)
            self._run.finish(exit_code=_EXIT_CODES.get(status, 1))
        deadline = time.monotonic() + _LAST_WRITE_SECS
        file = self._file
        while file and not (self._last_saved(file) >= self._last_logged and file.has_exit):
            if not file.is_readable:
                return
            if time.monotonic() > deadline:
                raise BackendUnavailableError(
                    f"W&B has finished the run, but its last rows are not in {self.where} after "
                    f"{_LAST_WRITE_SECS:.0f} s"
                )
            time.sleep(_POLL_SECS)

    @property
    def where(self) -> str:
        """The URL of the run's page, or the folder of an offline run."""
        return str(self._folder) if self._run.offline else self._run.url or ""

    @property
    def command(self) -> str:
        """The command that uploads an offline run; empty for an online one."""
        if not self._run.offline:
            return ""
        return "wandb sync " + " ".join(shlex.quote(str(file.parent)) for file in self._files())

    def _files(self) -> list[Path]:
        """Return W&B's files of this run for this destination, oldest first.

        Online, those of offline runs do not count: their rows are not on the server.
        """
        return find_files(self._folder, self._destination, offline=self._mode != "online")
