"""Plots of runs: `history.plot()` and `metricbus plot`."""

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
from metricbus._history.plots.downsample import downsample
from metricbus._history.plots.epoch_axis import epoch_positions
from metricbus._history.plots.matplotlib_figure import make_figure
from metricbus._history.plots.panels import make_panels, match_names
from metricbus._history.plots.smoothing import smooth_values
from tests.helpers.limits import HANG_SECS

PNG = b"\x89PNG\r\n"


def run_of(folder: Path, id: str, *, name: str | None = None, factor: float = 1.0) -> Path:
    """Create a run with three epochs."""
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


# Downsampling

numbers = st.floats(-1e6, 1e6, width=32) | st.just(math.nan)


@given(values=st.lists(numbers, min_size=1, max_size=300), buckets=st.integers(1, 20))
def test_downsampling_keeps_the_extremes_of_every_bucket(values: list[float], buckets: int) -> None:
    x, y = np.arange(len(values), dtype=np.float64), np.array(values)
    kept = downsample(x, y, buckets)
    assert (np.diff(kept) > 0).all()
    assert len(kept) <= max(4 * buckets, 10 * buckets + 1)
    valid = np.flatnonzero(~np.isnan(y))
    if len(values) <= 4 * buckets or not len(valid):
        return
    first, last = valid[0], valid[-1]
    edges = first + (last - first) * np.arange(1, buckets) / buckets
    bucket = np.searchsorted(edges, x, side="right")
    for number in range(buckets):
        inside = valid[bucket[valid] == number]
        if len(inside) > 2:
            kept_inside = np.intersect1d(kept, inside)
            assert y[kept_inside].min() == y[inside].min()
            assert y[kept_inside].max() == y[inside].max()


@given(values=st.lists(numbers, min_size=1, max_size=200), buckets=st.integers(1, 8))
def test_downsampling_keeps_gaps(values: list[float], buckets: int) -> None:
    y = np.array(values)
    kept = downsample(np.arange(len(values), dtype=np.float64), y, buckets)
    valid = kept[~np.isnan(y[kept])]
    for before, after in pairwise(valid):
        has_gap = np.isnan(y[before + 1 : after]).any()
        assert np.isnan(y[kept[(kept > before) & (kept < after)]]).any() == has_gap


def test_downsampling_keeps_one_peak_in_a_million_points() -> None:
    y = np.zeros(1_000_000)
    y[654_321] = 7.0
    kept = downsample(np.arange(len(y), dtype=np.float64), y, 500)
    assert 654_321 in kept
    assert len(kept) < 2001


# Smoothing


@given(values=st.lists(numbers, max_size=300), weight=st.floats(0.01, 0.999))
def test_smoothing_matches_tensorboard(values: list[float], weight: float) -> None:
    last, n, expected = 0.0, 0, []
    for value in values:
        if math.isnan(value):
            expected.append(value)
            continue
        last, n = last * weight + (1 - weight) * value, n + 1
        expected.append(last / (1 - weight**n))
    np.testing.assert_allclose(
        smooth_values(np.array(values), weight), expected, rtol=1e-9, atol=1e-6
    )


@pytest.mark.parametrize("weight", [-0.1, 1.0, math.nan])
def test_an_invalid_weight_raises(run: Path, weight: float) -> None:
    with pytest.raises(ValueError, match=r"smooth must be at least 0 and below 1, such as 0\.9"):
        metricbus.read(run).plot("train/loss", smooth=weight)


# Panels


def test_globs_select_names_and_an_unknown_name_raises_with_similar_ones() -> None:
    names = ["train/loss", "val/loss", "val/acc"]
    assert match_names(names, ["val/*", "train/loss"]) == names
    assert match_names(names, []) == names
    with pytest.raises(KeyError, match="Did you mean 'train/loss'"):
        match_names(names, ["train/los"])


def test_a_name_with_brackets_matches_itself() -> None:
    assert match_names(["lr[0]", "lr0"], ["lr[0]"]) == ["lr[0]", "lr0"]


def test_lines_are_labeled_with_run_names_or_with_ids_if_names_repeat(tmp_path: Path) -> None:
    runs = [run_of(tmp_path, id, name=name) for id, name in (("1", "a"), ("2", "b"), ("3", "a"))]
    (panel,) = make_panels([metricbus.read(run) for run in runs], ["val/acc"])
    assert [line.label for line in panel.lines] == ["1", "b", "3"]


