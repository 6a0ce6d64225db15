"""Pictures of runs: what is drawn, from `history.plot()` and from the command."""

from __future__ import annotations

import math
import os
import pty
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import metricbus
from metricbus import History, MetricBus
from metricbus._cli.app import app
from metricbus._history.history import Series
from metricbus._history.plots.downsample import thinned
from metricbus._history.plots.epoch_axis import on_epochs
from metricbus._history.plots.matplotlib_figure import figure_of
from metricbus._history.plots.panels import matching, panels_of
from metricbus._history.plots.smoothing import smoothed

PNG = b"\x89PNG\r\n"


def run_of(folder: Path, id: str, *, name: str | None = None, factor: float = 1.0) -> Path:
    """A run of three epochs."""
    with MetricBus(name or id, id=id, sinks="", dir=folder) as bus:
        for epoch in bus.epochs(3):
            for _ in bus.steps(range(4)):
                bus.log("train/loss", factor / (bus.step + 1))
            bus.log("val/acc", epoch / 2)
    return folder / id


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return run_of(tmp_path, "digits")


def plot(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["plot", *map(str, arguments)])


def history_of(folder: Path, rows: list[dict[str, float]]) -> History:
    with MetricBus(id="r", sinks="", dir=folder) as bus:
        for step, row in enumerate(rows):
            bus.log(row, step=step)
    return metricbus.read(folder / "r")


# Thinning

numbers = st.floats(-1e6, 1e6, width=32) | st.just(math.nan)


@given(values=st.lists(numbers, min_size=1, max_size=300), buckets=st.integers(1, 20))
def test_every_bucket_keeps_its_extremes_and_its_ends(values: list[float], buckets: int) -> None:
    x, y = np.arange(len(values), dtype=np.float64), np.array(values)
    kept = thinned(x, y, buckets)
    assert (np.diff(kept) > 0).all()
    assert len(kept) <= max(4 * buckets, 10 * buckets + 1)
    there = np.flatnonzero(~np.isnan(y))
    if len(values) <= 4 * buckets or not len(there):
        return
    first, last = there[0], there[-1]
    edges = first + (last - first) * np.arange(1, buckets) / buckets
    bucket = np.searchsorted(edges, x, side="right")
    for number in range(buckets):
        inside = there[bucket[there] == number]
        if len(inside) > 2:
            own = np.intersect1d(kept, inside)
            assert y[own].min() == y[inside].min()
            assert y[own].max() == y[inside].max()


@given(values=st.lists(numbers, min_size=1, max_size=200), buckets=st.integers(1, 8))
def test_between_two_points_a_gap_stays_a_gap(values: list[float], buckets: int) -> None:
    y = np.array(values)
    kept = thinned(np.arange(len(values), dtype=np.float64), y, buckets)
    there = kept[~np.isnan(y[kept])]
    for before, after in pairwise(there):
        gap = np.isnan(y[before + 1 : after]).any()
        assert np.isnan(y[kept[(kept > before) & (kept < after)]]).any() == gap


def test_one_peak_in_a_million_points_is_drawn() -> None:
    y = np.zeros(1_000_000)
    y[654_321] = 7.0
    kept = thinned(np.arange(len(y), dtype=np.float64), y, 500)
    assert 654_321 in kept
    assert len(kept) < 2001


# Smoothing


