"""Tests of `Table`: lossless cells, and rows that are written once."""

from __future__ import annotations

import datetime
import enum
import io
import math
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import metricbus
from metricbus import Box, Histogram, Image, MetricBus, Table
from metricbus._common.media_records import Cell, ImageCell, TableRecord, decode_rows, encode_rows
from metricbus._history.history import History, TableRows
from metricbus.testing import MemorySink
from tests.helpers.param_ids import repr_without_address

cells = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(),
)
grids = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(cells, min_size=width, max_size=width), max_size=5)
)


class Color(str, enum.Enum):  # noqa: UP042 - not a StrEnum, whose str() differs
    RED = "red"


def read(bus: MetricBus) -> History:
    assert bus.dir is not None
    return metricbus.read(bus.dir)


def tables_of(folder: Path, *calls: dict[str, Any]) -> dict[str, list[TableRows]]:
    """Log each of the mappings, and return the tables read back, by name."""
    with MetricBus(sinks=[], dir=folder) as bus:
        for call in calls:
            bus.log(call)
    history = read(bus)
    return {name: history.tables(name) for call in calls for name in call}


def rows_of(folder: Path, table: Table) -> list[list[Cell]]:
    (found,) = tables_of(folder, {"a/b": table})["a/b"]
    assert found.columns == table.columns
    return found.rows


def is_same(cell: Any, expected: Any) -> bool:
    """Check for equality, including types, NaN and the sign of zero."""
    if isinstance(cell, float) and isinstance(expected, float):
        both_nan = math.isnan(cell) and math.isnan(expected)
        return both_nan or (
            cell == expected and math.copysign(1, cell) == math.copysign(1, expected)
        )
    return type(cell) is type(expected) and cell == expected


def assert_same_rows(rows: list[list[Cell]], expected: list[list[Cell]]) -> None:
    for row, expected_row in zip(rows, expected, strict=True):
        assert all(map(is_same, row, expected_row))
        assert len(row) == len(expected_row)


# Reading back


@given(grids)
def test_encoded_rows_decode_to_the_same_cells(rows: list[list[Cell]]) -> None:
    assert_same_rows(decode_rows(encode_rows(rows)), rows)


@given(grids.filter(bool))
@settings(max_examples=15, deadline=None)
def test_table_reads_back_unchanged(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[Cell]]
) -> None:
    columns = [f"c{number}" for number in range(len(rows[0]))]
    assert_same_rows(rows_of(tmp_path_factory.mktemp("run"), Table(columns, rows)), rows)


TUESDAY = datetime.datetime(2024, 5, 7, 8, 9, 10, 11)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (np.float32(0.1), 0.10000000149011612),
        (np.float64("nan"), math.nan),
        (-math.inf, -math.inf),
        (-0.0, -0.0),
        (5e-324, 5e-324),
        (2**63 - 1, 2**63 - 1),
        (-(2**63), -(2**63)),
        (np.uint64(2**64 - 1), float(2**64 - 1)),
        (np.bool_(True), True),
        (np.array(3), 3),
        (torch.tensor(2.5, requires_grad=True), 2.5),
        (Decimal("0.5"), 0.5),
        (np.str_("text"), "text"),
        (Color.RED, "red"),
        ("line\nend\r\u2028\x00 \U0001f600", "line\nend\r\u2028\x00 \U0001f600"),
        ("", ""),
        ("NaN", "NaN"),
        ("=1+1", "=1+1"),
        (TUESDAY, "2024-05-07T08:09:10.000011"),
        (TUESDAY.replace(tzinfo=datetime.UTC), "2024-05-07T08:09:10.000011+00:00"),
        (TUESDAY.date(), "2024-05-07"),
        (TUESDAY.time(), "08:09:10.000011"),
        (np.datetime64("2024-05-07"), "2024-05-07"),
        (np.datetime64("2024-05-07T08:09:10.123456789"), "2024-05-07T08:09:10.123456789"),
        (np.datetime64("NaT"), None),
        (pd.Timestamp(TUESDAY), "2024-05-07T08:09:10.000011"),
        (pd.NaT, None),
        (pd.NA, None),
    ],
    ids=repr_without_address,
)
def test_cell_is_converted(tmp_path: Path, cell: Any, expected: Cell) -> None:
    ((found,),) = rows_of(tmp_path, Table(["c"], [[cell]]))
    assert is_same(found, expected)


