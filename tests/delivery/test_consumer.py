"""Consumers: saved progress, no repeated values, and restarts from the run folder alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metricbus import MetricBus, RecordsLostError, Run, ScalarRow, Sink
from metricbus._common.processes import ProcessId, this_process
from metricbus._common.records import PartialAggregates
from metricbus._common.sink_urls import parse_sink
from metricbus._delivery.consumer import Consumer
from metricbus._delivery.offsets_file import DeliveryProgress, load_progress, save_progress
from metricbus._delivery.sink_specs import spec_of
from metricbus._journal.run import RunFolder, create_run
from metricbus._journal.segment_reader import JournalReader
from metricbus._journal.segment_writer import SegmentWriter
from metricbus.sinks import Flushed, SinkOptions


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        for step in range(100):
            bus.log("x", float(step), step=step)
    return RunFolder(tmp_path / "r")


def deliver(folder: RunFolder, url: str) -> Consumer:
    consumer = Consumer(folder, spec_of(parse_sink(url)))
    consumer.end("finished")
    consumer.run()
    return consumer


def lines(folder: RunFolder) -> list[str]:
    return (folder.path / "csv" / "metrics.csv").read_text().splitlines()[1:]


def test_needs_only_a_run_folder_and_a_url(folder: RunFolder) -> None:
    counts = deliver(folder, "csv").tally().counts(100)
    assert (counts.delivered, counts.pending) == (100, 0)
    assert len(lines(folder)) == 100


def test_delivering_again_repeats_no_value(folder: RunFolder) -> None:
    deliver(folder, "csv")
    counts = deliver(folder, "csv").tally().counts(100)
    assert (counts.delivered, counts.pending) == (100, 0)
    assert len(lines(folder)) == 100


def test_every_attempt_to_deliver_a_different_selection_of_rows_is_refused(
    folder: RunFolder,
) -> None:
    deliver(folder, "csv")
    consumer = Consumer(folder, spec_of(parse_sink("csv?every=10")))
    consumer._backoff.next_delay = lambda error: (0.0, True)  # type: ignore[method-assign]
    for _ in range(2):
        consumer._run_pass()
        assert "a different selection of rows" in str(consumer.tally().error)
    assert consumer.tally().delivered == 0
    assert len(lines(folder)) == 100


class BatchSizes(Sink):
    """Records the number of values in each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def write(self, records: Sequence[ScalarRow]) -> None:
        self.batches.append(sum(len(record.values) for record in records))


def test_limits_the_values_of_a_batch_of_wide_rows(tmp_path: Path) -> None:
    row = {f"layer{i}/norm": 0.5 for i in range(10_000)}
    with MetricBus(id="wide", sinks="", dir=tmp_path) as bus:
        for step in range(12):
            bus.log(row, step=step)
    sink = BatchSizes()
    consumer = Consumer(RunFolder(tmp_path / "wide"), spec_of(sink))
    consumer.end("finished")
    consumer.run()
    assert consumer.tally().delivered == sum(sink.batches) == 120_000
    assert max(sink.batches) == 50_000


@pytest.mark.parametrize("rows_before_kill", range(0, 101, 10))
def test_a_kill_between_write_and_save_neither_repeats_nor_loses_rows(
    folder: RunFolder, rows_before_kill: int
) -> None:
    url = parse_sink("csv?batch_size=10")
    first = Consumer(folder, spec_of(url))
    first.end("finished")
    while len(lines(folder)) < rows_before_kill if (folder.path / "csv").exists() else True:
        first._run_pass()
    path = folder.offsets / f"{url.key}.json"
    if path.exists():
        saved = path.read_bytes()
        # Write another batch, and lose the progress after it.
        first._run_pass()
        path.write_bytes(saved)
    first._cursor.release()
    deliver(folder, "csv?batch_size=10")
    assert [line.split(",")[0] for line in lines(folder)] == [str(step) for step in range(100)]


