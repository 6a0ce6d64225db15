"""`EarlyStopping` and `Best`: decisions from the values of a bus."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import metricbus
from metricbus import MetricBus
from metricbus.monitors.early_stopping import Best, EarlyStopping
from metricbus.testing import MemorySink
from tests.helpers.limits import HANG_SECS


def stops_at(stopping: EarlyStopping, values: list[Any]) -> int | None:
    """Return the index of the first value at which it stops."""
    return next((index for index, value in enumerate(values) if stopping(value)), None)


def test_stops_after_patience_checks_without_improvement(bus: MetricBus) -> None:
    stopping = EarlyStopping(bus, "loss", patience=2)
    assert stops_at(stopping, [3.0, 2.0, 2.5, 1.0, 1.5, 1.2, 0.5]) == 5


def test_stays_stopped(bus: MetricBus) -> None:
    stopping = EarlyStopping(bus, "loss", patience=1)
    assert [stopping(value) for value in (1.0, 2.0, 0.0)] == [False, True, True]
    assert (stopping.best, stopping.waited, stopping.stopped) == (1.0, 1, True)


def test_mode_max_prefers_larger_values(bus: MetricBus) -> None:
    stopping = EarlyStopping(bus, "acc", patience=1, mode="max")
    assert stops_at(stopping, [0.1, 0.2, 0.15]) == 2
    assert stopping.best == 0.2


@pytest.mark.parametrize("mode", ["min", "max"])
def test_improvement_of_exactly_min_delta_does_not_count(bus: MetricBus, mode: Any) -> None:
    sign = 1 if mode == "min" else -1
    stopping = EarlyStopping(bus, "loss", patience=1, min_delta=0.5, mode=mode)
    assert not stopping(sign * 2.0)
    assert not stopping(sign * 1.25)
    assert stopping(sign * 0.75)
    assert stopping.best == sign * 1.25


def test_equal_value_is_not_an_improvement(bus: MetricBus) -> None:
    assert stops_at(EarlyStopping(bus, "loss", patience=1), [1.0, 1.0]) == 1


def test_nan_is_not_an_improvement_even_as_the_first_value(bus: MetricBus) -> None:
    stopping = EarlyStopping(bus, "loss", patience=2)
    assert stops_at(stopping, [math.nan, 1.0, math.nan, math.nan]) == 3
    assert stopping.best == 1.0


def test_worst_infinity_is_no_improvement_but_best_infinity_is(bus: MetricBus) -> None:
    stopping = EarlyStopping(bus, "loss", patience=5)
    stopping(math.inf)
    assert (stopping.best, stopping.waited) == (None, 1)
    stopping(-math.inf)
    assert (stopping.best, stopping.waited) == (-math.inf, 0)


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), torch.tensor(0.5), torch.tensor([0.5])])
def test_accepts_any_kind_of_number(bus: MetricBus, value: object) -> None:
    stopping = EarlyStopping(bus, "loss")
    assert not stopping(value)
    assert stopping.best == 0.5


def test_error_for_a_non_number_names_the_metric(bus: MetricBus) -> None:
    with pytest.raises(TypeError, match="'val/loss'"):
        EarlyStopping(bus, "val/loss")("low")


def test_call_without_argument_checks_the_newest_value(bus: MetricBus) -> None:
    stopping = EarlyStopping(bus, "loss", patience=1)
    bus.log("loss", 1.0)
    assert not stopping()
    bus.log("loss", 2.0)
    assert stopping()


def test_check_without_a_value_does_not_count(bus: MetricBus, sink: MemorySink) -> None:
    stopping = EarlyStopping(bus, "loss", patience=1)
    assert [stopping(), stopping({}), stopping({"acc": 1.0})] == [False] * 3
    assert stopping.waited == 0
    bus.flush()
    assert sink.names() == []


def test_warns_once_about_a_name_that_is_never_logged(
    bus: MetricBus, caplog: pytest.LogCaptureFixture
) -> None:
    stopping = EarlyStopping(bus, "val/lss")
    for _ in range(5):
        bus.log("val/loss", 1.0)
        stopping()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "'val/lss'" in caplog.text


def test_checks_the_value_reduced_over_the_ended_epoch(bus: MetricBus) -> None:
    bus.define("val/*", on_step=False, on_epoch=True)
    stopping = EarlyStopping(bus, "val/loss", patience=1)
    seen = []
    for epoch in bus.epochs(10):
        for loss in (0.0, 2.0 + epoch):
            bus.log("val/loss", loss)
        if stopping(bus.end_epoch()):
            break
        seen.append(stopping.best)
    assert seen == [1.0]
    assert bus.epoch == 1


def test_inside_an_epochs_loop_the_newest_reduced_value_is_from_the_previous_epoch(
    bus: MetricBus,
) -> None:
    bus.define("val/*", on_step=False, on_epoch=True)
    best = Best(bus, "val/loss", mode="min")
    seen = []
    for epoch in bus.epochs(3):
        bus.log("val/loss", 3.0 - epoch)
        best()
        seen.append(best.value)
    assert seen == [None, 3.0, 2.0]


def test_each_check_logs_the_decision_at_the_current_step(bus: MetricBus) -> None:
    stopping = EarlyStopping(bus, "val/loss", patience=2)
    for value in (1.0, 2.0, 3.0):
        bus.advance(10)
        stopping(value)
    history = metricbus.read(flushed(bus))
    assert history.series("early_stopping/val/loss/best").value.tolist() == [1.0] * 3
    assert history.series("early_stopping/val/loss/waited").value.tolist() == [0, 1, 2]
    stopped = history.series("early_stopping/val/loss/stopped")
    assert stopped.value.tolist() == [0, 0, 1]
    assert stopped.step.tolist() == [10, 20, 30]


def flushed(bus: MetricBus) -> Path:
    bus.flush()
    assert bus.dir is not None
    return bus.dir


def test_checks_never_advance_the_step(bus: MetricBus) -> None:
    stopping, best = EarlyStopping(bus, "loss", patience=9), Best(bus, "loss", mode="max")
    for value in (1.0, 2.0, 3.0):
        stopping(value)
        best(value)
    assert bus.step == 0


def test_best_step_is_the_step_of_the_best_value(bus: MetricBus) -> None:
    stopping = EarlyStopping(bus, "loss")
    assert stopping.best_step is None
    for value in (3.0, 1.0, 2.0):
        bus.advance(5)
        stopping(value)
    assert stopping.best_step == 10


def test_accepts_a_scope(bus: MetricBus, sink: MemorySink) -> None:
    # A phase reduces its values over the epoch by default, but not the decisions.
    val = bus.phase("val")
    stopping = EarlyStopping(val, "loss", patience=1)
    for loss in (1.0, 2.0):
        val.log("loss", loss)
        stopping(bus.end_epoch())
    assert stopping.stopped
    bus.flush()
    assert [point.value for point in sink.series("early_stopping/val/loss/stopped")] == [0, 1]


def test_works_with_explicit_numbers_if_the_bus_is_off(tmp_path: Path) -> None:
    bus = MetricBus(disabled=True, dir=tmp_path)
    stopping = EarlyStopping(bus, "loss", patience=1)
    bus.log("loss", 1.0)
    assert not stopping()
    assert stops_at(stopping, [1.0, 2.0]) == 1


def test_state_dict_restores_the_best_value_and_the_count(bus: MetricBus) -> None:
    first = EarlyStopping(bus, "loss", patience=3)
    for value in (1.0, 2.0, 2.0):
        first(value)
    state = json.loads(json.dumps(first.state_dict()))
    second = EarlyStopping(bus, "loss", patience=3)
    second.load_state_dict(state)
    assert (second.best, second.best_step, second.waited) == (1.0, 0, 2)
    assert second(2.0)


def test_larger_patience_after_restoring_continues_after_a_stop(bus: MetricBus) -> None:
    first = EarlyStopping(bus, "loss", patience=1)
    assert stops_at(first, [1.0, 2.0]) == 1
    second = EarlyStopping(bus, "loss", patience=2)
    second.load_state_dict(first.state_dict())
    assert not second.stopped


@pytest.mark.parametrize(
    ("change", "match"),
    [({"name": "other"}, "the state belongs to 'other'"), ({"mode": "max"}, "mode='max'")],
)
def test_state_of_another_name_or_mode_raises(
    bus: MetricBus, change: dict[str, str], match: str
) -> None:
    stopping = EarlyStopping(bus, "loss")
    with pytest.raises(ValueError, match=match):
        stopping.load_state_dict(stopping.state_dict() | change)


def test_error_for_an_incomplete_state_lists_missing_keys(bus: MetricBus) -> None:
    with pytest.raises(ValueError, match="lacks best, epoch, mode, step, waited"):
        Best(bus, "loss", mode="max").load_state_dict({"name": "loss"})


@pytest.mark.parametrize("patience", [0, -1, 1.5, True])
def test_patience_must_be_a_positive_int(bus: MetricBus, patience: Any) -> None:
    with pytest.raises(ValueError, match="patience="):
        EarlyStopping(bus, "loss", patience=patience)


@pytest.mark.parametrize("delta", [-0.1, math.nan, math.inf])
def test_min_delta_must_be_finite_and_not_negative(bus: MetricBus, delta: float) -> None:
    with pytest.raises(ValueError, match="mode= decides whether smaller or larger"):
        EarlyStopping(bus, "loss", min_delta=delta)


def test_mode_must_be_min_or_max(bus: MetricBus) -> None:
    with pytest.raises(ValueError, match='"min" or "max", not \'auto\''):
        Best(bus, "loss", mode="auto")  # type: ignore[arg-type]


def test_name_must_not_be_empty(bus: MetricBus) -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        Best(bus, "", mode="max")


def test_best_returns_true_for_each_new_best_value(bus: MetricBus) -> None:
    best = Best(bus, "acc", mode="max")
    values = (0.1, 0.3, 0.3, math.nan, 0.2, 0.4)
    assert [best(value) for value in values] == [True, True, False, False, False, True]


def test_best_with_mode_min_is_the_smallest_value(bus: MetricBus) -> None:
    best = Best(bus, "loss", mode="min")
    assert [best(value) for value in (2.0, 1.0, 3.0)] == [True, True, False]
    assert best.value == 1.0


def test_best_logs_each_new_best_value(bus: MetricBus) -> None:
    best = Best(bus, "val/acc", mode="max")
    for _ in bus.epochs(3):
        for _ in bus.steps(range(4)):
            pass
        best((0.5, 0.4, 0.6)[bus.epoch])
    series = metricbus.read(flushed(bus)).series("best/val/acc")
    assert (series.value.tolist(), series.step.tolist()) == ([0.5, 0.6], [3, 11])
    assert (best.value, best.step, best.epoch) == (0.6, 11, 2)


def test_checking_the_same_value_again_is_not_better(bus: MetricBus) -> None:
    best = Best(bus, "acc", mode="max")
    bus.log("acc", 0.5)
    assert [best(), best()] == [True, False]


def test_best_restores_its_state(bus: MetricBus) -> None:
    first, second = Best(bus, "acc", mode="max"), Best(bus, "acc", mode="max")
    first(0.5)
    second.load_state_dict(first.state_dict())
    assert (second(0.4), second.value, second.epoch) == (False, 0.5, 0)


RANK = """
    import json, sys
    import torch
    from metricbus import MetricBus
    from metricbus.monitors.early_stopping import Best, EarlyStopping

    rank = int(sys.argv[1])
    torch.distributed.init_process_group("gloo", "file://" + sys.argv[2], rank=rank, world_size=2)
    bus = MetricBus(disabled=rank > 0, sinks="")
    stopping, best = EarlyStopping(bus, "loss", patience=2), Best(bus, "loss", mode="min")
    epochs, saved = 0, []
    for loss in ((3.0, 2.0, 4.0, 5.0, 6.0), (9.0, 8.0, 7.0, 6.0, 5.0))[rank]:
        epochs += 1
        saved.append(best(loss))
        if stopping(loss):
            break
    print(json.dumps([epochs, saved, stopping.best, stopping.stopped]))
    bus.close()
    torch.distributed.destroy_process_group()
