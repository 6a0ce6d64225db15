"""Going on with a run: the same run in every backend, and what later attempts supersede."""

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

import metricbus
from metricbus import ConfigError, MetricBus, Scalars
from metricbus._common.records import Rewind
from metricbus._ingest import recorder
from metricbus._journal.run import Run
from metricbus.sinks.tensorboard.event_file import read_events
from metricbus.sinks.tensorboard.sink import TensorBoardSink
from metricbus.testing import MemorySink
from tests.helpers.wandb_reader import wandb_files, wandb_records, wandb_rows

WaitFor = Callable[[Callable[[], bool]], None]


def made(bus: MetricBus) -> Path:
    assert bus.folder is not None
    return bus.folder


def attempt(folder: Path, steps: range, **options: Any) -> MetricBus:
    wanted: dict[str, Any] = {"sinks": "csv", "run": "digits", "resume": True} | options
    with MetricBus(dir=folder, **wanted) as bus:
        for step in steps:
            bus.log("x", float(step), step=step)
    return bus


def csv_values(folder: Path) -> list[float]:
    lines = (folder / "csv" / "metrics.csv").read_text().splitlines()[1:]
    return [float(line.split(",")[4]) for line in lines]


def test_without_resume_the_same_name_is_a_new_run(tmp_path: Path) -> None:
    first = attempt(tmp_path, range(3), resume=False)
    assert made(attempt(tmp_path, range(3), resume=False)) != made(first)


def test_every_backend_goes_on_with_the_same_run(tmp_path: Path) -> None:
    sinks = "csv,tensorboard,wandb,mlflow"
    first = attempt(tmp_path, range(5), sinks=sinks, config={"lr": 0.1})
    second = attempt(tmp_path, range(5, 10), sinks=sinks, config={"epochs": 2})
    assert second.stats().complete
    folder = made(second)
    assert folder == made(first)
    assert second.run is not None
    assert (second.run.attempt, second.run.config) == (2, {"lr": 0.1, "epochs": 2})
    assert csv_values(folder) == list(range(10))
    (file,) = (folder / "tensorboard").glob("events*")
    accumulator = EventAccumulator(str(file))
    accumulator.Reload()
    assert [event.step for event in accumulator.Scalars("x")] == list(range(10))
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
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'metricbus'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert [point.step for point in client.get_metric_history(run.info.run_id, "x")] == list(
        range(10)
    )
    assert run.data.params == {"lr": "0.1", "epochs": "2"}
    assert run.info.status == "FINISHED"


def test_a_run_is_found_by_its_id_too(tmp_path: Path) -> None:
    attempt(tmp_path, range(3), id="one", run=None)
    attempt(tmp_path, range(3, 6), id="one", run=None)
    assert csv_values(tmp_path / "one") == list(range(6))


def test_without_such_a_run_a_new_one_is_made_unless_it_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no run with the name 'digits' in"):
        attempt(tmp_path, range(3), resume="must")
    with pytest.raises(ConfigError, match="there is no run with the id 'one' in"):
        attempt(tmp_path, range(3), resume="must", id="one")
    assert len(csv_values(made(attempt(tmp_path, range(3))))) == 3


def test_a_name_that_several_runs_have_is_told_with_the_candidates(tmp_path: Path) -> None:
    runs = [attempt(tmp_path, range(1), resume=False) for _ in range(2)]
    with pytest.raises(ConfigError, match=r"2 runs in .* have the name 'digits'") as told:
        attempt(tmp_path, range(1))
    for bus in runs:
        assert bus.run is not None
        assert f"id={bus.run.id!r}, finished, started " in str(told.value)


def test_resuming_nothing_in_particular_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="which run"):
        MetricBus(resume=True, dir=tmp_path)


def test_a_run_that_is_at_work_is_not_gone_on_with(tmp_path: Path) -> None:
    live = MetricBus("digits", dir=tmp_path, sinks="")
    with pytest.raises(ConfigError, match="is still running, in process"):
        attempt(tmp_path, range(1))
    live.close()


