"""What is public, what importing costs, and how others add a sink."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import metricbus
from metricbus.sinks import find_sink

HEAVY = ["tensorboard", "google", "torch", "wandb", "mlflow", "typer", "rich", "tqdm", "matplotlib"]


def test_public_names_are_exactly_all() -> None:
    public = {
        name
        for name, value in vars(metricbus).items()
        if not name.startswith("_") and not isinstance(value, type(metricbus))
    }
    assert public == set(metricbus.__all__)


def test_importing_imports_no_backend() -> None:
    code = "import sys, json, metricbus, metricbus.testing; print(json.dumps(list(sys.modules)))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = {name.partition(".")[0] for name in json.loads(out.stdout)}
    assert not loaded & set(HEAVY)


def test_making_a_bus_with_tensorboard_imports_it_in_its_consumer_alone() -> None:
    code = """
        import sys, threading
        importer = []
        class Finder:
            def find_spec(self, name, path=None, target=None):
                if name == "tensorboard.compat.proto.event_pb2":
                    importer.append(threading.current_thread().name)
        sys.meta_path.insert(0, Finder())
        from metricbus import MetricBus
        with MetricBus(sinks="tensorboard") as bus:
            bus.log("x", 1.0)
        print(importer)
    """
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert out.stdout.startswith("['metricbus-tensorboard-")


def test_a_third_party_sink_is_installed_and_used(tmp_path: Path) -> None:
    """The package of docs/sinks.md, installed by pip and named by its URL."""
    project = tmp_path / "project"
    project.mkdir()
    page = (Path(__file__).parent.parent / "docs" / "sinks.md").read_text()
    for name in ("metricbus_lines.py", "pyproject.toml"):
        block = page.split(f"`{name}`:\n\n```", 1)[1].split("\n", 1)[1].split("\n```", 1)[0]
        (project / name).write_text(block + "\n")
    code = (project / "metricbus_lines.py").read_text()
    assert len([line for line in code.splitlines() if line.strip()]) <= 25
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", target, project], check=True, timeout=120)
    script = textwrap.dedent(
        f"""
        import sys
        sys.path.insert(0, {str(target)!r})
        from metricbus import MetricBus
        with MetricBus(sinks="lines:out.txt?prefix=run 1: &every=2", id="r") as bus:
            for step in bus.steps(range(4)):
                bus.log("loss", 1.0 / (step + 1))
        print(bus.stats())
        MetricBus(sinks="lines?prefx=1")
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert "delivered 2, rejected 0, filtered 2, pending 0" in done.stdout
    assert "did you mean 'prefix'?" in done.stderr
    lines = Path("out.txt").read_text().splitlines()
    assert lines == ["run 1: step 0 loss=1.0", "run 1: step 2 loss=0.3333333333333333"]


def test_every_sink_of_ours_documents_itself() -> None:
    for name in ("csv", "logging", "tensorboard"):
        assert find_sink(name).__doc__


def test_the_package_is_typed() -> None:
    assert (Path(metricbus.__file__).parent / "py.typed").exists()
