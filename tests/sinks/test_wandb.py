"""The W&B sink, verified by reading W&B's own files."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest
import wandb
from hypothesis import given
from hypothesis import strategies as st
from wandb.sdk.interface.interface_sock import InterfaceSock

from metricbus import ConfigError, MetricBus, Run, ScalarRow, deliver
from metricbus._common.records import RunUpdate
from metricbus._common.sink_urls import parse_sink
from metricbus._delivery.consumer import Consumer
from metricbus._delivery.sink_specs import spec_of
from metricbus._journal.run import RunFolder
from metricbus.sinks.wandb.names import column_name, run_id
from metricbus.sinks.wandb.sink import WandbSink
from metricbus.sinks.wandb.start import WandbOptions
from tests.helpers.limits import HANG_SECS
from tests.helpers.scripts import run_script
from tests.helpers.wandb_reader import (
    wandb_config,
    wandb_files,
    wandb_records,
    wandb_rows,
    wandb_summary,
    wandb_tags,
)


def records(folder: Path, kind: str) -> list[Any]:
    return [
        getattr(record, kind)
        for file in wandb_files(folder)
        for record in wandb_records(file)
        if record.HasField(kind)
    ]


def folder_of(bus: MetricBus) -> Path:
    assert bus.dir is not None
    return bus.dir


def test_without_an_api_key_a_run_is_offline_and_does_not_prompt(tmp_path: Path) -> None:
    """W&B itself would prompt in a terminal and block."""
    code = """
        import os, pty, sys
        pid, terminal = pty.fork()
        if pid == 0:
            from metricbus import MetricBus
            with MetricBus(sinks="wandb", id="r") as bus:
                bus.log("x", 1.0)
            os._exit(0 if bus.stats().complete else 1)
        try:
            while output := os.read(terminal, 1024):
                sys.stdout.write(output.decode())
        except OSError:  # the terminal is closed
            pass
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    done = run_script(tmp_path, code)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["x"] for row in wandb_rows(tmp_path / "runs" / "r")] == [1]
    assert (
        "W&B has no API key, so this run is offline; upload it later with 'wandb sync'"
        in done.stdout
    )


def test_online_without_an_api_key_warns_and_does_not_affect_other_sinks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bus = MetricBus(sinks="csv,wandb?mode=online", dir=tmp_path)
    bus.log("x", 1.0)
    report = bus.close(timeout=3)
    assert report is not None
    assert report.sinks["csv"].delivered == 1
    assert report.sinks["wandb?mode=online"].pending == 1
    assert "run 'wandb login', set WANDB_API_KEY, or choose wandb?mode=offline" in caplog.text


def test_run_has_the_properties_of_the_bus_and_the_url(tmp_path: Path) -> None:
    url = "wandb://team/project?group=g&tags=a&tags=b&notes=n"
    config = {"lr": 0.1, "layers": {"sizes": [1, 2]}}
    with MetricBus("name", id="v1.5", sinks=url, dir=tmp_path, config=config, tags=["t"]) as bus:
        bus.log("x", 1.0)
    (run,) = records(folder_of(bus), "run")
    assert (run.entity, run.project, run.display_name) == ("team", "project", "name")
    assert (run.run_group, set(run.tags), run.notes) == ("g", {"a", "b", "t"}, "n")
    assert run.run_id == run_id("v1.5")
    logged = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert logged.items() >= {"lr": 0.1, "layers": {"sizes": [1, 2]}}.items()


def test_run_has_group_notes_and_project_of_the_bus(tmp_path: Path) -> None:
    with MetricBus(sinks="wandb", dir=tmp_path, project="p", group="g", notes="n") as bus:
        bus.log("x", 1.0)
    (run,) = records(folder_of(bus), "run")
    assert (run.project, run.run_group, run.notes) == ("p", "g", "n")


def test_names_logged_at_one_step_are_one_history_row(tmp_path: Path) -> None:
    with MetricBus(sinks="wandb", dir=tmp_path) as bus:
        for step in (3, 1):
            bus.log("a", step / 2, step=step, epoch=7)
            bus.log({"b": 2, "c": float("nan")}, step=step, epoch=7)
    rows = list(wandb_rows(folder_of(bus)))
    assert [row["metricbus/step"] for row in rows] == [3, 1]
    assert [row["_step"] for row in rows] == [0, 1]
    assert all(row.keys() >= {"a", "b", "c"} for row in rows)
    assert rows[0]["metricbus/epoch"] == 7
    assert rows[0]["_timestamp"] == pytest.approx(rows[0]["metricbus/time"])