def test_images_in_cells_keep_their_pixels(tmp_path: Path) -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    table = Table(["id", "picture"], [[1, Image(pixels, "seven")], [2, Image([pixels] * 2)]])
    with MetricBus(sinks=[], dir=tmp_path) as bus:
        bus.log("a/b", table)
        pixels[:] = 0
    history = read(bus)
    single, grid = (row[1] for row in history.tables("a/b")[0].rows)
    assert isinstance(single, ImageCell)
    assert isinstance(grid, ImageCell)
    assert (single.width, single.height, single.channels, single.caption) == (6, 4, 1, "seven")
    assert (grid.width, grid.height) == (14, 4)
    stored = np.asarray(PIL.Image.open(io.BytesIO(history.files.read(single.file))))
    np.testing.assert_array_equal(stored, np.arange(24).reshape(4, 6))


ARGUMENTS: dict[str, Callable[[], Any]] = {
    "dict of lists": lambda: {"x": [1, 2], "y": ["a", None]},
    "dict of arrays": lambda: {"x": np.array([1, 2]), "y": np.array(["a", None])},
    "dict of tensors and series": lambda: {"x": torch.tensor([1, 2]), "y": pd.Series(["a", None])},
    "pandas": lambda: pd.DataFrame({"x": [1, 2], "y": pd.Series(["a", None], dtype=object)}),
    "named fields": lambda: np.array([(1, "a"), (2, None)], [("x", int), ("y", object)]),
}


@pytest.mark.parametrize("make", ARGUMENTS.values(), ids=ARGUMENTS)
def test_table_accepts_argument(tmp_path: Path, make: Callable[[], Any]) -> None:
    table = Table(make())
    assert table.columns == ["x", "y"]
    rows = rows_of(tmp_path, table)
    assert rows[0] == [1, "a"]
    assert rows[1][0] == 2
    assert rows[1][1] is None or rows[1][1] != rows[1][1]


