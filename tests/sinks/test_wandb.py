"""The Weights & Biases sink, read back from W&B's own files."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import wandb
from hypothesis import given
from hypothesis import strategies as st
from wandb.sdk.interface.interface_sock import InterfaceSock

from metricbus import ConfigError, MetricBus, deliver
from metricbus._common.sink_urls import parse_sink
from metricbus._delivery.consumer import Consumer
from metricbus._delivery.sink_specs import spec_of
from metricbus._journal.run import RunFolder
from metricbus.sinks.wandb.names import key_of, run_id
from tests.helpers.wandb_reader import wandb_files, wandb_records, wandb_rows


def records(folder: Path, kind: str) -> list[Any]:
    return [
        getattr(record, kind)
        for file in wandb_files(folder)
        for record in wandb_records(file)
        if record.HasField(kind)
    ]


def made(folder: Path | None) -> Path:
    assert folder is not None
    return folder


def test_without_a_key_a_run_is_offline_and_nobody_is_asked(tmp_path: Path) -> None:
    """In a terminal W&B itself would ask, and wait."""
    code = """
        import os, pty, sys
        pid, terminal = pty.fork()
        if pid == 0:
            from metricbus import MetricBus
            with MetricBus(sinks="wandb", id="r") as bus:
                bus.log("x", 1.0)
            os._exit(0 if bus.stats().complete else 1)
        try:
            while (said := os.read(terminal, 1024)):
                sys.stdout.write(said.decode())
        except OSError:  # the end of a terminal
            pass
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["x"] for row in wandb_rows(tmp_path / "runs" / "r")] == [1]
    assert "W&B has no API key, so this run is offline" in done.stdout


def test_online_without_a_key_is_told_and_costs_the_others_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bus = MetricBus(sinks="csv,wandb?mode=online", dir=tmp_path)
    bus.log("x", 1.0)
    report = bus.close(timeout=3)
    assert report is not None
    assert report.sinks["csv"].delivered == 1
    assert report.sinks["wandb?mode=online"].pending == 1
    assert "run 'wandb login', set WANDB_API_KEY, or choose wandb?mode=offline" in caplog.text


def test_the_run_has_what_the_bus_and_the_url_say(tmp_path: Path) -> None:
    url = "wandb://team/project?group=g&tags=a&tags=b&notes=n"
    config = {"lr": 0.1, "layers": {"sizes": [1, 2]}}
    with MetricBus("name", id="v1.5", sinks=url, dir=tmp_path, config=config, tags=["t"]) as bus:
        bus.log("x", 1.0)
    (run,) = records(made(bus.folder), "run")
    assert (run.entity, run.project, run.display_name) == ("team", "project", "name")
    assert (run.run_group, set(run.tags), run.notes) == ("g", {"a", "b", "t"}, "n")
    assert run.run_id == run_id("v1.5")
    logged = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert logged.items() >= {"lr": 0.1, "layers": {"sizes": [1, 2]}}.items()


def test_the_buss_own_group_notes_and_project_are_taken(tmp_path: Path) -> None:
    with MetricBus(sinks="wandb", dir=tmp_path, project="p", group="g", notes="n") as bus:
        bus.log("x", 1.0)
    (run,) = records(made(bus.folder), "run")
    assert (run.project, run.run_group, run.notes) == ("p", "g", "n")


def test_names_that_come_together_are_one_history_row(tmp_path: Path) -> None:
    with MetricBus(sinks="wandb", dir=tmp_path) as bus:
        for step in (3, 1):
            bus.log("a", step / 2, step=step, epoch=7)
            bus.log({"b": 2, "c": float("nan")}, step=step, epoch=7)
    rows = list(wandb_rows(made(bus.folder)))
    assert [row["metricbus/step"] for row in rows] == [3, 1]
    assert [row["_step"] for row in rows] == [0, 1]
    assert all(row.keys() >= {"a", "b", "c"} for row in rows)
    assert rows[0]["metricbus/epoch"] == 7
    assert rows[0]["_timestamp"] == pytest.approx(rows[0]["metricbus/time"])


def delivered_from_a_journal_of(
    rows: int, folder: Path, monkeypatch: pytest.MonkeyPatch, publish: Any
) -> list[dict[str, Any]]:
    """What W&B has of so many rows, by a consumer in this process."""
    monkeypatch.setattr(InterfaceSock, "_publish", publish)
    with MetricBus(id="r", sinks="", dir=folder) as bus:
        for step in range(rows):
            bus.log("x", float(step), step=step)
    deliver(made(bus.folder), "wandb?mode=offline", timeout=60)
    return list(wandb_rows(made(bus.folder)))


