"""Tables that fit the terminal: columns are wrapped, and the least important ones are left out.

rich's own tables take seconds for ten thousand rows, so rows are laid out here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from metricbus.sinks.media_text import printable

_GAP = 2
# A wrapped column is at least this wide, unless it is the only one or its cells are shorter.
_MIN_WRAPPED_WIDTH = 16
_ROWS_PER_PRINT = 500


class Column:
    """A column of a table.

    If the columns do not fit, the one with the lowest `priority` is left out first. A column that
    can be `wrapped` becomes narrower by spreading its cells over several lines. `styles` has one
    rich style for each cell.
    """

    def __init__(
        self,
        title: str,
        cells: Sequence[str],
        priority: int,
        *,
        right: bool = False,
        wrapped: bool = False,
        styles: Sequence[str] = (),
    ) -> None:
        self.title = printable(title)
        self.cells = [printable(cell) for cell in cells]
        self.priority = priority
        self.right = right
        self.wrapped = wrapped
        self.styles = styles
        self.width = max(map(cell_len, (self.title, *self.cells)))

    @property
    def min_width(self) -> int:
        """The width that the column needs at least."""
        return min(self.width, _MIN_WRAPPED_WIDTH) if self.wrapped else self.width


def fits(columns: Sequence[Column], width: int) -> bool:
    """Check whether all columns fit, wrapped if possible."""
    gaps = _GAP * (len(columns) - 1)
    return sum(column.min_width for column in columns) + gaps <= width


def print_table(out: Console, columns: Sequence[Column]) -> None:
    """Print the columns that fit; empty ones are left out."""
    kept = [column for column in columns if any(column.cells)]
    if not kept:
        return
    while len(kept) > 1 and not fits(kept, out.width):
        kept.remove(min(kept, key=lambda column: column.priority))
    widths = _widths(kept, out.width)
    titles = [Column("", [column.title], 0, right=column.right, styles=["bold"]) for column in kept]
    rule = Text("─" * (sum(widths) + _GAP * (len(widths) - 1)))
    _print_lines(out, [*_row_lines(out, titles, widths, 0), rule])
    count = len(kept[0].cells)
    for start in range(0, count, _ROWS_PER_PRINT):
        rows = range(start, min(start + _ROWS_PER_PRINT, count))
        _print_lines(out, [line for row in rows for line in _row_lines(out, kept, widths, row)])


def _widths(columns: Sequence[Column], width: int) -> list[int]:
    """Return the columns' widths; wrapped columns share what the others leave."""
    widths = [column.width for column in columns]
    wrapped = [i for i, column in enumerate(columns) if column.wrapped or len(columns) == 1]
    available = width - _GAP * (len(columns) - 1)
    available -= sum(widths[i] for i in range(len(widths)) if i not in wrapped)
    for done, i in enumerate(sorted(wrapped, key=lambda i: columns[i].width)):
        widths[i] = max(1, min(widths[i], available // (len(wrapped) - done)))
        available -= widths[i]
    return widths


def _print_lines(out: Console, lines: Sequence[Text]) -> None:
    out.print(Text("\n").join(lines), soft_wrap=True)


def _row_lines(
    out: Console, columns: Sequence[Column], widths: Sequence[int], row: int
) -> Iterator[Text]:
    """Yield the lines of a row: one, unless cells are wrapped."""
    cells = [
        _wrap(out, column.cells[row], width) for column, width in zip(columns, widths, strict=True)
    ]
    for number in range(max(map(len, cells))):
        line = Text()
        for column, parts, width in zip(columns, cells, widths, strict=True):
            part = parts[number] if number < len(parts) else ""
            padding = " " * (width - cell_len(part))
            text = padding + part if column.right else part + padding
            line.append(text, column.styles[row] if column.styles else None)
            line.append(" " * _GAP)
        line.rstrip()
        yield line


def _wrap(out: Console, cell: str, width: int) -> list[str]:
    if cell_len(cell) <= width:
        return [cell]
    return [line.plain for line in Text(cell).wrap(out, width, overflow="fold")]
