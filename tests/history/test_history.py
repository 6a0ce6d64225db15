"""Reading a run back, from the outside."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import metricbus
from metricbus import JournalError, MetricBus, MissingPackageError, Scalars
from metricbus._history import columns


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with MetricBus(id="r", sinks="", dir=tmp_path, config={"lr": 0.1}) as bus:
        for step in range(3):
            bus.log({"loss": step / 2, "n": step}, step=step)
        bus.log("loss", math.nan, step=1, epoch=2)
        bus.log("big", 2**53 + 1, step=0)
        bus.log("big", 0.5, step=1)
    return tmp_path / "r"


def test_series_are_numpy_columns_in_the_order_of_the_journal(folder: Path) -> None:
    history = metricbus.read(folder)
    assert history.names() == ["loss", "n", "big"]
    loss = history.series("loss")
    assert [column.dtype for column in loss] == [np.int64, np.int64, np.int64, np.float64]
    assert loss.step.tolist() == [0, 1, 2, 1]
    assert loss.epoch.tolist() == [0, 0, 0, 2]
    assert (np.diff(loss.time) >= 0).all()
    np.testing.assert_array_equal(loss.value, [0.0, 0.5, 1.0, math.nan])
    assert len(loss) == 4


def test_integers_stay_int64_and_mixed_columns_exact(folder: Path) -> None:
    history = metricbus.read(folder)
    assert history.series("n").value.dtype == np.int64
    assert history.series("big").value.tolist() == [2**53 + 1, 0.5]


def test_an_unknown_name_lists_what_there_is(folder: Path) -> None:
    with pytest.raises(KeyError, match="'los' was never logged; there are: loss, n, big"):
        metricbus.read(folder).series("los")


def test_the_run_comes_along(folder: Path) -> None:
    run = metricbus.read(folder).run
    assert (run.id, run.status, run.config) == ("r", "finished", {"lr": 0.1})


def test_a_wide_table_has_a_line_a_step_and_a_column_a_name(folder: Path, tmp_path: Path) -> None:
    wide = metricbus.read(folder).wide()
    assert wide.columns == ["step", "epoch", "loss", "n", "big"]
    assert wide.rows[:2] == [[0, 2, None, None, 2**53 + 1], [0, 0, 0.0, 0, None]][::-1]
    wide.to_csv(tmp_path / "wide.csv")
    with open(tmp_path / "wide.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    assert lines[:2] == [["step", "epoch", "loss", "n", "big"], ["0", "0", "0.0", "0", ""]]
    assert len(lines) == 1 + len(wide.rows)


def test_in_a_wide_table_a_repeated_name_takes_a_further_line(tmp_path: Path) -> None:
    with MetricBus(id="twice", sinks="", dir=tmp_path) as bus:
        for value in (1.0, 2.0):
            bus.log({"x": value, "y": value}, step=0)
    assert metricbus.read(tmp_path / "twice").wide().rows == [[0, 0, 1.0, 1.0], [0, 0, 2.0, 2.0]]


def test_a_live_run_can_be_read(tmp_path: Path) -> None:
    with MetricBus(id="live", sinks="", dir=tmp_path) as bus:
        bus.log("x", 1.0)
        bus.flush()
        history = metricbus.read(tmp_path / "live")
        assert history.series("x").value.tolist() == [1.0]
        assert history.run.status == "running"


@pytest.mark.parametrize("where", ["nowhere", "."])
def test_a_folder_that_is_no_run_is_told(where: str) -> None:
    with pytest.raises(JournalError, match=r"is not a run folder.*runs/<id>"):
        metricbus.read(where)


def test_a_run_json_that_cannot_be_read_is_told(folder: Path) -> None:
    (folder / "run.json").write_text("{")
    with pytest.raises(JournalError, match=r"run\.json cannot be read"):
        metricbus.read(folder)


def test_many_batches_and_changing_names_keep_the_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "_BATCH", 7)
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        for step in range(100):
            bus.log({"a": step, "b": step / 2} if step % 3 else {"b": -step}, step=step)
    history = metricbus.read(tmp_path / "r")
    assert len(history) == 100
    assert history.names() == ["b", "a"]
    assert history.series("b").step.tolist() == list(range(100))
    assert history.series("b").value.tolist() == [n / 2 if n % 3 else -n for n in range(100)]
    assert history.series("a").value.dtype == np.int64
    assert [row[:2] for row in history.wide().rows] == [[step, 0] for step in range(100)]


@given(
    values=st.lists(
        st.integers(-(2**63), 2**63 - 1) | st.floats() | st.integers(-3, 3), min_size=1, max_size=40
    ),
    batch=st.integers(1, 9),
)
def test_every_number_comes_back_exactly(values: list[int | float], batch: int) -> None:
    held = columns.ScalarColumns()
    for place, value in enumerate(values):
        held.add(place, Scalars(step=place, epoch=0, time=0, values={"x": value}))
        if place % batch == 0:
            held.pack()
    held.pack()
    rows = [row.values["x"] for row in held.rows()]
    assert list(map(repr, rows)) == list(map(repr, values))
    series = held.series("x")
    assert series is not None
    for found, value in zip(series.value.tolist(), values, strict=True):
        assert found == value or (math.isnan(found) and math.isnan(value))


def test_an_integer_beyond_64_bits_of_a_foreign_writer_is_kept(tmp_path: Path) -> None:
    MetricBus(id="r", sinks="", dir=tmp_path).close()
    with open(tmp_path / "r" / "journal" / "0001.jsonl", "a", encoding="utf-8") as file:
        row = '"kind":"scalars","epoch":0,"time":0,"values":{"x":18446744073709551615}'
        file.write(f'{{{row},"step":0}}\n')
    assert metricbus.read(tmp_path / "r").series("x").value.tolist() == [2**64 - 1]


def test_the_span_is_from_the_first_row_to_the_last(folder: Path) -> None:
    history = metricbus.read(folder)
    first, last = history.span
    times = history.series("loss").time
    assert history.run.started <= first == times.min() <= times.max() <= last


def test_a_long_frame_has_a_line_a_value(folder: Path) -> None:
    frame = metricbus.read(folder).frame("pandas")
    assert list(frame.columns) == ["step", "epoch", "time", "name", "value"]
    assert str(frame.time.dtype) == "datetime64[ns, UTC]"
    assert frame.name.tolist()[:4] == ["loss", "n", "loss", "n"]
    assert frame.value.tolist()[-2:] == [2**53 + 1, 0.5]


def test_a_frame_of_one_kind_of_number_has_its_type(tmp_path: Path) -> None:
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        bus.log({"a": 1, "b": 2**60})
    history = metricbus.read(tmp_path / "r")
    assert history.frame("pandas").value.dtype == np.int64
    assert history.frame("polars")["value"].to_list() == [1, 2**60]


def test_a_polars_frame_has_the_same(folder: Path) -> None:
    frame = metricbus.read(folder).frame("polars")
    assert frame.columns == ["step", "epoch", "time", "name", "value"]
    assert str(frame["time"].dtype) == "Datetime(time_unit='ns', time_zone='UTC')"
    assert frame["name"].to_list()[:4] == ["loss", "n", "loss", "n"]
    assert frame["value"].to_list()[-2:] == [2**53 + 1, 0.5]


@pytest.mark.parametrize("kind", ["pandas", "polars"])
def test_a_wide_frame_has_a_column_a_name(folder: Path, kind: Literal["pandas", "polars"]) -> None:
    frame = metricbus.read(folder).frame(kind, wide=True)
    assert list(frame.columns) == ["step", "epoch", "loss", "n", "big"]
    assert frame["step"].to_list() == [0, 0, 1, 1, 2]
    assert frame["n"].sum() == 0 + 1 + 2
    assert 2**53 + 1 in frame["big"].to_list()
    assert str(frame["n"].dtype) == "Int64"
    assert str(frame["loss"].dtype).lower() == "float64"


@pytest.mark.parametrize("kind", ["pandas", "polars"])
@pytest.mark.parametrize("wide", [False, True])
def test_a_frame_of_nothing_has_its_columns(
    tmp_path: Path, kind: Literal["pandas", "polars"], wide: bool
) -> None:
    MetricBus(id="r", sinks="", dir=tmp_path).close()
    frame = metricbus.read(tmp_path / "r").frame(kind, wide=wide)
    assert len(frame) == 0
    assert list(frame.columns)[:2] == ["step", "epoch"]


def test_without_pandas_and_polars_a_frame_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = metricbus.read(folder)
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(MissingPackageError, match="needs polars: pip install polars"):
        history.frame("polars")
    monkeypatch.setattr("metricbus._history.dataframes.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match="needs pandas or polars: pip install pandas"):
        history.frame()


def test_a_frame_of_another_kind_is_told(folder: Path) -> None:
    with pytest.raises(ValueError, match='must be "pandas" or "polars", not \'arrow\''):
        metricbus.read(folder).frame("arrow")  # type: ignore[arg-type]
