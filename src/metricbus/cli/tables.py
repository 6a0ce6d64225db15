"""Tables that fit: where a terminal is narrow, the columns of least worth go first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from metricbus.cli.safe import printable

_BETWEEN = 2
_NARROWEST = 16  # to which a column is folded before another one is left out


class Column(NamedTuple):
    """A column: its title, its cells, and its worth; of the least worth goes first.

    One that is `folded` gives way by taking several lines; others are as wide as they are.
    `styles` are one a cell.
    """

    title: str
    cells: Sequence[str]
    worth: int
    right: bool = False
    folded: bool = False
    styles: Sequence[str] = ()

    @property
    def width(self) -> int:
        """Of its widest cell."""
        return max(map(cell_len, map(printable, (self.title, *self.cells))))

    @property
    def least_width(self) -> int:
        """What it needs, folded if it may be."""
        return min(self.width, _NARROWEST) if self.folded else self.width


def fits(columns: Sequence[Column], width: int) -> bool:
    """Whether there is room for all of them, folded where they may be."""
    return sum(column.least_width + _BETWEEN for column in columns) <= width


def print_table(out: Console, columns: Sequence[Column]) -> None:
    """Prints as many of the columns as there is room for; those that are empty are left out."""
    kept = [column for column in columns if any(column.cells)]
    while len(kept) > 1 and not fits(kept, out.width):
        kept.remove(min(kept, key=lambda column: column.worth))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, _BETWEEN, 0, 0), show_edge=False, pad_edge=False)
    for column in kept:
        table.add_column(
            Text(printable(column.title)),
            justify="right" if column.right else "left",
            overflow="fold",
            no_wrap=not column.folded and len(kept) > 1,
            min_width=column.least_width if len(kept) > 1 else None,
        )
    for number in range(len(kept[0].cells) if kept else 0):
        table.add_row(*(_cell(column, number) for column in kept))
    out.print(table)


def _cell(column: Column, number: int) -> Text:
    style = column.styles[number] if column.styles else ""
    return Text(printable(column.cells[number]), style=style)