"""


def test_first_rank_decides_for_all_ranks(tmp_path: Path) -> None:
    (tmp_path / "rank.py").write_text(textwrap.dedent(RANK))
    ranks = [
        subprocess.Popen(
            [sys.executable, "rank.py", str(rank), str(tmp_path / "rendezvous")],
            stdout=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        for rank in range(2)
    ]
    results = [json.loads(rank.communicate(timeout=HANG_SECS)[0]) for rank in ranks]
    assert results == [[4, [True, True, False, False], 2.0, True]] * 2


def test_warns_about_a_name_that_is_not_reduced_over_the_epoch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus:
        bus.define("val/acc", on_step=False, on_epoch=True)
        stopping = EarlyStopping(bus, "val/loss")
        for _ in range(2):
            bus.log({"val/loss": 0.5, "val/acc": 0.5})
            assert not stopping(bus.end_epoch())
    (warning,) = (line for line in caplog.messages if "val/loss" in line)
    assert warning.startswith(
        "'val/loss' is not among the values passed to the check, which are: 'val/acc'"
    )
    assert "bus.define('val/loss', on_epoch=True)" in warning


def test_warns_about_a_misspelled_name_at_the_first_check(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus:
        Best(bus, "val/los", mode="max")({"val/loss": 0.5})
    assert "which are: 'val/loss'; nothing has been logged under this name" in caplog.text
