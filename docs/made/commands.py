"""Prints docs/commands.md: every command with its arguments and options, from the code.

python docs/made/commands.py > docs/commands.md
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from enum import Enum
from types import NoneType
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo, OptionInfo

from metricbus._cli.app import app

HEAD = """\
# Commands

Every command of `metricbus` with its arguments and options, as `--help` has them.
[The command line](cli.md) tells what they are for. The exit status is 0 when all is well, 1 where
the answer is no, 2 for misuse and for what cannot be read.

This page is made from the declarations in `src/metricbus/cli/` by `make docs`.
"""


class Parameter(NamedTuple):
    """An argument or an option of a command, as its function declares it."""

    name: str
    kind: Any
    default: Any
    info: ArgumentInfo | OptionInfo

    @property
    def usage(self) -> str:
        """How an argument stands in the command's line."""
        name = self.info.metavar or self.name.upper()
        if get_origin(self.kind) is list and not name.endswith("..."):
            name += "..."
        return name if self.default is inspect.Parameter.empty else f"[{name}]"

    @property
    def spelled(self) -> str:
        """An option with its short form."""
        told = list(self.info.param_decls or ())
        if isinstance(self.info.default, str):  # where typer puts the first, inside Annotated
            told.insert(0, self.info.default)
        return ", ".join(told or [f"--{self.name.replace('_', '-')}"])

    @property
    def takes(self) -> str:
        """What a value may be; a switch takes none."""
        kind = self.kind
        if get_args(kind) and NoneType in get_args(kind):
            kind = next(one for one in get_args(kind) if one is not NoneType)
        if get_origin(kind) is list:
            (kind,) = get_args(kind)
        if isinstance(kind, type) and issubclass(kind, Enum):
            return ", ".join(f"`{one.value}`" for one in kind)
        words = {"bool": "", "str": "text", "Path": "path", "int": "integer", "float": "number"}
        return words.get(kind.__name__, "text")

    @property
    def shown_default(self) -> str:
        """The default, where it tells something."""
        default = self.default.value if isinstance(self.default, Enum) else self.default
        return "" if default in (None, False, (), inspect.Parameter.empty) else f"`{default}`"


def page() -> str:
    """The whole page."""
    sections = []
    for command in app.registered_commands:
        assert command.callback is not None
        sections.append(section(command.name or command.callback.__name__, command.callback))
    return "\n".join([HEAD, *sections])


def section(name: str, function: Callable[..., Any]) -> str:
    """One command: what it does, an example, and what it takes."""
    what, _, example = (inspect.getdoc(function) or "").partition("Example: ")
    declared = parameters(function)
    arguments = [one for one in declared if isinstance(one.info, ArgumentInfo)]
    options = [one for one in declared if isinstance(one.info, OptionInfo)]
    usage = " ".join(["metricbus", name, *(one.usage for one in arguments)])
    lines = [f"## `{name}`", "", *what.strip().splitlines(), ""]
    if example:
        lines += ["```sh", " ".join(example.split()), "```", ""]
    lines += [f"`{usage}`", ""]
    if declared:
        lines += ["| what | takes | default | meaning |", "|---|---|---|---|"]
        lines += [_row(one.usage, one) for one in arguments]
        lines += [_row(one.spelled, one) for one in options]
        lines += [""]
    return "\n".join(lines)


def parameters(function: Callable[..., Any]) -> list[Parameter]:
    """What a command's function declares."""
    hints = get_type_hints(function, include_extras=True)
    found = []
    for name, parameter in inspect.signature(function).parameters.items():
        hint = hints[name]
        assert get_origin(hint) is Annotated, f"{name} of {function} says nothing of itself"
        kind, info = get_args(hint)
        found.append(Parameter(name, kind, parameter.default, info))
    return found


def _row(spelled: str, one: Parameter) -> str:
    cells = (f"`{spelled}`", one.takes, one.shown_default, one.info.help or "")
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"


if __name__ == "__main__":
    print(page(), end="")