def test_lines_are_ordered_by_step(tmp_path: Path) -> None:
    with MetricBus(id="late", sinks="", dir=tmp_path) as bus:
        for step in (2, 0, 1):
            bus.log("x", float(step), step=step)
    (panel,) = make_panels([metricbus.read(tmp_path / "late")], ["x"])
    assert panel.lines[0].x.tolist() == [0, 1, 2]
    assert panel.lines[0].y.tolist() == [0, 1, 2]


def test_time_axis_is_relative_to_the_start_and_has_a_unit(run: Path) -> None:
    (panel,) = make_panels([metricbus.read(run)], ["train/loss"], x="time")
    assert panel.x_label == "time since the start (seconds)"
    assert 0 <= panel.lines[0].x[0] <= panel.lines[0].x[-1] < 60


def test_x_axis_can_be_another_series(tmp_path: Path) -> None:
    history = history_of(
        tmp_path, [{"loss": 0.5}, {"examples": 32, "loss": 0.4}, {"loss": 0.3}, {"examples": 96}]
    )
    (panel,) = make_panels([history], ["loss"], x="examples")
    assert panel.x_label == "examples"
    assert panel.lines[0].x.tolist() == [32, 32]  # without a position before the first
    assert panel.lines[0].y.tolist() == [0.4, 0.3]


def test_epoch_times_are_drawn_as_bars_by_epoch(run: Path) -> None:
    (panel,) = make_panels([metricbus.read(run)], ["time/epoch"])
    assert panel.bars
    assert (panel.x_label, panel.y_label) == ("epoch", "seconds")
    assert panel.lines[0].x.tolist() == [0, 1, 2]
    (ax,) = make_figure([panel], title="").axes
    assert len(ax.patches) == 3


# Axes


def test_plot_draws_values_and_labels_into_the_given_axes(run: Path) -> None:
    from matplotlib.figure import Figure

    history = metricbus.read(run)
    own_axes = Figure().subplots()
    ax = history.plot("train/loss", ax=own_axes)
    assert ax is own_axes
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), history.series("train/loss").value)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "train/loss")
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["train/loss"]


