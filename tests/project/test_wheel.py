"""The wheel as users get it: built, and installed into a clean environment without the sources.

The environment is created by `venv` and is isolated from the one that runs the tests. No network is
available, so the wheel's dependencies are linked into it with their metadata. Then pip installs the
wheel with `--no-index`. The installation fails if a requirement is not met, and a test fails if
pyproject.toml lacks one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from packaging.requirements import Requirement

import metricbus
from metricbus.sinks import sink_names
from tests.helpers.limits import HANG_SECS

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "metricbus"
EXTRAS = {"all", "cli", "demo", "media", "mlflow", "system", "tensorboard", "torch", "wandb"}


class CleanEnvironment(NamedTuple):
    """A clean environment and an empty working directory."""

    venv: Path
    site: Path
    folder: Path

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment in the empty folder, without any settings."""
        return subprocess.run(
            [self.venv / "bin" / program, *arguments],
            cwd=self.folder,
            env={"PATH": "/usr/bin:/bin", "HOME": str(self.folder), "COLUMNS": "160"},
            capture_output=True,
            text=True,
            timeout=HANG_SECS,
            check=False,
        )

    def python(self, code: str) -> str:
        """Run Python code and return its output."""
        result = self.run("python", "-W", "error", "-c", textwrap.dedent(code))
        assert result.returncode == 0, result.stderr
        return result.stdout


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the built wheel and sdist."""
    folder = tmp_path_factory.mktemp("dist")
    _build(ROOT, folder, "sdist", "wheel")
    return folder


@pytest.fixture(scope="session")
def wheel(dist: Path) -> Path:
    (wheel,) = dist.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def metadata(core: CleanEnvironment) -> Distribution:
    """The metadata of the installed distribution."""
    (info,) = core.site.glob("metricbus-*.dist-info")
    return PathDistribution(info)


@pytest.fixture(scope="session")
def core(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> CleanEnvironment:
    """An environment with the wheel and its required dependencies, numpy and msgspec."""
    return _install(wheel, (), tmp_path_factory.mktemp("core"))


@pytest.fixture(scope="session")
def with_cli(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> CleanEnvironment:
    """An environment with the wheel and the extras of the command line and its plots."""
    return _install(wheel, ("cli", "media"), tmp_path_factory.mktemp("cli"))


# Contents


def test_the_wheel_has_the_package_and_nothing_else(wheel: Path) -> None:
    """It has all modules, py.typed and the demo, but no tests, benchmarks or docs."""
    modules = {f"metricbus/{path.relative_to(SOURCE)}" for path in SOURCE.rglob("*.py")}
    files = {name for name in _files_of(wheel) if ".dist-info/" not in name}
    assert files == modules | {"metricbus/py.typed", "metricbus/_cli/demo.py"}


def test_a_wheel_built_from_the_sdist_has_the_same_files(dist: Path, wheel: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    unpacked = dist / "unpacked"
    with tarfile.open(sdist) as archive:
        # Python 3.11.3 and earlier have no filters.
        options: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(unpacked, **options)
    (root,) = unpacked.iterdir()
    assert {path.name for path in root.iterdir()} >= {"README.md", "LICENSE", "CHANGELOG.md"}
    _build(root, dist / "rebuilt", "wheel")
    (rebuilt,) = (dist / "rebuilt").glob("*.whl")
    assert _files_of(rebuilt) == _files_of(wheel)


def test_the_wheel_includes_the_license(metadata: Distribution) -> None:
    assert metadata.metadata["License-Expression"] == "Apache-2.0"
    assert metadata.metadata.get_all("License-File") == ["LICENSE"]
    text = metadata.read_text("licenses/LICENSE")
    assert text == (ROOT / "LICENSE").read_text()


def test_the_readme_is_the_long_description(metadata: Distribution) -> None:
    assert metadata.metadata["Description-Content-Type"] == "text/markdown"
    description = str(metadata.metadata.get_payload())  # type: ignore[attr-defined]
    assert description == (ROOT / "README.md").read_text()


def test_the_metadata_has_the_version_of_the_package(
    core: CleanEnvironment, metadata: Distribution
) -> None:
    assert metadata.version == metricbus.__version__
    assert core.python("import metricbus; print(metricbus.__version__)").strip() == metadata.version


def test_the_metadata_lists_every_extra(metadata: Distribution) -> None:
    assert set(metadata.metadata.get_all("Provides-Extra") or []) == EXTRAS


def test_the_core_requires_only_numpy_and_msgspec(metadata: Distribution) -> None:
    required = map(Requirement, metadata.requires or [])
    assert {requirement.name for requirement in required if not requirement.marker} == {
        "numpy",
        "msgspec",
    }


# Without extras


def test_a_run_is_logged_and_read_back(core: CleanEnvironment) -> None:
    printed = core.python(
        """
        import sys
        import metricbus
        from metricbus import MetricBus

        assert metricbus.__file__.startswith(sys.prefix), metricbus.__file__
        with MetricBus(sinks="csv", id="first") as bus:
            for step in bus.steps(range(5)):
                bus.log("loss", 1 / (step + 1))
        loss = metricbus.read("runs/first").series("loss")
        print(loss.step.tolist(), loss.value.tolist())
        """
    )
    assert printed == "[0, 1, 2, 3, 4] [1.0, 0.5, 0.3333333333333333, 0.25, 0.2]\n"
    assert (core.folder / "runs" / "first" / "csv" / "metrics.csv").exists()


def test_a_histogram_is_written_to_csv(core: CleanEnvironment) -> None:
    """Histograms need no optional package."""
    printed = core.python(
        """
        import metricbus
        from metricbus import Histogram, MetricBus

        with MetricBus(sinks="csv", id="histogram") as bus:
            bus.log("weights", Histogram([0.0, 1.0, 2.0]))
        print([record.name for record in metricbus.read("runs/histogram").media()])
        """
    )
    assert printed == "['weights']\n"


def test_the_delivery_process_needs_no_extra(core: CleanEnvironment) -> None:
    printed = core.python(
        """
        from metricbus import MetricBus

        with MetricBus(sinks="csv", id="by-process", delivery="process") as bus:
            bus.log("loss", 0.5)
        print(bus.stats().sinks["csv"].delivered)
        """
    )
    assert printed == "1\n"


def test_the_command_without_its_packages_shows_the_pip_command(core: CleanEnvironment) -> None:
    result = core.run("metricbus", "ls")
    assert result.returncode == 2
    assert result.stderr == (
        "The command line needs typer and rich: pip install 'metricbus[cli]'\n"
    )


def test_a_feature_without_its_package_raises_with_the_pip_command(core: CleanEnvironment) -> None:
    printed = core.python(
        """
        import metricbus
        from metricbus import MetricBus

        with MetricBus(sinks="") as bus:
            bus.log("loss", 0.5)
        history = metricbus.read(bus.dir)
        for use in (
            lambda: MetricBus(sinks="tensorboard"),
            lambda: MetricBus(sinks="wandb"),
            lambda: MetricBus(sinks="mlflow"),
            lambda: list(bus.steps([1], progress=True)),
            lambda: history.plot(),
            lambda: history.frame("polars"),
        ):
            try:
                use()
            except metricbus.MissingPackageError as error:
                print(str(error).partition("pip install ")[2])
        """
    )
    assert printed.splitlines() == [
        "'metricbus[tensorboard]'",
        "'metricbus[wandb]'",
        "'metricbus[mlflow]'",
        "'metricbus[cli]'",
        "matplotlib",
        "polars",
    ]


# With the extras of the command line


def test_the_command_has_help(with_cli: CleanEnvironment) -> None:
    result = with_cli.run("metricbus", "--help")
    assert result.returncode == 0, result.stderr
    for command in ("ls", "show", "tail", "plot", "export", "deliver", "doctor", "sinks", "demo"):
        assert f" {command} " in result.stdout


def test_the_command_prints_its_version(with_cli: CleanEnvironment) -> None:
    assert with_cli.run("metricbus", "--version").stdout.strip() == metricbus.__version__


def test_sinks_lists_all_sinks_and_whether_they_are_ready(with_cli: CleanEnvironment) -> None:
    result = with_cli.run("metricbus", "sinks")
    assert result.returncode == 0, result.stderr
    _, _, *rows = map(str.split, result.stdout.splitlines())
    ready = {name: answer for name, answer, *_ in rows}
    assert ready.keys() == set(sink_names())
    assert [name for name, answer in ready.items() if answer == "yes"] == ["csv", "logging"]


def test_sinks_shows_the_pip_command_for_a_missing_package(with_cli: CleanEnvironment) -> None:
    result = with_cli.run("metricbus", "sinks")
    assert "pip install 'metricbus[wandb]'" in result.stdout


def test_doctor_reports_no_problem(with_cli: CleanEnvironment) -> None:
    result = with_cli.run("metricbus", "doctor")
    assert (result.returncode, result.stderr) == (0, "")
    assert "METRICBUS_SINKS" in result.stdout


def test_a_run_is_listed_shown_and_plotted(with_cli: CleanEnvironment) -> None:
    """These are the first commands that a new user runs."""
    with_cli.python(
        """
        from metricbus import MetricBus

        with MetricBus(sinks="csv", id="listed") as bus:
            bus.log("loss", 0.5)
        """
    )
    listed = with_cli.run("metricbus", "ls", "--json")
    assert "listed" in json.dumps(json.loads(listed.stdout))
    shown = with_cli.run("metricbus", "show", "runs/listed")
    assert shown.returncode == 0, shown.stderr
    assert "loss" in shown.stdout
    plotted = with_cli.run("metricbus", "plot", "runs/listed", "--out", "loss.png")
    assert plotted.returncode == 0, plotted.stderr
    assert (with_cli.folder / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_python_m_is_the_same_command(with_cli: CleanEnvironment) -> None:
    result = with_cli.run("python", "-m", "metricbus", "--version")
    assert result.stdout.strip() == metricbus.__version__


# Building and installing


def _build(root: Path, into: Path, *targets: str) -> None:
    options = [part for target in targets for part in ("--target", target)]
    result = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--directory", str(into), *options],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=HANG_SECS,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def _files_of(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def _install(wheel: Path, extras: Sequence[str], folder: Path) -> CleanEnvironment:
    venv, empty = folder / "venv", folder / "empty"
    empty.mkdir()
    run = [sys.executable, "-m", "venv", "--without-pip", str(venv)]
    subprocess.run(run, check=True, timeout=HANG_SECS)
    (site,) = venv.glob("lib/python*/site-packages")
    for dependency in _dependencies(wheel, extras):
        _link(dependency, site)
    pip = [sys.executable, "-m", "pip", "--python", str(venv / "bin" / "python")]
    options = ["--quiet", "--no-index", "--disable-pip-version-check"]
    requirement = f"{wheel}[{','.join(extras)}]" if extras else str(wheel)
    result = subprocess.run(
        [*pip, "install", *options, requirement],
        capture_output=True,
        text=True,
        timeout=HANG_SECS,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return CleanEnvironment(venv, site, empty)


def _dependencies(wheel: Path, extras: Sequence[str]) -> Iterator[Distribution]:
    """Yield the distributions of this environment that the wheel requires, also indirectly."""
    with zipfile.ZipFile(wheel) as archive:
        (info,) = (
            path for path in zipfile.Path(archive).iterdir() if path.name.endswith(".dist-info")
        )
        pending = _required(PathDistribution(info), extras)
    seen = set()
    while pending:
        dependency = distribution(pending.pop())
        if dependency.name not in seen:
            seen.add(dependency.name)
            pending += _required(dependency, ())
            yield dependency


def _required(dist: Distribution, extras: Sequence[str]) -> list[str]:
    """Return the names of the distributions that one requires directly."""
    return [
        requirement.name
        for requirement in map(Requirement, dist.requires or [])
        if not (marker := requirement.marker)
        or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))
    ]


def _link(dist: Distribution, site: Path) -> None:
    """Link the files in a distribution's RECORD into another environment."""
    for file in dist.files or []:
        if ".." not in file.parts:  # scripts are outside of site-packages
            link = site / file
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(str(dist.locate_file(file)))