def test_table_accepts_polars_data_frame(tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({"x": [1, 2], "y": ["a", None]})
    assert rows_of(tmp_path, Table(frame)) == [[1, "a"], [2, None]]


def test_columns_of_a_2d_array_are_numbered(tmp_path: Path) -> None:
    table = Table(np.array([[1, 2**60 + 1], [3, 4]]))
    assert table.columns == ["0", "1"]
    assert rows_of(tmp_path, table) == [[1, 2**60 + 1], [3, 4]]


@pytest.mark.parametrize(
    "rows",
    [np.array([[1.5, 2], [3, 4]]), torch.tensor([[1.5, 2], [3, 4]]), ((1.5, 2), (3, 4))],
    ids=["numpy", "torch", "tuples"],
)
def test_rows_may_be_an_array(tmp_path: Path, rows: Any) -> None:
    assert rows_of(tmp_path, Table(["x", "y"], rows)) == [[1.5, 2], [3, 4]]


NANOSECONDS = np.array(["2024-05-07T08:09:10.123456789", "NaT"], "M8[ns]")


@pytest.mark.parametrize(
    "table",
    [
        lambda: Table({"at": NANOSECONDS}),
        lambda: Table(np.array([(date,) for date in NANOSECONDS], [("at", "M8[ns]")])),
        lambda: Table(["at"], NANOSECONDS[:, None]),
    ],
    ids=["column", "field", "rows"],
)
def test_numpy_dates_keep_their_precision(tmp_path: Path, table: Callable[[], Table]) -> None:
    assert rows_of(tmp_path, table()) == [["2024-05-07T08:09:10.123456789"], [None]]


def test_empty_table_has_columns_and_no_rows(tmp_path: Path) -> None:
    assert rows_of(tmp_path, Table(["x", "y"])) == []


# Growing


def test_parts_of_a_growing_table_read_back_as_one_table(tmp_path: Path) -> None:
    table = Table(["x"])
    with MetricBus(sinks=[], dir=tmp_path) as bus:
        for number in range(5):
            table.append([number], [-number])
            bus.log("a/b", table, step=number)
    (found,) = read(bus).tables("a/b")
    assert found.rows == [[sign * number] for number in range(5) for sign in (1, -1)]
    assert found.step == 0


def test_each_log_writes_only_new_rows(tmp_path: Path) -> None:
    table = Table(["x", "y"])
    sink = MemorySink()
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        for number in range(50):
            table.append([1000 + number, "text"])
            bus.log("a/b", table)
    records = [record for record in sink.media("a/b") if isinstance(record, TableRecord)]
    assert [(record.part, record.first_row, record.rows) for record in records] == [
        (number, number, 1) for number in range(50)
    ]
    assert {record.file.size for record in records} == {len('[1000,"text"]\n')}
    assert len({record.table for record in records}) == 1
    assert bus.dir is not None
    on_disk = [path.stat().st_size for path in (bus.dir / "media").rglob("*.jsonl")]
    assert sum(on_disk) == 50 * len('[1000,"text"]\n')


def test_table_without_new_rows_is_not_logged_again(tmp_path: Path) -> None:
    table = Table(["x"])
    sink = MemorySink()
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        for _ in range(3):
            bus.log("a/b", table)
    assert len(sink.media("a/b")) == 1
    assert bus.stats().logged == 1


def test_table_under_two_names_is_complete_under_both(tmp_path: Path) -> None:
    table = Table(["x"], [[1]])
    with MetricBus(sinks=[], dir=tmp_path) as bus:
        bus.log("one", table)
        table.append([2])
        bus.log({"one": table, "two": table})
    history = read(bus)
    for name in ("one", "two"):
        (found,) = history.tables(name)
        assert found.rows == [[1], [2]]


def test_another_object_under_the_same_name_is_another_table(tmp_path: Path) -> None:
    found = tables_of(tmp_path, {"a": Table(["x"], [[1]])}, {"a": Table(["y"], [["b"]])})["a"]
    assert [(table.columns, table.rows) for table in found] == [(["x"], [[1]]), (["y"], [["b"]])]


def test_rows_are_copied_at_the_call(tmp_path: Path) -> None:
    row: list[Any] = [1, "a"]
    array: Any = np.array([2.0, 3.0])
    with MetricBus(sinks=[], dir=tmp_path) as bus:
        bus.log("a/b", Table(["x", "y"], [row, array]))
        row[0] = 9
        array[:] = 9
    assert read(bus).tables("a/b")[0].rows == [[1, "a"], [2.0, 3.0]]


def test_columns_and_rows_return_copies() -> None:
    table = Table(["x"], [[1]])
    table.columns.append("y")
    table.rows.append([2])
    assert (table.columns, table.rows) == (["x"], [[1]])


@pytest.mark.parametrize(
    "invalid", [Histogram("no"), Table(["x"], [[object()]]), Table([], []), object()]
)
def test_rejected_mapping_does_not_mark_rows_as_logged(tmp_path: Path, invalid: Any) -> None:
    table = Table(["x"], [[1]])
    with MetricBus(sinks=[], dir=tmp_path) as bus:
        with pytest.raises((TypeError, ValueError), match="metric 'bad'"):
            bus.log({"good": table, "bad": invalid})
        bus.log("good", table)
    (found,) = read(bus).tables("good")
    assert found.rows == [[1]]
    assert bus.stats().logged == 1


def test_rows_can_be_logged_after_an_invalid_cell_is_fixed(tmp_path: Path) -> None:
    bad: list[Any] = [object()]
    table = Table(["x"], [[1], bad])
    with MetricBus(sinks=[], dir=tmp_path) as bus:
        with pytest.raises(TypeError, match="row 1, column 'x' is object"):
            bus.log("a/b", table)
        bad[0] = 2
        bus.log("a/b", table)
    assert read(bus).tables("a/b")[0].rows == [[1], [2]]


# Bad input


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([], "a table must have at least one column"),
        (["x", "y", "x"], "the table has the column 'x' twice"),
        ([1], "the column name 1 must be a string, not int"),
        ([None], "the column name None must be a string, not NoneType"),
        (["\ud800"], "the column name .* cannot be encoded as UTF-8"),
    ],
)
def test_rejects_invalid_columns(columns: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"metric 'a/b'.*{message}"):
        Table(columns, [])._capture("a/b")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1], "row 1 has 1 cells, but the table has 2 columns: x, y"),
        ([1, 2, 3], "row 1 has 3 cells, but the table has 2 columns: x, y"),
        ("ab", "row 1 is str; expected a list of cells"),
        (b"ab", "row 1 is bytes; expected a list of cells"),
        ({"x": 1, "y": 2}, "row 1 is dict; expected a list of cells"),
        ({1, 2}, "row 1 is set; expected a list of cells"),
        (3, "row 1 is int; expected a list of cells"),
        (None, "row 1 is NoneType; expected a list of cells"),
        (np.array(3), "row 1 is ndarray; expected a list of cells"),
    ],
)
def test_rejects_invalid_rows(row: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"metric 'a/b': {message}"):
        Table(["x", "y"], [[1, 2], row])._capture("a/b")
    with pytest.raises((TypeError, ValueError), match=message):
        Table(["x", "y"], [[1, 2]]).append(row)


def test_append_adds_no_rows_if_one_is_invalid() -> None:
    table = Table(["x"])
    with pytest.raises(ValueError, match="row 1 has 2 cells"):
        table.append([1], [2, 3])
    assert table.rows == []


