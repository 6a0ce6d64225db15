"""`metricbus.read` and `History`."""

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
from metricbus import JournalError, MetricBus, MissingPackageError, ScalarRow
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


def test_series_are_numpy_arrays_in_journal_order(folder: Path) -> None:
    history = metricbus.read(folder)
    assert history.names() == ["loss", "n", "big"]
    loss = history.series("loss")
    assert [column.dtype for column in loss] == [np.int64, np.int64, np.int64, np.float64]
    assert loss.step.tolist() == [0, 1, 2, 1]
    assert loss.epoch.tolist() == [0, 0, 0, 2]
    assert (np.diff(loss.time) >= 0).all()
    np.testing.assert_array_equal(loss.value, [0.0, 0.5, 1.0, math.nan])
    assert len(loss) == 4


def test_integers_are_int64_and_mixed_values_are_exact(folder: Path) -> None:
    history = metricbus.read(folder)
    assert history.series("n").value.dtype == np.int64
    assert history.series("big").value.tolist() == [2**53 + 1, 0.5]


def test_an_unknown_name_raises_with_the_available_names(folder: Path) -> None:
    with pytest.raises(KeyError, match=r"No series matches 'los'.*Available: loss, n, big"):
        metricbus.read(folder).series("los")


def test_history_has_the_run(folder: Path) -> None:
    run = metricbus.read(folder).run
    assert (run.id, run.status, run.config) == ("r", "finished", {"lr": 0.1})


def test_wide_table_has_a_line_per_step_and_a_column_per_name(folder: Path, tmp_path: Path) -> None:
    wide = metricbus.read(folder).wide()
    assert wide.columns == ["step", "epoch", "loss", "n", "big"]
    assert wide.rows[:2] == [[0, 2, None, None, 2**53 + 1], [0, 0, 0.0, 0, None]][::-1]
    wide.to_csv(tmp_path / "wide.csv")
    with open(tmp_path / "wide.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    assert lines[:2] == [["step", "epoch", "loss", "n", "big"], ["0", "0", "0.0", "0", ""]]
    assert len(lines) == 1 + len(wide.rows)


def test_wide_table_has_another_line_for_a_repeated_name(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("path", ["nowhere", "."])
def test_a_folder_that_is_not_a_run_raises(path: str) -> None:
    with pytest.raises(JournalError, match=r"is not a run folder.*runs/<id>"):
        metricbus.read(path)


def test_an_unreadable_run_json_raises(folder: Path) -> None:
    (folder / "run.json").write_text("{")
    with pytest.raises(JournalError, match=r"run\.json cannot be read"):
        metricbus.read(folder)


def test_order_is_kept_across_batches_and_changing_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "_BATCH_ROWS", 7)
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
def test_columns_store_every_number_exactly(values: list[int | float], batch: int) -> None:
    stored = columns.ScalarColumns()
    for step, value in enumerate(values):
        stored.add(step, ScalarRow(step=step, epoch=0, time=0, values={"x": value}))
        if step % batch == 0:
            stored.pack()
    stored.pack()
    rows = [row.values["x"] for row in stored.rows()]
    assert list(map(repr, rows)) == list(map(repr, values))
    series = stored.series("x")
    assert series is not None
    for actual, value in zip(series.value.tolist(), values, strict=True):
        assert actual == value or (math.isnan(actual) and math.isnan(value))


def test_an_integer_beyond_64_bits_from_another_program_is_kept(tmp_path: Path) -> None:
    MetricBus(id="r", sinks="", dir=tmp_path).close()
    with open(tmp_path / "r" / "journal" / "0001.jsonl", "a", encoding="utf-8") as file:
        row = '"kind":"scalars","epoch":0,"time":0,"values":{"x":18446744073709551615}'
        file.write(f'{{{row},"step":0}}\n')
    assert metricbus.read(tmp_path / "r").series("x").value.tolist() == [2**64 - 1]


def test_span_is_the_time_of_the_first_and_the_last_row(folder: Path) -> None:
    history = metricbus.read(folder)
    first, last = history.span
    times = history.series("loss").time
    assert history.run.started <= first == times.min() <= times.max() <= last


def test_long_frame_has_a_line_per_value(folder: Path) -> None:
    frame = metricbus.read(folder).frame("pandas")
    assert list(frame.columns) == ["step", "epoch", "time", "name", "value"]
    assert str(frame.time.dtype) == "datetime64[ns, UTC]"
    assert frame.name.tolist()[:4] == ["loss", "n", "loss", "n"]
    assert frame.value.tolist()[-2:] == [2**53 + 1, 0.5]


def test_frame_of_integers_has_an_integer_type(tmp_path: Path) -> None:
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        bus.log({"a": 1, "b": 2**60})
    history = metricbus.read(tmp_path / "r")
    assert history.frame("pandas").value.dtype == np.int64
    assert history.frame("polars")["value"].to_list() == [1, 2**60]


def test_long_polars_frame_has_a_line_per_value(folder: Path) -> None:
    frame = metricbus.read(folder).frame("polars")
    assert frame.columns == ["step", "epoch", "time", "name", "value"]
    assert str(frame["time"].dtype) == "Datetime(time_unit='ns', time_zone='UTC')"
    assert frame["name"].to_list()[:4] == ["loss", "n", "loss", "n"]
    assert frame["value"].to_list()[-2:] == [2**53 + 1, 0.5]


@pytest.mark.parametrize("kind", ["pandas", "polars"])
def test_wide_frame_has_a_column_per_name(folder: Path, kind: Literal["pandas", "polars"]) -> None:
    frame = metricbus.read(folder).frame(kind, wide=True)
    assert list(frame.columns) == ["step", "epoch", "loss", "n", "big"]
    assert frame["step"].to_list() == [0, 0, 1, 1, 2]
    assert frame["n"].sum() == 0 + 1 + 2
    assert 2**53 + 1 in frame["big"].to_list()
    assert str(frame["n"].dtype) == "Int64"
    assert str(frame["loss"].dtype).lower() == "float64"


@pytest.mark.parametrize("kind", ["pandas", "polars"])
@pytest.mark.parametrize("wide", [False, True])
def test_frame_without_values_has_its_columns(
    tmp_path: Path, kind: Literal["pandas", "polars"], wide: bool
) -> None:
    MetricBus(id="r", sinks="", dir=tmp_path).close()
    frame = metricbus.read(tmp_path / "r").frame(kind, wide=wide)
    assert len(frame) == 0
    assert list(frame.columns)[:2] == ["step", "epoch"]


def test_frame_without_pandas_and_polars_raises_with_the_install_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = metricbus.read(folder)
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(MissingPackageError, match="needs polars: pip install polars"):
        history.frame("polars")
    monkeypatch.setattr("metricbus._history.dataframes.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match="needs pandas or polars: pip install pandas"):
        history.frame()


def test_frame_of_an_unknown_kind_raises(folder: Path) -> None:
    with pytest.raises(ValueError, match='must be "pandas" or "polars", not \'arrow\''):
        metricbus.read(folder).frame("arrow")  # type: ignore[arg-type]
