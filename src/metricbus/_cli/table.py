"""Tables that fit: where a terminal is narrow, the columns of least worth go first.

They are laid out here and not by rich, whose tables take seconds for ten thousand rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from metricbus._cli.escaping import printable

_BETWEEN = 2
_NARROWEST = 16  # to which a column is folded before another one is left out
_AT_ONCE = 500  # rows that are printed together


class Column:
    """A column: its title, its cells, and its worth; of the least worth goes first.

    One that is `folded` gives way by taking several lines; others are as wide as they are.
    `styles` are one a cell.
    """

    def __init__(
        self,
        title: str,
        cells: Sequence[str],
        worth: int,
        *,
        right: bool = False,
        folded: bool = False,
        styles: Sequence[str] = (),
    ) -> None:
        self.title = printable(title)
        self.cells = [printable(cell) for cell in cells]
        self.worth = worth
        self.right = right
        self.folded = folded
        self.styles = styles
        self.width = max(map(cell_len, (self.title, *self.cells)))

    @property
    def least_width(self) -> int:
        """What it needs, folded if it may be."""
        return min(self.width, _NARROWEST) if self.folded else self.width


def fits(columns: Sequence[Column], width: int) -> bool:
    """Whether there is room for all of them, folded where they may be."""
    between = _BETWEEN * (len(columns) - 1)
    return sum(column.least_width for column in columns) + between <= width


def print_table(out: Console, columns: Sequence[Column]) -> None:
    """Prints as many of the columns as there is room for; those that are empty are left out."""
    kept = [column for column in columns if any(column.cells)]
    if not kept:
        return
    while len(kept) > 1 and not fits(kept, out.width):
        kept.remove(min(kept, key=lambda column: column.worth))
    widths = _widths(kept, out.width)
    titles = [Column("", [column.title], 0, right=column.right, styles=["bold"]) for column in kept]
    _print(out, [*_lines(out, titles, widths, 0), _rule(widths)])
    number_of_rows = len(kept[0].cells)
    for start in range(0, number_of_rows, _AT_ONCE):
        rows = range(start, min(start + _AT_ONCE, number_of_rows))
        _print(out, [line for row in rows for line in _lines(out, kept, widths, row)])


def _widths(columns: Sequence[Column], width: int) -> list[int]:
    """As wide as each is; the folded ones, if need be, share what the others leave."""
    alone = len(columns) == 1
    wanted = [column.width for column in columns]
    folded = [n for n, column in enumerate(columns) if column.folded or alone]
    left = width - _BETWEEN * (len(columns) - 1)
    left -= sum(many for n, many in enumerate(wanted) if n not in folded)
    widths = list(wanted)
    for done, n in enumerate(sorted(folded, key=lambda n: wanted[n])):
        widths[n] = max(1, min(wanted[n], left // (len(folded) - done)))
        left -= widths[n]
    return widths


def _rule(widths: Sequence[int]) -> Text:
    return Text("─" * (sum(widths) + _BETWEEN * (len(widths) - 1)))


def _print(out: Console, lines: Sequence[Text]) -> None:
    out.print(Text("\n").join(lines), soft_wrap=True)


def _lines(
    out: Console, columns: Sequence[Column], widths: Sequence[int], row: int
) -> Iterator[Text]:
    """The lines that a row takes: one, unless cells are folded."""
    cells = [
        _folded(out, column.cells[row], width)
        for column, width in zip(columns, widths, strict=True)
    ]
    for number in range(max(map(len, cells))):
        line = Text()
        for column, parts, width in zip(columns, cells, widths, strict=True):
            part = parts[number] if number < len(parts) else ""
            blanks = " " * (width - cell_len(part))
            text = blanks + part if column.right else part + blanks
            line.append(text, column.styles[row] if column.styles else None)
            line.append(" " * _BETWEEN)
        line.rstrip()
        yield line


def _folded(out: Console, cell: str, width: int) -> list[str]:
    if cell_len(cell) <= width:
        return [cell]
    return [line.plain for line in Text(cell).wrap(out, width, overflow="fold")]