def test_the_environment_may_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt(tmp_path, range(2), id="r")
    monkeypatch.setenv("METRICBUS_RESUME", "must")
    monkeypatch.setenv("METRICBUS_RUN_ID", "r")
    attempt(tmp_path, range(2, 4), resume=None)
    assert csv_values(tmp_path / "r") == list(range(4))


def test_a_killed_run_goes_on_without_loss_or_double(tmp_path: Path) -> None:
    code = """
        import os, signal
        from metricbus import MetricBus
        bus = MetricBus("digits", id="r", dir=".", sinks="csv,tensorboard")
        for step in range(500):
            bus.log("x", float(step), step=step)
        bus.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    subprocess.run(command, cwd=tmp_path, timeout=50, check=False)
    attempt(tmp_path, range(500, 600), id="r", sinks="csv,tensorboard")
    assert csv_values(tmp_path / "r") == list(range(600))
    history = metricbus.read(tmp_path / "r")
    assert history.run.status == "finished"
    assert len(history.series("x")) == 600


def test_an_attempt_beside_the_lingering_delivery_of_the_last_doubles_nothing(
    tmp_path: Path, wait_for: WaitFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one closes without waiting: its delivery has not even begun."""
    monkeypatch.delenv("METRICBUS_DELIVERY")
    sinks = "csv,tensorboard,wandb"
    for number in range(3):
        last = number == 2
        steps = range(number * 50, number * 50 + 50)
        bus = attempt(tmp_path, steps, id="r", sinks=sinks, close_timeout=50.0 if last else 0.0)
    assert bus.stats().complete
    assert csv_values(tmp_path / "r") == list(range(150))
    assert [row["x"] for row in wandb_rows(tmp_path / "r")] == list(range(150))
    accumulator = EventAccumulator(str(tmp_path / "r" / "tensorboard"))
    accumulator.Reload()
    assert [event.step for event in accumulator.Scalars("x")] == list(range(150))
    assert json.loads((tmp_path / "r" / "run.json").read_bytes())["attempt"] == 3


def test_a_param_that_has_changed_is_told_where_it_cannot_be_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for rate in (0.1, 0.2):
        attempt(tmp_path, range(1), id="r", sinks="mlflow", config={"lr": rate})
    assert "'lr' stays 0.1, although the config now has 0.2" in caplog.text


# Rewinding


def steps_of(folder: Path, **options: Any) -> list[int]:
    steps: list[int] = metricbus.read(folder, **options).series("x").step.tolist()
    return steps


def test_what_came_after_a_rewind_replaces_what_came_before_it(tmp_path: Path) -> None:
    with MetricBus(sinks="csv", dir=tmp_path) as bus:
        for step in range(10):
            bus.log("x", float(step), step=step)
        bus.rewind(5)
        assert bus.step == 5
        for step in range(6, 8):
            bus.log("x", 100.0 + step, step=step)
    series = metricbus.read(made(bus)).series("x")
    assert series.step.tolist() == list(range(8))
    assert series.value.tolist() == [0, 1, 2, 3, 4, 5, 106, 107]
    assert steps_of(made(bus), superseded=True) == [*range(10), 6, 7]


def test_the_next_loop_begins_after_the_step_that_was_gone_back_to(tmp_path: Path) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus:
        for _ in bus.steps(range(10)):
            bus.log("x", 1.0)
        bus.rewind(3)
        for _ in bus.steps(range(2)):
            bus.log("x", 2.0)
    assert steps_of(made(bus)) == [0, 1, 2, 3, 4, 5]