@pytest.mark.parametrize(
    "cell",
    [
        object(),
        [1],
        {"a": 1},
        1j,
        b"x",
        np.zeros(2),
        10**400,
        datetime.timedelta(1),
        np.timedelta64(1, "D"),
        pd.Timedelta(1),
        Histogram([1.0]),
        len,
    ],
    ids=repr_without_address,
)
def test_rejects_invalid_cells(cell: Any) -> None:
    message = (
        f"metric 'a/b': row 0, column 'y' is .*{type(cell).__name__}; expected a "
        r"number, text, a boolean, None, a date or a metricbus Image\(\.\.\.\)"
    )
    with pytest.raises(TypeError, match=message):
        Table(["x", "y"], [[1, cell]])._capture("a/b")


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("\ud800", "row 0, column 'x' cannot be encoded as UTF-8"),
        (Image(np.zeros((5, 5, 2))), "was given ndarray of shape"),
        (Image(np.zeros((5, 5)), boxes=[Box(0, 0, 1, 1)]), "an image in a table cannot have boxes"),
        (Image("missing.png"), "cannot read"),
    ],
)
def test_rejects_invalid_text_and_images(cell: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"metric 'a/b'.*{message}"):
        Table(["x"], [[cell]])._capture("a/b")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x", [[1]]), r"columns= must be a list of names, not a string; pass \['x'\]"),
        (("x",), "given str; expected columns and rows"),
        ((5,), "given int; expected columns and rows"),
        ((5, [[1]]), "columns= must be a list, not int: 5"),
        ((["x"], 5), "rows= must be a list, not int: 5"),
        ((["x"], "ab"), "rows= must be a list, not str"),
        (({"x": [1], "y": [1, 2]},), "equal lengths, not {'x': 1, 'y': 2}"),
        (({"x": "abc"},), "the column 'x' must be a list, not str: 'abc'"),
        (({"x": 5},), "the column 'x' must be a list, not int: 5"),
        (({"x": np.array(5)},), "the column 'x' must be a list, not int: 5"),
        ((np.zeros(3),), r"two axes or with named fields, not one of shape \(3,\)"),
        ((np.zeros((1, 1, 1)),), "two axes"),
    ],
)
def test_constructor_rejects_invalid_arguments(arguments: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Table(*arguments)


def test_unreadable_image_drops_only_its_part(tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    table = Table(["picture"], [[Image(broken)]])
    with MetricBus(sinks=[], dir=tmp_path) as bus:
        bus.log("a/b", table)
        bus.log("loss", 1.0)
        table.append([None])
        bus.log("a/b", table)
    report = bus.stats()
    assert (report.journalled, report.dropped) == (2, 1)
    assert "'a/b' at step 0 was dropped" in (report.error or "")
    assert f"{broken} cannot be read as an image" in (report.error or "")


def test_table_in_two_runs_is_complete_in_each(tmp_path: Path) -> None:
    table = Table(["x"], [[1]])
    folders = []
    for _ in range(2):
        with MetricBus(sinks=[], dir=tmp_path) as bus:
            bus.log("a", table)
            assert bus.dir is not None
            folders.append(bus.dir)
        table.append([2])
    rows = [metricbus.read(folder).tables("a")[0].rows for folder in folders]
    assert rows == [[[1]], [[1], [2]]]


def test_rows_of_a_superseded_part_count_as_missing(tmp_path: Path) -> None:
    table = Table(["x"], [[1]])
    with MetricBus(sinks=[], dir=tmp_path) as bus:
        for step in range(3):
            bus.log("a", table, step=step)
            table.append([step + 2])
        bus.rewind(1)
        bus.log("a", table, step=2)
    (found,) = read(bus).tables("a")
    assert (found.rows, found.missing) == ([[1], [2], [4]], 1)


def test_append_rejects_invalid_cells(
    tmp_path: Path,
) -> None:
    table = Table(["x"], [[1]])
    with pytest.raises(TypeError, match="row 2, column 'x' is object"):
        table.append([2], [object()])
    assert table.rows == [[1]]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Table([{"x": 1, "y": "a"}, {"y": "b", "x": 2}]),
        lambda: Table(rows=[{"x": 1, "y": "a"}, {"x": 2, "y": "b"}]),
        lambda: Table(rows=pd.DataFrame({"x": [1, 2], "y": ["a", "b"]})),
    ],
)
def test_rows_with_column_names_make_a_table(make: Callable[[], Table]) -> None:
    table = make()
    assert table.columns == ["x", "y"]
    assert [list(row) for row in table.rows] == [[1, "a"], [2, "b"]]


def test_rejects_dicts_with_different_keys() -> None:
    with pytest.raises(
        ValueError, match=r"row 1 is .*; expected a dict with the keys of the first row: x, y"
    ):
        Table([{"x": 1, "y": 2}, {"x": 1}])


def test_table_accepts_2d_tensor() -> None:
    assert Table(torch.tensor([[1, 2], [3, 4]])).rows == [[1, 2], [3, 4]]
