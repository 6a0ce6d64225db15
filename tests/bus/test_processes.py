"""Several processes: children that join the run, forks, scripts that end without `close()`."""

from __future__ import annotations

import json
import os
import textwrap
from functools import partial
from pathlib import Path

import pytest

import metricbus
from metricbus import MetricBus
from tests.helpers import scripts

run_script = partial(scripts.run_script, PYTHONWARNINGS="error")


def test_script_without_close_loses_nothing(tmp_path: Path) -> None:
    done = run_script(
        tmp_path,
        """
        from metricbus import MetricBus
        bus = MetricBus(id="r", sinks="csv,tensorboard")
        for step in range(1000):
            bus.log("x", float(step), step=step)
        """,
    )
    assert done.returncode == 0, done.stderr
    history = metricbus.read(tmp_path / "runs" / "r")
    assert history.series("x").value.tolist() == list(range(1000))
    assert history.run.status == "finished"
    lines = (tmp_path / "runs" / "r" / "csv" / "metrics.csv").read_text().splitlines()
    assert len(lines) == 1001


def test_uncaught_exception_ends_the_run_as_failed(tmp_path: Path) -> None:
    done = run_script(
        tmp_path,
        """
        from metricbus import MetricBus
        bus = MetricBus(id="r", sinks="csv")
        bus.log("x", 1.0)
        raise ZeroDivisionError
        """,
    )
    assert "ZeroDivisionError" in done.stderr
    history = metricbus.read(tmp_path / "runs" / "r")
    assert history.run.status == "failed"
    assert len(history.series("x")) == 1


def test_environment_configures_the_process_wide_bus(tmp_path: Path) -> None:
    done = run_script(
        tmp_path,
        """
        from metricbus import bus
        for value in (3.0, 2.0, 1.0):
            bus.log("loss", value)
        """,
        METRICBUS_SINKS="csv",
        METRICBUS_RUN_ID="from-env",
        METRICBUS_DIR="elsewhere",
        METRICBUS_PROJECT="p",
        METRICBUS_RUN="named",
    )
    assert done.returncode == 0, done.stderr
    history = metricbus.read(tmp_path / "elsewhere" / "from-env")
    assert history.series("loss").value.tolist() == [3.0, 2.0, 1.0]
    assert (history.run.name, history.run.project) == ("named", "p")