def deliver_rows(
    count: int, folder: Path, monkeypatch: pytest.MonkeyPatch, publish: Any
) -> list[dict[str, Any]]:
    """Deliver `count` rows from a journal in this process; return the rows in W&B's files."""
    monkeypatch.setattr(InterfaceSock, "_publish", publish)
    with MetricBus(id="r", sinks="", dir=folder) as bus:
        for step in range(count):
            bus.log("x", float(step), step=step)
    deliver(folder_of(bus), "wandb?mode=offline", timeout=HANG_SECS)
    return list(wandb_rows(folder_of(bus)))


def test_waits_once_for_a_batch_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited_for: list[bool] = []

    def publish(self: Any, record: Any, *, nowait: bool = False) -> None:
        if record.request.HasField("partial_history"):
            waited_for.append(not nowait)
        original(self, record, nowait=nowait)

    original = InterfaceSock._publish
    rows = deliver_rows(50, tmp_path, monkeypatch, publish)
    assert [row["x"] for row in rows] == list(range(50))
    assert waited_for == [False] * 49 + [True]


def test_x_axis_is_our_step_or_the_axis_of_the_definition(tmp_path: Path) -> None:
    with MetricBus(sinks="wandb", dir=tmp_path) as bus:
        bus.define("loss", axis="tokens")
        bus.define("acc", on_step=False, on_epoch=True)
        bus.define("time/epoch", axis="epoch")
        for _ in bus.epochs(2):
            for step in bus.steps(range(2)):
                bus.log("tokens", 100 * step)
                bus.log("loss", 0.5)
                bus.log("acc", 0.25)
    folder = folder_of(bus)
    metrics = {metric.glob_name or metric.name: metric for metric in records(folder, "metric")}
    assert metrics["*"].step_metric == "metricbus/step"
    assert metrics["loss"].step_metric == "metricbus/x/tokens"
    assert metrics["time/epoch"].step_metric == "metricbus/epoch"
    assert "acc" not in metrics
    rows = list(wandb_rows(folder))
    assert [row["metricbus/x/tokens"] for row in rows if "loss" in row] == [0, 100, 0, 100]
    assert [(row["metricbus/step"], row["acc"]) for row in rows if "acc" in row] == [
        (1, 0.25),
        (3, 0.25),
    ]
    assert [row["metricbus/epoch"] for row in rows if "time/epoch" in row] == [0, 1]


def test_a_run_of_the_script_itself_is_unaffected(tmp_path: Path) -> None:
    own = wandb.init(mode="offline", project="own", dir=tmp_path, settings={"silent": True})
    try:
        with MetricBus(sinks="wandb", dir=tmp_path) as bus:
            bus.log("x", 1.0)
        assert wandb.run is own
        own.log({"y": 2.0})
    finally:
        own.finish()
    assert [row["x"] for row in wandb_rows(folder_of(bus))] == [1]


def test_does_not_set_the_global_run(tmp_path: Path) -> None:
    with MetricBus(sinks="wandb", dir=tmp_path) as bus:
        bus.log("x", 1.0)
        bus.flush()
        assert wandb.run is None


def exits(folder: Path) -> list[int]:
    return [record.exit_code for record in records(folder, "exit")]


def test_run_has_the_exit_code_of_the_training(tmp_path: Path) -> None:
    with MetricBus(sinks="wandb", dir=tmp_path) as finished:
        finished.log("x", 1.0)
    failed = MetricBus(sinks="wandb", dir=tmp_path)
    with pytest.raises(ZeroDivisionError), failed:
        failed.log("x", 1 / 0)
    assert exits(folder_of(finished)) == [0]
    assert exits(folder_of(failed)) == [1]


@given(st.sets(st.sampled_from(["a", "_a", "logged/_a", "metricbus/step", "logged/a", "_step"])))
def test_every_name_has_a_distinct_column(names: set[str]) -> None:
    columns = [column_name(name) for name in names]
    assert len(set(columns)) == len(names)
    assert not any(column.startswith(("_", "metricbus/")) for column in columns)


