"""TensorBoard: one event file, one event a row or medium, hyperparameters in the same file.

TensorBoard has one axis. It is the step; for what is reduced over an epoch it is the epoch, and for
a series with an axis of its own that axis's latest value, as an integer. Values are float32. Time
is the event's wall time.

TensorBoard's page reads through a data server that keeps, per run and tag, steps which grow: a
value at a lower or equal step makes it forget the values from that step on. Nothing is lost in the
file (`tensorboard --load_fast=false` shows it all), but to show it on every page, what comes late
or again goes to a sub-run, `late-1`, `late-2` and so on: its points appear in the same chart as a
run of their own. There are at most seven; beyond that, it goes to the last one.

`metricbus.sinks.tensorboard.media` says what media become.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metricbus._common.media_records import MEDIA, MediumRecord
from metricbus._common.records import Rewind, Scalars, Status
from metricbus._journal.run import Run, flat_config
from metricbus.sinks.base import FileSink, with_marked_names

if TYPE_CHECKING:
    from metricbus.sinks.tensorboard.event_file import EventFile

_log = logging.getLogger("metricbus.sinks.tensorboard")

_PIECE = 16 << 20  # bytes of events, after which they are written

_LANES = ("", *(f"late-{n}" for n in range(1, 8)))


class TensorBoardSink(FileSink):
    """Writes event files; `tensorboard:FOLDER` puts them into `FOLDER/<run's id>`."""

    kinds = (Scalars, Rewind, *MEDIA)
    dedup = "position"
    prefers_subprocess = True
    requires = ("tensorboard", "google_crc32c")
    install = "pip install 'metricbus[tensorboard]'"

    def __init__(self, location: str = "", options: Any = None) -> None:
        super().__init__(location, options)
        self._counted: dict[str, int] = {}
        self._lanes: dict[str, EventFile] = {}
        self._is_stale = False
        self._told = False

    def open(self, run: Run, folder: Path, state: Mapping[str, Any]) -> None:
        """Opens the run's event files, and finds in them what was written beyond the state."""
        from metricbus.sinks.tensorboard.event_file import EventMaker
        from metricbus.sinks.tensorboard.media import MediaEvents

        self._event_of = EventMaker()
        self._media = MediaEvents(folder, self.log_fallback)
        self._folder = self.folder_for(run, folder, "tensorboard")
        self._run = run
        self._counted = dict(state.get("lengths", {}))
        self._open_lanes()
        if run.config and not self._lanes[""].has_hparams:
            self._write_hparams_start()

    def write(self, records: Sequence[Any]) -> None:
        """One event a row or medium, in the first lane where it is not late."""
        if self._is_stale:
            self._open_lanes()
        if not any(lane.is_behind for lane in self._lanes.values()):
            self._media.check(records)  # else some are there already, and their files not needed
        self._is_stale = True  # until all is written: then the files say what to skip
        batches: dict[str, list[bytes]] = {}
        size = 0
        for record in with_marked_names(records):
            if type(record) is Scalars:
                row = self._tags.cleared(record)
                name = self._lane_for(row.values, row.x)
                if self._lanes[name].see(row.values, row.x):
                    batches.setdefault(name, []).append(self._event_of(row))
            elif isinstance(record, Rewind):
                self._rewind(record, batches)
            elif isinstance(record, MediumRecord):
                size += self._take_medium(record, batches)
                if size >= _PIECE:
                    self._append(batches)
                    size = 0
        self._append(batches)
        self._is_stale = False

    def _take_medium(self, record: MediumRecord, batches: dict[str, list[bytes]]) -> int:
        tags = self._tags.of(record)
        name = self._lane_for(tags, record.x)
        if not self._lanes[name].see(tags, record.x):
            return 0
        event = self._media.event(record, tags)
        batches.setdefault(name, []).append(event)
        return len(event)

    def _rewind(self, record: Rewind, batches: dict[str, list[bytes]]) -> None:
        for name, lane in self._lanes.items():
            if lane.see_rewind(record.step):
                batches.setdefault(name, []).append(self._event_of.rewind(record))

    def _append(self, batches: dict[str, list[bytes]]) -> None:
        for name, events in batches.items():
            self._lanes[name].append(events)
        batches.clear()

    def flush(self) -> Mapping[str, Any]:
        """The lengths that count."""
        self._counted = {name: lane.length for name, lane in self._lanes.items()}
        return {"lengths": self._counted}

    def close(self, status: Status) -> None:
        """Marks the end of the session for the HPARAMS page, and lets go of the files."""
        if self._run.config and status != "running":
            self._write_hparams_end(status)
        for lane in self._lanes.values():
            lane.close()

    @property
    def where(self) -> str:
        """The folder."""
        return str(self._folder)

    @property
    def command(self) -> str:
        """Opens the page, on the folder above: its HPARAMS tab has no metrics for the run `.`."""
        return f"tensorboard --logdir {shlex.quote(str(self._folder.parent))}"

    def _open_lanes(self) -> None:
        from metricbus.sinks.tensorboard.media import Tags

        for lane in self._lanes.values():
            lane.close()
        self._lanes = {}
        for name in _LANES:
            if not name or self._path(name).exists():
                self._lanes[name] = self._open_lane(name)
        self._tags = Tags(self._lanes)
        self._is_stale = False

    def _open_lane(self, name: str) -> EventFile:
        from metricbus.sinks.tensorboard.event_file import EventFile

        counted = self._counted.get(name, 0)
        return EventFile(self._path(name), counted, self._run.started / 1e9)

    def _path(self, lane: str) -> Path:
        """The lane's file, which a further attempt goes on with."""
        for found in sorted((self._folder / lane).glob("events.out.tfevents.*.metricbus")):
            return found
        seconds = self._run.started // 10**9
        file = f"events.out.tfevents.{seconds}.{self._run.host}.{self._run.pid}.metricbus"
        return self._folder / lane / file

    def _lane_for(self, tags: Collection[str], step: int) -> str:
        for name in _LANES:
            if name not in self._lanes:
                self._lanes[name] = self._open_lane(name)
            if self._lanes[name].takes(tags, step):
                return name
        if not self._told:
            self._told = True
            _log.warning(
                "step %d was logged more often than TensorBoard's page can show; all values are in "
                "the file: tensorboard --load_fast=false",
                step,
            )
        return _LANES[-1]

    def _write_hparams_start(self) -> None:
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        summary = hparams_pb(
            _hparams(self._run.config),
            trial_id=self._run.id,
            start_time_secs=self._run.started / 1e9,
        )
        self._append_summary(summary)

    def _write_hparams_end(self, status: Status) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

        success = api_pb2.STATUS_SUCCESS if status == "finished" else api_pb2.STATUS_FAILURE
        end = plugin_data_pb2.SessionEndInfo(status=success)
        data = plugin_data_pb2.HParamsPluginData(session_end_info=end)
        value = Summary.Value(
            tag=metadata.SESSION_END_INFO_TAG,
            metadata=metadata.create_summary_metadata(data),
            tensor=metadata.NULL_TENSOR,
        )
        self._append_summary(Summary(value=[value]))

    def _append_summary(self, summary: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        event = Event(wall_time=self._run.started / 1e9, summary=summary)
        self._lanes[""].append([event.SerializeToString()])


def _hparams(config: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """The config as TensorBoard's flat hyperparameters: numbers, booleans and text."""
    found: dict[str, bool | int | float | str] = {}
    for key, value in flat_config(config).items():
        if isinstance(value, int) and abs(value) > sys.float_info.max:
            found[key] = str(value)  # it has floats alone
        else:
            found[key] = value if isinstance(value, bool | int | float | str) else str(value)
    return found
