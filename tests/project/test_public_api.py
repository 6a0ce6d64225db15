"""Public names, the cost of importing metricbus, and third-party sinks."""

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

FACADES = [
    "metricbus",
    "metricbus._importers",
    "metricbus.media",
    "metricbus.monitors",
    "metricbus.torch",
]
"""Packages that only re-export public names."""

PUBLIC = [
    *FACADES,
    "metricbus._history.history",
    "metricbus.sinks",
    "metricbus.testing",
]
"""Modules that declare their public names in `__all__`."""


def test_all_lists_exactly_the_public_names() -> None:
    tree = ast.parse(Path(metricbus.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    static_imports = {
        alias.asname: node.module for node in imports for alias in node.names if alias.asname
    }
    assert static_imports == metricbus._MODULE_OF
    assert list(metricbus._MODULE_OF) == metricbus.__all__
    for name in metricbus.__all__:
        assert getattr(metricbus, name) is getattr(import_module(metricbus._MODULE_OF[name]), name)
    with pytest.raises(AttributeError, match="'metricbus' has no attribute 'Buss'"):
        import_module("metricbus").Buss  # noqa: B018


def test_dir_lists_the_public_names_and_the_module_attributes() -> None:
    assert {"__version__", "__doc__"} < set(dir(metricbus))
    assert _public_dir(metricbus) == sorted(metricbus.__all__)


def test_dir_of_a_bus_lists_the_documented_members() -> None:
    page = (Path(__file__).parents[2] / "docs" / "api" / "bus.md").read_text()
    table = page.split("|---|---|\n")[1].split("\n\n")[0]
    listed = sorted(re.findall(r"`(\w+)`", table))
    assert _public_dir(metricbus.MetricBus(disabled=True)) == listed
    assert _public_dir(metricbus.bus) == listed


@pytest.mark.parametrize(
    "name",
    [name for name in media.__all__ if issubclass(getattr(media, name), media.MediaValue)],
)
def test_dir_of_a_media_class_lists_no_internal_members(name: str) -> None:
    public = {"Table": ["append", "columns", "rows"]}
    assert _public_dir(getattr(media, name)) == public.get(name, [])


def test_every_module_with_an_all_is_tested() -> None:
    package = Path(metricbus.__file__).parent
    modules = {
        ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in package.rglob("*.py")
        if "\n__all__ = " in path.read_text() and path.parent.name != "_compat"
    }
    assert modules == set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_all_has_no_missing_and_no_duplicate_names(name: str) -> None:
    module = import_module(name)
    assert sorted(set(module.__all__)) == sorted(module.__all__)
    for public in module.__all__:
        assert hasattr(module, public), public


@pytest.mark.parametrize("name", FACADES)
def test_dir_of_a_facade_lists_only_public_names(name: str) -> None:
    module = import_module(name)
    listed = {
        public
        for public in dir(module)
        if not public.startswith("_") and not isinstance(getattr(module, public), ModuleType)
    }
    assert listed - {"annotations"} == set(module.__all__)


@pytest.mark.parametrize("name", PUBLIC)
def test_names_outside_all_start_with_an_underscore(name: str) -> None:
    module = import_module(name)
    assert module.__file__
    defined = {name for name in _defined_in(Path(module.__file__)) if not name.startswith("_")}
    assert defined <= set(module.__all__)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_a_docstring(name: str) -> None:
    module = import_module(name)
    assert module.__doc__
    for public in module.__all__:
        value = getattr(module, public)
        owner = value if inspect.isroutine(value) or inspect.isclass(value) else type(value)
        assert _has_docstring(owner), public
        undocumented = [
            method_name for method_name, method in _methods_of(owner) if not inspect.getdoc(method)
        ]
        assert not undocumented, public


def test_names_for_type_checkers_match_the_runtime_names() -> None:
    tree = ast.parse(Path(metricbus.__file__).read_text())
    (block,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    declared = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert declared == metricbus._MODULE_OF


def test_a_star_import_imports_all_public_names() -> None:
    names: dict[str, object] = {}
    exec("from metricbus import *", names)
    assert names.keys() >= set(metricbus.__all__)


def test_logging_numbers_does_not_import_numpy_or_unused_packages() -> None:
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


def test_importing_metricbus_imports_no_backend() -> None:
    code = (
        "import sys, json, metricbus, metricbus.testing; from metricbus import *; "
        "print(json.dumps(list(sys.modules)))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=HANG_SECS
    )
    loaded = {name.partition(".")[0] for name in json.loads(out.stdout)}
    assert not loaded & set(HEAVY)


def test_only_the_consumer_thread_imports_tensorboard() -> None:
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


def test_a_third_party_sink_can_be_installed_and_used(tmp_path: Path) -> None:
    """Install the package from docs/writing-a-sink.md with pip, and use its sink by URL."""
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
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=HANG_SECS,
        check=False,
    )
    assert "delivered 2, rejected 0, filtered 2, pending 0" in result.stdout
    assert "did you mean 'prefix'?" in result.stderr
    lines = Path("out.txt").read_text().splitlines()
    assert lines == ["run 1: step 0 loss=1.0", "run 1: step 2 loss=0.3333333333333333"]


def test_every_built_in_sink_has_a_docstring() -> None:
    for name in ("csv", "logging", "tensorboard"):
        assert find_sink(name).__doc__


def test_the_package_is_typed() -> None:
    assert (Path(metricbus.__file__).parent / "py.typed").exists()


def _public_dir(value: object) -> list[str]:
    """Return the names in `dir()` without a leading underscore."""
    return [name for name in dir(value) if not name.startswith("_")]


def _defined_in(path: Path) -> Iterator[str]:
    """Yield the names that a module defines at the top level, without imports."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def _has_docstring(owner: Callable[..., object]) -> bool:
    """Return whether there is a docstring other than the one that NamedTuple generates."""
    text = owner.__doc__ or ""
    return bool(text) and not text.startswith(f"{owner.__name__}(")


def _methods_of(owner: object) -> Iterator[tuple[str, object]]:
    """Yield the public methods and properties that are defined in metricbus."""
    for name, member in inspect.getmembers_static(owner):
        function = member.fget if isinstance(member, property) else member
        function = getattr(function, "__func__", function)
        module = getattr(function, "__module__", None) or ""
        is_own = module.startswith("metricbus")
        if not name.startswith("_") and inspect.isfunction(function) and is_own:
            yield name, getattr(owner, name)


def test_import_on_windows_raises_with_a_remedy() -> None:
    code = "import sys; sys.platform = 'win32'; import metricbus"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_SECS, check=False
    )
    assert (
        "ImportError: metricbus runs on Linux and macOS; on Windows, install it in WSL"
        in done.stderr
    )


def test_no_thread_is_the_first_to_decode_a_class() -> None:
    """Only decoders of modules decode: in msgspec 0.22, two first decodings at once can crash."""
    source = Path(metricbus.__file__).parent
    found = [
        f"{path.relative_to(source)}:{node.lineno}"
        for path in source.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("msgspec.json.decode", "msgspec.msgpack.decode")
        and any(keyword.arg == "type" for keyword in node.keywords)
    ]
    assert found == []