@pytest.mark.parametrize("given", ["", 'run="same name"', 'sinks="csv"', 'config={"lr": 0.1}'])
def test_process_started_by_a_run_joins_it_with_its_own_segment(tmp_path: Path, given: str) -> None:
    config = {"lr": 0.1}
    with MetricBus("same name", id="r", sinks="csv", config=config, dir=tmp_path / "runs") as bus:
        bus.log("parent", 1.0)
        done = run_script(
            tmp_path,
            f"""
            from metricbus import MetricBus
            with MetricBus({given}) as bus:
                bus.log("child", 2.0)
                assert bus.run.id == "r"
            """,
            METRICBUS_SINKS="csv",
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["r"]
    history = metricbus.read(tmp_path / "runs" / "r")
    assert history.names() == ["parent", "child"]
    assert history.run.status == "finished"
    text = (tmp_path / "runs" / "r" / "csv" / "metrics.csv").read_text()
    assert "parent,1.0" in text
    assert "child,2.0" in text


def test_joining_with_another_config_warns(tmp_path: Path) -> None:
    with MetricBus(id="r", sinks="", dir=tmp_path / "runs"):
        done = run_script(tmp_path, "from metricbus import MetricBus\nMetricBus(config={'a': 1})")
    assert "Joined the run r" in done.stderr


def test_process_wide_bus_of_a_child_joins_too(tmp_path: Path) -> None:
    with MetricBus(id="r", sinks="", dir=tmp_path / "runs"):
        done = run_script(tmp_path, 'from metricbus import bus\nbus.log("child", 2.0)')
        assert done.returncode == 0, done.stderr
    assert metricbus.read(tmp_path / "runs" / "r").names() == ["child"]


@pytest.mark.parametrize("given", ['id="other"', 'run="other", id="other"', 'run="other"'])
def test_child_that_names_another_run_creates_it(tmp_path: Path, given: str) -> None:
    with MetricBus(id="r", sinks="", dir=tmp_path / "runs"):
        done = run_script(
            tmp_path,
            f"""
            from metricbus import MetricBus
            with MetricBus({given}, sinks="") as bus:
                bus.log("x", 1.0)
            """,
        )
        assert done.returncode == 0, done.stderr
    (other,) = (tmp_path / "runs").glob("other*")
    assert metricbus.read(other).names() == ["x"]


def test_ctrl_c_during_close_still_writes_the_final_status(tmp_path: Path) -> None:
    done = run_script(
        tmp_path,
        """
        import os, signal, threading
        from metricbus import MetricBus, Sink

        class Hangs(Sink):
            def write(self, records):
                threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
                threading.Event().wait()

        bus = MetricBus(id="r", sinks=[Hangs()])
        bus.log("x", 1.0)
        bus.close(timeout=30)
        """,
    )
    assert "KeyboardInterrupt" in done.stderr
    assert metricbus.read(tmp_path / "runs" / "r").run.status == "finished"


def test_close_restores_the_run_dir_variable(tmp_path: Path) -> None:
    with MetricBus(id="r", sinks="", dir=tmp_path):
        assert os.environ["METRICBUS_RUN_DIR"] == str(tmp_path / "r")
    assert "METRICBUS_RUN_DIR" not in os.environ


def test_run_dir_without_a_run_raises(tmp_path: Path) -> None:
    done = run_script(
        tmp_path, "from metricbus import MetricBus\nMetricBus()", METRICBUS_RUN_DIR=str(tmp_path)
    )
    assert "is not a run folder" in done.stderr


def test_forked_children_join_the_run_and_the_parent_loses_nothing(tmp_path: Path) -> None:
    done = run_script(
        tmp_path,
        """
        import os
        from metricbus import MetricBus
        with MetricBus(id="r", sinks="csv") as bus:
            for step in range(200):
                bus.log("x", float(step), step=step)
                if step % 20 == 0:
                    pid = os.fork()
                    if pid == 0:
                        bus.log("y", float(step), step=step)
                        bus.log({"y": -1.0, "z": 0.0}, step=step)
                        bus.close()
                        os._exit(0)
                    os.waitpid(pid, 0)
        """,
    )
    assert done.returncode == 0, done.stderr
    history = metricbus.read(tmp_path / "runs" / "r")
    assert history.series("x").value.tolist() == list(range(200))
    assert sorted(history.series("y").value.tolist()) == [-1.0] * 10 + list(range(0, 200, 20))
    segments = sorted(path.name for path in (tmp_path / "runs" / "r" / "journal").iterdir())
    assert len(segments) == 11, "one for the parent and one for each child"
    assert len((tmp_path / "runs/r/csv/metrics.csv").read_text().splitlines()) == 1 + 200 + 30


def test_killed_run_is_readable_and_its_torn_tail_is_reported(tmp_path: Path) -> None:
    done = run_script(
        tmp_path,
        """
        import os, signal
        from metricbus import MetricBus
        bus = MetricBus(id="r", sinks="csv")
        for step in range(100):
            bus.log("x", float(step), step=step)
        bus.flush()
        os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    assert done.returncode == -9
    segment = tmp_path / "runs" / "r" / "journal" / "0001.jsonl"
    with segment.open("ab") as file:
        file.write(b'{"kind":"scal')
    history = metricbus.read(tmp_path / "runs" / "r")
    assert len(history.series("x")) == 100
    assert history.torn == 13
    assert history.run.status == "running"


def test_passwords_appear_in_no_file_and_no_output(tmp_path: Path) -> None:
    package = tmp_path / "secretive.py"
    package.write_text(
        textwrap.dedent(
            """
            from metricbus import Sink, BackendUnavailableError
            class Secretive(Sink):
                def write(self, records):
                    raise BackendUnavailableError(f"no answer from {self.location}")
            """
        )
    )
    info = tmp_path / "secretive-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: secretive\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[metricbus.sinks]\nsecretive = secretive:Secretive\n")
    done = run_script(
        tmp_path,
        """
        from metricbus import MetricBus
        with MetricBus(close_timeout=0.5) as bus:
            bus.log("x", 1.0)
        print(bus.stats())
        """,
        METRICBUS_SINKS="logging,secretive+http://me:hunter2@host:80/x,csv",
        PYTHONPATH=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert "no answer from http://***@host:80/x" in done.stdout
    assert "hunter2" not in done.stdout + done.stderr
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert len(files) >= 5
    for path in files:
        assert b"hunter2" not in path.read_bytes(), path
        assert "hunter2" not in str(path)
    (about,) = (tmp_path / "runs").glob("*/run.json")
    assert "***@host:80" in json.loads(about.read_text())["sinks"][1]
