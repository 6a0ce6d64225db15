"""Definitions: windows, epochs, axes, sinks and phases. None of them loses a value."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

import metricbus
from metricbus import ConfigError, MetricBus
from metricbus.testing import MemorySink
from tests.helpers.limits import HANG_SECS


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink()


@pytest.fixture
def bus(sink: MemorySink, tmp_path: Path) -> Iterator[MetricBus]:
    with MetricBus(sinks=[sink, "csv"], dir=tmp_path) as bus:
        yield bus


def points(bus: MetricBus, sink: MemorySink, name: str) -> list[tuple[int, float]]:
    bus.flush()
    return [(point.step, point.value) for point in sink.series(name)]


def test_window_is_emitted_at_the_step_of_its_last_value(bus: MetricBus, sink: MemorySink) -> None:
    bus.define("loss", every=3, reduce="mean")
    for step in range(7):
        bus.log("loss", float(step), step=step)
    assert points(bus, sink, "loss") == [(2, 1.0), (5, 4.0)]
    bus.close()
    assert points(bus, sink, "loss") == [(2, 1.0), (5, 4.0), (6, 6.0)]


def test_window_without_a_reduction_emits_its_last_value(bus: MetricBus, sink: MemorySink) -> None:
    bus.define("x", every=2)
    for step in range(4):
        bus.log("x", step, step=step)
    assert points(bus, sink, "x") == [(1, 1), (3, 3)]


def test_epoch_emits_one_value_at_its_end(bus: MetricBus, sink: MemorySink) -> None:
    bus.define("val/*", on_step=False, on_epoch=True)
    returned = []
    for epoch in range(2):
        for value in (1.0, 2.0):
            bus.log("val/acc", value + epoch, step=10 * epoch)
        returned.append(bus.end_epoch())
    assert returned == [{"val/acc": 1.5}, {"val/acc": 2.5}]
    bus.flush()
    records = [record for record in sink.records if "val/acc" in record.values]
    assert [(r.epoch, r.step, r.axis, r.x, r.epoch_result) for r in records] == [
        (0, 0, "", 0, True),
        (1, 10, "", 10, True),
    ]


def test_epoch_result_has_a_suffix_if_steps_are_emitted_too(
    bus: MetricBus, sink: MemorySink
) -> None:
    bus.define("loss", on_step=True, on_epoch=True, reduce="max")
    for step, value in enumerate((1.0, 3.0, 2.0)):
        bus.log("loss", value, step=step)
    assert bus.end_epoch() == {"loss_epoch": 3.0}
    assert points(bus, sink, "loss") == [(0, 1.0), (1, 3.0), (2, 2.0)]
    assert bus.last("loss") == 2.0
    assert bus.last("loss_epoch") == 3.0


def test_weights_apply_to_the_epoch_mean(bus: MetricBus) -> None:
    bus.define("acc", on_step=False, on_epoch=True)
    bus.log("acc", 1.0, weight=30)
    bus.log({"acc": 0.0}, weight=10)
    assert bus.end_epoch() == {"acc": 0.75}
    assert bus.last("acc") == 0.75


@given(st.lists(st.floats(-1e6, 1e6), min_size=8, max_size=8), st.sampled_from([1, 2, 4, 8]))
def test_mean_is_the_same_for_any_micro_batch_size(
    tmp_path_factory: pytest.TempPathFactory, losses: list[float], micro: int
) -> None:
    sink = MemorySink()
    with MetricBus(sinks=[sink], dir=tmp_path_factory.mktemp("runs")) as bus:
        bus.define("loss", every=micro, reduce="mean")
        bus.define("epoch_loss", on_step=False, on_epoch=True)
        for step in range(8 // micro):
            for loss in losses[step * micro : (step + 1) * micro]:
                bus.log({"loss": loss, "epoch_loss": loss}, step=step)
        assert bus.end_epoch()["epoch_loss"] == math.fsum(losses) / 8
    assert [p.step for p in sink.series("loss")] == list(range(8 // micro))
    for step, point in enumerate(sink.series("loss")):
        part = losses[step * micro : (step + 1) * micro]
        assert point.value == math.fsum(part) / micro


def test_later_definitions_override_earlier_ones_field_by_field(
    bus: MetricBus, sink: MemorySink
) -> None:
    bus.define("train/*", every=2, reduce="mean")
    bus.define("train/lr", reduce="last")
    for step in range(2):
        bus.log({"train/loss": float(step), "train/lr": float(step)}, step=step)
    assert points(bus, sink, "train/loss") == [(1, 0.5)]
    assert points(bus, sink, "train/lr") == [(1, 1.0)]


def test_new_definition_emits_the_pending_window_first(bus: MetricBus, sink: MemorySink) -> None:
    bus.define("x", every=10, reduce="sum")
    for step in range(3):
        bus.log("x", 1.0, step=step)
    bus.define("x", every=1)
    bus.log("x", 5.0, step=3)
    assert points(bus, sink, "x") == [(2, 3.0), (3, 5.0)]


def test_definition_applies_to_later_calls_only(bus: MetricBus, sink: MemorySink) -> None:
    bus.log("x", 1.0, step=0)
    bus.define("x", every=2, reduce="sum")
    for step in (1, 2):
        bus.log("x", 1.0, step=step)
    assert points(bus, sink, "x") == [(0, 1.0), (2, 2.0)]


def test_window_keeps_the_order_of_calls_not_of_steps(bus: MetricBus, sink: MemorySink) -> None:
    bus.define("x", every=3, reduce="first")
    for step, value in ((5, 1.0), (2, 2.0), (7, 3.0)):
        bus.log("x", value, step=step)
    assert points(bus, sink, "x") == [(7, 1.0)]


def test_ema_continues_over_windows(bus: MetricBus, sink: MemorySink) -> None:
    bus.define("loss", reduce="ema0.5")
    for step, value in enumerate((4.0, 2.0, 2.0)):
        bus.log("loss", value, step=step)
    assert points(bus, sink, "loss") == [(0, 4.0), (1, 3.0), (2, 2.5)]
    assert bus.last("loss") == 2.5


def test_epoch_results_lack_names_that_were_not_logged(bus: MetricBus, sink: MemorySink) -> None:
    bus.define("val/*", on_step=False, on_epoch=True)
    bus.log("val/a", 1.0)
    assert bus.end_epoch() == {"val/a": 1.0}
    bus.log("val/b", 2.0)
    assert bus.end_epoch() == {"val/b": 2.0}
    assert points(bus, sink, "val/a") == [(0, 1.0)]


def test_axis_may_come_last_in_a_mapping(bus: MetricBus, sink: MemorySink) -> None:
    bus.define("loss", axis="tokens")
    bus.log({"loss": 0.5, "tokens": 100}, step=0)
    bus.log({"loss": 0.25, "tokens": 200}, step=1)
    bus.flush()
    assert [record.at for record in sink.records if "loss" in record.values] == [100, 200]


def test_axis_can_be_another_series(bus: MetricBus, sink: MemorySink) -> None:
    bus.define("loss", axis="tokens")
    for step in range(3):
        bus.log("tokens", 1000 * (step + 1), step=step)
        bus.log("loss", 1.0, step=step)
    bus.flush()
    records = [record for record in sink.records if "loss" in record.values]
    assert [(r.step, r.axis, r.at, r.x) for r in records] == [
        (0, "tokens", 1000, 1000),
        (1, "tokens", 2000, 2000),
        (2, "tokens", 3000, 3000),
    ]


def test_axis_can_be_the_epoch(bus: MetricBus, sink: MemorySink) -> None:
    bus.define("*", axis="epoch")
    bus.define("val", on_step=False, on_epoch=True)
    bus.log({"val": 1.0, "lr": 0.5}, step=7, epoch=3)
    bus.end_epoch()
    bus.flush()
    rows = [(row.values, row.step, row.axis, row.x, row.epoch_result) for row in sink.records]
    assert rows == [
        ({"lr": 0.5}, 7, "epoch", 3, False),
        ({"val": 1.0}, 7, "epoch", 3, True),
    ]


def test_axis_can_be_the_step_again(bus: MetricBus, sink: MemorySink) -> None:
    bus.define("*", axis="epoch")
    bus.define("loss", axis="step")
    bus.log("loss", 0.5, step=7, epoch=3)
    bus.flush()
    assert [(row.axis, row.at, row.x) for row in sink.records] == [("", None, 7)]


@pytest.mark.parametrize("across_ranks", [None, "mean"])
def test_epoch_result_has_the_axis_of_its_definition(
    bus: MetricBus, sink: MemorySink, across_ranks: Literal["mean"] | None
) -> None:
    bus.define("val", on_step=False, on_epoch=True, axis="tokens", across_ranks=across_ranks)
    for tokens in (100, 200):
        bus.log({"tokens": tokens, "val": 1.0})
    bus.end_epoch()
    bus.flush()
    (row,) = (record for record in sink.records if "val" in record.values)
    assert (row.axis, row.x, row.epoch_result) == ("tokens", 200, True)


def test_values_of_a_failed_epoch_reduction_are_no_epoch_results(
    bus: MetricBus, sink: MemorySink
) -> None:
    bus.define("val", reduce=lambda values: values[9], on_step=False, on_epoch=True)
    for step in range(2):
        bus.log("val", float(step), step=step)
    assert bus.end_epoch() == {}
    bus.flush()
    assert [(row.x, row.epoch_result) for row in sink.records] == [(0, False), (1, False)]


def test_only_the_sinks_of_a_definition_receive_the_name(bus: MetricBus, sink: MemorySink) -> None:
    bus.define("debug/*", sinks=["csv"])
    bus.log({"debug/x": 1.0, "y": 2.0})
    report = bus.flush()
    assert sink.names() == ["y"]
    assert report.sinks["MemorySink"].filtered == 1
    assert report.sinks["csv"].delivered == 2


def test_train_phase_is_emitted_on_steps_and_others_once_per_epoch(
    bus: MetricBus, sink: MemorySink
) -> None:
    train, val = bus.phase("train"), bus.phase("val")
    for _ in bus.epochs(2):
        for _ in bus.steps(range(2)):
            train.log("loss", 1.0)
        for value in (0.0, 1.0):
            val.log("acc", value)
    assert points(bus, sink, "train/loss") == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 1.0)]
    assert points(bus, sink, "val/acc") == [(1, 0.5), (3, 0.5)]


def test_definition_overrides_the_default_of_a_later_phase(
    bus: MetricBus, sink: MemorySink
) -> None:
    bus.define("val/acc", reduce="max")
    val = bus.phase("val")
    for value in (0.0, 1.0):
        val.log("acc", value)
    assert bus.end_epoch() == {"val/acc": 1.0}


def test_epoch_durations_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sink = MemorySink()
    with (
        caplog.at_level(logging.INFO, "metricbus"),
        MetricBus(sinks=[sink, "logging"], dir=tmp_path) as bus,
    ):
        for _ in bus.epochs(2):
            pass
    assert [point.epoch for point in sink.series("time/epoch")] == [0, 1]
    assert all(point.value >= 0 for point in sink.series("time/epoch"))
    messages = [record.getMessage() for record in caplog.records]
    assert "step 0 epoch 1 started" in messages
    assert any(line.startswith("step 0 epoch 1 finished after") for line in messages)


def test_counts_add_up_with_reductions(bus: MetricBus) -> None:
    bus.define("a", every=4, reduce="mean")
    bus.define("b", on_epoch=True)
    for step in range(10):
        bus.log({"a": 1.0, "b": 1.0, "c": 1.0}, step=step)
    bus.end_epoch()
    report = bus.flush()
    assert report.logged == 30
    assert (report.reduced, report.derived, report.journalled) == (10, 4, 24)
    assert report.sinks["csv"].delivered == 24
    assert report.complete


def test_values_of_a_function_that_raises_are_logged_unreduced_with_a_warning(
    bus: MetricBus, sink: MemorySink, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(values: list[float]) -> float:
        raise ZeroDivisionError("oops")

    bus.define("x", every=2, reduce=broken)
    for step in range(2):
        bus.log("x", float(step), step=step)
    assert points(bus, sink, "x") == [(0, 0.0), (1, 1.0)]
    assert "the reduction of 'x' failed: ZeroDivisionError: oops" in caplog.text
    report = bus.stats()
    assert (report.logged, report.reduced, report.derived) == (2, 0, 0)


def test_nan_propagates_through_an_epoch_mean(bus: MetricBus) -> None:
    bus.define("x", on_step=False, on_epoch=True)
    for value in (1.0, math.nan, 2.0):
        bus.log("x", value)
    assert math.isnan(bus.end_epoch()["x"])


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"every": 0}, "every= must be a positive int, not 0"),
        ({"every": 1.5}, "every= must be"),
        ({"every": True}, "every= must be"),
        ({"reduce": "meen"}, "did you mean 'mean'"),
        ({"on_step": False, "on_epoch": False}, "never emit"),
        ({"on_step": False, "every": 3}, "leave one of them out"),
        ({"sinks": ["tensorboard"]}, "no sink 'tensorboard'; its sinks are MemorySink, csv"),
    ],
)
def test_invalid_definition_raises(bus: MetricBus, rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bus.define("x", **rule)


def test_contradictory_definitions_still_emit(bus: MetricBus, sink: MemorySink) -> None:
    bus.define("x", on_step=False, on_epoch=True)
    bus.define("x", on_epoch=False)
    bus.log("x", 1.0, step=0)
    assert points(bus, sink, "x") == [(0, 1.0)]


@pytest.mark.parametrize("weight", [-1, math.nan, math.inf])
def test_invalid_weight_raises_value_error(bus: MetricBus, weight: float) -> None:
    with pytest.raises(ValueError, match="weight= must be"):
        bus.log("x", 1.0, weight=weight)
    assert bus.flush().logged == 0


def test_weight_that_is_not_a_number_raises_type_error(bus: MetricBus) -> None:
    with pytest.raises(TypeError, match="weight="):
        bus.log("x", 1.0, weight="many")  # type: ignore[call-overload]


def test_partial_aggregates_of_a_killed_process_are_read_as_partial_rows(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import os, signal, time
        import metricbus._ingest.collector
        metricbus._ingest.collector._CHECKPOINT_EVERY = 0.05
        from metricbus import MetricBus
        bus = MetricBus(id="r", sinks="")
        bus.define("loss", every=10, reduce="mean")
        bus.define("val", on_step=False, on_epoch=True)
        for step in range(13):
            bus.log({"loss": float(step), "val": 1.0}, step=step)
        bus.flush()
        journal = bus.dir / "journal" / "0001.jsonl"
        while b'"kind":"open"' not in journal.read_bytes():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        check=False,
        timeout=HANG_SECS,
        env=dict(os.environ),
    )
    assert done.returncode == -9
    history = metricbus.read(tmp_path / "runs" / "r")
    assert history.series("loss").value.tolist() == [4.5]
    found = {
        name: (row.step, value, row.partial)
        for row in history.partial
        for name, value in row.values.items()
    }
    assert found == {"loss": (12, 11.0, True), "val": (12, 1.0, True)}


def test_partial_epoch_is_saved_although_its_values_are_emitted_on_steps(
    bus: MetricBus,
    monkeypatch: pytest.MonkeyPatch,
    wait_for: Callable[[Callable[[], bool]], None],
) -> None:
    monkeypatch.setattr("metricbus._ingest.collector._CHECKPOINT_EVERY", 0.05)
    bus.define("loss", on_epoch=True)
    for value in (1.0, 3.0):
        bus.log("loss", value)
    folder = bus.dir
    assert folder is not None
    wait_for(lambda: bool(metricbus.read(folder).partial))
    (row,) = metricbus.read(folder).partial
    assert row.values == {"loss_epoch": 2.0}
    assert (row.epoch_result, row.partial) == (True, True)


def test_closed_run_has_no_partial_rows(bus: MetricBus) -> None:
    bus.define("x", every=10)
    bus.log("x", 1.0)
    bus.close()
    assert bus.dir is not None
    assert metricbus.read(bus.dir).partial == []


def test_function_that_calls_exit_affects_only_its_own_name(
    bus: MetricBus, sink: MemorySink
) -> None:
    def exit_process(values: list[float]) -> float:
        sys.exit(3)

    bus.define("x", every=2, reduce=exit_process)
    for step in range(4):
        bus.log({"x": float(step), "y": 1.0}, step=step)
    assert points(bus, sink, "x") == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)]
    assert len(points(bus, sink, "y")) == 4


def test_failures_of_a_function_are_reported_at_most_once_a_minute(
    bus: MetricBus, caplog: pytest.LogCaptureFixture
) -> None:
    def text(values: list[float]) -> Any:
        return "no number"

    bus.define("x", every=1, reduce=text)
    for step in range(50):
        bus.log("x", 1.0, step=step)
    bus.flush()
    assert caplog.text.count("the reduction of 'x' failed") == 1


def test_epoch_has_no_result_if_its_function_fails(bus: MetricBus, sink: MemorySink) -> None:
    def fail(values: list[float]) -> float:
        raise ValueError("no curve without both classes")

    bus.define("auc", on_step=False, on_epoch=True, reduce=fail)
    for step, value in enumerate((0.1, 0.9)):
        bus.log("auc", value, step=step)
    assert bus.end_epoch() == {}
    assert bus.last("auc") is None
    assert points(bus, sink, "auc") == [(0, 0.1), (1, 0.9)]
    assert [record.axis for record in sink.records] == ["", ""]


def test_unrelated_definition_does_not_emit_a_window(bus: MetricBus, sink: MemorySink) -> None:
    bus.define("x", every=4, reduce="p50")
    for step in range(2):
        bus.log("x", float(step), step=step)
    bus.define("other", every=2)
    for step in range(2, 4):
        bus.log("x", float(step), step=step)
    assert points(bus, sink, "x") == [(3, 1.5)]


@pytest.mark.parametrize("reduce", ["std", "count"])
def test_std_and_count_do_not_replace_single_values(
    bus: MetricBus, sink: MemorySink, reduce: str
) -> None:
    bus.define("x", reduce=reduce)
    bus.log("x", 5.0, step=0)
    assert points(bus, sink, "x") == [(0, 5.0)]


@pytest.mark.parametrize(
    "definitions",
    [[{"on_step": False}], [{"on_step": False, "on_epoch": True}, {"on_epoch": False}]],
)
def test_warns_about_definitions_that_would_emit_nothing(
    bus: MetricBus, caplog: pytest.LogCaptureFixture, definitions: list[dict[str, Any]]
) -> None:
    for definition in definitions:
        bus.define("x", **definition)
    for step in range(3):
        bus.log("x", 1.0, step=step)
    bus.flush()
    assert caplog.text.count("on_step=False and no on_epoch=True") == 1


@pytest.mark.parametrize("names", [("x", "x_epoch"), ("x_epoch", "x")])
def test_warns_about_a_name_that_is_also_an_epoch_name(
    bus: MetricBus, caplog: pytest.LogCaptureFixture, names: tuple[str, str]
) -> None:
    bus.define("x", on_epoch=True)
    for _ in range(2):
        for name in names:
            bus.log(name, 1.0)
    bus.flush()
    assert caplog.text.count("both are written to one series") == 1


@pytest.mark.parametrize("axis", ["step", "epoch"])
def test_axes_that_every_value_has_need_not_be_logged(
    bus: MetricBus, caplog: pytest.LogCaptureFixture, axis: str
) -> None:
    bus.define("loss", axis=axis)
    bus.log("loss", 1.0)
    bus.close()
    assert "axis" not in caplog.text


def test_warns_at_close_about_an_axis_that_was_never_logged(
    bus: MetricBus, caplog: pytest.LogCaptureFixture
) -> None:
    bus.define("loss", axis="tokenz")
    bus.define("other", axis="tokens")
    bus.log({"loss": 1.0, "tokens": 5})
    bus.close()
    assert "the axis 'tokenz' was never logged" in caplog.text
    assert "'tokens'" not in caplog.text


def test_value_of_a_later_epoch_ends_the_epoch(bus: MetricBus, sink: MemorySink) -> None:
    bus.define("x", on_step=False, on_epoch=True)
    bus.define("y", every=4, reduce="mean")
    for epoch in range(3):
        for value in (1.0, 3.0):
            bus.log({"x": value + 10 * epoch, "y": value + 10 * epoch}, step=epoch, epoch=epoch)
    bus.close()
    for name in ("x", "y"):
        found = [
            (record.epoch, record.values[name]) for record in sink.records if name in record.values
        ]
        assert found == [(0, 2.0), (1, 12.0), (2, 22.0)]


def test_failed_epoch_does_not_repeat_values_emitted_on_steps(
    bus: MetricBus, sink: MemorySink
) -> None:
    def fail(values: list[float]) -> float:
        raise ValueError

    bus.define("x", on_epoch=True, reduce=fail)
    bus.log("x", 1.0, step=0)
    bus.define("x", on_step=False)
    bus.log("x", 2.0, step=1)
    bus.end_epoch()
    assert points(bus, sink, "x") == [(0, 1.0), (1, 2.0)]


def test_phase_says_when_its_values_are_emitted(bus: MetricBus, sink: MemorySink) -> None:
    test, warmup = bus.phase("test", on="epoch"), bus.phase("warmup", on="step")
    for value in (1.0, 3.0):
        test.log("loss", value)
        warmup.log("loss", value)
    assert bus.end_epoch() == {"test/loss": 2.0}
    bus.flush()
    assert [point.value for point in sink.series("warmup/loss")] == [1.0, 3.0]
    assert bus.phase("test")._prefix == "test/"


@pytest.mark.parametrize(
    ("name", "on"), [("training", None), ("val", "steps"), ("train", "epoch"), ("", "epoch")]
)
def test_phase_without_a_default_or_with_a_contradiction_raises(
    bus: MetricBus, name: str, on: Any
) -> None:
    bus.phase("train")
    with pytest.raises(ValueError, match=r"on=|prefix"):
        bus.phase(name, on=on)