def test_a_batch_of_rows_is_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited_for: list[bool] = []

    def publish(self: Any, record: Any, *, nowait: bool = False) -> None:
        if record.request.HasField("partial_history"):
            waited_for.append(not nowait)
        original(self, record, nowait=nowait)

    original = InterfaceSock._publish
    rows = delivered_from_a_journal_of(50, tmp_path, monkeypatch, publish)
    assert [row["x"] for row in rows] == list(range(50))
    assert waited_for == [False] * 49 + [True]


def test_a_wandb_that_waits_for_each_row_gets_them_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def publish(self: Any, record: Any) -> None:
        original(self, record)

    original = InterfaceSock._publish
    monkeypatch.setattr(InterfaceSock, "publish_output", lambda *_, **__: None)
    monkeypatch.setattr(InterfaceSock, "publish_output_raw", lambda *_, **__: None)
    rows = delivered_from_a_journal_of(50, tmp_path, monkeypatch, publish)
    assert [row["x"] for row in rows] == list(range(50))


def test_charts_stand_on_our_step_or_on_the_axis_that_was_defined(tmp_path: Path) -> None:
    with MetricBus(sinks="wandb", dir=tmp_path) as bus:
        bus.define("loss", axis="tokens")
        bus.define("acc", on_step=False, on_epoch=True)
        for _ in bus.epochs(2):
            for step in bus.steps(range(2)):
                bus.log("tokens", 100 * step)
                bus.log("loss", 0.5)
                bus.log("acc", 0.25)
    folder = made(bus.folder)
    metrics = {metric.glob_name or metric.name: metric for metric in records(folder, "metric")}
    assert metrics["*"].step_metric == "metricbus/step"
    assert metrics["loss"].step_metric == "metricbus/x/tokens"
    assert metrics["acc"].step_metric == "metricbus/epoch"
    rows = list(wandb_rows(folder))
    assert [row["metricbus/x/tokens"] for row in rows if "loss" in row] == [0, 100, 0, 100]
    assert [(row["metricbus/epoch"], row["acc"]) for row in rows if "acc" in row] == [
        (0, 0.25),
        (1, 0.25),
    ]


def test_a_run_of_the_scripts_own_is_left_alone(tmp_path: Path) -> None:
    own = wandb.init(mode="offline", project="own", dir=tmp_path, settings={"silent": True})
    try:
        with MetricBus(sinks="wandb", dir=tmp_path) as bus:
            bus.log("x", 1.0)
        assert wandb.run is own
        own.log({"y": 2.0})
    finally:
        own.finish()
    assert [row["x"] for row in wandb_rows(made(bus.folder))] == [1]


def test_there_is_no_global_run(tmp_path: Path) -> None:
    with MetricBus(sinks="wandb", dir=tmp_path) as bus:
        bus.log("x", 1.0)
        bus.flush()
        assert wandb.run is None


def exits(folder: Path) -> list[int]:
    return [record.exit_code for record in records(folder, "exit")]


def test_the_run_ends_as_the_training_did(tmp_path: Path) -> None:
    with MetricBus(sinks="wandb", dir=tmp_path) as finished:
        finished.log("x", 1.0)
    failed = MetricBus(sinks="wandb", dir=tmp_path)
    with pytest.raises(ZeroDivisionError), failed:
        failed.log("x", 1 / 0)
    assert exits(made(finished.folder)) == [0]
    assert exits(made(failed.folder)) == [1]


@given(st.sets(st.sampled_from(["a", "_a", "logged/_a", "metricbus/step", "logged/a", "_step"])))
def test_no_two_names_share_a_column(names: set[str]) -> None:
    keys = [key_of(name) for name in names]
    assert len(set(keys)) == len(names)
    assert not any(key.startswith(("_", "metricbus/")) for key in keys)


@pytest.mark.parametrize("project", ["a%2Fb/c:d", "x" * 129, "what%3F"])
def test_a_project_that_wandb_refuses_is_an_error_when_the_bus_is_made(project: str) -> None:
    with pytest.raises(ConfigError, match="is no name for a W&B project"):
        MetricBus(sinks=f"wandb?project={project}")


def test_a_project_of_the_bus_that_wandb_refuses_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bus = MetricBus(sinks="csv,wandb", dir=tmp_path, project="a/b")
    bus.log("x", 1.0)
    report = bus.close(timeout=3)
    assert report is not None
    assert report.sinks["csv"].delivered == 1
    assert "'a/b' is no name for a W&B project" in caplog.text


def test_a_long_tag_is_cut_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with MetricBus(sinks="wandb", dir=tmp_path, tags=["t" * 100]) as bus:
        bus.log("x", 1.0)
    (run,) = records(made(bus.folder), "run")
    assert list(run.tags) == ["t" * 64]
    assert "is cut to the 64 characters that W&B takes" in caplog.text


