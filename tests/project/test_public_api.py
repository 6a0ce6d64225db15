"""What is public, what importing costs, and how others add a sink."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import metricbus
from metricbus import media
from metricbus.sinks import find_sink
from tests.helpers.limits import HANG_SECS

HEAVY = ["tensorboard", "google", "torch", "wandb", "mlflow", "typer", "rich", "tqdm", "matplotlib"]

FACES = [
    "metricbus",
    "metricbus._importers",
    "metricbus.media",
    "metricbus.monitors",
    "metricbus.torch",
]
"""Packages that do nothing but name what others are to use."""

PUBLIC = [
    *FACES,
    "metricbus._history.history",
    "metricbus.sinks",
    "metricbus.testing",
]
"""The modules that say by `__all__` what is public."""


def test_public_names_are_exactly_all() -> None:
    tree = ast.parse(Path(metricbus.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    for_type_checkers = {
        alias.asname: node.module for node in imports for alias in node.names if alias.asname
    }
    assert for_type_checkers == metricbus._MODULE_OF
    assert list(metricbus._MODULE_OF) == metricbus.__all__
    for name in metricbus.__all__:
        assert getattr(metricbus, name) is getattr(import_module(metricbus._MODULE_OF[name]), name)
    with pytest.raises(AttributeError, match="'metricbus' has no attribute 'Buss'"):
        import_module("metricbus").Buss  # noqa: B018


def test_dir_shows_the_public_names_and_its_own() -> None:
    assert {"__version__", "__doc__"} < set(dir(metricbus))
    assert _shown(metricbus) == sorted(metricbus.__all__)


def test_a_bus_shows_what_its_page_lists() -> None:
    page = (Path(__file__).parents[2] / "docs" / "api" / "bus.md").read_text()
    table = page.split("|---|---|\n")[1].split("\n\n")[0]
    listed = sorted(re.findall(r"`(\w+)`", table))
    assert _shown(metricbus.MetricBus(disabled=True)) == listed
    assert _shown(metricbus.bus) == listed


@pytest.mark.parametrize(
    "name",
    [name for name in media.__all__ if issubclass(getattr(media, name), media.MediaValue)],
)
def test_a_kind_shows_nothing_of_how_it_is_logged(name: str) -> None:
    shown = {"Table": ["append", "columns", "rows"]}
    assert _shown(getattr(media, name)) == shown.get(name, [])


def test_every_module_with_an_all_is_held_to_it() -> None:
    package = Path(metricbus.__file__).parent
    found = {
        ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in package.rglob("*.py")
        if "\n__all__ = " in path.read_text()
    }
    assert found == set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_what_all_names_is_there_once(name: str) -> None:
    module = import_module(name)
    assert sorted(set(module.__all__)) == sorted(module.__all__)
    for public in module.__all__:
        assert hasattr(module, public), public


@pytest.mark.parametrize("name", FACES)
def test_a_face_shows_nothing_else(name: str) -> None:
    module = import_module(name)
    shown = {
        public
        for public in dir(module)
        if not public.startswith("_") and not isinstance(getattr(module, public), ModuleType)
    }
    assert shown - {"annotations"} == set(module.__all__)


@pytest.mark.parametrize("name", PUBLIC)
def test_what_a_module_defines_is_public_or_has_an_underscore(name: str) -> None:
    module = import_module(name)
    assert module.__file__
    defined = {one for one in _defined_in(Path(module.__file__)) if not one.startswith("_")}
    assert defined <= set(module.__all__)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_says_what_it_is(name: str) -> None:
    module = import_module(name)
    assert module.__doc__
    for public in module.__all__:
        value = getattr(module, public)
        owner = value if inspect.isroutine(value) or inspect.isclass(value) else type(value)
        assert _tells(owner), public
        silent = [what for what, method in _methods_of(owner) if not inspect.getdoc(method)]
        assert not silent, public


def test_type_checkers_see_the_names_that_there_are() -> None:
    tree = ast.parse(Path(metricbus.__file__).read_text())
    (block,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == metricbus._MODULE_OF


def test_a_star_import_has_all_of_them() -> None:
    names: dict[str, object] = {}
    exec("from metricbus import *", names)
    assert names.keys() >= set(metricbus.__all__)


def test_importing_imports_neither_a_backend_nor_what_is_not_used() -> None:
    code = """
        import sys, tempfile
        from metricbus import MetricBus
        for unused in ("media", "monitors", "_history", "_bus.session", "_delivery.consumer"):
            assert f"metricbus.{unused}" not in sys.modules, unused
        with tempfile.TemporaryDirectory() as folder, MetricBus(sinks="csv", dir=folder) as bus:
            bus.log("loss", 0.5)
        assert "numpy" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=HANG_SECS)


def test_importing_imports_no_backend() -> None:
    code = (
        "import sys, json, metricbus, metricbus.testing; from metricbus import *; "
        "print(json.dumps(list(sys.modules)))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=HANG_SECS
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
        timeout=HANG_SECS,
    )
    assert out.stdout.startswith("['metricbus-tensorboard-")


def test_a_third_party_sink_is_installed_and_used(tmp_path: Path) -> None:
    """The package of docs/writing-a-sink.md, installed by pip and named by its URL."""
    project = tmp_path / "project"
    project.mkdir()
    page = (Path(__file__).parents[2] / "docs" / "writing-a-sink.md").read_text()
    for name in ("metricbus_lines.py", "pyproject.toml"):
        block = page.split(f"`{name}`:\n\n```", 1)[1].split("\n", 1)[1].split("\n```", 1)[0]
        (project / name).write_text(block + "\n")
    code = (project / "metricbus_lines.py").read_text()
    assert len([line for line in code.splitlines() if line.strip()]) <= 25
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", target, project], check=True, timeout=HANG_SECS)
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
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=HANG_SECS,
        check=False,
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


def _shown(thing: object) -> list[str]:
    """What `dir` lists, but for what is internal."""
    return [name for name in dir(thing) if not name.startswith("_")]


def _defined_in(path: Path) -> Iterator[str]:
    """What a module's own statements name, but for imports."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def _tells(owner: Callable[..., object]) -> bool:
    """Whether it has a text of its own, and not the one that a NamedTuple is given."""
    text = owner.__doc__ or ""
    return bool(text) and not text.startswith(f"{owner.__name__}(")


def _methods_of(owner: object) -> Iterator[tuple[str, object]]:
    """Public methods and properties that metricbus itself defines."""
    for name, member in inspect.getmembers_static(owner):
        function = member.fget if isinstance(member, property) else member
        function = getattr(function, "__func__", function)
        ours = (getattr(function, "__module__", None) or "").startswith("metricbus")
        if not name.startswith("_") and inspect.isfunction(function) and ours:
            yield name, getattr(owner, name)