def test_the_option_every_continues_its_count_after_a_restart(folder: RunFolder) -> None:
    url = parse_sink("csv?every=7&batch_size=10")
    first = Consumer(folder, spec_of(url))
    for _ in range(3):
        first._run_pass()
    first._cursor.release()
    deliver(folder, "csv?every=7&batch_size=10")
    assert [int(line.split(",")[0]) for line in lines(folder)] == list(range(0, 100, 7))


def test_saved_progress_loads_unchanged(tmp_path: Path, folder: RunFolder) -> None:
    reader = JournalReader(folder.journal)
    list(reader.read(limit=5))
    progress = DeliveryProgress(
        sink="csv:", positions=reader.positions, state={"length": 3}, delivered=4
    )
    assert load_progress(tmp_path / "p.json", DeliveryProgress(sink="csv:")) == DeliveryProgress(
        sink="csv:"
    )
    save_progress(tmp_path / "p.json", progress)
    assert load_progress(tmp_path / "p.json", DeliveryProgress(sink="csv:")) == progress


class LaggingSink(Sink):
    """A sink whose backend acknowledges records with a lag of `lag` records, and may die."""

    dedup = "position"

    def __init__(self) -> None:
        super().__init__()
        self.backend: list[float] = []  # survives reopening the sink
        self.lag = 0
        self.open_count = 0
        self.dies_at: set[float] = set()

    def open(self, run: Run, folder: Path, state: Mapping[str, Any]) -> None:
        self.open_count += 1
        self.base: int = state.get("count", 0)
        self.received: list[float] = []
        self.repeated = len(self.backend) - self.base

    def write(self, records: Sequence[ScalarRow]) -> None:
        for record in records:
            (value,) = record.values.values()
            if value in self.dies_at:
                self.dies_at.remove(value)
                del self.backend[self.base + self.acknowledged :]
                raise RecordsLostError("the backend is gone")
            self.received.append(value)
            if self.repeated:
                self.repeated -= 1
            else:
                self.backend.append(value)

    @property
    def acknowledged(self) -> int:
        return max(0, len(self.received) - self.lag)

    def flush(self) -> Flushed:
        return Flushed({"count": self.base + len(self.received)}, self.acknowledged)


def saved_lines(folder: RunFolder, consumer: Consumer) -> int:
    progress = load_progress(
        folder.offsets / f"{consumer.spec.key}.json", DeliveryProgress(sink="object:LaggingSink")
    )
    return sum(position.line for position in progress.positions.values())


def test_saves_only_acknowledged_progress(folder: RunFolder) -> None:
    sink = LaggingSink()
    sink.lag = 30
    spec = spec_of(sink)._replace(options=SinkOptions(batch_size=10))
    consumer = Consumer(folder, spec)
    for _ in range(6):
        consumer._run_pass()
    assert consumer.tally().delivered == 59  # the first line is the header of the segment
    assert saved_lines(folder, consumer) == 30
    consumer.end("finished")
    consumer.run()
    assert saved_lines(folder, consumer) == 102


