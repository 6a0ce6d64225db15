"""The HTML that notebooks display for a history and for a bus."""

from __future__ import annotations

import math
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import metricbus
from metricbus import MetricBus
from metricbus._bus.default_bus import DefaultBus
from metricbus._history.notebook_html import svg_sparkline


class Cells(HTMLParser):
    """The text of all table cells by row, and the names of all tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def test_history_shows_its_series_and_sinks(tmp_path: Path) -> None:
    with MetricBus("digits", id="r", sinks="csv", dir=tmp_path) as bus:
        for value in (3.0, 0.25, math.nan, 1.0):
            bus.log("loss", value)
        bus.log("examples", 12345)
    html = metricbus.read(tmp_path / "r")._repr_html_()
    rows = Cells(html).rows
    assert ["loss", "1", "0.25", "3", "4", ""] in rows
    assert ["examples", "12,345", "12,345", "12,345", "1", ""] in rows
    assert rows[-1] == ["csv", "5", "0", "0"]
    assert "<b>digits (r)</b>: finished, " in html
    assert html.count("<svg") == 2


def test_text_from_a_run_is_escaped(tmp_path: Path) -> None:
    malicious = "<script>alert(1)</script>"
    with MetricBus(malicious, id="r", sinks="", dir=tmp_path) as bus:
        bus.log({malicious: 1.0, '" onload="x': 2.0})
        bus.flush()
        displays = [bus._repr_html_(), metricbus.read(tmp_path / "r")._repr_html_()]
    for html in displays:
        cells = Cells(html)
        assert cells.tags == {
            "div",
            "b",
            "table",
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
            "svg",
            "path",
        }
        assert [malicious, "1", "1", "1", "1", ""] in cells.rows
        assert '" onload="' not in html


def test_only_the_first_series_are_shown_and_the_others_counted(tmp_path: Path) -> None:
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        bus.log({f"n{index:03}": 1.0 for index in range(100)})
    html = metricbus.read(tmp_path / "r")._repr_html_()
    assert "n029" in html
    assert "n030" not in html
    assert "and 70 more: history.names()" in html
    assert len(html) < 60_000


def test_run_without_scalars_has_no_table(tmp_path: Path) -> None:
    MetricBus(id="r", sinks="", dir=tmp_path).close()
    html = metricbus.read(tmp_path / "r")._repr_html_()
    assert "<table" not in html
    assert "finished, 0 rows" in html


def test_live_bus_shows_its_step_and_the_counts_of_its_sinks(bus: MetricBus) -> None:
    for _ in bus.steps(range(3)):
        bus.log("loss", 0.5)
    bus.flush()
    html = bus._repr_html_()
    assert "running, step 2, epoch 0, 3 values logged" in html
    rows = Cells(html).rows
    assert ["loss", "0.5", "0.5", "0.5", "3", ""] in rows
    assert rows[-1][1:] == ["3", "0", "0", "0", ""]


def test_closed_bus_shows_its_final_status(tmp_path: Path) -> None:
    bus = MetricBus(id="r", sinks="", dir=tmp_path)
    bus.log("x", 1)
    bus.close("failed")
    assert "<b>run (r)</b>: failed, " in bus._repr_html_()


def test_bus_without_a_readable_run_folder_is_shown(tmp_path: Path) -> None:
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        bus.log("x", 1)
    shutil.rmtree(tmp_path / "r" / "journal")
    assert "is missing" in bus._repr_html_()


def test_bus_without_a_run_is_shown() -> None:
    assert repr(DefaultBus()) == "<DefaultBus without a run>"
    assert DefaultBus()._repr_html_() == "<div>&lt;DefaultBus without a run&gt;</div>"
    assert repr(MetricBus(disabled=True)) == "<MetricBus without a run>"


def test_repr_names_the_run(tmp_path: Path) -> None:
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        bus.log({"a": 1, "b": 2})
    assert repr(bus) == "<MetricBus of 'r'>"
    assert repr(metricbus.read(tmp_path / "r")) == "<History of 'r', finished: 1 rows, 2 names>"


@pytest.mark.parametrize(
    ("values", "moves"),
    [([1.0, 2.0, 3.0], 1), ([1.0, math.nan, 3.0, 4.0], 2), ([5.0], 1), ([5, 5, 2**60], 1)],
)
def test_sparkline_breaks_at_gaps(tmp_path: Path, values: list[float], moves: int) -> None:
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        for value in values:
            bus.log("x", value)
    svg = svg_sparkline(metricbus.read(tmp_path / "r").series("x"))
    assert svg.count("M") == moves
    assert "nan" not in svg


def test_series_without_finite_values_has_no_sparkline(tmp_path: Path) -> None:
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        bus.log("x", math.nan)
        bus.log("x", math.inf)
    assert not svg_sparkline(metricbus.read(tmp_path / "r").series("x"))


def test_sparkline_does_not_need_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        bus.log("x", 1.0)
    assert "<svg" in metricbus.read(tmp_path / "r")._repr_html_()