def test_rows_of_other_processes_are_superseded_as_far_as_they_are_older(tmp_path: Path) -> None:
    worker = """
        import sys
        from metricbus import MetricBus
        with MetricBus() as bus:
            bus.log("x", float(sys.argv[1]), step=int(sys.argv[1]))
    """
    with MetricBus(sinks="", dir=tmp_path) as bus:
        for step in ("7", "2"):
            command = [sys.executable, "-c", textwrap.dedent(worker), step]
            subprocess.run(command, check=True, timeout=50)
        bus.rewind(5)
        command = [sys.executable, "-c", textwrap.dedent(worker), "9"]
        subprocess.run(command, check=True, timeout=50)
    assert sorted(steps_of(made(bus))) == [2, 9]


@pytest.mark.parametrize("step", [-1, 1.5, "3"])
def test_a_step_that_is_none_is_told(tmp_path: Path, step: Any) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus, pytest.raises((TypeError, ValueError)):
        bus.rewind(step)


def test_each_sink_does_what_it_can(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="metricbus")
    sinks = "logging,csv,tensorboard,wandb,mlflow"
    with MetricBus(sinks=sinks, dir=tmp_path) as bus:
        for step in range(10):
            bus.log("x", float(step), step=step)
        bus.rewind(5)
        for step in range(6, 8):
            bus.log("x", 100.0 + step, step=step)
    assert bus.stats().complete
    folder = made(bus)
    assert "rewind to step 5 epoch 0: later rows are superseded" in caplog.text
    lines = (folder / "csv" / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[5] for line in lines].index("rewind") == 11
    assert lines[11].startswith("5,0,")
    assert len(lines) == 1 + 10 + 1 + 2
    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    assert [event.value for event in accumulator.Scalars("x")] == [0, 1, 2, 3, 4, 5, 106, 107]
    assert not (folder / "tensorboard" / "late-1").exists()
    rows = list(wandb_rows(folder))
    assert [row.get("metricbus/rewind") for row in rows] == [None] * 10 + [5] + [None] * 2
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'metricbus'")
    (run,) = client.search_runs([experiment.experiment_id])
    (tag,) = [text for key, text in run.data.tags.items() if "superseded_before" in key]
    assert tag == "steps beyond 5"


def test_a_rewind_that_comes_again_is_not_doubled_in_tensorboard(tmp_path: Path) -> None:
    """The progress is lost after each write in turn; what is in the files tells the sink."""
    rows = [Scalars(step=step, epoch=0, time=step, values={"x": float(step)}) for step in range(4)]
    late = Scalars(step=1, epoch=0, time=5, values={"x": 9.0})
    back = Rewind(step=2, epoch=0, time=6)
    after = Scalars(step=3, epoch=0, time=7, values={"x": 8.0})
    later = Scalars(step=0, epoch=0, time=8, values={"x": 7.0})
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
        again = TensorBoardSink()
        again.open(run, folder, state)
        again.write(records[lost:])
        again.close("finished")
        sink.close("finished")
        found = [
            (file.parent.name, event.step, event.HasField("session_log"))
            for file in sorted(folder.rglob("events*"))
            for event, _ in read_events(file)
            if not event.file_version
        ]
        if lost == 0:
            expected = found
        assert [(name == "late-1", *rest) for name, *rest in found] == [
            (name == "late-1", *rest) for name, *rest in expected
        ]
    assert len(expected) == 4 + 2 + 4 + 1, "the second rewind is in the sub-run too"


# Checkpoints


def train(folder: Path, epochs: range, *, dies_at: int | None = None, **options: Any) -> MetricBus:
    """A training that checkpoints at the end of each epoch, and may die in the midst of one."""
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
            if bus.step == dies_at:
                bus.close("failed")
                return bus
        bus.log("acc", float(epoch))
        checkpoint.write_text(json.dumps(bus.state_dict()))
    bus.close()
    return bus


def series(folder: Path, name: str) -> list[tuple[int, int, float]]:
    found = metricbus.read(folder).series(name)
    return sorted(zip(found.step.tolist(), found.epoch.tolist(), found.value.tolist(), strict=True))


