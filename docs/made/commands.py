"""Generates docs/commands.md, which lists every command with its arguments and options.

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

Every command of `metricbus` with its arguments and options, as shown by `--help`.
[The command line](cli.md) explains how to use them. The exit status is 0 on success, 1 if there is
a problem to report, such as undelivered values, and 2 for misuse and unreadable input.

`make docs` generates this page from the declarations in `src/metricbus/_cli/`.
"""


class Parameter(NamedTuple):
    """An argument or an option of a command."""

    name: str
    kind: Any
    default: Any
    info: ArgumentInfo | OptionInfo

    @property
    def usage(self) -> str:
        """The form of an argument in the usage line."""
        name = self.info.metavar or self.name.upper()
        if get_origin(self.kind) is list and not name.endswith("..."):
            name += "..."
        return name if self.default is inspect.Parameter.empty else f"[{name}]"

    @property
    def flags(self) -> str:
        """The long and short forms of an option."""
        flags = list(self.info.param_decls or ())
        if isinstance(self.info.default, str):
            # Inside Annotated, typer stores the first flag as the default.
            flags.insert(0, self.info.default)
        return ", ".join(flags or [f"--{self.name.replace('_', '-')}"])

    @property
    def values(self) -> str:
        """The type or the choices of the value; empty for a flag without a value."""
        kind = self.kind
        if get_args(kind) and NoneType in get_args(kind):
            kind = next(arg for arg in get_args(kind) if arg is not NoneType)
        if get_origin(kind) is list:
            (kind,) = get_args(kind)
        if isinstance(kind, type) and issubclass(kind, Enum):
            return ", ".join(f"`{member.value}`" for member in kind)
        names = {"bool": "", "str": "text", "Path": "path", "int": "integer", "float": "number"}
        return names.get(kind.__name__, "text")

    @property
    def shown_default(self) -> str:
        """The default value to show, or an empty string if there is none."""
        default = self.default.value if isinstance(self.default, Enum) else self.default
        return "" if default in (None, False, (), inspect.Parameter.empty) else f"`{default}`"


def page() -> str:
    """Return the text of the page."""
    sections = []
    for command in app.registered_commands:
        assert command.callback is not None
        sections.append(section(command.name or command.callback.__name__, command.callback))
    return "\n".join([HEAD, *sections])


def section(name: str, function: Callable[..., Any]) -> str:
    """Return the section about one command."""
    description, _, example = (inspect.getdoc(function) or "").partition("Example: ")
    declared = parameters(function)
    arguments = [param for param in declared if isinstance(param.info, ArgumentInfo)]
    options = [param for param in declared if isinstance(param.info, OptionInfo)]
    usage = " ".join(["metricbus", name, *(param.usage for param in arguments)])
    lines = [f"## `{name}`", "", *description.strip().splitlines(), ""]
    if example:
        lines += ["```sh", " ".join(example.split()), "```", ""]
    lines += [f"`{usage}`", ""]
    if declared:
        lines += ["| parameter | value | default | meaning |", "|---|---|---|---|"]
        lines += [_row(param.usage, param) for param in arguments]
        lines += [_row(param.flags, param) for param in options]
        lines += [""]
    return "\n".join(lines)


def parameters(function: Callable[..., Any]) -> list[Parameter]:
    """Return the parameters that a command's function declares."""
    hints = get_type_hints(function, include_extras=True)
    declared = []
    for name, parameter in inspect.signature(function).parameters.items():
        hint = hints[name]
        assert get_origin(hint) is Annotated, f"{name} of {function} has no Annotated type"
        kind, info = get_args(hint)
        declared.append(Parameter(name, kind, parameter.default, info))
    return declared


def _row(label: str, param: Parameter) -> str:
    cells = (f"`{label}`", param.values, param.shown_default, param.info.help or "")
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"


if __name__ == "__main__":
    print(page(), end="")