@pytest.mark.parametrize("project", ["a%2Fb/c:d", "x" * 129, "what%3F"])
def test_an_invalid_project_in_the_url_raises(project: str) -> None:
    with pytest.raises(ConfigError, match="is not a valid W&B project name"):
        MetricBus(sinks=f"wandb?project={project}")


def test_invalid_bus_project_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bus = MetricBus(sinks="csv,wandb", dir=tmp_path, project="a/b")
    bus.log("x", 1.0)
    report = bus.close(timeout=3)
    assert report is not None
    assert report.sinks["csv"].delivered == 1
    assert "'a/b' is not a valid W&B project name" in caplog.text


def test_a_long_tag_is_cut_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with MetricBus(sinks="wandb", dir=tmp_path, tags=["t" * 100]) as bus:
        bus.log("x", 1.0)
    (run,) = records(folder_of(bus), "run")
    assert list(run.tags) == ["t" * 64]
    assert "is cut to 64 characters, W&B's limit" in caplog.text


def test_invalid_ids_are_replaced_by_distinct_valid_ones() -> None:
    assert run_id("plain-1") == "plain-1"
    valid = [run_id(id) for id in ("v1.5", "v1-5", "v1..5", "x" * 200, "x" * 199)]
    assert len(set(valid)) == 5
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,128}", id) for id in valid)


def values_in(folder: Path) -> list[float]:
    return [row["x"] for row in wandb_rows(folder) if "x" in row]


KILL_SERVICE = """
    import os, signal, subprocess
    def kill_service():
        children = ["pgrep", "-P", str(os.getpid()), "wandb-core"]
        for pid in subprocess.check_output(children).split():
            os.kill(int(pid), signal.SIGKILL)
"""


def run_killing_script(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code that can call `kill_service()`, in a subprocess: W&B leaves state behind in it."""
    return run_script(folder, textwrap.dedent(KILL_SERVICE) + textwrap.dedent(code))


def test_killing_the_service_process_neither_loses_nor_duplicates_rows(tmp_path: Path) -> None:
    code = """
        from metricbus import MetricBus
        with MetricBus(sinks="wandb", dir=".", id="r", strict=True) as bus:
            for step in range(2000):
                bus.log("x", float(step), step=step)
            bus.flush()
            kill_service()
            for step in range(2000, 2100):
                bus.log("x", float(step), step=step)
        assert bus.stats().complete
    """
    done = run_killing_script(tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert "sink wandb: delivery has recovered" in done.stderr
    assert values_in(tmp_path / "r") == [float(step) for step in range(2100)]
    assert len(wandb_files(tmp_path / "r")) == 2


def test_killing_the_service_process_before_the_end_loses_no_rows(tmp_path: Path) -> None:
    code = """
        from metricbus import MetricBus
        with MetricBus(sinks="wandb", dir=".", id="r", strict=True) as bus:
            for step in range(500):
                bus.log("x", float(step), step=step)
            bus.flush()
            kill_service()
    """
    done = run_killing_script(tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert values_in(tmp_path / "r") == [float(step) for step in range(500)]
    assert exits(tmp_path / "r") == [0]


def test_delivery_of_a_killed_run_neither_loses_nor_duplicates_rows(tmp_path: Path) -> None:
    code = """
        from metricbus import MetricBus
        bus = MetricBus(sinks="wandb", dir=".", id="r")
        for step in range(2000):
            bus.log("x", float(step), step=step)
        bus.flush()
        kill_service()  # schedulers kill child processes, too
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run_killing_script(tmp_path, code).returncode == -signal.SIGKILL
    folder = RunFolder(tmp_path / "r")
    consumer = Consumer(folder, spec_of(parse_sink("wandb")))
    consumer.end("failed")
    consumer.run()
    assert values_in(folder.path) == [float(step) for step in range(2000)]


def test_error_for_two_projects_names_the_deliver_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="metricbus deliver RUN --sinks wandb:elsewhere"):
        MetricBus(sinks="wandb:one,wandb:two", dir=tmp_path)