def test_plot_without_axes_creates_a_figure(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    from matplotlib import pyplot

    ax = metricbus.read(run).plot("val/*")
    try:
        assert pyplot.gcf() is ax.figure
    finally:
        pyplot.close("all")


def test_unsmoothed_values_are_drawn_faintly(run: Path) -> None:
    from matplotlib.figure import Figure

    ax = metricbus.read(run).plot("train/loss", smooth=0.9, ax=Figure().subplots())
    lines = [line for line in ax.lines if len(np.asarray(line.get_xdata()))]
    raw, smooth = lines[:2]
    assert (raw.get_alpha(), smooth.get_alpha()) == (0.3, 1.0)
    assert np.ptp(np.asarray(smooth.get_ydata())) < np.ptp(np.asarray(raw.get_ydata()))


def test_values_that_are_not_finite_are_marked_gaps(tmp_path: Path) -> None:
    values = [1.0, math.nan, 3.0, math.inf, 2.0, 1e308]
    history = history_of(tmp_path, [{"x": value} for value in values])
    (ax,) = make_figure(make_panels([history], ["x"]), title="").axes
    curve, isolated, marks = ax.lines
    np.testing.assert_array_equal(curve.get_ydata(), [1.0, math.nan, 3.0, math.nan, 2.0, math.nan])
    assert np.asarray(isolated.get_ydata()).tolist() == [1.0, 3.0, 2.0]
    assert np.asarray(marks.get_xdata()).tolist() == [1, 3, 5]


@pytest.mark.parametrize(
    ("values", "scale"),
    [([1.0, 10.0], "log"), ([-5.0, 0.0, 100.0], "symlog"), ([0.0, 0.0], "linear")],
)
def test_log_scale_shows_every_value(tmp_path: Path, values: list[float], scale: str) -> None:
    history = history_of(tmp_path, [{"x": value} for value in values])
    figure = make_figure(make_panels([history], ["x"]), title="", log=True)
    figure.draw_without_rendering()
    (ax,) = figure.axes
    assert ax.get_yscale() == scale
    low, high = ax.get_ylim()
    assert low <= min(values) <= max(values) <= high


def test_run_without_scalars_has_empty_axes(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    history = history_of(tmp_path, [])
    assert not history.plot(ax=Figure().subplots(), x="time").lines


def test_names_are_shown_literally(tmp_path: Path) -> None:
    names = ["$\\frac{$", "_hidden", "a\nb", "x" * 300]
    history = history_of(tmp_path, [dict.fromkeys(names, 1.0)])
    panels = make_panels([history], names, together=True)
    figure = make_figure(panels, title="$\\bad{$")
    figure.draw_without_rendering()
    legend = figure.axes[0].get_legend()
    assert legend is not None
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels[:3] == ["$\\frac{$", "_hidden", "a\N{REPLACEMENT CHARACTER}b"]
    assert labels[3] == "x" * 20 + "…" + "x" * 39


def test_partial_aggregates_are_hollow_points(tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "from metricbus import MetricBus\n"
        "bus = MetricBus(id='dead', sinks='', dir=sys.argv[1])\n"
        "bus.define('x', every=10, reduce='mean')\n"
        "for step in range(13): bus.log('x', float(step), step=step)\n"
        "bus._core.session.save()\n"
        "os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], timeout=HANG_SECS, check=False)
    (panel,) = make_panels([metricbus.read(tmp_path / "dead")], ["x"])
    assert panel.lines[0].partial == [(12.0, 11.0)]
    (ax,) = make_figure([panel], title="").axes
    assert ax.lines[-1].get_fillstyle() == "none"


# The command


def test_image_is_named_after_the_run_and_its_path_is_printed(run: Path) -> None:
    result = plot(run)
    assert (result.exit_code, result.stdout) == (0, "digits.png\n")
    assert Path("digits.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("suffix", "start"), [("png", PNG), ("svg", b"<?xml"), ("pdf", b"%PDF"), ("PNG", PNG)]
)
def test_suffix_selects_the_format(run: Path, suffix: str, start: bytes) -> None:
    result = plot(run, "--out", f"p.{suffix}", "--name", "val/*", "--smooth", "0.5", "--log")
    assert result.exit_code == 0, result.output
    assert Path(f"p.{suffix}").read_bytes().startswith(start)


def test_several_runs_are_drawn_into_one_image(tmp_path: Path, run: Path) -> None:
    other = run_of(tmp_path, "other", factor=2.0)
    result = plot(run, other, "--x", "time", "--together")
    assert (result.exit_code, result.stdout) == (0, "digits-and-1-more.png\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits", "--name", "tran/loss"], "Did you mean 'train/loss'?"),
        (["digits", "--x", "stepp"], "No series matches 'stepp'."),
        (["digits", "--smooth", "1"], "smooth must be at least 0 and below 1"),
        (
            ["digits", "--out", "p.xyz"],
            "--out p.xyz is not an image file. Use one of: .png, .svg, .pdf.",
        ),
        (["digits", "--out", "nowhere/p.png"], "nowhere/p.png cannot be written: No such file"),
        (["digit"], "There is no run 'digit'."),
        (["."], "is not a run"),
        (["empty"], "No numbers were logged in empty"),
    ],
)
def test_misuse_fails_with_status_2(
    tmp_path: Path, run: Path, arguments: list[str], message: str
) -> None:
    MetricBus(id="empty", sinks="", dir=tmp_path).close()
    result = plot(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr.replace("\n", " ")
    assert not result.stdout


def test_a_torn_and_damaged_journal_is_drawn(run: Path) -> None:
    with open(run / "journal" / "0001.jsonl", "ab") as file:
        file.write(b'not json\n{"kind":"scal')
    assert plot(run).exit_code == 0


def test_a_journal_that_is_not_a_folder_fails(run: Path) -> None:
    (run / "journal").rename(run / "was-journal")
    (run / "journal").write_text("")
    result = plot(run)
    assert result.exit_code == 2
    assert "journal cannot be read: Not a directory" in result.stderr.replace("\n", " ")


def test_a_live_run_can_be_drawn(tmp_path: Path) -> None:
    with MetricBus(id="live", sinks="", dir=tmp_path) as bus:
        bus.log("x", 1.0)
        bus.flush()
        assert plot(tmp_path / "live").exit_code == 0


def test_the_number_of_panels_is_limited_with_a_notice(tmp_path: Path) -> None:
    history_of(tmp_path, [{f"n{index}": 1.0 for index in range(30)}])
    result = plot("r", "--term")
    assert result.exit_code == 0
    assert "Drawing the first 24 of 30 series. Select series with --name" in result.stderr


def test_no_display_or_working_backend_is_needed(run: Path) -> None:
    environment = os.environ | {"MPLBACKEND": "tkagg"}
    environment.pop("DISPLAY", None)
    result = subprocess.run(
        [sys.executable, "-m", "metricbus", "plot", str(run), "--name", "val/acc"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANG_SECS,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("width", [40, 100])
def test_terminal_plot_fits_into_the_terminal(
    run: Path, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    result = plot(run, run_of(run.parent, "a-run-with-a-very-long-name-indeed"), "--term")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= width
    assert any("train/loss" in line for line in lines)
    assert "\x1b" not in result.stdout


def test_terminal_plot_counts_the_values_that_are_not_drawn(tmp_path: Path) -> None:
    history_of(tmp_path, [{"x": value} for value in (1.0, math.nan, -1.0, 10.0)])
    result = plot("r", "--term", "--log")
    assert "not drawn: 1 not finite, 1 not above 0" in result.stdout


@pytest.mark.parametrize(
    "values", [[math.nan], [0.0], [-1.0, -2.0], [1e300, -1e300], [5.0, 5.0], [1e-300, 1e149]]
)
def test_extreme_values_can_be_drawn(tmp_path: Path, values: list[float]) -> None:
    history_of(tmp_path, [{"x": value} for value in values])
    for options in (["--term"], ["--log", "--term"], ["--log"], []):
        result = plot("r", *options)
        assert result.exit_code == 0, result.output


def test_a_closed_pipe_ends_the_plot_quietly(run: Path) -> None:
    command = f"{sys.executable} -m metricbus plot {run} --term | head -n 1"
    result = subprocess.run(
        command, shell=True, capture_output=True, text=True, timeout=HANG_SECS, check=False
    )
    assert result.stderr == ""


def test_terminal_plot_has_colors(run: Path) -> None:
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "metricbus", "plot", str(run), "--term", "--name", "val/acc"]
    result = subprocess.run(command, stdout=slave, stderr=slave, timeout=HANG_SECS, check=False)
    os.close(slave)
    assert result.returncode == 0
    assert b"\x1b[" in os.read(master, 1 << 16)
    os.close(master)


def test_terminal_plot_without_plotext_fails_with_the_install_command(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotext", None)
    result = plot(run, "--term")
    assert result.exit_code == 2
    assert "plot --term needs plotext: pip install 'metricbus[cli]'" in result.stderr


def test_plot_without_matplotlib_fails_with_the_install_command(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = plot(run)
    assert result.exit_code == 2
    assert "plot needs matplotlib: pip install 'metricbus[media]'" in result.stderr


def steps_and_epochs(*pairs: tuple[int, int]) -> Series:
    step, epoch = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    return Series(step, epoch, step, step.astype(np.float64))


def test_epoch_positions_spread_values_of_steps_over_the_epoch() -> None:
    series = steps_and_epochs((0, 0), (1, 0), (2, 0), (3, 0), (4, 1), (5, 1), (6, 1))
    assert epoch_positions(series).tolist() == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5]


def test_epoch_positions_of_one_value_per_epoch_are_the_epochs() -> None:
    assert epoch_positions(steps_and_epochs((9, 0), (19, 1), (29, 2))).tolist() == [0, 1, 2]


def test_epoch_positions_of_an_empty_series_are_empty() -> None:
    empty = np.zeros(0, dtype=np.int64)
    assert len(epoch_positions(Series(empty, empty, empty, empty))) == 0


@given(st.lists(st.tuples(st.integers(0, 2**62), st.integers(0, 2**50)), min_size=1, max_size=30))
def test_epoch_positions_are_within_the_epoch(pairs: list[tuple[int, int]]) -> None:
    series = steps_and_epochs(*pairs)
    x = epoch_positions(series)
    assert (x >= series.epoch).all()
    assert (x <= series.epoch + 1).all()


def test_a_single_outlier_is_visible(tmp_path: Path) -> None:
    """The line reaches the top of the axes at the step of one outlier among 200,000 values."""
    with MetricBus(id="r", sinks=[], dir=tmp_path, block_secs=60) as bus:
        for step in range(200_000):
            bus.log("loss", 100.0 if step == 123_456 else 1.0, step=step)
    panels = make_panels([metricbus.read(tmp_path / "r")], ["loss"])
    figure = make_figure(panels, title="r")
    canvas = figure.canvas
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)  # type: ignore[attr-defined]
    blue = (abs(pixels - [31, 119, 180]).sum(axis=2) < 120).nonzero()
    box = figure.axes[0].get_window_extent()
    rows_from_below = pixels.shape[0] - blue[0]
    is_high = rows_from_below > box.y0 + 0.8 * box.height
    assert is_high.any(), "the outlier is not drawn"
    position = (blue[1][is_high].mean() - box.x0) / box.width
    assert abs(position - (0.045 + 0.91 * 123_456 / 200_000)) < 0.02