def test_a_training_that_died_and_went_on_reads_like_one_that_did_not(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    whole = train(tmp_path / "one", range(3))
    died = train(tmp_path / "two", range(3), dies_at=17)
    went_on = train(tmp_path / "two", range(1, 3))
    assert made(died) == made(went_on)
    for name in ("x", "acc"):
        assert series(made(went_on), name) == series(made(whole), name)
    assert [value for *_, value in series(made(went_on), "loss")] == [
        value for *_, value in series(made(whole), "loss")
    ]


def test_a_state_is_made_of_plain_values(tmp_path: Path) -> None:
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


def test_what_was_open_is_emitted_where_the_training_goes_on(tmp_path: Path) -> None:
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
    again = open_bus(second)
    again.load_state_dict(state)
    again.log({"loss": 3.0, "worst": 0.0}, step=3)
    assert again.end_epoch() == {"worst": 10.0}
    again.close()
    assert [(point.step, point.value) for point in second.series("loss")] == [(3, 1.5)]


def test_a_rule_that_has_changed_meanwhile_is_told(
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
    assert "what was open of 'x' cannot be restored: it was reduced by Mean" in caplog.text
    assert "'y' is not reduced any more" in caplog.text
    assert metricbus.read(made(bus)).series("x").value.tolist() == [5.0]


@pytest.mark.parametrize("state", [None, [], {}, {"step": 1}, "checkpoint.pt"])
def test_what_is_no_state_is_told(tmp_path: Path, state: Any) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus:
        with pytest.raises(ValueError, match="needs a state that state_dict"):
            bus.load_state_dict(state)
        bus.log("x", 1.0)


def test_a_state_of_a_later_version_is_told(tmp_path: Path) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus:
        state = bus.state_dict() | {"version": 99}
        with pytest.raises(ValueError, match="pip install --upgrade metricbus"):
            bus.load_state_dict(state)


def test_a_bus_that_is_off_has_a_state_too() -> None:
    bus = MetricBus(disabled=True)
    bus.load_state_dict(bus.state_dict())
    bus.rewind(3)
    assert bus.step == 3


def test_what_a_new_attempt_logged_before_it_loaded_its_state_stays(tmp_path: Path) -> None:
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


def test_an_earlier_attempt_is_superseded_whatever_its_clock_said(
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


def test_what_was_open_in_a_superseded_stretch_is_not_partial(tmp_path: Path) -> None:
    code = """
        import json, os, signal
        from pathlib import Path
        from metricbus import MetricBus
        bus = MetricBus("digits", id="r", dir=".", sinks="csv", flush_secs=0.01)
        bus.define("loss", every=100, reduce="mean")
        bus.log("loss", 1.0, step=0)
        Path("state.json").write_text(json.dumps(bus.state_dict()))
        bus.log("loss", 9.0, step=7)
        bus._session.save()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    subprocess.run(command, cwd=tmp_path, timeout=50, check=False)
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


def test_an_attempt_is_not_held_up_by_the_delivery_of_a_killed_one(
    tmp_path: Path, wait_for: WaitFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("METRICBUS_DELIVERY")
    code = """
        import os, signal
        from metricbus import MetricBus
        bus = MetricBus("digits", id="r", dir=".", sinks="csv,mlflow+http://127.0.0.1:9")
        bus.log("x", 0.0, step=0)
        while not (bus.folder / "csv" / "metrics.csv").exists():
            pass
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    subprocess.run(command, cwd=tmp_path, timeout=50, check=False)
    with MetricBus("digits", id="r", dir=tmp_path, sinks="csv,tensorboard", resume=True) as bus:
        bus.log("x", 1.0, step=1)
        report = bus.flush(timeout=30)
        assert report.sinks["csv"].pending == 0, str(report)


def test_a_config_that_goes_on_with_a_name_twice_is_an_error(tmp_path: Path) -> None:
    attempt(tmp_path, range(1), config={"opt/lr": 0.1})
    with pytest.raises(ConfigError, match="twice"):
        attempt(tmp_path, range(1), config={"opt": {"lr": 0.2}})


def test_what_an_epoch_gave_right_after_its_checkpoint_does_not_come_again(tmp_path: Path) -> None:
    sinks = "csv,tensorboard,mlflow"
    train(tmp_path, range(2), sinks=sinks)
    folder = made(train(tmp_path, range(2, 3), sinks=sinks))
    expected = [(9, 0, 0.0), (19, 1, 1.0), (29, 2, 2.0)]
    assert series(folder, "acc") == expected
    assert [(step, epoch) for step, epoch, _ in series(folder, "time/epoch")] == [
        (step, epoch) for step, epoch, _ in expected
    ]
    lines = (folder / "csv" / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[4] for line in lines if ",acc," in line] == ["0.0", "1.0", "2.0"]
    assert not list(folder.glob("tensorboard/late-*"))
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([one.experiment_id for one in client.search_experiments()])
    history = client.get_metric_history(run.info.run_id, "acc")
    assert [(metric.step, metric.value) for metric in history] == [(0, 0.0), (1, 1.0), (2, 2.0)]


def test_what_was_logged_between_a_checkpoint_and_the_end_of_its_epoch_is_superseded(
    tmp_path: Path,
) -> None:
    with MetricBus("r", id="r", dir=tmp_path, sinks="") as bus:
        for _ in bus.epochs(1):
            bus.log("x", 1.0)
            state = bus.state_dict()
            bus.log("y", 2.0)
    with MetricBus(id="r", dir=tmp_path, sinks="", resume=True) as bus:
        bus.load_state_dict(state)
    assert metricbus.read(tmp_path / "r").names() == ["x"]


def test_an_epoch_goes_on_after_a_checkpoint_that_was_taken_in_its_midst(tmp_path: Path) -> None:
    def open_bus() -> MetricBus:
        bus = MetricBus("digits", dir=tmp_path, sinks="csv", resume=True)
        bus.define("acc", on_step=False, on_epoch=True)
        return bus

    bus = open_bus()
    for _ in bus.epochs(1):
        for _ in bus.steps(range(10)):
            bus.log("acc", float(bus.step))
            if bus.step == 3:
                state = bus.state_dict()
    bus.close()
    again = open_bus()
    again.load_state_dict(json.loads(json.dumps(state)))
    for epoch in again.epochs(2):
        for _ in again.steps(range(6) if epoch == 0 else range(10)):
            again.log("acc", float(again.step))
    again.close()
    assert series(made(again), "acc") == [(9, 0, 4.5), (19, 1, 14.5)]


def test_a_run_that_goes_on_has_its_config(tmp_path: Path) -> None:
    attempt(tmp_path, range(1), config={"lr": 0.5})
    assert attempt(tmp_path, range(1, 2)).config == {"lr": 0.5}


def test_the_last_value_is_none_that_was_superseded(tmp_path: Path) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus:
        bus.log("a", 19.0, step=19)
        bus.rewind(9)
        assert bus.last("a") is None
        bus.log("a", 10.0, step=10)
        assert bus.last("a") == 10.0


def test_an_epoch_that_was_cut_short_after_its_checkpoint_does_not_come_again(
    tmp_path: Path,
) -> None:
    def open_bus() -> MetricBus:
        bus = MetricBus("digits", dir=tmp_path, sinks="csv", resume=True)
        bus.define("acc", on_step=False, on_epoch=True)
        return bus

    with open_bus() as bus:
        for _ in bus.epochs(3):
            for _ in bus.steps(range(3)):
                bus.log("acc", float(bus.epoch))
            state = bus.state_dict()
            break
    with open_bus() as again:
        again.load_state_dict(state)
        for _ in again.epochs(1):
            for _ in again.steps(range(3)):
                again.log("acc", float(again.epoch))
    assert series(made(again), "acc") == [(2, 0, 0.0), (5, 1, 1.0)]
    lines = (made(again) / "csv" / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[4] for line in lines if ",acc," in line] == ["0.0", "1.0"]
