"""The wheel, as a person gets it: built, installed into a clean environment, used without source.

The environment is one of `venv`, which sees nothing of the one that runs the tests, and it must do
without a network. So what the wheel requires is linked into it from here, distribution by
distribution, with its metadata. Then pip installs the wheel by `--no-index` and checks that every
requirement is there: one that pyproject.toml does not name, and one that is not met, show.
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
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement

import metricbus
from metricbus.sinks import sink_names
from tests.helpers.limits import HANG_SECS

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "metricbus"
EXTRAS = {"all", "cli", "demo", "media", "mlflow", "system", "tensorboard", "torch", "wandb"}


class Clean(NamedTuple):
    """A clean environment, and an empty folder to work in."""

    venv: Path
    site: Path
    folder: Path

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs a program of the environment in the empty folder, with no settings at all."""
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
        """What the code prints."""
        done = self.run("python", "-W", "error", "-c", textwrap.dedent(code))
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the wheel and the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    _build(ROOT, folder, "sdist", "wheel")
    return folder


@pytest.fixture(scope="session")
def wheel(built: Path) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def metadata(core: Clean) -> Distribution:
    """What the installed distribution says of itself."""
    (info,) = core.site.glob("metricbus-*.dist-info")
    return PathDistribution(info)


@pytest.fixture(scope="session")
def core(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Clean:
    """The wheel with numpy and msgspec alone."""
    return _installed(wheel, (), tmp_path_factory.mktemp("core"))


@pytest.fixture(scope="session")
def with_cli(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Clean:
    """The wheel with the command line, and what it draws with."""
    return _installed(wheel, ("cli", "media"), tmp_path_factory.mktemp("cli"))


# What is in it


def test_the_wheel_has_the_package_and_nothing_else(wheel: Path) -> None:
    """No tests, benchmarks or docs except the demo; all modules and the py.typed marker."""
    ours = {f"metricbus/{path.relative_to(SOURCE)}" for path in SOURCE.rglob("*.py")}
    files = {name for name in _files_of(wheel) if ".dist-info/" not in name}
    assert files == ours | {"metricbus/py.typed", "metricbus/_cli/demo.py"}


def test_the_wheel_built_from_the_sdist_is_the_same(built: Path, wheel: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    unpacked = built / "unpacked"
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    (root,) = unpacked.iterdir()
    assert {path.name for path in root.iterdir()} >= {"README.md", "LICENSE", "CHANGELOG.md"}
    _build(root, built / "again", "wheel")
    (again,) = (built / "again").glob("*.whl")
    assert _files_of(again) == _files_of(wheel)


def test_the_license_is_in_it(metadata: Distribution) -> None:
    assert metadata.metadata["License-Expression"] == "Apache-2.0"
    assert metadata.metadata.get_all("License-File") == ["LICENSE"]
    text = metadata.read_text("licenses/LICENSE")
    assert text == (ROOT / "LICENSE").read_text()


def test_the_readme_is_the_long_description(metadata: Distribution) -> None:
    assert metadata.metadata["Description-Content-Type"] == "text/markdown"
    description = str(metadata.metadata.get_payload())  # type: ignore[attr-defined]
    assert description == (ROOT / "README.md").read_text()


def test_the_version_is_the_packages(core: Clean, metadata: Distribution) -> None:
    assert metadata.version == metricbus.__version__
    assert core.python("import metricbus; print(metricbus.__version__)").strip() == metadata.version


def test_every_extra_is_there(metadata: Distribution) -> None:
    assert set(metadata.metadata.get_all("Provides-Extra") or []) == EXTRAS


def test_the_core_requires_numpy_and_msgspec_alone(metadata: Distribution) -> None:
    required = map(Requirement, metadata.requires or [])
    assert {one.name for one in required if not one.marker} == {"numpy", "msgspec"}


# The core alone


def test_a_run_is_logged_and_read_back(core: Clean) -> None:
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


def test_a_histogram_goes_into_csv(core: Clean) -> None:
    """A medium that needs no further package."""
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


def test_the_delivery_process_needs_nothing_else(core: Clean) -> None:
    printed = core.python(
        """
        from metricbus import MetricBus

        with MetricBus(sinks="csv", id="by-process", delivery="process") as bus:
            bus.log("loss", 0.5)
        print(bus.stats().sinks["csv"].delivered)
        """
    )
    assert printed == "1\n"


def test_the_command_without_its_packages_says_what_to_install(core: Clean) -> None:
    done = core.run("metricbus", "ls")
    assert done.returncode == 2
    assert done.stderr == ("The command line needs typer and rich: pip install 'metricbus[cli]'\n")


def test_what_is_not_installed_is_an_error_with_the_command(core: Clean) -> None:
    printed = core.python(
        """
        import metricbus
        from metricbus import MetricBus

        with MetricBus(sinks="") as bus:
            bus.log("loss", 0.5)
        history = metricbus.read(bus.folder)
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


# With the command line


def test_the_command_has_help(with_cli: Clean) -> None:
    done = with_cli.run("metricbus", "--help")
    assert done.returncode == 0, done.stderr
    for command in ("ls", "show", "tail", "plot", "export", "deliver", "doctor", "sinks", "demo"):
        assert f" {command} " in done.stdout


def test_the_command_tells_its_version(with_cli: Clean) -> None:
    assert with_cli.run("metricbus", "--version").stdout.strip() == metricbus.__version__


def test_sinks_lists_all_and_which_can_be_used(with_cli: Clean) -> None:
    done = with_cli.run("metricbus", "sinks")
    assert done.returncode == 0, done.stderr
    _, _, *rows = map(str.split, done.stdout.splitlines())
    ready = {name: answer for name, answer, *_ in rows}
    assert ready.keys() == set(sink_names())
    assert [name for name, answer in ready.items() if answer == "yes"] == ["csv", "logging"]


def test_sinks_tells_the_command_that_installs_a_missing_one(with_cli: Clean) -> None:
    done = with_cli.run("metricbus", "sinks")
    assert "pip install 'metricbus[wandb]'" in done.stdout


def test_doctor_finds_nothing_wrong(with_cli: Clean) -> None:
    done = with_cli.run("metricbus", "doctor")
    assert (done.returncode, done.stderr) == (0, "")
    assert "METRICBUS_SINKS" in done.stdout


def test_a_run_is_listed_shown_and_plotted(with_cli: Clean) -> None:
    """What a person does first."""
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


def test_python_m_is_the_same_command(with_cli: Clean) -> None:
    done = with_cli.run("python", "-m", "metricbus", "--version")
    assert done.stdout.strip() == metricbus.__version__


# Making it


def _build(root: Path, into: Path, *targets: str) -> None:
    options = [part for target in targets for part in ("--target", target)]
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--directory", str(into), *options],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=HANG_SECS,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def _files_of(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def _installed(wheel: Path, extras: Sequence[str], folder: Path) -> Clean:
    venv, empty = folder / "venv", folder / "empty"
    empty.mkdir()
    run = [sys.executable, "-m", "venv", "--without-pip", str(venv)]
    subprocess.run(run, check=True, timeout=HANG_SECS)
    (site,) = venv.glob("lib/python*/site-packages")
    for needed in _needed_by(wheel, extras):
        _link(needed, site)
    pip = [sys.executable, "-m", "pip", "--python", str(venv / "bin" / "python")]
    options = ["--quiet", "--no-index", "--disable-pip-version-check"]
    what = f"{wheel}[{','.join(extras)}]" if extras else str(wheel)
    done = subprocess.run(
        [*pip, "install", *options, what],
        capture_output=True,
        text=True,
        timeout=HANG_SECS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Clean(venv, site, empty)


def _needed_by(wheel: Path, extras: Sequence[str]) -> Iterator[Distribution]:
    """The distributions of this environment that the wheel requires, and what those require."""
    with zipfile.ZipFile(wheel) as archive:
        (info,) = (
            path for path in zipfile.Path(archive).iterdir() if path.name.endswith(".dist-info")
        )
        waiting = _required(PathDistribution(info), extras)
    seen = set()
    while waiting:
        found = distribution(waiting.pop())
        if found.name not in seen:
            seen.add(found.name)
            waiting += _required(found, ())
            yield found


def _required(found: Distribution, extras: Sequence[str]) -> list[str]:
    required = map(Requirement, found.requires or [])
    return [
        one.name
        for one in required
        if not one.marker or any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras))
    ]


def _link(found: Distribution, site: Path) -> None:
    """Puts a distribution's files, as its RECORD names them, into another environment."""
    for file in found.files or []:
        if ".." not in file.parts:  # programs, which stand outside
            link = site / file
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(str(found.locate_file(file)))