@given(values=st.lists(numbers, max_size=300), weight=st.floats(0.01, 0.999))
def test_smoothing_is_tensorboards_recursion(values: list[float], weight: float) -> None:
    last, n, expected = 0.0, 0, []
    for value in values:
        if math.isnan(value):
            expected.append(value)
            continue
        last, n = last * weight + (1 - weight) * value, n + 1
        expected.append(last / (1 - weight**n))
    np.testing.assert_allclose(smoothed(np.array(values), weight), expected, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("weight", [-0.1, 1.0, math.nan])
def test_a_weight_that_is_none_is_told(run: Path, weight: float) -> None:
    with pytest.raises(ValueError, match=r"smooth must be from 0 to below 1, such as 0\.9"):
        metricbus.read(run).plot("train/loss", smooth=weight)


# Panels


def test_globs_choose_names_and_a_wrong_one_gets_near_names() -> None:
    names = ["train/loss", "val/loss", "val/acc"]
    assert matching(names, ["val/*", "train/loss"]) == names
    assert matching(names, []) == names
    with pytest.raises(KeyError, match="did you mean train/loss"):
        matching(names, ["train/los"])


def test_a_name_with_brackets_is_found_by_itself() -> None:
    assert matching(["lr[0]", "lr0"], ["lr[0]"]) == ["lr[0]", "lr0"]


def test_runs_are_known_by_their_names_or_by_their_ids_where_names_repeat(tmp_path: Path) -> None:
    runs = [run_of(tmp_path, id, name=name) for id, name in (("1", "a"), ("2", "b"), ("3", "a"))]
    (panel,) = panels_of([metricbus.read(run) for run in runs], ["val/acc"])
    assert [line.label for line in panel.lines] == ["1", "b", "3"]


def test_late_steps_are_drawn_where_they_belong(tmp_path: Path) -> None:
    with MetricBus(id="late", sinks="", dir=tmp_path) as bus:
        for step in (2, 0, 1):
            bus.log("x", float(step), step=step)
    (panel,) = panels_of([metricbus.read(tmp_path / "late")], ["x"])
    assert panel.lines[0].x.tolist() == [0, 1, 2]
    assert panel.lines[0].y.tolist() == [0, 1, 2]


def test_time_is_since_the_start_and_has_a_unit(run: Path) -> None:
    (panel,) = panels_of([metricbus.read(run)], ["train/loss"], x="time")
    assert panel.x_label == "time since the start (seconds)"
    assert 0 <= panel.lines[0].x[0] <= panel.lines[0].x[-1] < 60


def test_another_series_is_the_x_axis(tmp_path: Path) -> None:
    history = history_of(
        tmp_path, [{"loss": 0.5}, {"examples": 32, "loss": 0.4}, {"loss": 0.3}, {"examples": 96}]
    )
    (panel,) = panels_of([history], ["loss"], x="examples")
    assert panel.x_label == "examples"
    assert panel.lines[0].x.tolist() == [32, 32]  # before the first, nobody knows where it stands
    assert panel.lines[0].y.tolist() == [0.4, 0.3]


def test_epoch_times_are_bars_by_epoch(run: Path) -> None:
    (panel,) = panels_of([metricbus.read(run)], ["time/epoch"])
    assert panel.bars
    assert (panel.x_label, panel.y_label) == ("epoch", "seconds")
    assert panel.lines[0].x.tolist() == [0, 1, 2]
    (ax,) = figure_of([panel], title="").axes
    assert len(ax.patches) == 3


# Axes


def test_plot_returns_axes_with_the_values_and_labels(run: Path) -> None:
    from matplotlib.figure import Figure

    history = metricbus.read(run)
    given = Figure().subplots()
    ax = history.plot("train/loss", ax=given)
    assert ax is given
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), history.series("train/loss").value)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "train/loss")
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["train/loss"]


