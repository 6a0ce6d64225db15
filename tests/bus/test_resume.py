"""Resuming a run: later attempts in every backend, rewinds, and checkpoints."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event

import metricbus
from metricbus import ConfigError, MetricBus, ScalarRow
from metricbus._common.records import Rewind
from metricbus._ingest import recorder
from metricbus._journal.run import Run
from metricbus.sinks.tensorboard.event_file import read_tfrecords
from metricbus.sinks.tensorboard.sink import TensorBoardSink
from metricbus.testing import MemorySink
from tests.helpers.limits import HANG_SECS
from tests.helpers.scripts import run_script
from tests.helpers.wandb_reader import wandb_files, wandb_records, wandb_rows

WaitFor = Callable[[Callable[[], bool]], None]


def folder_of(bus: MetricBus) -> Path:
    assert bus.dir is not None
    return bus.dir


def attempt(folder: Path, steps: range, **options: Any) -> MetricBus:
    arguments: dict[str, Any] = {"sinks": "csv", "run": "digits", "resume": True} | options
    with MetricBus(dir=folder, **arguments) as bus:
        for step in steps:
            bus.log("x", float(step), step=step)
    return bus


def csv_values(folder: Path) -> list[float]:
    lines = (folder / "csv" / "metrics.csv").read_text().splitlines()[1:]
    return [float(line.split(",")[4]) for line in lines]


def tensorboard_events(folder: Path) -> list[Any]:
    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    events: list[Any] = accumulator.Scalars("x")
    return events


def mlflow_run(folder: Path) -> tuple[MlflowClient, Any]:
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiments = client.search_experiments()
    assert "metricbus" in [experiment.name for experiment in experiments]
    (run,) = client.search_runs([experiment.experiment_id for experiment in experiments])
    return client, run


def open_with_epoch_accuracy(folder: Path) -> MetricBus:
    bus = MetricBus("digits", dir=folder, sinks="csv", resume=True)
    bus.define("acc", on_step=False, on_epoch=True)
    return bus


def test_same_name_without_resume_is_a_new_run(tmp_path: Path) -> None:
    first = attempt(tmp_path, range(3), resume=False)
    assert folder_of(attempt(tmp_path, range(3), resume=False)) != folder_of(first)


def test_every_backend_resumes_the_same_run(tmp_path: Path) -> None:
    sinks = "csv,tensorboard,wandb,mlflow"
    first = attempt(tmp_path, range(5), sinks=sinks, config={"lr": 0.1})
    second = attempt(tmp_path, range(5, 10), sinks=sinks, config={"epochs": 2})
    assert second.stats().complete
    folder = folder_of(second)
    assert folder == folder_of(first)
    assert second.run is not None
    assert (second.run.attempt, second.run.config) == (2, {"lr": 0.1, "epochs": 2})
    assert csv_values(folder) == list(range(10))
    assert len(list((folder / "tensorboard").glob("events*.metricbus"))) == 1
    assert [event.step for event in tensorboard_events(folder)] == list(range(10))
    rows = list(wandb_rows(folder))
    assert [row["x"] for row in rows] == list(range(10))
    assert [row["_step"] for row in rows] == list(range(10))
    ids = {
        record.run.run_id
        for file in wandb_files(folder)
        for record in wandb_records(file)
        if record.HasField("run")
    }
    assert ids == {second.run.id}
    client, run = mlflow_run(tmp_path)
    assert [point.step for point in client.get_metric_history(run.info.run_id, "x")] == list(
        range(10)
    )
    assert run.data.params == {"lr": "0.1", "epochs": "2"}
    assert run.info.status == "FINISHED"


def test_run_is_found_by_its_id(tmp_path: Path) -> None:
    attempt(tmp_path, range(3), id="one", run=None)
    attempt(tmp_path, range(3, 6), id="one", run=None)
    assert csv_values(tmp_path / "one") == list(range(6))


def test_missing_run_is_created_unless_resume_is_must(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no run with the name 'digits' in"):
        attempt(tmp_path, range(3), resume="must")
    with pytest.raises(ConfigError, match="there is no run with the id 'one' in"):
        attempt(tmp_path, range(3), resume="must", id="one")
    assert len(csv_values(folder_of(attempt(tmp_path, range(3))))) == 3


def test_error_for_an_ambiguous_name_lists_the_candidates(tmp_path: Path) -> None:
    runs = [attempt(tmp_path, range(1), resume=False) for _ in range(2)]
    with pytest.raises(ConfigError, match=r"2 runs in .* have the name 'digits'") as error:
        attempt(tmp_path, range(1))
    for bus in runs:
        assert bus.run is not None
        assert f"id={bus.run.id!r}, finished, started " in str(error.value)


def test_resume_without_id_or_name_raises(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="which run"):
        MetricBus(resume=True, dir=tmp_path)


def test_resuming_a_run_that_is_being_written_raises(tmp_path: Path) -> None:
    live = MetricBus("digits", dir=tmp_path, sinks="")
    with pytest.raises(ConfigError, match="is still running, in process"):
        attempt(tmp_path, range(1))
    live.close()


def test_environment_variables_resume_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt(tmp_path, range(2), id="r")
    monkeypatch.setenv("METRICBUS_RESUME", "must")
    monkeypatch.setenv("METRICBUS_RUN_ID", "r")
    attempt(tmp_path, range(2, 4), resume=None)
    assert csv_values(tmp_path / "r") == list(range(4))


def test_killed_run_is_resumed_without_loss_or_duplicates(tmp_path: Path) -> None:
    code = """
        import os, signal
        from metricbus import MetricBus
        bus = MetricBus("digits", id="r", dir=".", sinks="csv,tensorboard")
        for step in range(500):
            bus.log("x", float(step), step=step)
        bus.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    run_script(tmp_path, code)
    attempt(tmp_path, range(500, 600), id="r", sinks="csv,tensorboard")
    assert csv_values(tmp_path / "r") == list(range(600))
    history = metricbus.read(tmp_path / "r")
    assert history.run.status == "finished"
    assert len(history.series("x")) == 600


