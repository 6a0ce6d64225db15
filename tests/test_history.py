"""Reading a run back, from the outside."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

import metricbus
from metricbus import JournalError, MetricBus


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
    with pytest.raises(JournalError, match=r"is no run's folder.*runs/<id>"):
        metricbus.read(where)


def test_a_run_json_that_cannot_be_read_is_told(folder: Path) -> None:
    (folder / "run.json").write_text("{")
    with pytest.raises(JournalError, match=r"run\.json cannot be read"):
        metricbus.read(folder)