def test_without_axes_a_new_figure_is_made(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    from matplotlib import pyplot

    ax = metricbus.read(run).plot("val/*")
    try:
        assert pyplot.gcf() is ax.figure
    finally:
        pyplot.close("all")


def test_the_values_stay_behind_the_smooth_line(run: Path) -> None:
    from matplotlib.figure import Figure

    ax = metricbus.read(run).plot("train/loss", smooth=0.9, ax=Figure().subplots())
    lines = [line for line in ax.lines if len(np.asarray(line.get_xdata()))]
    raw, smooth = lines[:2]
    assert (raw.get_alpha(), smooth.get_alpha()) == (0.3, 1.0)
    assert np.ptp(np.asarray(smooth.get_ydata())) < np.ptp(np.asarray(raw.get_ydata()))


def test_values_that_are_not_finite_are_gaps_with_a_mark(tmp_path: Path) -> None:
    values = [1.0, math.nan, 3.0, math.inf, 2.0, 1e308]
    history = history_of(tmp_path, [{"x": value} for value in values])
    (ax,) = figure_of(panels_of([history], ["x"]), title="").axes
    curve, alone, marks = ax.lines
    np.testing.assert_array_equal(curve.get_ydata(), [1.0, math.nan, 3.0, math.nan, 2.0, math.nan])
    assert np.asarray(alone.get_ydata()).tolist() == [1.0, 3.0, 2.0]
    assert np.asarray(marks.get_xdata()).tolist() == [1, 3, 5]


@pytest.mark.parametrize(
    ("values", "scale"),
    [([1.0, 10.0], "log"), ([-5.0, 0.0, 100.0], "symlog"), ([0.0, 0.0], "linear")],
)
def test_a_logarithmic_scale_hides_no_value(
    tmp_path: Path, values: list[float], scale: str
) -> None:
    history = history_of(tmp_path, [{"x": value} for value in values])
    figure = figure_of(panels_of([history], ["x"]), title="", log=True)
    figure.draw_without_rendering()
    (ax,) = figure.axes
    assert ax.get_yscale() == scale
    low, high = ax.get_ylim()
    assert low <= min(values) <= max(values) <= high


def test_a_run_without_numbers_gives_empty_axes(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    history = history_of(tmp_path, [])
    assert not history.plot(ax=Figure().subplots(), x="time").lines


def test_names_are_no_formulas_and_none_is_hidden(tmp_path: Path) -> None:
    names = ["$\\frac{$", "_hidden", "a\nb", "x" * 300]
    history = history_of(tmp_path, [dict.fromkeys(names, 1.0)])
    panels = panels_of([history], names, together=True)
    figure = figure_of(panels, title="$\\bad{$")
    figure.draw_without_rendering()
    legend = figure.axes[0].get_legend()
    assert legend is not None
    shown = [text.get_text() for text in legend.get_texts()]
    assert shown[:3] == ["$\\frac{$", "_hidden", "a\N{REPLACEMENT CHARACTER}b"]
    assert shown[3] == "x" * 20 + "…" + "x" * 39


def test_partial_values_are_hollow_points(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from metricbus import MetricBus\n"
        "bus = MetricBus(id='dead', sinks='', dir=sys.argv[1])\n"
        "bus.define('x', every=10, reduce='mean')\n"
        "for step in range(13): bus.log('x', float(step), step=step)\n"
        "bus._session.save()\n"
        "os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60, check=False)
    (panel,) = panels_of([metricbus.read(tmp_path / "dead")], ["x"])
    assert panel.lines[0].partial == [(12.0, 11.0)]
    (ax,) = figure_of([panel], title="").axes
    assert ax.lines[-1].get_fillstyle() == "none"


# The command


def test_the_picture_is_named_after_the_run_and_its_path_is_printed(run: Path) -> None:
    done = plot(run)
    assert (done.exit_code, done.stdout) == (0, "digits.png\n")
    assert Path("digits.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("suffix", "start"), [("png", PNG), ("svg", b"<?xml"), ("pdf", b"%PDF"), ("PNG", PNG)]
)
def test_the_suffix_chooses_the_format(run: Path, suffix: str, start: bytes) -> None:
    done = plot(run, "--out", f"p.{suffix}", "--name", "val/*", "--smooth", "0.5", "--log")
    assert done.exit_code == 0, done.output
    assert Path(f"p.{suffix}").read_bytes().startswith(start)


def test_several_runs_are_one_picture(tmp_path: Path, run: Path) -> None:
    other = run_of(tmp_path, "other", factor=2.0)
    done = plot(run, other, "--x", "time", "--together")
    assert (done.exit_code, done.stdout) == (0, "digits-and-1-more.png\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits", "--name", "tran/loss"], "did you mean train/loss"),
        (["digits", "--x", "stepp"], "nothing logged is called 'stepp'"),
        (["digits", "--smooth", "1"], "smooth must be from 0 to below 1"),
        (["digits", "--out", "p.xyz"], "a picture's name ends with .png, .svg, .pdf"),
        (["digits", "--out", "nowhere/p.png"], "nowhere/p.png cannot be written: No such file"),
        (["digit"], "there is no run 'digit'"),
        (["."], "is no run"),
        (["empty"], "no numbers were logged in empty"),
    ],
)
def test_what_is_wrong_is_told_with_status_2(
    tmp_path: Path, run: Path, arguments: list[str], message: str
) -> None:
    MetricBus(id="empty", sinks="", dir=tmp_path).close()
    done = plot(*arguments)
    assert done.exit_code == 2
    assert message in done.stderr.replace("\n", " ")
    assert not done.stdout


def test_a_torn_and_damaged_journal_is_drawn_as_far_as_it_goes(run: Path) -> None:
    with open(run / "journal" / "0001.jsonl", "ab") as file:
        file.write(b'no json\n{"kind":"scal')
    assert plot(run).exit_code == 0


def test_a_journal_that_is_no_folder_is_told(run: Path) -> None:
    (run / "journal").rename(run / "was-journal")
    (run / "journal").write_text("")
    done = plot(run)
    assert done.exit_code == 2
    assert "journal cannot be read: Not a directory" in done.stderr.replace("\n", " ")


def test_a_live_run_is_drawn(tmp_path: Path) -> None:
    with MetricBus(id="live", sinks="", dir=tmp_path) as bus:
        bus.log("x", 1.0)
        bus.flush()
        assert plot(tmp_path / "live").exit_code == 0


def test_more_names_than_fit_are_told(tmp_path: Path) -> None:
    history_of(tmp_path, [{f"n{index}": 1.0 for index in range(30)}])
    done = plot("r", "--term")
    assert done.exit_code == 0
    assert "drawing the first 24 of 30 names; choose some by --name" in done.stderr


