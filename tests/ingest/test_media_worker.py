"""The media worker, media files, and the counts of media."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

import metricbus
from metricbus import Box, ClosedError, File, Histogram, Image, MediaError, MetricBus, Table, Text
from metricbus._common.media_base import EncodeContext, EncodeJob, MediaValue
from metricbus._common.media_records import FileRef, HistogramRecord, ImageRecord, TextRecord
from metricbus._common.settings import Overflow
from metricbus._ingest.media_worker import MediaWorker
from metricbus._journal.media_files import MediaFolder, MediaWriter, safe_name
from metricbus._journal.segment_writer import SegmentWriter
from metricbus.testing import MemorySink
from tests.helpers.limits import HANG_SECS
from tests.helpers.scripts import run_script

PIXELS = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


class BlockedMedium(MediaValue):
    """A medium whose encoding blocks until an event is set."""

    def __init__(self, gate: threading.Event, nbytes: int = 0) -> None:
        self._gate = gate
        self._nbytes = nbytes
        self.started = threading.Event()

    def _capture(self, name: str) -> EncodeJob:
        return EncodeJob(self._nbytes, self._encode)

    def _encode(self, work: EncodeContext) -> TextRecord:
        self.started.set()
        assert self._gate.wait(HANG_SECS)
        file = work.save("texts", ".md", b"held")
        return work.record(TextRecord, file=file, length=4, start="held")


class BrokenMedium(MediaValue):
    """A medium that cannot be encoded."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def _capture(self, name: str) -> EncodeJob:
        return EncodeJob(0, self._encode)

    def _encode(self, work: EncodeContext) -> TextRecord:
        raise self._error


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    opened = threading.Event()
    yield opened
    opened.set()


def files_in(folder: Path) -> list[Path]:
    return [path for path in (folder / "media").rglob("*") if path.is_file()]


def journal_has(folder: Path, name: str) -> bool:
    return bool(metricbus.read(folder).media(name))


