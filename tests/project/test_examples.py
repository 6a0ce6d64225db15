"""The examples in `docs/examples` run unchanged and log what they claim to log.

All except the distributed one run in this process, because importing torch in a new process for
each would take longer than all of the examples together. They start no processes and change no
global state except torch's seed.
"""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import metricbus
from metricbus import History
from metricbus._common.media_records import (
    MEDIA_RECORD_TYPES,
    AudioRecord,
    ImageRecord,
    VideoRecord,
)
from tests.helpers.limits import HANG_SECS

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"

Run = Callable[[str], History]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """A function that runs an example as `python x.py` would and returns the run's history."""
    monkeypatch.setenv("MPLBACKEND", "Agg")

    def run(name: str) -> History:
        variables = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return metricbus.read(variables["bus"].dir)

    return run


def test_every_example_is_tested_and_listed() -> None:
    here = Path(__file__).read_text()
    listed = (EXAMPLES / "README.md").read_text()
    names = [path.stem for path in EXAMPLES.glob("*.py")]
    assert len(names) >= 13
    for name in names:
        assert f'"{name}' in here, f"{name} has no test"
        assert f"]({name}.py)" in listed, f"{name} is not in the list"


def test_the_plain_loop_logs_stops_early_and_plots(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    history = run("plain_loop")
    losses, epochs = history.series("train/loss"), history.series("val/loss")
    assert losses.step[:3].tolist() == [9, 19, 22]  # every 10 batches, and at the end of the epoch
    assert len(epochs) < 30
    assert history.series("early_stopping/val/loss/stopped").value[-1] == 1
    assert history.series("val/accuracy").value[-1] > 0.9
    assert history.series("time/epoch").epoch.tolist() == list(range(len(epochs) - 1))
    assert "train/loss=" in caplog.text
    with Image.open(history.folder / "training.png") as plots:
        assert plots.size == (1200, 350)
        assert len(plots.convert("L").getcolors() or []) > 10


def test_digits_logs_media_of_every_kind() -> None:
    runpy.run_path(str(EXAMPLES / "digits.py"), run_name="__main__")
    (folder,) = Path("runs").iterdir()
    history = metricbus.read(folder)
    assert {type(record) for record in history.media()} == set(MEDIA_RECORD_TYPES)
    assert history.series("val/accuracy").value[-1] > 0.9


def test_gradient_norms_of_the_first_layer_vanish(run: Run) -> None:
    history = run("gradient_norms")
    first, last = history.series("grad_norm/0.weight"), history.series("grad_norm/8.weight")
    assert first.step.tolist() == list(range(0, 87, 10))
    assert first.value[0] < last.value[0] / 10
    assert len(history.media("gradients/0.weight")) == len(first)


def test_learning_rates_are_logged_under_the_name_of_each_group(run: Run) -> None:
    history = run("learning_rates")
    body, head = history.series("lr/body"), history.series("lr/head")
    assert np.allclose(head.value, 10 * body.value)
    assert body.value.argmax() == pytest.approx(0.3 * len(body), abs=2)
    assert set(history.series("weight_decay/body").value) == {0.1}
    assert len(history.series("momentum/head")) == len(body)


def test_clipping_logs_the_norm_before_and_after(run: Run) -> None:
    history = run("clipping")
    before, after = history.series("clip/norm_before"), history.series("clip/norm_after")
    clipped = history.series("clip/clipped")
    assert np.allclose(after.value, np.minimum(before.value, 1.0), atol=1e-5)
    assert np.array_equal(clipped.value == 1, before.value > 1.0)


def test_each_class_has_an_accuracy(run: Run) -> None:
    history = run("per_class_accuracy")
    by_class = [history.series(f"val/accuracy/{digit}").value for digit in range(10)]
    assert {len(values) for values in by_class} == {5}
    assert np.allclose(np.mean(by_class, axis=0), history.series("val/accuracy_mean").value)
    assert np.min(by_class, axis=0).tolist() == history.series("val/accuracy_worst").value.tolist()


def test_each_validation_set_is_logged_once_per_epoch_and_the_best_model_is_saved(run: Run) -> None:
    history = run("several_validation_sets")
    noisy = history.series("val/noisy/accuracy").value
    assert len(noisy) == len(history.series("val/shifted/accuracy")) == 8
    assert history.series("best/val/noisy/accuracy").value[-1] == noisy.max()
    assert (history.folder / "best.pt").exists()


def test_the_step_counts_examples_seen(run: Run) -> None:
    history = run("examples_seen")
    steps = history.series("train/loss").step
    assert steps[0] == 128
    assert steps[-1] == 3 * 1797


def test_running_averages_match_the_logged_values(run: Run) -> None:
    history = run("running_averages")
    losses = history.series("train/loss").value
    means_of_20 = history.series("train/loss_of_20").value
    assert means_of_20[0] == pytest.approx(losses[:20].mean())
    assert len(history.series("train/loss_smooth")) == len(losses)
    assert history.series("train/loss_epoch").value[0] == pytest.approx(losses[:113].mean())
    assert history.series("train/loss_spread").value[0] == pytest.approx(losses[:20].std())


def test_system_metrics_and_step_times_are_logged(run: Run) -> None:
    history = run("system_metrics")
    assert history.series("system/memory").value[0] > 0
    parts = [
        history.series(f"time/{part}").value
        for part in ("data", "forward", "backward", "optimizer", "other")
    ]
    assert np.allclose(np.sum(parts, axis=0), history.series("time/step").value)
    assert history.series("throughput/samples").value.min() > 0


def test_media_can_be_opened(run: Run) -> None:
    history = run("media")
    (misread,) = history.media("val/misread")
    (table,) = history.tables("val/misread_table")
    (film,) = history.media("weights/film")
    (sound,) = history.media("train/sound")
    assert isinstance(misread, ImageRecord)
    assert isinstance(film, VideoRecord)
    assert isinstance(sound, AudioRecord)
    assert len(history.media("weights/first_layer")) == 12
    assert all(digit != guess for _, digit, guess, _ in table.rows)
    with Image.open(history.files.path(film.file)) as frames:
        assert getattr(frames, "n_frames", 1) == 12


def test_with_gradient_accumulation_the_step_counts_optimizer_steps(run: Run) -> None:
    history = run("accumulation_amp")
    losses = history.series("train/loss")
    assert losses.step.tolist() == list(range(3 * 112 // 4))
    assert history.series("lr").step.tolist() == losses.step.tolist()
    assert history.series("clip/norm_before").step.tolist() == losses.step.tolist()
    assert losses.value[-1] < losses.value[0] / 2


def test_metric_objects_log_one_value_per_epoch(run: Run) -> None:
    history = run("metric_objects")
    assert history.series("train/loss").epoch.tolist() == [0, 1, 2, 3, 4]
    by_class = [history.series(f"val/accuracy_of/{digit}").value for digit in range(10)]
    assert {len(values) for values in by_class} == {5}
    assert history.series("val/accuracy").value[-1] > 0.8
    assert history.series("val/f1").value[-1] > 0.8


def test_two_ranks_under_torchrun_write_one_run(tmp_path: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [sys.executable, *launch, str(EXAMPLES / "distributed.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=HANG_SECS,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    history = metricbus.read(folder)
    assert len(list((folder / "journal").iterdir())) == 1
    accuracy = history.series("val/accuracy").value
    # If the mean is weighted correctly, the product with the number of examples is an integer.
    correct = accuracy * 359
    assert np.allclose(correct, np.round(correct), atol=1e-3)
    assert len(history.series("train/loss")) == len(accuracy)