def test_no_display_and_a_broken_backend_are_no_matter(run: Path) -> None:
    environment = os.environ | {"MPLBACKEND": "tkagg"}
    environment.pop("DISPLAY", None)
    done = subprocess.run(
        [sys.executable, "-m", "metricbus", "plot", str(run), "--name", "val/acc"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("width", [40, 100])
def test_the_terminals_picture_fits(run: Path, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    done = plot(run, run_of(run.parent, "a-run-with-a-very-long-name-indeed"), "--term")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= width
    assert any("train/loss" in line for line in lines)
    assert "\x1b" not in done.stdout


def test_the_terminals_picture_says_what_it_leaves_out(tmp_path: Path) -> None:
    history_of(tmp_path, [{"x": value} for value in (1.0, math.nan, -1.0, 10.0)])
    done = plot("r", "--term", "--log")
    assert "not drawn: 1 not finite, 1 not above 0" in done.stdout


@pytest.mark.parametrize(
    "values", [[math.nan], [0.0], [-1.0, -2.0], [1e300, -1e300], [5.0, 5.0], [1e-300, 1e149]]
)
def test_values_that_are_hard_to_draw_are_no_error(tmp_path: Path, values: list[float]) -> None:
    history_of(tmp_path, [{"x": value} for value in values])
    for options in (["--term"], ["--log", "--term"], ["--log"], []):
        done = plot("r", *options)
        assert done.exit_code == 0, done.output


def test_a_closed_pipe_ends_quietly(run: Path) -> None:
    command = f"{sys.executable} -m metricbus plot {run} --term | head -n 1"
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""


def test_in_a_terminal_it_has_colours(run: Path) -> None:
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "metricbus", "plot", str(run), "--term", "--name", "val/acc"]
    done = subprocess.run(command, stdout=slave, stderr=slave, timeout=60, check=False)
    os.close(slave)
    assert done.returncode == 0
    assert b"\x1b[" in os.read(master, 1 << 16)
    os.close(master)


def test_without_plotext_it_says_what_to_install(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotext", None)
    done = plot(run, "--term")
    assert done.exit_code == 2
    assert "plot --term needs plotext: pip install 'metricbus[cli]'" in done.stderr


def test_without_matplotlib_it_says_what_to_install(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = plot(run)
    assert done.exit_code == 2
    assert "plot needs matplotlib: pip install 'metricbus[media]'" in done.stderr


def steps_and_epochs(*pairs: tuple[int, int]) -> Series:
    step, epoch = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    return Series(step, epoch, step, step.astype(np.float64))


def test_on_epochs_values_of_steps_are_spread_over_theirs() -> None:
    series = steps_and_epochs((0, 0), (1, 0), (2, 0), (3, 0), (4, 1), (5, 1), (6, 1))
    assert on_epochs(series).tolist() == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5]


def test_on_epochs_a_value_an_epoch_stands_on_the_epoch() -> None:
    assert on_epochs(steps_and_epochs((9, 0), (19, 1), (29, 2))).tolist() == [0, 1, 2]


def test_on_epochs_nothing_is_nowhere() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    assert len(on_epochs(Series(nothing, nothing, nothing, nothing))) == 0


@given(st.lists(st.tuples(st.integers(0, 2**62), st.integers(0, 2**50)), min_size=1, max_size=30))
def test_on_epochs_no_value_leaves_its_epoch(pairs: list[tuple[int, int]]) -> None:
    series = steps_and_epochs(*pairs)
    x = on_epochs(series)
    assert (x >= series.epoch).all()
    assert (x <= series.epoch + 1).all()


def test_a_single_outlier_is_in_the_picture(tmp_path: Path) -> None:
    """One value of 200,000: its pixels are red in the uppermost part of the axes."""
    with MetricBus(id="r", sinks=[], dir=tmp_path, block_secs=60) as bus:
        for step in range(200_000):
            bus.log("loss", 100.0 if step == 123_456 else 1.0, step=step)
    panels = panels_of([metricbus.read(tmp_path / "r")], ["loss"])
    figure = figure_of(panels, title="r")
    canvas = figure.canvas
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)  # type: ignore[attr-defined]
    blue = (abs(pixels - [31, 119, 180]).sum(axis=2) < 120).nonzero()
    box = figure.axes[0].get_window_extent()
    rows_from_below = pixels.shape[0] - blue[0]
    high = rows_from_below > box.y0 + 0.8 * box.height
    assert high.any(), "the peak is not drawn"
    where = (blue[1][high].mean() - box.x0) / box.width
    assert abs(where - (0.045 + 0.91 * 123_456 / 200_000)) < 0.02