def test_ids_that_wandb_refuses_are_changed_and_stay_apart() -> None:
    assert run_id("plain-1") == "plain-1"
    changed = [run_id(id) for id in ("v1.5", "v1-5", "v1..5", "x" * 200, "x" * 199)]
    assert len(set(changed)) == 5
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,128}", id) for id in changed)


def values_in(folder: Path) -> list[float]:
    return [row["x"] for row in wandb_rows(folder) if "x" in row]


KILL = """
    import os, signal, subprocess
    def kill_wandbs_own_process():
        children = ["pgrep", "-P", str(os.getpid()), "wandb-core"]
        for pid in subprocess.check_output(children).split():
            os.kill(int(pid), signal.SIGKILL)
"""


def run_script(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: what W&B leaves behind when its process dies stays there."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILL) + textwrap.dedent(code)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_the_death_of_wandbs_own_process_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    code = """
        from metricbus import MetricBus
        with MetricBus(sinks="wandb", dir=".", id="r", strict=True) as bus:
            for step in range(2000):
                bus.log("x", float(step), step=step)
            bus.flush()
            kill_wandbs_own_process()
            for step in range(2000, 2100):
                bus.log("x", float(step), step=step)
        assert bus.stats().complete
    """
    done = run_script(tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert "sink wandb works again" in done.stderr
    assert values_in(tmp_path / "r") == [float(step) for step in range(2100)]
    assert len(wandb_files(tmp_path / "r")) == 2


def test_the_death_of_wandbs_own_process_just_before_the_end_loses_nothing(tmp_path: Path) -> None:
    code = """
        from metricbus import MetricBus
        with MetricBus(sinks="wandb", dir=".", id="r", strict=True) as bus:
            for step in range(500):
                bus.log("x", float(step), step=step)
            bus.flush()
            kill_wandbs_own_process()
    """
    done = run_script(tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert values_in(tmp_path / "r") == [float(step) for step in range(500)]
    assert exits(tmp_path / "r") == [0]


def test_a_killed_run_can_be_delivered_on_without_loss_or_double(tmp_path: Path) -> None:
    code = """
        from metricbus import MetricBus
        bus = MetricBus(sinks="wandb", dir=".", id="r")
        for step in range(2000):
            bus.log("x", float(step), step=step)
        bus.flush()
        kill_wandbs_own_process()  # as schedulers do
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run_script(tmp_path, code).returncode == -signal.SIGKILL
    folder = RunFolder(tmp_path / "r")
    consumer = Consumer(folder, spec_of(parse_sink("wandb")))
    consumer.end("failed")
    consumer.run()
    assert values_in(folder.path) == [float(step) for step in range(2000)]


def test_two_projects_at_once_are_refused_with_the_command_that_helps(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="metricbus deliver RUN --sinks wandb:elsewhere"):
        MetricBus(sinks="wandb:one,wandb:two", dir=tmp_path)


def test_a_second_project_gets_all_rows_later(tmp_path: Path) -> None:
    with MetricBus(sinks="wandb:one", dir=tmp_path) as bus:
        for step in range(20):
            bus.log("x", float(step), step=step)
    folder = made(bus.folder)
    for project in ("two", "one"):
        deliver(folder, f"wandb:{project}", timeout=50)
    projects = [
        (record.run.project, len(rows))
        for file in wandb_files(folder)
        for records in [list(wandb_records(file))]
        for rows in [[record for record in records if record.HasField("history")]]
        for record in records
        if record.HasField("run")
    ]
    assert sorted(set(projects)) == [("one", 20), ("two", 20)]


def test_progress_is_not_ahead_of_wandbs_file(tmp_path: Path) -> None:
    bus = MetricBus(sinks="wandb", dir=tmp_path)
    for step in range(500):
        bus.log("x", float(step), step=step)
    bus.flush()
    folder = made(bus.folder)

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
    assert [row["a*b"] for row in wandb_rows(made(bus.folder)) if "a*b" in row] == [2]
    assert bus.stats().sinks["wandb"].error is None


def test_a_script_that_begins_a_run_of_its_own_later_does_not_get_ours(tmp_path: Path) -> None:
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
    done = run_script(tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert values_in(tmp_path / "r") == [float(step) for step in range(31)]
    (own,) = (tmp_path / "own").rglob("run-own.wandb")
    assert sum(record.HasField("history") for record in wandb_records(own)) == 29


def test_a_name_that_ends_wandbs_process_is_renamed(tmp_path: Path) -> None:
    with MetricBus(sinks="wandb", dir=tmp_path) as bus:
        bus.log({"\\": 1.0, "x": 2.0})
    (row,) = wandb_rows(made(bus.folder))
    assert (row["logged/backslash"], row["x"]) == (1, 2)
