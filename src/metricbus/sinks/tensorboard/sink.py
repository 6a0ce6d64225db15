"""The TensorBoard sink: one event per row or medium, with hyperparameters in the same event file.

TensorBoard has one axis, the step. For a name with another axis, it holds the epoch or the latest
value of the axis series as an integer. Values are float32. The wall time of an event is the time of
its record.

TensorBoard's data server expects increasing steps per run and tag. After a value at a lower or
equal step, it discards the values from that step on. They remain in the file, and
`tensorboard --load_fast=false` shows them. To show them in any case, the sink writes out-of-order
values to another lane: the event file of a sub-run `late-1` to `late-7`, which TensorBoard draws as
a separate run in the same chart. The last lane takes everything that fits in no other.

`metricbus.sinks.tensorboard.media` describes how media are converted.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metricbus._common.files import replace_file
from metricbus._common.media_records import MEDIA_RECORD_TYPES, MediumRecord
from metricbus._common.records import Rewind, RunUpdate, ScalarRow, Status
from metricbus._journal.run import Run, flat_config
from metricbus.sinks.base import FileSink, with_partial_suffix

if TYPE_CHECKING:
    from metricbus.sinks.tensorboard.event_file import EventFile

_WRITE_BYTES = 16 << 20  # write() buffers media events up to this size

_LANES = ("", *(f"late-{n}" for n in range(1, 8)))


class TensorBoardSink(FileSink):
    """Writes event files; `tensorboard:FOLDER` writes them to `FOLDER/<run id>`."""

    kinds = (ScalarRow, Rewind, RunUpdate, *MEDIA_RECORD_TYPES)
    dedup = "position"
    process = "delivery"
    requires = ("tensorboard", "google_crc32c")
    install = "pip install 'metricbus[tensorboard]'"

    def __init__(self, location: str = "", options: Any = None) -> None:
        super().__init__(location, options)
        self._saved_lengths: dict[str, int] = {}
        self._lanes: dict[str, EventFile] = {}
        self._must_reopen = False

    def open(self, run: Run, folder: Path, state: Mapping[str, Any]) -> None:
        """Open the run's event files and find what they contain beyond the saved state."""
        from metricbus.sinks.tensorboard.event_file import EventBuilder
        from metricbus.sinks.tensorboard.media import MediaEventBuilder

        self._row_events = EventBuilder()
        self._media_events = MediaEventBuilder(folder, self.log_fallback)
        self._folder = self.folder_for(run, folder, "tensorboard")
        self._run = run
        self._saved_lengths = dict(state.get("lengths", {}))
        self._open_lanes()
        if run.config and not self._lanes[""].hparams:
            self._write_hparams_start()

    def write(self, records: Sequence[Any]) -> None:
        """Write one event per row or medium, in the first lane where its step is increasing."""
        if self._must_reopen:
            self._open_lanes()
        # Media that are in a lane already do not need their files, which may be gone.
        if not any(lane.has_unmatched for lane in self._lanes.values()):
            self._media_events.check(records)
        # If a write fails, reading the files again shows which records to skip.
        self._must_reopen = True
        batches: dict[str, list[bytes]] = {}
        size = 0
        for record in with_partial_suffix(records):
            if type(record) is ScalarRow:
                row = self._tags.without_conflicts(record)
                name = self._lane_for(row.values, row.x)
                if self._lanes[name].register(row.values, row.x):
                    batches.setdefault(name, []).append(self._row_events(row))
            elif isinstance(record, Rewind):
                self._add_rewind(record, batches)
            elif isinstance(record, RunUpdate):
                self._run = self._run.updated(record)
            elif isinstance(record, MediumRecord):
                size += self._add_medium(record, batches)
                if size >= _WRITE_BYTES:
                    self._append(batches)
                    size = 0
        self._append(batches)
        self._must_reopen = False

    def _add_medium(self, record: MediumRecord, batches: dict[str, list[bytes]]) -> int:
        """Add the event of a medium to the batches, unless it is in a file; return its size."""
        tags = self._tags.reserve(record)
        name = self._lane_for(tags, record.x)
        if not self._lanes[name].register(tags, record.x):
            return 0
        event = self._media_events.event(record, tags)
        batches.setdefault(name, []).append(event)
        return len(event)

    def _add_rewind(self, record: Rewind, batches: dict[str, list[bytes]]) -> None:
        for name, lane in self._lanes.items():
            if lane.register_rewind(record.step):
                batches.setdefault(name, []).append(self._row_events.rewind(record))

    def _append(self, batches: dict[str, list[bytes]]) -> None:
        for name, events in batches.items():
            self._lanes[name].append(events)
        batches.clear()

    def flush(self) -> Mapping[str, Any]:
        """Return the length of each lane's file."""
        self._saved_lengths = {name: lane.length for name, lane in self._lanes.items()}
        return {"lengths": self._saved_lengths}

    def close(self, status: Status) -> None:
        """Write what the HPARAMS page shows of the end of the run, and close the files."""
        if (self._run.config or self._run.summary) and status != "running":
            self._write_end(status)
        for lane in self._lanes.values():
            lane.close()

    @property
    def where(self) -> str:
        """The folder of the event files."""
        return str(self._folder)

    @property
    def command(self) -> str:
        """Command that starts TensorBoard.

        It gets the parent folder, because the HPARAMS page has no metrics for a run named `.`.
        """
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
        self._must_reopen = False

    def _open_lane(self, name: str) -> EventFile:
        from metricbus.sinks.tensorboard.event_file import EventFile

        length = self._saved_lengths.get(name, 0)
        return EventFile(self._path(name), length, self._run.started / 1e9)

    def _path(self, lane: str) -> Path:
        """Return the lane's file; a resumed run continues the existing one."""
        for path in sorted((self._folder / lane).glob("events.out.tfevents.*.metricbus")):
            return path
        seconds = self._run.started // 10**9
        file = f"events.out.tfevents.{seconds}.{self._run.host}.{self._run.pid}.metricbus"
        return self._folder / lane / file

    def _lane_for(self, tags: Collection[str], step: int) -> str:
        for name in _LANES:
            if name not in self._lanes:
                self._lanes[name] = self._open_lane(name)
            if self._lanes[name].is_increasing(tags, step):
                return name
        self._once.warn(
            "step %d was logged more often than TensorBoard can show; the event file has all "
            "values, which 'tensorboard --load_fast=false' shows",
            step,
            key="lanes",
        )
        return _LANES[-1]

    def _write_hparams_start(self) -> None:
        """Write the config as hyperparameters, unless they have been written already."""
        from metricbus._compat.tensorboard import Event, Summary, hparams_plugin
        from metricbus.sinks.tensorboard.event_file import encode_tfrecord

        if (plugin := hparams_plugin()) is None:
            return
        seconds, hparams = self._run.started / 1e9, _hparams(self._run.config)
        (start,) = plugin.start(hparams, trial_id=self._run.id, start_time_secs=seconds).value
        written, data_of = self._lanes[""].hparams, plugin.data.HParamsPluginData.FromString
        if not written:
            self._append_values([start])
        elif data_of(written) != data_of(start.metadata.plugin_data.content):
            # TensorBoard keeps the first hyperparameters that it reads in a folder. It reads the
            # files in the order of their names.
            version = Event(wall_time=seconds, file_version="brain.Event:2")
            event = Event(wall_time=seconds, summary=Summary(value=[start]))
            content = [encode_tfrecord(one.SerializeToString()) for one in (version, event)]
            replace_file(self._path("").with_suffix(".hparams"), b"".join(content))

    def _write_end(self, status: Status) -> None:
        """Write the status, and the summary as scalars, by which the HPARAMS page compares runs."""
        from metricbus._compat.tensorboard import Summary, hparams_plugin

        if (plugin := hparams_plugin()) is None:
            return
        if self._run.config:
            self._write_hparams_start()
        api, metadata = plugin.api, plugin.metadata
        success = api.STATUS_SUCCESS if status == "finished" else api.STATUS_FAILURE
        end = plugin.data.SessionEndInfo(status=success)
        value = Summary.Value(
            tag=metadata.SESSION_END_INFO_TAG,
            metadata=metadata.create_summary_metadata(
                plugin.data.HParamsPluginData(session_end_info=end)
            ),
            tensor=metadata.NULL_TENSOR,
        )
        summary = self._run.summary.items()
        scalars = [Summary.Value(tag=f"summary/{name}", simple_value=v) for name, v in summary]
        self._append_values([value, *scalars])

    def _append_values(self, values: Sequence[Any]) -> None:
        """Append an event. The first value, for the HPARAMS page, marks it as none of a row."""
        from metricbus._compat.tensorboard import Event, Summary

        lane = self._lanes[""]
        lane.hparams = lane.hparams or values[0].metadata.plugin_data.content
        event = Event(wall_time=self._run.started / 1e9, summary=Summary(value=values))
        lane.append([event.SerializeToString()])


def _hparams(config: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Return the config as flat hyperparameters of the types that TensorBoard supports."""
    hparams: dict[str, bool | int | float | str] = {}
    for key, value in flat_config(config).items():
        is_too_large = isinstance(value, int) and abs(value) > sys.float_info.max
        is_supported = isinstance(value, bool | int | float | str) and not is_too_large
        hparams[key] = value if is_supported else str(value)
    return hparams