def test_repeats_unacknowledged_records_after_lost(folder: RunFolder) -> None:
    sink = LaggingSink()
    sink.lag = 30
    sink.dies_at = {5.0, 63.0}
    consumer = Consumer(folder, spec_of(sink)._replace(options=SinkOptions(batch_size=10)))
    consumer.end("finished")
    consumer.run()
    assert sink.backend == [float(step) for step in range(100)]
    assert sink.open_count == 3
    assert consumer.tally().delivered == 100


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_repeats_rows_of_several_segments_in_the_original_order(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder, _ = create_run(tmp_path_factory.mktemp("runs"), id="r", name="r", config={})
    writers = [SegmentWriter(folder.journal, "r") for _ in range(3)]
    sink = LaggingSink()
    spec = spec_of(sink)._replace(options=SinkOptions(batch_size=5))
    consumer = Consumer(folder, spec)
    values = iter(range(10_000))
    for _ in range(data.draw(st.integers(1, 12), "turns")):
        writer = data.draw(st.sampled_from(writers))
        for _ in range(data.draw(st.integers(0, 8), "rows")):
            writer.append([ScalarRow(step=0, epoch=0, time=0, values={"x": float(next(values))})])
        sink.lag = data.draw(st.integers(0, 20), "lag")
        if data.draw(st.booleans(), "killed"):
            consumer._cursor.release()
            consumer = Consumer(folder, spec)  # knows only the saved progress
        if consumer._cursor.state == "ready":
            consumer._deliver_batch()
        else:
            consumer._acquire_lease()
            consumer._open()
    consumer._cursor.release()
    consumer = Consumer(folder, spec)
    consumer.end("finished")
    consumer.run()
    assert sorted(sink.backend) == [float(value) for value in range(next(values))]


def test_repeats_rows_that_were_read_before_a_failure(folder: RunFolder) -> None:
    """A segment that is temporarily unreadable represents any disk failure."""
    second = SegmentWriter(folder.journal, "r")
    second.append([ScalarRow(step=500, epoch=0, time=1, values={"x": 1.0})])
    second.close()
    path = folder.journal / "0002.jsonl"
    content = path.read_bytes()
    path.unlink()
    path.mkdir()
    consumer = Consumer(folder, spec_of(parse_sink("csv")))
    consumer.request_flush()
    consumer._run_pass()
    assert consumer.tally().error is not None
    path.rmdir()
    path.write_bytes(content)
    consumer.end("finished")
    consumer.run()
    assert len(lines(folder)) == 101


def test_flush_that_raises_lost_counts_no_value_twice(folder: RunFolder) -> None:
    class LosesInFlush(LaggingSink):
        has_lost = False

        def flush(self) -> Flushed:
            if len(self.received) > 40 and not self.has_lost:
                self.has_lost = True
                del self.backend[self.base + self.acknowledged :]
                raise RecordsLostError("the backend is gone")
            return super().flush()

    sink = LosesInFlush()
    sink.lag = 15
    consumer = Consumer(folder, spec_of(sink)._replace(options=SinkOptions(batch_size=10)))
    consumer.end("finished")
    consumer.run()
    assert sink.open_count == 2
    assert sink.backend == [float(step) for step in range(100)]
    assert consumer.tally().delivered == 100


def test_partial_rows_in_flight_are_repeated_in_order_although_acknowledged_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The delivery dies before the sink has acknowledged any partial row."""
    dead = ProcessId(this_process().host, 2**22 + 1, 1)
    folder, _ = create_run(tmp_path, id="r", name="r", config={})
    expected: list[float] = []
    with monkeypatch.context() as patch:
        patch.setattr("metricbus._journal.segment_writer.this_process", lambda: dead)
        for segment in range(2):
            writer = SegmentWriter(folder.journal, "r")
            values = [10.0 * segment + index for index in range(3)]
            rows = [
                ScalarRow(step=0, epoch=0, time=0, values={f"x{value}": value}, partial=True)
                for value in values
            ]
            writer.append([PartialAggregates(time=0, rows=rows)])
            expected += values
    sink = LaggingSink()
    sink.lag = 100
    spec = spec_of(sink)._replace(options=SinkOptions(batch_size=2))
    for _ in range(3):
        consumer = Consumer(folder, spec)
        consumer.end("killed")
        for _ in range(4):
            consumer._run_pass()
        consumer._cursor.release()
    writer = SegmentWriter(folder.journal, "r")  # the run is resumed
    writer.append([ScalarRow(step=1, epoch=0, time=1, values={"x": 99.0})])
    writer.close()
    consumer = Consumer(folder, spec)
    consumer.end("finished")
    consumer.run()
    assert sink.backend == [*expected, 99.0]
    assert consumer.tally().delivered == len(sink.backend)