def test_unfinished_delivery_of_the_last_attempt_causes_no_duplicates(
    tmp_path: Path, wait_for: WaitFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempts close without waiting, so their delivery has not started."""
    monkeypatch.delenv("METRICBUS_DELIVERY")
    sinks = "csv,tensorboard,wandb"
    for number in range(3):
        is_last = number == 2
        steps = range(number * 50, number * 50 + 50)
        bus = attempt(tmp_path, steps, id="r", sinks=sinks, close_timeout=50.0 if is_last else 0.0)
    assert bus.stats().complete
    assert csv_values(tmp_path / "r") == list(range(150))
    assert [row["x"] for row in wandb_rows(tmp_path / "r")] == list(range(150))
    assert [event.step for event in tensorboard_events(tmp_path / "r")] == list(range(150))
    assert json.loads((tmp_path / "r" / "run.json").read_bytes())["attempt"] == 3


def test_mlflow_warns_about_a_changed_param(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for rate in (0.1, 0.2):
        attempt(tmp_path, range(1), id="r", sinks="mlflow", config={"lr": rate})
    assert "'lr' stays 0.1, although the config now has 0.2" in caplog.text


# Rewinds


def steps_of(folder: Path, **options: Any) -> list[int]:
    steps: list[int] = metricbus.read(folder, **options).series("x").step.tolist()
    return steps


def test_rows_after_a_rewind_replace_earlier_rows(tmp_path: Path) -> None:
    with MetricBus(sinks="csv", dir=tmp_path) as bus:
        for step in range(10):
            bus.log("x", float(step), step=step)
        bus.rewind(5)
        assert bus.step == 5
        for step in range(6, 8):
            bus.log("x", 100.0 + step, step=step)
    series = metricbus.read(folder_of(bus)).series("x")
    assert series.step.tolist() == list(range(8))
    assert series.value.tolist() == [0, 1, 2, 3, 4, 5, 106, 107]
    assert steps_of(folder_of(bus), superseded=True) == [*range(10), 6, 7]


def test_loop_after_a_rewind_starts_at_the_next_step(tmp_path: Path) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus:
        for _ in bus.steps(range(10)):
            bus.log("x", 1.0)
        bus.rewind(3)
        for _ in bus.steps(range(2)):
            bus.log("x", 2.0)
    assert steps_of(folder_of(bus)) == [0, 1, 2, 3, 4, 5]


def test_older_rows_of_other_processes_are_superseded(tmp_path: Path) -> None:
    worker = """
        import sys
        from metricbus import MetricBus
        with MetricBus() as bus:
            bus.log("x", float(sys.argv[1]), step=int(sys.argv[1]))
    """
    with MetricBus(sinks="", dir=tmp_path) as bus:
        for step in ("7", "2"):
            command = [sys.executable, "-c", textwrap.dedent(worker), step]
            subprocess.run(command, check=True, timeout=HANG_SECS)
        bus.rewind(5)
        command = [sys.executable, "-c", textwrap.dedent(worker), "9"]
        subprocess.run(command, check=True, timeout=HANG_SECS)
    assert sorted(steps_of(folder_of(bus))) == [2, 9]


@pytest.mark.parametrize("step", [-1, 1.5, "3"])
def test_rewind_to_a_bad_step_raises(tmp_path: Path, step: Any) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus, pytest.raises((TypeError, ValueError)):
        bus.rewind(step)


def test_each_sink_handles_a_rewind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="metricbus")
    sinks = "logging,csv,tensorboard,wandb,mlflow"
    with MetricBus(sinks=sinks, dir=tmp_path) as bus:
        for step in range(10):
            bus.log("x", float(step), step=step)
        bus.rewind(5)
        for step in range(6, 8):
            bus.log("x", 100.0 + step, step=step)
    assert bus.stats().complete
    folder = folder_of(bus)
    assert "rewind to step 5 epoch 0: later rows are superseded" in caplog.text
    lines = (folder / "csv" / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[5] for line in lines].index("rewind") == 11
    assert lines[11].startswith("5,0,")
    assert len(lines) == 1 + 10 + 1 + 2
    assert [event.value for event in tensorboard_events(folder)] == [0, 1, 2, 3, 4, 5, 106, 107]
    assert not (folder / "tensorboard" / "late-1").exists()
    rows = list(wandb_rows(folder))
    assert [row.get("metricbus/rewind") for row in rows] == [None] * 10 + [5] + [None] * 2
    _, run = mlflow_run(tmp_path)
    (tag,) = [text for key, text in run.data.tags.items() if "superseded_before" in key]
    assert tag == "steps beyond 5"


def test_tensorboard_discards_superseded_results_of_epochs(tmp_path: Path) -> None:
    with MetricBus(sinks="tensorboard", dir=tmp_path) as bus:
        bus.define("x", on_step=False, on_epoch=True)
        for value in (1.0, 2.0):
            for _ in bus.epochs(2):
                for _ in bus.steps(range(10)):
                    bus.log("x", value)
            if value == 1.0:
                bus.rewind(9, epoch=0)
    events = tensorboard_events(folder_of(bus))
    assert [(event.step, event.value) for event in events] == [(9, 1.0), (19, 2.0), (29, 2.0)]
    assert not (folder_of(bus) / "tensorboard" / "late-1").exists()


def test_repeated_rewind_is_not_duplicated_in_tensorboard(tmp_path: Path) -> None:
    """The sink loses its state after each write in turn, and recognizes what its files contain."""
    rows = [
        ScalarRow(step=step, epoch=0, time=step, values={"x": float(step)}) for step in range(4)
    ]
    late = ScalarRow(step=1, epoch=0, time=5, values={"x": 9.0})
    back = Rewind(step=2, epoch=0, time=6)
    after = ScalarRow(step=3, epoch=0, time=7, values={"x": 8.0})
    later = ScalarRow(step=0, epoch=0, time=8, values={"x": 7.0})
    records: list[Any] = [*rows, back, late, after, back, later, after]
    run = Run(id="r", name="r")
    for lost in range(len(records)):
        folder = tmp_path / str(lost)
        state: Any = {}
        sink = TensorBoardSink()
        sink.open(run, folder, state)
        for number, record in enumerate(records):
            sink.write([record])
            if number < lost:
                state = sink.flush()
        resumed = TensorBoardSink()
        resumed.open(run, folder, state)
        resumed.write(records[lost:])
        resumed.close("finished")
        sink.close("finished")
        found = [
            (file.parent.name, event.step, event.HasField("session_log"))
            for file in sorted(folder.rglob("events*"))
            for event in (Event.FromString(data) for data, _ in read_tfrecords(file))
            if not event.file_version
        ]
        if lost == 0:
            expected = found
        assert [(name == "late-1", *rest) for name, *rest in found] == [
            (name == "late-1", *rest) for name, *rest in expected
        ]
    assert len(expected) == 4 + 2 + 4 + 1, "the second rewind is in the sub-run too"


# Checkpoints


def train(folder: Path, epochs: range, *, fails_at: int | None = None, **options: Any) -> MetricBus:
    """Train with a checkpoint at the end of each epoch, optionally failing at a step."""
    bus = MetricBus("digits", dir=folder, resume=True, **{"sinks": "csv", **options})
    bus.define("loss", every=4, reduce="mean")
    bus.define("acc", on_step=False, on_epoch=True)
    checkpoint = folder / "checkpoint.json"
    if checkpoint.exists():
        bus.load_state_dict(json.loads(checkpoint.read_text()))
    for epoch in bus.epochs(len(epochs)):
        for _ in bus.steps(range(10)):
            bus.log("loss", float(bus.step))
            bus.log("x", float(bus.step))
            if bus.step == fails_at:
                bus.close("failed")
                return bus
        bus.log("acc", float(epoch))
        checkpoint.write_text(json.dumps(bus.state_dict()))
    bus.close()
    return bus


def series(folder: Path, name: str) -> list[tuple[int, int, float]]:
    found = metricbus.read(folder).series(name)
    return sorted(zip(found.step.tolist(), found.epoch.tolist(), found.value.tolist(), strict=True))


def test_resumed_training_reads_like_an_uninterrupted_one(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    uninterrupted = train(tmp_path / "one", range(3))
    failed = train(tmp_path / "two", range(3), fails_at=17)
    resumed = train(tmp_path / "two", range(1, 3))
    assert folder_of(failed) == folder_of(resumed)
    for name in ("x", "acc"):
        assert series(folder_of(resumed), name) == series(folder_of(uninterrupted), name)
    assert [value for *_, value in series(folder_of(resumed), "loss")] == [
        value for *_, value in series(folder_of(uninterrupted), "loss")
    ]


def test_state_can_be_stored_as_json_and_by_torch(tmp_path: Path) -> None:
    names = ["mean", "sum", "min", "first", "last", "count", "std", "median", "p95", "ema0.9"]
    with MetricBus(sinks="", dir=tmp_path) as bus:
        for name in names:
            bus.define(name, every=100, reduce=name)
            bus.log(name, 1.5, weight=2)
        state = bus.state_dict()
    torch.save({"bus": state}, tmp_path / "checkpoint.pt")
    loaded = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["bus"]
    assert loaded == state == json.loads(json.dumps(state))
    assert [name for _, name, _ in state["reductions"]] == names


def test_pending_reductions_continue_after_resuming(tmp_path: Path) -> None:
    def open_bus(sink: MemorySink) -> MetricBus:
        bus = MetricBus(sinks=[sink], dir=tmp_path)
        bus.define("loss", every=4, reduce="mean")
        bus.define("worst", on_step=False, on_epoch=True, reduce=max)
        return bus

    first, second = MemorySink(), MemorySink()
    bus = open_bus(first)
    for step in range(3):
        bus.log({"loss": float(step), "worst": 10.0 - step}, step=step)
    state = bus.state_dict()
    bus.close()
    resumed = open_bus(second)
    resumed.load_state_dict(state)
    resumed.log({"loss": 3.0, "worst": 0.0}, step=3)
    assert resumed.end_epoch() == {"worst": 10.0}
    resumed.close()
    assert [(point.step, point.value) for point in second.series("loss")] == [(3, 1.5)]


def test_warns_about_a_reduction_that_has_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus:
        bus.define("x", every=4, reduce="mean")
        bus.define("y", every=4, reduce="mean")
        bus.log({"x": 1.0, "y": 1.0})
        state = bus.state_dict()
    with MetricBus(sinks="", dir=tmp_path) as bus:
        bus.define("x", every=4, reduce="max")
        bus.load_state_dict(state)
        bus.log("x", 5.0)
    assert "cannot restore the partial aggregate of 'x': it was saved by Mean" in caplog.text
    assert "'y' is no longer reduced" in caplog.text
    assert metricbus.read(folder_of(bus)).series("x").value.tolist() == [5.0]


@pytest.mark.parametrize("state", [None, [], {}, {"step": 1}, "checkpoint.pt"])
def test_load_state_dict_of_something_else_raises(tmp_path: Path, state: Any) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus:
        with pytest.raises(ValueError, match="needs a state that state_dict"):
            bus.load_state_dict(state)
        bus.log("x", 1.0)


def test_state_of_a_later_version_raises(tmp_path: Path) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus:
        state = bus.state_dict() | {"version": 99}
        with pytest.raises(ValueError, match="pip install --upgrade metricbus"):
            bus.load_state_dict(state)


def test_bus_that_is_off_has_a_state() -> None:
    bus = MetricBus(disabled=True)
    bus.load_state_dict(bus.state_dict())
    bus.rewind(3)
    assert bus.step == 3


def test_rows_logged_before_loading_the_state_are_kept(tmp_path: Path) -> None:
    with MetricBus("digits", id="r", dir=tmp_path, sinks="") as bus:
        for step in range(5):
            bus.log("x", 1.0, step=step)
        state = bus.state_dict()
        bus.log("x", 1.0, step=5)
    with MetricBus(id="r", dir=tmp_path, sinks="", resume=True) as bus:
        bus.log("gpus", 8, step=0)
        bus.load_state_dict(state)
    history = metricbus.read(tmp_path / "r")
    assert history.names() == ["x", "gpus"]
    assert steps_of(tmp_path / "r") == [0, 1, 2, 3, 4]


def test_earlier_attempt_is_superseded_even_if_its_clock_was_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time_ns()
    with monkeypatch.context() as ahead:
        ahead.setattr(recorder, "time_ns", lambda: now + 3600 * 10**9)
        attempt(tmp_path, range(10), id="r")
    with MetricBus("digits", id="r", dir=tmp_path, sinks="", resume=True) as bus:
        bus.rewind(4)
        bus.log("x", 5.0, step=5)
    assert steps_of(tmp_path / "r") == [0, 1, 2, 3, 4, 5]


def test_partial_aggregates_of_superseded_rows_are_omitted(tmp_path: Path) -> None:
    code = """
        import json, os, signal
        from pathlib import Path
        from metricbus import MetricBus
        bus = MetricBus("digits", id="r", dir=".", sinks="csv", flush_secs=0.01)
        bus.define("loss", every=100, reduce="mean")
        bus.log("loss", 1.0, step=0)
        Path("state.json").write_text(json.dumps(bus.state_dict()))
        bus.log("loss", 9.0, step=7)
        bus._core.session.save()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    run_script(tmp_path, code)
    assert len(metricbus.read(tmp_path / "r").partial) == 1
    with MetricBus("digits", id="r", dir=tmp_path, sinks="csv", resume=True) as bus:
        bus.define("loss", every=2, reduce="mean")
        bus.load_state_dict(json.loads((tmp_path / "state.json").read_text()))
        bus.log("loss", 3.0, step=1)
    history = metricbus.read(tmp_path / "r")
    assert history.series("loss").value.tolist() == [2.0]
    assert history.partial == []
    assert len(metricbus.read(tmp_path / "r", superseded=True).partial) == 1
    assert "partial" not in (tmp_path / "r" / "csv" / "metrics.csv").read_text()


def test_delivery_of_a_killed_attempt_does_not_block_the_next(
    tmp_path: Path, wait_for: WaitFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("METRICBUS_DELIVERY")
    code = """
        import os, signal
        from metricbus import MetricBus
        bus = MetricBus("digits", id="r", dir=".", sinks="csv,mlflow+http://127.0.0.1:9")
        bus.log("x", 0.0, step=0)
        while not (bus.dir / "csv" / "metrics.csv").exists():
            pass
        os.kill(os.getpid(), signal.SIGKILL)
    """
    run_script(tmp_path, code)
    with MetricBus("digits", id="r", dir=tmp_path, sinks="csv,tensorboard", resume=True) as bus:
        bus.log("x", 1.0, step=1)
        report = bus.flush(timeout=HANG_SECS)
        assert report.sinks["csv"].pending == 0, str(report)


def test_merged_config_with_a_duplicate_name_raises(tmp_path: Path) -> None:
    attempt(tmp_path, range(1), config={"opt/lr": 0.1})
    with pytest.raises(ConfigError, match="twice"):
        attempt(tmp_path, range(1), config={"opt": {"lr": 0.2}})


def test_epoch_results_right_after_a_checkpoint_are_not_repeated(tmp_path: Path) -> None:
    sinks = "csv,tensorboard,mlflow"
    train(tmp_path, range(2), sinks=sinks)
    folder = folder_of(train(tmp_path, range(2, 3), sinks=sinks))
    expected = [(9, 0, 0.0), (19, 1, 1.0), (29, 2, 2.0)]
    assert series(folder, "acc") == expected
    assert [(step, epoch) for step, epoch, _ in series(folder, "time/epoch")] == [
        (step, epoch) for step, epoch, _ in expected
    ]
    lines = (folder / "csv" / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[4] for line in lines if ",acc," in line] == ["0.0", "1.0", "2.0"]
    assert not list(folder.glob("tensorboard/late-*"))
    client, run = mlflow_run(tmp_path)
    history = client.get_metric_history(run.info.run_id, "acc")
    assert [(metric.step, metric.value) for metric in history] == [(9, 0.0), (19, 1.0), (29, 2.0)]


def test_rows_between_a_checkpoint_and_the_end_of_its_epoch_are_superseded(tmp_path: Path) -> None:
    with MetricBus("r", id="r", dir=tmp_path, sinks="") as bus:
        for _ in bus.epochs(1):
            bus.log("x", 1.0)
            state = bus.state_dict()
            bus.log("y", 2.0)
    with MetricBus(id="r", dir=tmp_path, sinks="", resume=True) as bus:
        bus.load_state_dict(state)
    assert metricbus.read(tmp_path / "r").names() == ["x"]


def test_epoch_continues_after_a_checkpoint_in_its_middle(tmp_path: Path) -> None:
    bus = open_with_epoch_accuracy(tmp_path)
    for _ in bus.epochs(1):
        for _ in bus.steps(range(10)):
            bus.log("acc", float(bus.step))
            if bus.step == 3:
                state = bus.state_dict()
    bus.close()
    resumed = open_with_epoch_accuracy(tmp_path)
    resumed.load_state_dict(json.loads(json.dumps(state)))
    for epoch in resumed.epochs(2):
        for _ in resumed.steps(range(6) if epoch == 0 else range(10)):
            resumed.log("acc", float(resumed.step))
    resumed.close()
    assert series(folder_of(resumed), "acc") == [(9, 0, 4.5), (19, 1, 14.5)]


def test_resumed_run_has_its_config(tmp_path: Path) -> None:
    attempt(tmp_path, range(1), config={"lr": 0.5})
    assert attempt(tmp_path, range(1, 2)).config == {"lr": 0.5}


def test_last_ignores_superseded_values(tmp_path: Path) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus:
        bus.log("a", 19.0, step=19)
        bus.rewind(9)
        assert bus.last("a") is None
        bus.log("a", 10.0, step=10)
        assert bus.last("a") == 10.0


def test_epoch_left_by_break_after_its_checkpoint_is_not_repeated(tmp_path: Path) -> None:
    with open_with_epoch_accuracy(tmp_path) as bus:
        for _ in bus.epochs(3):
            for _ in bus.steps(range(3)):
                bus.log("acc", float(bus.epoch))
            state = bus.state_dict()
            break
    with open_with_epoch_accuracy(tmp_path) as resumed:
        resumed.load_state_dict(state)
        for _ in resumed.epochs(1):
            for _ in resumed.steps(range(3)):
                resumed.log("acc", float(resumed.epoch))
    assert series(folder_of(resumed), "acc") == [(2, 0, 0.0), (5, 1, 1.0)]
    lines = (folder_of(resumed) / "csv" / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[4] for line in lines if ",acc," in line] == ["0.0", "1.0"]


def test_last_of_a_reduced_name_ignores_superseded_values(tmp_path: Path) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus:
        bus.define("x", every=2, reduce="mean")
        for step in range(4):
            bus.log("x", step, step=step)
        bus.flush()
        assert bus.last("x") == 2.5
        bus.rewind(0)
        assert bus.last("x") is None


def test_value_logged_right_after_the_last_epoch_is_superseded_on_resuming(tmp_path: Path) -> None:
    """It has the same step as the end of the epoch, which is kept."""
    with open_with_epoch_accuracy(tmp_path) as bus:
        for _ in bus.epochs(1):
            for _ in bus.steps(range(3)):
                bus.log("acc", 1.0)
            state = bus.state_dict()
        bus.log("final", 1.0)
    with open_with_epoch_accuracy(tmp_path) as resumed:
        resumed.load_state_dict(state)
        for _ in resumed.epochs(1):
            for _ in resumed.steps(range(3)):
                resumed.log("acc", 2.0)
        resumed.log("final", 2.0)
    assert series(folder_of(resumed), "acc") == [(2, 0, 1.0), (5, 1, 2.0)]
    assert series(folder_of(resumed), "final") == [(5, 1, 2.0)]


def test_quantile_of_a_sample_continues_identically_after_a_checkpoint(tmp_path: Path) -> None:
    """Beyond 65,536 values, a quantile is that of a random sample."""
    values = [float(value * 7919 % 100_003) for value in range(90_000)]

    def open_bus(name: str) -> MetricBus:
        bus = MetricBus(name, dir=tmp_path, sinks="", queue_size=200_000)
        bus.define("x", on_step=False, on_epoch=True, reduce="median")
        return bus

    def log(bus: MetricBus, part: list[float]) -> None:
        for value in part:
            bus.log("x", value, step=0)

    with open_bus("whole") as bus:
        log(bus, values)
        expected = bus.end_epoch()
    with open_bus("first") as bus:
        log(bus, values[:70_000])
        state = json.loads(json.dumps(bus.state_dict()))
    with open_bus("second") as bus:
        bus.load_state_dict(state)
        log(bus, values[70_000:])
        assert bus.end_epoch() == expected


@pytest.mark.parametrize("other_step", [2, 20])
def test_checkpoint_of_another_run_damages_no_line(tmp_path: Path, other_step: int) -> None:
    with MetricBus("other", dir=tmp_path, sinks="") as other:
        other.log("y", 1.0, step=other_step)
        state = other.state_dict()
    with MetricBus("own", dir=tmp_path, sinks="") as bus:
        for step in range(6):
            bus.log("x", float(step), step=step)
        bus.load_state_dict(state)
        assert bus.step == other_step
    history = metricbus.read(folder_of(bus))
    assert history.damaged == 0
    assert history.series("x").step.tolist() == list(range(min(other_step + 1, 6)))


def test_error_for_something_else_than_a_state_shows_what_it_is(tmp_path: Path) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus:
        with pytest.raises(ValueError, match=r"not a mapping with the keys \['model', 'step'\]"):
            bus.load_state_dict({"step": 1, "model": {}})
        with pytest.raises(ValueError, match=r"not str: 'checkpoint\.pt'"):
            bus.load_state_dict("checkpoint.pt")  # type: ignore[arg-type]


@pytest.mark.parametrize("in_middle", [False, True])
def test_total_counts_the_epochs_of_all_attempts(tmp_path: Path, in_middle: bool) -> None:
    with open_with_epoch_accuracy(tmp_path) as bus:
        for epoch in bus.epochs(total=5):
            for _ in bus.steps(range(3)):
                bus.log("acc", float(epoch))
                if in_middle:
                    state = bus.state_dict()
            if not in_middle:
                state = bus.state_dict()
            if epoch == 1:
                break
    with open_with_epoch_accuracy(tmp_path) as resumed:
        resumed.load_state_dict(state)
        epochs = resumed.epochs(total=5)
        assert list(epochs) == ([1, 2, 3, 4] if in_middle else [2, 3, 4])
        assert list(resumed.epochs(total=5)) == []
        assert list(resumed.epochs(2)) == [5, 6]


def test_epochs_without_a_number_or_with_two_raises(tmp_path: Path) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus:
        wrong: list[dict[str, Any]] = [{}, {"n": 1, "total": 2}]
        for arguments in wrong:
            with pytest.raises(TypeError, match=r"epochs\(n\), or epochs\(total=n\)"):
                bus.epochs(**arguments)
        with pytest.raises(ValueError, match="total= must be 0 or more"):
            bus.epochs(total=-1)