def wait_until(condition: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_slow_medium_does_not_delay_numbers(tmp_path: Path, gate: threading.Event) -> None:
    sink = MemorySink()
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        bus.log("slow", BlockedMedium(gate))
        bus.log("loss", 0.5)
        wait_until(lambda: sink.series("loss"))
        assert not sink.media("slow")
        assert bus.stats().waiting == 1
        gate.set()
    assert len(sink.media("slow")) == 1


def test_media_and_numbers_of_one_mapping_share_the_step(tmp_path: Path) -> None:
    sink = MemorySink()
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        for _ in range(3):
            bus.log({"loss": 0.5, "eval": {"picture": Image(PIXELS)}})
    assert [record.step for record in sink.media("eval/picture")] == [0, 1, 2]
    assert [point.step for point in sink.series("loss")] == [0, 1, 2]


def test_medium_advances_the_implicit_step(tmp_path: Path) -> None:
    sink = MemorySink()
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        for _ in range(3):
            bus.log("weights", Histogram([1.0, 2.0]))
    assert [record.step for record in sink.media("weights")] == [0, 1, 2]


def test_flush_waits_for_media_being_encoded(tmp_path: Path) -> None:
    sink = MemorySink()
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        for _ in range(20):
            bus.log("picture", Image(np.random.default_rng(0).random((64, 64, 3))))
        report = bus.flush(30)
        assert report.complete
        assert len(sink.media("picture")) == 20


def test_close_drops_and_counts_media_not_encoded_in_time(
    tmp_path: Path, gate: threading.Event
) -> None:
    bus = MetricBus(sinks=[MemorySink()], dir=tmp_path)
    for _ in range(3):
        bus.log("slow", BlockedMedium(gate))
    bus.log("loss", 0.5)
    started = time.monotonic()
    report = bus.close(timeout=1)
    assert time.monotonic() - started < 10
    assert report.journalled == 1
    assert report.dropped + report.waiting == 3
    gate.set()
    wait_until(lambda: bus.stats().dropped == 3)
    assert bus.stats().logged == 4


def test_media_logged_after_close_are_counted_as_dropped(tmp_path: Path) -> None:
    bus = MetricBus(sinks=[MemorySink()], dir=tmp_path)
    bus.close()
    bus.log("picture", Image(PIXELS))
    assert bus.stats().dropped == 1


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest", "block"])
def test_media_queue_is_limited_in_bytes(
    overflow: Overflow, tmp_path: Path, gate: threading.Event
) -> None:
    sink = MemorySink()
    settings: Any = {"queue_bytes": 1 << 20, "overflow": overflow, "block_secs": 0.05}
    with MetricBus(sinks=[sink], dir=tmp_path, **settings) as bus:
        first = BlockedMedium(gate, nbytes=400_000)
        bus.log("slow", first, step=0)
        assert first.started.wait(10)
        for step in range(1, 10):
            bus.log("slow", BlockedMedium(gate, nbytes=400_000), step=step)
        assert bus.stats().waiting == 2
        assert bus.stats().logged == 10
        gate.set()
    kept = [record.step for record in sink.media("slow")]
    assert kept == ([0, 9] if overflow == "drop_oldest" else [0, 1])
    assert bus.stats().dropped == 8


def test_single_medium_may_exceed_the_limit(tmp_path: Path) -> None:
    sink = MemorySink()
    with MetricBus(sinks=[sink], dir=tmp_path, queue_bytes=1 << 16) as bus:
        bus.log("picture", Image(np.zeros((512, 512, 3), np.uint8)))
    assert len(sink.media("picture")) == 1


@pytest.mark.parametrize("error", [ValueError("odd"), SystemExit(3), OSError("truncated")])
def test_failing_encoder_drops_only_its_own_medium(
    error: BaseException, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = MemorySink()
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        bus.log("bad", BrokenMedium(error), step=7)
        bus.log("good", Text("fine"))
        bus.flush(10)
        report = bus.stats()
    assert (report.dropped, report.journalled) == (1, 1)
    assert "'bad' at step 7" in (report.error or "")
    assert str(error) in caplog.text


def test_media_are_retried_while_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full = True
    save = MediaWriter.save

    def save_if_there_is_room(self: MediaWriter, *args: Any) -> FileRef:
        if full:
            raise OSError(28, "No space left on device")
        return save(self, *args)

    monkeypatch.setattr(MediaWriter, "save", save_if_there_is_room)
    monkeypatch.setattr("metricbus._ingest.media_worker._RETRY_SECS", 0.01)
    sink = MemorySink()
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        bus.log("text", Text("patient"))
        wait_until(lambda: "media cannot be written; retrying" in caplog.text)
        assert bus.stats().waiting == 1
        full = False
    assert len(sink.media("text")) == 1


def test_array_may_change_after_the_call(tmp_path: Path) -> None:
    sink = MemorySink()
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        values = np.zeros(1000)
        bus.log("weights", Histogram(values))
        values[:] = 1
    (record,) = sink.media("weights")
    assert isinstance(record, HistogramRecord)
    assert record.maximum == 0


def test_definition_selects_the_sinks_of_media(tmp_path: Path) -> None:
    sink = MemorySink()
    with MetricBus(sinks=[sink, "csv"], dir=tmp_path) as bus:
        bus.define("pictures/*", sinks=["csv"])
        bus.log("pictures/a", Image(PIXELS))
        bus.log("other", Image(PIXELS))
    assert sink.media("other")
    assert not sink.media("pictures/a")
    assert bus.stats().sinks["MemorySink"].filtered == 1


def test_definition_sets_the_axis_of_media(tmp_path: Path) -> None:
    sink = MemorySink()
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        bus.define("weights", axis="seen")
        bus.log("seen", 640)
        bus.flush(10)
        bus.log("weights", Histogram([1.0]))
    (record,) = sink.media("weights")
    assert (record.axis, record.at, record.x) == ("seen", 640, 640)


def test_sink_options_filter_media(tmp_path: Path) -> None:
    with MetricBus(sinks="csv?include=a&every=2", dir=tmp_path) as bus:
        for _ in range(4):
            bus.log({"a": Text("x"), "b": Text("y")})
    (sink,) = bus.stats().sinks.values()
    assert (sink.delivered, sink.filtered) == (2, 6)


def test_rewind_supersedes_later_media(tmp_path: Path) -> None:
    with MetricBus(sinks=[], dir=tmp_path) as bus:
        for step in range(6):
            bus.log("text", Text(f"at {step}"), step=step)
        bus.rewind(2)
        bus.log("text", Text("again"), step=3)
    assert bus.dir is not None
    assert [record.step for record in metricbus.read(bus.dir).media("text")] == [0, 1, 2, 3]
    everything = metricbus.read(bus.dir, superseded=True)
    assert [record.step for record in everything.media("text")] == [0, 1, 2, 3, 4, 5, 3]


def test_media_logged_before_a_checkpoint_survive_loading_it(tmp_path: Path) -> None:
    with MetricBus(sinks=[], dir=tmp_path) as bus:
        bus.log("text", Text("before"), step=5)
        state = bus.state_dict()
        bus.log("text", Text("after"), step=5)
        bus.load_state_dict(state)
    assert bus.dir is not None
    history = metricbus.read(bus.dir)
    assert [history.files.text(record.file) for record in history.media("text")] == ["before"]  # type: ignore[attr-defined]


def test_forked_child_logs_media_to_the_parents_run(tmp_path: Path) -> None:
    sink = MemorySink()
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        bus.log("picture", Image(PIXELS))
        pid = os.fork()
        if pid == 0:
            try:
                bus.log("picture", Image(PIXELS))
                bus.close()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
    records = sink.media("picture")
    assert len(records) == 2
    refs = [record.file for record in records if isinstance(record, ImageRecord)]
    assert len({sink.files.path(ref) for ref in refs}) == 2


def test_scope_prefixes_the_names_of_media(tmp_path: Path) -> None:
    sink = MemorySink()
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        bus.scope("val").log("picture", Image(PIXELS))
    assert sink.media("val/picture")


def test_disabled_bus_ignores_media(tmp_path: Path) -> None:
    bus = MetricBus(disabled=True, dir=tmp_path)
    bus.log("picture", Image("no such file"))
    assert list(tmp_path.iterdir()) == []


def test_media_in_the_journal_of_a_killed_run_have_their_files(tmp_path: Path) -> None:
    done = run_script(
        tmp_path,
        """
        import os, signal
        import numpy as np
        from metricbus import Image, MetricBus

        bus = MetricBus(id="r", sinks=[], dir=".")
        for step in range(2000):
            bus.log("picture", Image(np.full((32, 32, 3), step % 256, np.uint8)), step=step)
            if step == 500:
                bus.flush()
        os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    history = metricbus.read(tmp_path / "r")
    records = history.media("picture")
    assert len(records) >= 501
    for record in records:
        assert isinstance(record, ImageRecord)
        history.files.read(record.file)


# The files


@given(names=st.sets(st.text(min_size=1, max_size=80), min_size=2, max_size=20))
def test_safe_names_are_unique_visible_and_short(names: set[str]) -> None:
    safe = {safe_name(name) for name in names}
    assert len(safe) == len(names)
    for name in safe:
        assert "/" not in name
        assert "\0" not in name
        assert not name.startswith((".", "-"))
        assert len(name.encode()) < 100


def test_no_name_escapes_the_media_folder(tmp_path: Path) -> None:
    with MetricBus(sinks=[], dir=tmp_path) as bus:
        for name in ("../../up", "/etc/passwd", "..", ".hidden", "a/b", "nul\0", "x" * 1000, "🦆"):
            bus.log(name, Text("here"))
    assert bus.dir is not None
    media = (bus.dir / "media").resolve()
    assert len(files_in(bus.dir)) == 8
    outside = {path for path in tmp_path.rglob("*.md") if media not in path.resolve().parents}
    assert not outside


def test_reading_a_missing_file_raises(tmp_path: Path) -> None:
    ref = MediaWriter(tmp_path, "0001").save("texts", "a", 0, ".md", b"text")
    (tmp_path / ref.path).unlink()
    with pytest.raises(MediaError, match="missing"):
        MediaFolder(tmp_path).read(ref)


def test_reading_a_changed_file_raises(tmp_path: Path) -> None:
    ref = MediaWriter(tmp_path, "0001").save("texts", "a", 0, ".md", b"text")
    (tmp_path / ref.path).write_bytes(b"test")
    with pytest.raises(MediaError, match="changed"):
        MediaFolder(tmp_path).read(ref)


@pytest.mark.parametrize("path", ["../outside", "media/../../outside"])
def test_reading_a_path_outside_the_run_raises(path: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "outside").write_bytes(b"secret")
    with pytest.raises(MediaError, match="outside of the run folder"):
        MediaFolder(run).read(FileRef(path, 6, "0" * 64))


def test_sink_rejects_only_media_with_missing_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with MetricBus(id="r", sinks=[], dir=tmp_path, delivery="off") as bus:
        for step in range(4):
            bus.log("picture", Image(PIXELS), step=step)
        bus.log("loss", 0.5)
    record = metricbus.read(tmp_path / "r").media("picture")[2]
    assert isinstance(record, ImageRecord)
    (tmp_path / "r" / record.file.path).unlink()
    with caplog.at_level(logging.WARNING):
        report = metricbus.deliver(tmp_path / "r", sinks="tensorboard")
    sink = report["tensorboard"]
    assert (sink.delivered, sink.rejected) == (4, 1)
    assert "missing" in caplog.text


def test_failed_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("metricbus._journal.media_files.os.replace", fail)
    with pytest.raises(OSError, match="No space"):
        MediaWriter(tmp_path, "0001").save("texts", "a", 0, ".md", b"text")
    assert files_in(tmp_path) == []


def test_each_medium_counts_as_one_value(tmp_path: Path) -> None:
    with MetricBus(sinks="csv", dir=tmp_path) as bus:
        bus.log("a", Histogram([1.0]))
        bus.log("b", Image(PIXELS, boxes=[Box(0, 0, 1, 1)]))
        bus.log("c", Table(["x"], [[1]]))
        bus.log("d", File(__file__))
        report = bus.flush(30)
    assert report.journalled == 4
    assert report.sinks["csv"].delivered == 4


def test_drops_are_reported_once_per_name_and_in_total_at_close(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with MetricBus(sinks=[], dir=tmp_path) as bus:
        for name in ("one", "two"):
            for _ in range(2):
                bus.log(name, BrokenMedium(ValueError("odd")), step=0)
    messages = [record.getMessage() for record in caplog.records]
    assert [text for text in messages if text.startswith("'one'")] == [
        "'one' at step 0 was dropped: ValueError: odd"
    ]
    assert [text for text in messages if text.startswith("'two'")] == [
        "'two' at step 0 was dropped: ValueError: odd"
    ]
    assert any(text.startswith("4 media were dropped") for text in messages)


@pytest.mark.parametrize(
    ("value", "suggestion"),
    [
        ("a text", r"Text\(…\)"),
        (np.zeros((4, 4)), r"Histogram\(…\), Image\(…\), Table\(…\), Chart\(…\) or Audio"),
        ([1.0, 2.0], r"Histogram\(…\), Image\(…\), Table\(…\), Chart\(…\) or Audio"),
        (pd.DataFrame({"a": [1]}), r"Table\(…\)"),
        (PIL.Image.new("L", (2, 2)), r"Image\(…\)"),
    ],
)
def test_error_for_a_non_number_suggests_a_media_class(
    value: object, suggestion: str, tmp_path: Path
) -> None:
    with (
        MetricBus(sinks=[], dir=tmp_path) as bus,
        pytest.raises(TypeError, match=f"'a' was given .*or wrap it: {suggestion}"),
    ):
        bus.log("a", value)


def test_series_of_a_medium_raises_with_a_hint(tmp_path: Path) -> None:
    with MetricBus(sinks=[], dir=tmp_path) as bus:
        bus.log("a", Text("x"))
    assert bus.dir is not None
    with pytest.raises(KeyError, match=r"history.media\('a'\)"):
        metricbus.read(bus.dir).series("a")


def test_checkpoint_does_not_wait_for_media(tmp_path: Path, gate: threading.Event) -> None:
    with MetricBus(sinks=[], dir=tmp_path, block_secs=0.5) as bus:
        bus.define("loss", every=4, reduce="mean")
        bus.log("loss", 1.0)
        bus.log("slow", BlockedMedium(gate))
        state = bus.state_dict()
        gate.set()
    assert [name for _, name, _ in state["reductions"]] == ["loss"]


def test_medium_is_dropped_if_no_thread_can_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with MetricBus(sinks=[], dir=tmp_path) as bus:
        bus.log("loss", 1.0)
        bus.flush(10)

        def refuse(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            bus.log("text", Text("x"))
        bus.log("text", Text("y"))
    assert (bus.stats().dropped, bus.stats().journalled) == (1, 2)


def test_media_logged_during_close_do_not_displace_earlier_ones(
    tmp_path: Path, gate: threading.Event
) -> None:
    bus = MetricBus(sinks=[], dir=tmp_path)
    for step in range(5):
        bus.log("before", BlockedMedium(gate), step=step)
    closing = threading.Thread(target=bus.close, kwargs={"timeout": 60})
    closing.start()
    assert bus._core.session is not None
    media = bus._core.session._media
    assert isinstance(media, MediaWorker)
    wait_until(lambda: media._is_closed)
    for _ in range(20):
        bus.log("late", Text("x"))
    gate.set()
    closing.join(30)
    assert (bus.stats().journalled, bus.stats().dropped) == (5, 20)


def test_flush_waits_for_earlier_media_while_later_ones_are_dropped(
    tmp_path: Path, gate: threading.Event
) -> None:
    settings: Any = {"queue_bytes": 100_000, "overflow": "drop_newest"}
    with MetricBus(sinks=[], dir=tmp_path, **settings) as bus:
        bus.log("before", BlockedMedium(gate, nbytes=90_000))
        flushed: list[Any] = []
        flushing = threading.Thread(target=lambda: flushed.append(bus.flush(30)))
        flushing.start()
        for _ in range(20):
            bus.log("late", BlockedMedium(gate, nbytes=90_000))
        assert not flushed
        gate.set()
        flushing.join(30)
        assert flushed[0].journalled == 1


def test_waiting_values_are_counted_while_the_journal_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = threading.Event()
    append = SegmentWriter.append

    def append_if_there_is_room(self: SegmentWriter, records: Any) -> None:
        if full.is_set():
            raise OSError(28, "No space left on device")
        append(self, records)

    monkeypatch.setattr(SegmentWriter, "append", append_if_there_is_room)
    with MetricBus(sinks=[], dir=tmp_path) as bus:
        full.set()
        for _ in bus.epochs(1):
            for step in bus.steps(range(100)):
                bus.log("a", float(step))
            report = bus.flush(timeout=0.5)
            assert (report.logged, report.waiting, report.complete) == (100, 100, False)
            full.clear()


def test_table_logged_by_several_threads_has_each_row_once(tmp_path: Path) -> None:
    table = Table(["x"])
    with MetricBus(sinks=[], dir=tmp_path) as bus:

        def work(first: int) -> None:
            for number in range(first, first + 50):
                table.append([number])
                bus.log("t", table)

        threads = [threading.Thread(target=work, args=(100 * n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        bus.log("t", table)
    assert bus.dir is not None
    (found,) = metricbus.read(bus.dir).tables("t")
    assert found.missing == 0
    assert sorted(row[0] for row in found.rows) == sorted(  # type: ignore[type-var]
        100 * n + number for n in range(4) for number in range(50)
    )


def test_failed_call_does_not_lose_rows_of_a_table(tmp_path: Path) -> None:
    table = Table(["x"], [[1]])
    with MetricBus(sinks=[], dir=tmp_path) as bus:
        with pytest.raises(ValueError, match="cannot read"):
            bus.log({"t": table, "bad": Image("missing.png")})
        bus.log("t", table)
    assert bus.dir is not None
    assert [found.rows for found in metricbus.read(bus.dir).tables("t")] == [[[1]]]


def test_closed_strict_bus_counts_all_media_of_a_mapping(tmp_path: Path) -> None:
    bus = MetricBus(sinks=[], dir=tmp_path, strict=True)
    bus.close()
    with pytest.raises(ClosedError):
        bus.log({"a": Text("x"), "b": Text("y")})
    assert bus.stats().dropped == 2
