"""The guarantees of the file and logging sinks beyond the conformance suite."""

from __future__ import annotations

import csv
import json
import logging
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import google_crc32c
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.hparams import plugin_data_pb2

from metricbus import MetricBus, Run, ScalarRow
from metricbus._bus.scope import DefineArguments
from metricbus._common.records import RunUpdate
from metricbus.sinks import Rewind, Sink
from metricbus.sinks.csv.cells import safe_cell
from metricbus.sinks.csv.sink import CsvSink
from metricbus.sinks.logging.sink import line_of
from metricbus.sinks.tensorboard.sink import TensorBoardSink
from tests.helpers.limits import HANG_SECS

RUN = Run(id="r", name="r", host="h", pid=1, started=1_700_000_000 * 10**9)


def row(step: int, **values: float) -> ScalarRow:
    return ScalarRow(step=step, epoch=0, time=step * 10**9, values=values)


# CSV


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
            st.one_of(st.floats(allow_nan=False), st.integers(-(2**63), 2**63 - 1)),
        ),
        min_size=1,
        max_size=5,
        unique_by=lambda pair: pair[0],
    )
)
def test_csv_preserves_any_name_and_number_exactly(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, float]]
) -> None:
    folder = tmp_path_factory.mktemp("csv")
    sink = CsvSink()
    sink.open(RUN, folder, {})
    sink.write([ScalarRow(step=3, epoch=1, time=1_500_000_000, values=dict(pairs))])
    sink.close("finished")
    with open(folder / "csv" / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [cells["name"].removeprefix("'") for cells in rows] == [name for name, _ in pairs]
    assert [repr(type(v)(c["value"])) for c, (_, v) in zip(rows, pairs, strict=True)] == [
        repr(value) for _, value in pairs
    ]
    assert {cells["time"] for cells in rows} == {"1.500000000"}


def test_csv_appends_no_rows_while_run_json_cannot_be_written(tmp_path: Path) -> None:
    sink = CsvSink()
    sink.open(RUN, tmp_path, {})
    file = tmp_path / "csv" / "run.json"
    file.unlink()
    file.mkdir()
    records = [row(0, x=0.5), RunUpdate(step=0, epoch=0, time=0, tags=("a",))]
    with pytest.raises(OSError, match="directory"):
        sink.write(records)
    file.rmdir()
    sink.write(records)
    sink.close("finished")
    assert json.loads(file.read_text())["tags"] == ["a"]
    assert len((tmp_path / "csv" / "metrics.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "＝x", "'x"])
def test_csv_escapes_text_that_a_spreadsheet_would_evaluate(text: str) -> None:
    assert safe_cell(text) == "'" + text


def test_csv_never_changes_numbers(tmp_path: Path) -> None:
    sink = CsvSink()
    sink.open(RUN, tmp_path, {})
    sink.write([row(0, x=-0.5)])
    sink.close("finished")
    assert b",x,-0.5,scalar\r\n" in (tmp_path / "csv" / "metrics.csv").read_bytes()


def test_pandas_reads_csv(tmp_path: Path) -> None:
    with MetricBus(sinks="csv", dir=tmp_path) as bus:
        for step in range(10):
            bus.log({"a": step / 3, "b": float("nan")}, step=step)
    assert bus.dir is not None
    frame = pd.read_csv(bus.dir / "csv" / "metrics.csv")
    a = frame[frame["name"] == "a"]
    assert a["value"].tolist() == [step / 3 for step in range(10)]
    assert frame[frame["name"] == "b"]["value"].isna().all()


def test_csv_only_appends_for_new_names(tmp_path: Path) -> None:
    sink = CsvSink()
    sink.open(RUN, tmp_path, {})
    path = tmp_path / "csv" / "metrics.csv"
    content = path.read_bytes()
    for step in range(20):
        sink.write([row(step, **{f"new{step}": 1.0})])
        assert path.read_bytes().startswith(content)
        content = path.read_bytes()
    sink.close("finished")


def test_csv_truncates_lines_beyond_the_state(tmp_path: Path) -> None:
    sink = CsvSink()
    sink.open(RUN, tmp_path, {})
    sink.write([row(0, x=1.0)])
    state = sink.flush()
    sink.write([row(1, x=2.0)])
    sink.close("failed")
    with open(tmp_path / "csv" / "metrics.csv", "ab") as file:
        file.write(b"1,0,torn")
    reopened = CsvSink()
    reopened.open(RUN, tmp_path, state)
    reopened.write([row(1, x=2.0)])
    reopened.close("finished")
    lines = (tmp_path / "csv" / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", "0", "1"]


def test_csv_writes_config_and_run_json(tmp_path: Path) -> None:
    with MetricBus(sinks=f"csv:{tmp_path}/out", config={"lr": 0.1}, id="r", dir=tmp_path) as bus:
        bus.log("x", 1.0)
    assert json.loads((tmp_path / "out" / "r" / "config.json").read_text()) == {"lr": 0.1}
    run = json.loads((tmp_path / "out" / "r" / "run.json").read_text())
    assert (run["name"], run["status"]) == ("run", "finished")
    assert (tmp_path / "out" / "r" / "metrics.csv").exists()


def test_a_relative_location_refers_to_the_directory_in_which_the_bus_was_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    with MetricBus(sinks="csv:out,tensorboard:logs", id="r", dir=tmp_path) as bus:
        monkeypatch.chdir(tmp_path / "elsewhere")
        bus.log("x", 1.0)
    assert (tmp_path / "out" / "r" / "metrics.csv").exists()
    assert (tmp_path / "logs" / "r").is_dir()
    assert list((tmp_path / "elsewhere").iterdir()) == []


# Logging


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_no_name_can_inject_a_log_line(name: str) -> None:
    line = line_of(ScalarRow(step=0, epoch=0, time=0, values={name: 1.0}))
    assert line.isprintable()
    assert len(line.splitlines()) == 1


def test_a_row_is_one_log_record_with_its_time_and_values(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = time.time()
    with (
        caplog.at_level(logging.DEBUG, "metricbus"),
        MetricBus(sinks="logging?level=DEBUG", dir=tmp_path) as bus,
    ):
        bus.log({"a": 1 / 3, "b": 2, "100%s": 1.5}, step=4, epoch=1)
    record: Any = next(record for record in caplog.records if hasattr(record, "metrics"))
    assert record.getMessage() == "step 4 epoch 1 | a=0.333333 b=2 100%s=1.5"
    assert record.metrics == {"a": 1 / 3, "b": 2, "100%s": 1.5}
    assert (record.step, record.epoch, record.levelname) == (4, 1, "DEBUG")
    assert before - 0.001 <= record.created <= time.time()
    assert [r.getMessage() for r in caplog.records][-1] == "run finished"


def test_logging_logs_the_name_config_and_status_of_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.INFO, "metricbus"),
        MetricBus("my\nrun", id="r", sinks="logging", dir=tmp_path, config={"lr": 0.1}),
    ):
        pass
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [f'run "my\\nrun" (r) in {tmp_path}/r', 'config {"lr":0.1}', "run finished"]


@pytest.mark.parametrize("options", [{"on_step": False, "on_epoch": True}, {"axis": "epoch"}])
def test_every_does_not_apply_to_values_logged_once_per_epoch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, options: DefineArguments
) -> None:
    with (
        caplog.at_level("INFO", logger="metricbus"),
        MetricBus(sinks="logging?every=10", dir=tmp_path) as bus,
    ):
        bus.define("val", **options)
        for _ in bus.epochs(3):
            bus.log("val", 0.5)
        bus.flush()
    assert len([record for record in caplog.records if "val=" in record.getMessage()]) == 3


def test_logging_applies_every(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO, "metricbus"),
        MetricBus(sinks="logging?every=10", dir=tmp_path) as bus,
    ):
        for step in range(100):
            bus.log("x", float(step), step=step)
    assert [vars(r)["step"] for r in caplog.records if hasattr(r, "metrics")] == [
        *range(0, 100, 10)
    ]


def test_adds_no_handler_if_one_is_configured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with MetricBus(sinks="logging", dir=tmp_path) as bus:
        bus.log("x", 1.0)
    assert logging.getLogger("metricbus").handlers == []


# TensorBoard


def events_in(path: Path) -> list[Event]:
    return [Event.FromString(data) for data in RawEventFileLoader(str(path)).Load()]


def event_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*tfevents*"))


def test_a_run_is_one_event_file_and_a_step_is_one_event(tmp_path: Path) -> None:
    with MetricBus(sinks="tensorboard", dir=tmp_path, config={"lr": 0.1}) as bus:
        for step in bus.steps(range(5)):
            bus.log("a", 1.0)
            bus.log({"b": 2.0, "c": float(step)})
    (file,) = event_files(tmp_path)
    rows = [event for event in events_in(file) if len(event.summary.value) == 3]
    assert [event.step for event in rows] == [0, 1, 2, 3, 4]
    assert [value.tag for value in rows[0].summary.value] == ["a", "b", "c"]


def test_the_event_file_has_hyperparameters_and_status(tmp_path: Path) -> None:
    config = {"lr": 0.1, "net": {"depth": 3}, "adam": True, "name": "x", "list": [1, 2]}
    with (
        pytest.raises(ZeroDivisionError),
        MetricBus(sinks="tensorboard", dir=tmp_path, config=config) as bus,
    ):
        bus.log("a", 1.0)
        raise ZeroDivisionError
    (file,) = event_files(tmp_path)
    plugin_data = {
        value.tag: plugin_data_pb2.HParamsPluginData.FromString(value.metadata.plugin_data.content)
        for event in events_in(file)
        for value in event.summary.value
        if value.metadata.plugin_data.plugin_name == "hparams"
    }
    start = plugin_data["_hparams_/session_start_info"].session_start_info
    assert start.hparams["lr"].number_value == 0.1
    assert start.hparams["net/depth"].number_value == 3
    assert start.hparams["adam"].bool_value is True
    assert start.hparams["name"].string_value == "x"
    assert start.hparams["list"].string_value == "[1, 2]"
    end = plugin_data["_hparams_/session_end_info"].session_end_info
    assert end.status == 2  # STATUS_FAILURE


def test_writing_again_from_an_old_state_repeats_nothing(tmp_path: Path) -> None:
    rows = [row(step, x=float(step)) for step in (0, 1, 5, 2, 3, 3, 6)]  # some of them late
    for lost in range(len(rows) + 1):
        folder = tmp_path / str(lost)
        sink = TensorBoardSink()
        sink.open(RUN, folder, {})
        sink.write(rows[:2])
        state = sink.flush()
        sink.write(rows[2 : 2 + lost])
        for lane in sink._lanes.values():
            lane.close()
        reopened = TensorBoardSink()
        reopened.open(RUN, folder, state)
        reopened.write(rows[2:])
        reopened.close("finished")
        found = [
            (event.step, event.summary.value[0].simple_value)
            for file in event_files(folder)
            for event in events_in(file)
            if event.HasField("summary")
        ]
        assert sorted(found) == sorted((r.step, r.values["x"]) for r in rows), lost


def test_updates_and_an_end_between_rows_do_not_affect_what_is_written_again(
    tmp_path: Path,
) -> None:
    update = RunUpdate(step=0, epoch=0, time=0, config={"lr": 0.5}, summary={"y": 1.0})
    records: list[Any] = [update, row(0, x=0.0), update, row(1, x=1.0), row(2, x=2.0), update]
    for lost in range(len(records) + 1):
        folder, state = tmp_path / str(lost), dict[str, Any]()
        for batches in ((records[:lost], records[lost:]), (records[lost:], [row(3, x=3.0)])):
            sink = TensorBoardSink()
            sink.open(RUN, folder, state)
            sink.write(batches[0])
            state = dict(sink.flush())
            sink.write(batches[1])
            sink.close("failed")
        found = [
            (event.step, event.summary.value[0].simple_value)
            for file in event_files(folder)
            for event in events_in(file)
            if event.HasField("summary") and event.summary.value[0].tag == "x"
        ]
        assert found == [(step, float(step)) for step in range(4)], lost


@pytest.mark.parametrize("torn", [1, 5, 12, 20, 30])
def test_truncates_a_torn_event_and_keeps_complete_ones(tmp_path: Path, torn: int) -> None:
    sink = TensorBoardSink()
    sink.open(RUN, tmp_path, {})
    sink.write([row(0, x=0.0)])
    state = sink.flush()
    sink.write([row(1, x=1.0)])
    sink.close("failed")
    (file,) = event_files(tmp_path)
    content = file.read_bytes()
    file.write_bytes(content[:-torn])
    reopened = TensorBoardSink()
    reopened.open(RUN, tmp_path, state)
    reopened.write([row(1, x=1.0), row(2, x=2.0)])
    reopened.close("finished")
    assert [event.step for event in events_in(file)[1:]] == [0, 1, 2]


def test_every_crc_is_correct(tmp_path: Path) -> None:
    with MetricBus(sinks="tensorboard", dir=tmp_path) as bus:
        bus.log("a", 1.0)
    (file,) = event_files(tmp_path)
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    crc = google_crc32c.value(content[12 : 12 + size])
    masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    assert content[12 + size : 16 + size] == masked.to_bytes(4, "little")


def test_a_location_has_a_folder_for_each_run(tmp_path: Path) -> None:
    for id in ("one", "two"):
        with MetricBus(sinks=f"tensorboard:{tmp_path}/logs", id=id, dir=tmp_path / "runs") as bus:
            bus.log("a", 1.0)
    assert [file.parent.name for file in event_files(tmp_path / "logs")] == ["one", "two"]


def points_from_server(
    logdir: Path, wait_for: Callable[[Callable[[], bool]], None], tag: str
) -> set[Any]:
    """Return the points that TensorBoard's own server sends to its web page."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--port", "0"]
    log = logdir.parent / "tensorboard.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--load_fast", "true", "--bind_all"], stdout=output, stderr=output
        )
    try:
        wait_for(lambda: re.search(r"http://\S+?:(\d+)/", log.read_text()) is not None)
        found = re.search(r"http://\S+?:(\d+)/", log.read_text())
        assert found is not None
        base = f"http://127.0.0.1:{found[1]}/data/plugin/scalars"

        def get(path: str) -> Any:
            with urllib.request.urlopen(base + path, timeout=30) as response:
                return json.load(response)

        wait_for(lambda: bool(get("/tags")))
        points: set[Any] = set()
        for run, tags in get("/tags").items():
            if tag in tags:
                for _, step, value in get(f"/scalars?run={quote(run, safe='')}&tag={quote(tag)}"):
                    points.add((step, value))
        return points
    finally:
        process.terminate()
        process.wait(HANG_SECS)


def test_the_tensorboard_server_returns_late_and_repeated_values(
    tmp_path: Path, wait_for: Callable[[Callable[[], bool]], None]
) -> None:
    logged = [(0, 0.0), (50, 1.0), (10, 2.0), (10, 3.0), (5, 4.0), (60, 5.0)]
    with MetricBus(sinks=f"tensorboard:{tmp_path}/logs", dir=tmp_path) as bus:
        for step, value in logged:
            bus.log("val/acc", value, step=step)
    assert points_from_server(tmp_path / "logs", wait_for, "val/acc") == set(logged)


def test_writes_and_warns_about_more_repeats_than_tensorboard_can_show(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with MetricBus(sinks="tensorboard", dir=tmp_path) as bus:
        for value in range(20):
            bus.log("x", float(value), step=0)
    found = []
    for file in event_files(tmp_path):
        events = EventAccumulator(str(file.parent), size_guidance={"scalars": 0})
        events.Reload()
        found += [event.value for event in events.Scalars("x")]
    assert sorted(found) == list(range(20))
    assert "--load_fast=false" in caplog.text


def test_an_axis_may_be_negative_or_exceed_64_bits(tmp_path: Path) -> None:
    with MetricBus(sinks="tensorboard", dir=tmp_path) as bus:
        bus.define("x", axis="below")
        bus.define("y", axis="above")
        for step in range(3):
            bus.log({"below": step - 10, "above": 10.0 ** (19 + step)}, step=step)
            bus.log({"x": 1.0, "y": 2.0}, step=step)
    assert bus.stats().sinks["tensorboard"].delivered == 12
    (main, *_) = event_files(tmp_path)
    accumulator = EventAccumulator(str(main))
    accumulator.Reload()
    steps = {tag: [event.step for event in accumulator.Scalars(tag)] for tag in "xy"}
    assert steps == {"x": [-10, -9, -8], "y": [2**63 - 1]}


def test_csv_run_json_has_the_end_of_a_finished_run(tmp_path: Path) -> None:
    before = time.time_ns()
    with MetricBus(sinks="csv", dir=tmp_path) as bus:
        bus.log("x", 1.0)
    assert bus.dir is not None
    run = json.loads((bus.dir / "csv" / "run.json").read_text())
    assert run["status"] == "finished"
    assert before <= run["ended"] <= time.time_ns()


class KeepsRecords(Sink):
    """Keeps what it receives, without declaring anything."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Any] = []

    def write(self, records: Sequence[Any]) -> None:
        self.records += records


class ScalarsOnly(KeepsRecords):
    """Does not expect rewinds."""

    def write(self, records: Sequence[Any]) -> None:
        super().write([dict(record.values) for record in records])


def test_a_sink_receives_rows_and_rewinds_by_default(tmp_path: Path) -> None:
    sink = KeepsRecords()
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        bus.log("x", 1.0, step=5)
        bus.rewind(2)
        bus.log("x", 2.0, step=3)
    assert [(type(record), record.step) for record in sink.records] == [
        (ScalarRow, 5),
        (Rewind, 2),
        (ScalarRow, 3),
    ]


def test_a_sink_that_does_not_expect_rewinds_receives_every_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = ScalarsOnly()
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        bus.log("x", 1.0, step=5)
        bus.rewind(2)
        bus.log("x", 2.0, step=3)
    assert sink.records == [{"x": 1.0}, {"x": 2.0}]
    assert bus.stats().complete
    assert (
        "sink ScalarsOnly: rejected the rewind to step 2: "
        "AttributeError: 'Rewind' object has no attribute 'values'"
    ) in caplog.messages