def test_a_second_project_receives_all_rows_later(tmp_path: Path) -> None:
    with MetricBus(sinks="wandb:one", dir=tmp_path) as bus:
        for step in range(20):
            bus.log("x", float(step), step=step)
    folder = folder_of(bus)
    for project in ("two", "one"):
        deliver(folder, f"wandb:{project}", timeout=HANG_SECS)
    projects = [
        (record.run.project, len(rows))
        for file in wandb_files(folder)
        for records in [list(wandb_records(file))]
        for rows in [[record for record in records if record.HasField("history")]]
        for record in records
        if record.HasField("run")
    ]
    assert sorted(set(projects)) == [("one", 20), ("two", 20)]


def test_saved_progress_is_not_ahead_of_wandbs_file(tmp_path: Path) -> None:
    bus = MetricBus(sinks="wandb", dir=tmp_path)
    for step in range(500):
        bus.log("x", float(step), step=step)
    bus.flush()
    folder = folder_of(bus)

    def saved() -> int:
        files = list((folder / "offsets").glob("wandb-*.json"))
        return sum(json.loads(file.read_bytes())["delivered"] for file in files)

    assert bus.stats().sinks["wandb"].delivered == 500
    assert saved() <= len(values_in(folder))
    bus.close()
    assert saved() == 500


def test_a_name_with_a_star_is_logged(tmp_path: Path) -> None:
    with MetricBus(sinks="wandb", dir=tmp_path) as bus:
        bus.define("a*b", on_step=False, on_epoch=True)
        bus.log("a*b", 2.0)
    assert [row["a*b"] for row in wandb_rows(folder_of(bus)) if "a*b" in row] == [2]
    assert bus.stats().sinks["wandb"].error is None


def test_a_later_wandb_init_in_the_script_does_not_return_our_run(tmp_path: Path) -> None:
    code = """
        import wandb
        from metricbus import MetricBus
        with MetricBus(sinks="wandb", dir=".", id="r", strict=True) as bus:
            bus.log("x", 0.0, step=0)
            bus.flush()
            own = wandb.init(mode="offline", id="own", dir="own")
            for step in range(1, 30):
                bus.log("x", float(step), step=step)
                own.log({"theirs": step})
            own.finish()
            bus.log("x", 30.0, step=30)
    """
    (tmp_path / "own").mkdir()
    done = run_killing_script(tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert values_in(tmp_path / "r") == [float(step) for step in range(31)]
    (own,) = (tmp_path / "own").rglob("run-own.wandb")
    assert sum(record.HasField("history") for record in wandb_records(own)) == 29


def test_a_name_that_crashes_the_service_process_is_renamed(tmp_path: Path) -> None:
    with MetricBus(sinks="wandb", dir=tmp_path) as bus:
        bus.log({"\\": 1.0, "x": 2.0})
    (row,) = wandb_rows(folder_of(bus))
    assert (row["logged/backslash"], row["x"]) == (1, 2)


def test_updates_between_rows_are_not_repeated_as_rows_after_a_crash(tmp_path: Path) -> None:
    run = Run(id="r", name="r", config={"lr": 0.5}, tags=["a"])
    records: list[Any] = [
        ScalarRow(step=0, epoch=0, time=1, values={"x": 0.0}),
        RunUpdate(step=0, epoch=0, time=2, config={"lr": 0.25}, tags=("b",), summary={"y": 1.0}),
        ScalarRow(step=1, epoch=0, time=3, values={"x": 1.0}),
        RunUpdate(step=1, epoch=0, time=4, summary={"y": None, "z": 2.0}),
    ]
    sink = WandbSink(options=WandbOptions(mode="offline"))
    sink.open(run, tmp_path, {})
    sink.write(records)
    sink.close("running")  # the cursor after it is lost
    again = WandbSink(options=WandbOptions(mode="offline"))
    again.open(run.updated(*[one for one in records if isinstance(one, RunUpdate)]), tmp_path, {})
    again.write([*records, ScalarRow(step=2, epoch=0, time=5, values={"x": 2.0})])
    assert dict(again.flush().state) == {"rows": 5}
    again.close("finished")
    assert again.flush().acknowledged == 5
    assert [row["x"] for row in wandb_rows(tmp_path)] == [0.0, 1.0, 2.0]
    assert wandb_config(tmp_path)["lr"] == 0.25
    assert set(wandb_tags(tmp_path)) == {"a", "b"}
    summary = wandb_summary(tmp_path)
    assert (summary.get("y"), summary["z"]) == (None, 2.0)
