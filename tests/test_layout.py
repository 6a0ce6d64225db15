"""The table of docs/architecture.md: which modules there are, and what each may import."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import metricbus

PACKAGE = Path(metricbus.__file__).parent
PAGE = (Path(__file__).parent.parent / "docs" / "architecture.md").read_text()

REACHING_UP = {("history", "notebook"), ("history", "pictures")}
"""Who imports whom from above, within functions; the page says why."""


def test_each_module_stands_in_one_row() -> None:
    assert sorted(module for row in _rows() for module in row) == sorted(_modules())


def test_a_module_imports_nothing_from_above() -> None:
    assert _upward(in_functions=False) == set()


def test_what_functions_import_from_above_is_what_the_page_says() -> None:
    assert _upward(in_functions=True) == REACHING_UP
    (told,) = (paragraph for paragraph in PAGE.split("\n\n") if "reach up" in paragraph)
    assert set(_named_in(told)) == {module for pair in REACHING_UP for module in pair}


def test_what_is_imported_at_import_is_told_from_what_comes_later() -> None:
    tree = ast.parse("""
if TYPE_CHECKING:
    import metricbus.types
else:
    from metricbus.first import something
class Some:
    import metricbus.second.inner
    from metricbus import History
    def method(self):
        from metricbus import third
""")
    assert list(_imported(tree, in_functions=False)) == ["first", "second", "history"]
    assert list(_imported(tree, in_functions=True)) == ["first", "second", "history", "third"]


def _modules() -> list[str]:
    """The modules and packages that there are, but for what stands for them all."""
    names = (path.name.removesuffix(".py") for path in PACKAGE.iterdir())
    return [name for name in names if name.isidentifier() and not name.startswith("__")]


def _rows() -> list[list[str]]:
    """The modules in each row of the table, from the top."""
    table = PAGE.split("| module | job |\n|---|---|\n")[1].split("\n\n")[0]
    return [_named_in(line.split("|")[1]) for line in table.splitlines()]


def _named_in(text: str) -> list[str]:
    """The modules among what stands in backticks: `history.py`, `pictures/`."""
    return re.findall(r"`(\w+)(?:\.py|/)`", text)


def _upward(*, in_functions: bool) -> set[tuple[str, str]]:
    """Pairs of a module and one from a row above it that it imports."""
    place = {module: number for number, row in enumerate(_rows()) for module in row}
    return {
        (module, other)
        for path in PACKAGE.rglob("*.py")
        if (module := _module_of(path)) in place
        for other in _imported(ast.parse(path.read_text()), in_functions=in_functions)
        if other in place and place[other] < place[module]  # `__version__` is no module
    }


def _module_of(path: Path) -> str:
    """The module, or the package to which it belongs."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imported(node: ast.AST, *, in_functions: bool) -> Iterator[str]:
    """The modules of ours that are imported in a syntax tree, but for types alone."""
    if isinstance(node, ast.Import):
        full_names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        names = (f"{node.module}.{alias.name}" for alias in node.names)
        full_names = [_MADE_IN.get(name, name) for name in names]
    else:
        full_names = []
        for child in _what_runs(node, in_functions=in_functions):
            yield from _imported(child, in_functions=in_functions)
    parts = (name.split(".") for name in full_names)
    yield from dict.fromkeys(part[1] for part in parts if part[0] == "metricbus" and part[1:])


def _what_runs(node: ast.AST, *, in_functions: bool) -> Iterator[ast.AST]:
    """What of a node is run when it is imported, or also when its functions are called."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not in_functions:
        return iter(())
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return iter(node.orelse)
    return ast.iter_child_nodes(node)


_MADE_IN = {f"metricbus.{name}": module for name, module in metricbus._MODULE_OF.items()}
"""Where the public names are from: `from metricbus import History` imports `metricbus._history.history`."""
