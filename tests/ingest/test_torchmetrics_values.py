"""Torchmetrics objects: computed at the end of an epoch, reset, named, and synchronized."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassPrecision,
    MulticlassRecall,
)
from torchmetrics.wrappers import ClasswiseWrapper, Running

import metricbus
from metricbus import EarlyStopping, MetricBus
from metricbus._common.device_values import ACCELERATORS, is_device_value
from metricbus._common.validation import is_metric_object
from metricbus._ingest.torchmetrics_values import _MAX_PENDING, ComputedMetric, TorchmetricsValues
from tests.helpers.limits import HANG_SECS

LABELS = torch.tensor([0, 1, 2, 2])
GUESSES = torch.tensor([0, 1, 1, 2])


def mean_of(*values: float, **options: Any) -> torchmetrics.MeanMetric:
    metric = torchmetrics.MeanMetric(**options)
    for value in values:
        metric.update(value)
    return metric


def numbers(computed: list[ComputedMetric]) -> dict[str, float]:
    return {name: float(value) for one in computed for name, value in one.values.items()}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torchmetrics.MeanMetric(), True),
        (torchmetrics.MetricCollection([torchmetrics.MeanMetric()]), True),
        (torchmetrics.MeanMetric, False),
        (torch.nn.Linear(1, 1), False),
        (1.0, False),
        (None, False),
    ],
)
def test_is_metric_object_recognizes_metrics_and_collections(value: object, expected: bool) -> None:
    assert is_metric_object(value) is expected


def test_is_metric_object_imports_nothing() -> None:
    code = """
        import sys
        from metricbus._common.validation import is_metric_object
        assert not is_metric_object(object())
        assert not {"torch", "torchmetrics"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=HANG_SECS)


def test_metric_is_computed_with_later_updates() -> None:
    objects = TorchmetricsValues()
    metric = mean_of(1.0)
    objects.add("loss", metric, 3, 1)
    metric.update(2.0)
    assert numbers(objects.compute(sync=False)) == {"loss": 1.5}


def test_metric_has_the_step_and_epoch_of_its_last_add() -> None:
    objects = TorchmetricsValues()
    metric = mean_of(1.0)
    objects.add("loss", metric, 3, 1)
    objects.add("loss", metric, 7, 2)
    assert [(one.step, one.epoch) for one in objects.compute(sync=False)] == [(7, 2)]


def test_computed_metric_is_reset_and_no_longer_pending() -> None:
    objects = TorchmetricsValues()
    metric = mean_of(1.0)
    objects.add("loss", metric, 0, 0)
    objects.compute(sync=False)
    assert not metric.update_called
    assert objects.compute(sync=False) == []
    assert objects.names() == []


def test_metric_without_data_is_skipped() -> None:
    objects = TorchmetricsValues()
    objects.add("mean", torchmetrics.MeanMetric(), 0, 0)
    objects.add("wrapped", ClasswiseWrapper(MulticlassAccuracy(3, average=None)), 0, 0)
    objects.add("many", torchmetrics.MetricCollection([torchmetrics.MeanMetric()]), 0, 0)
    objects.add("running", Running(torchmetrics.MeanMetric(), window=2), 0, 0)
    assert objects.names() == ["many", "mean", "running", "wrapped"]
    assert objects.updated_names() == []
    assert objects.compute(sync=False) == []


def test_names_are_sorted_so_that_ranks_agree_on_the_order() -> None:
    objects = TorchmetricsValues()
    for name in ("b", "a/c", "a"):
        objects.add(name, mean_of(1.0), 0, 0)
    assert objects.names() == ["a", "a/c", "b"]
    assert list(numbers(objects.compute(sync=False))) == ["a", "a/c", "b"]


def test_collection_has_nested_names() -> None:
    metrics = torchmetrics.MetricCollection([MulticlassRecall(3), MulticlassPrecision(3)])
    metrics.update(GUESSES, LABELS)
    metrics.update(GUESSES, LABELS)  # from the second update on, its metrics share their state
    objects = TorchmetricsValues()
    objects.add("val", metrics, 0, 0)
    assert numbers(objects.compute(sync=False)) == pytest.approx(
        {"val/MulticlassRecall": 2.5 / 3, "val/MulticlassPrecision": 2.5 / 3}
    )
    assert objects.updated_names() == []


def test_vector_has_one_name_per_index() -> None:
    metric = MulticlassAccuracy(3, average=None)
    metric.update(GUESSES, LABELS)
    objects = TorchmetricsValues()
    objects.add("acc", metric, 0, 0)
    assert numbers(objects.compute(sync=False)) == {"acc/0": 1.0, "acc/1": 1.0, "acc/2": 0.5}


def test_classwise_wrapper_has_names_with_labels() -> None:
    per_class = MulticlassAccuracy(3, average=None)
    metric = ClasswiseWrapper(per_class, labels=["cat", "dog", "owl"], prefix="of_")
    metric.update(GUESSES, LABELS)
    objects = TorchmetricsValues()
    objects.add("acc", metric, 0, 0)
    expected = {"acc/of_cat": 1.0, "acc/of_dog": 1.0, "acc/of_owl": 0.5}
    assert numbers(objects.compute(sync=False)) == expected


def test_running_metric_is_computed_although_it_resets_the_wrapped_metric() -> None:
    metric = Running(torchmetrics.MeanMetric(), window=2)
    for value in (1.0, 2.0, 4.0):
        metric.update(value)
    objects = TorchmetricsValues()
    objects.add("loss", metric, 0, 0)
    assert numbers(objects.compute(sync=False)) == {"loss": 3.0}


def test_composition_of_metrics_is_computed() -> None:
    minuend, subtrahend = mean_of(3.0), mean_of(1.0)
    objects = TorchmetricsValues()
    objects.add("difference", minuend - subtrahend, 0, 0)
    assert numbers(objects.compute(sync=False)) == {"difference": 2.0}
    assert not minuend.update_called


def test_object_with_two_names_is_reset_after_both() -> None:
    metric = mean_of(1.0)
    objects = TorchmetricsValues()
    objects.add("a", metric, 0, 0)
    objects.add("b", metric, 0, 0)
    assert numbers(objects.compute(sync=False)) == {"a": 1.0, "b": 1.0}


def test_two_objects_with_one_name_have_a_value_each() -> None:
    objects = TorchmetricsValues()
    objects.add("a", mean_of(1.0), 0, 0)
    objects.add("a", mean_of(2.0), 1, 0)
    computed = objects.compute(sync=False)
    assert [(one.step, float(one.values["a"])) for one in computed] == [(0, 1.0), (1, 2.0)]


def test_pending_metrics_are_limited(caplog: pytest.LogCaptureFixture) -> None:
    metrics = [mean_of(float(i)) for i in range(_MAX_PENDING + 1)]
    objects = TorchmetricsValues()
    for step, metric in enumerate(metrics):
        objects.add("a", metric, step, 0)
    assert "bus.end_epoch()" in caplog.text
    assert [one.step for one in objects.compute(sync=False)] == list(range(1, _MAX_PENDING + 1))


def test_warns_about_a_result_with_two_dimensions(
    caplog: pytest.LogCaptureFixture,
) -> None:
    matrix = MulticlassConfusionMatrix(3)
    matrix.update(GUESSES, LABELS)
    objects = TorchmetricsValues()
    objects.add("matrix", matrix, 0, 0)
    objects.add("next", mean_of(1.0), 0, 0)
    assert numbers(objects.compute(sync=False)) == {"next": 1.0}
    assert "'matrix'" in caplog.text
    assert "(3, 3)" in caplog.text
    assert not matrix.update_called


def test_computing_does_not_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU tensors stand in for device tensors; fetching them would fail."""

    class Device:
        def stream(self, device: object) -> None: ...

        def fetch(self, *args: object) -> Any:
            raise AssertionError("waited for the device")

    monkeypatch.setitem(ACCELERATORS, "cpu", Device())
    metric = MulticlassAccuracy(3, average=None)
    metric.update(GUESSES, LABELS)
    objects = TorchmetricsValues()
    objects.add("acc", metric, 0, 0)
    objects.add("loss", mean_of(1.0), 0, 0)
    computed = objects.compute(sync=False)
    assert [is_device_value(value) for one in computed for value in one.values.values()] == [
        True
    ] * 4


class Broken(torchmetrics.MeanMetric):
    """A user-defined metric that fails."""

    def compute(self) -> Any:
        raise ZeroDivisionError("nothing to divide by")

    def reset(self) -> None:
        raise OSError("cannot")


def test_warns_about_a_metric_that_fails_and_computes_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = Broken()
    broken.update(1.0)
    objects = TorchmetricsValues()
    objects.add("broken", broken, 0, 0)
    objects.add("fine", mean_of(1.0), 0, 0)
    assert numbers(objects.compute(sync=False)) == {"fine": 1.0}
    assert "ZeroDivisionError: nothing to divide by" in caplog.text


def test_end_epoch_logs_and_returns_a_metric(tmp_path: Path) -> None:
    metric = mean_of()
    with MetricBus(sinks="", dir=tmp_path) as bus:
        stopping = EarlyStopping(bus, "val/loss", patience=1)
        for epoch in bus.epochs(5):
            metric.update(1.0 + epoch)
            bus.log("val/loss", metric)
            metric.update(3.0 + epoch)
            if stopping(bus.end_epoch()):
                break
    assert bus.dir is not None
    losses = metricbus.read(bus.dir).series("val/loss")
    assert (losses.value.tolist(), losses.epoch.tolist()) == ([2.0, 3.0], [0, 1])


def test_close_computes_pending_metrics(tmp_path: Path) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus:
        bus.log({"val": {"loss": mean_of(1.0, 2.0), "other": 1.0}})
    assert bus.dir is not None
    assert metricbus.read(bus.dir).series("val/loss").value.tolist() == [1.5]


def test_disabled_bus_does_not_touch_metrics(tmp_path: Path) -> None:
    metric = mean_of(1.0)
    with MetricBus(disabled=True, dir=tmp_path) as bus:
        bus.log("loss", metric)
        bus.end_epoch()
    assert metric.update_called


def two_rank_options(calls: list[object]) -> dict[str, Any]:
    """Return options for a metric that sees a second rank with the same data."""

    def gather(value: torch.Tensor, group: object = None) -> list[torch.Tensor]:
        calls.append(value)
        return [value, value]

    return {"distributed_available_fn": lambda: True, "dist_sync_fn": gather}


def test_without_sync_no_metric_synchronizes() -> None:
    calls: list[object] = []
    metric = torchmetrics.SumMetric(**two_rank_options(calls))
    metric.update(2.0)
    available = metric.distributed_available_fn
    objects = TorchmetricsValues()
    objects.add("sum", metric, 0, 0)
    assert numbers(objects.compute(sync=False)) == {"sum": 2.0}
    assert calls == []
    assert metric.distributed_available_fn is available


def test_setting_sync_on_compute_has_no_effect() -> None:
    """Explains why `distributed_available_fn` is replaced instead."""
    calls: list[object] = []
    metric = torchmetrics.SumMetric(**two_rank_options(calls))
    metric.update(2.0)
    metric.sync_on_compute = False
    assert float(metric.compute()) == 4.0


def test_with_sync_each_metric_uses_its_own_synchronization() -> None:
    calls: list[object] = []
    metric = torchmetrics.SumMetric(**two_rank_options(calls))
    metric.update(2.0)
    objects = TorchmetricsValues()
    objects.add("sum", metric, 0, 0)
    assert numbers(objects.compute(sync=True)) == {"sum": 4.0}
    assert calls


def test_with_sync_a_metric_missing_on_some_rank_does_not_synchronize(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls: list[object] = []
    metric = torchmetrics.SumMetric(**two_rank_options(calls))
    metric.update(2.0)
    objects = TorchmetricsValues()
    objects.add("sum", metric, 0, 0)
    with caplog.at_level(logging.WARNING):
        assert numbers(objects.compute(sync=True, synced_names=["other"])) == {"sum": 2.0}
    assert calls == []
    assert "this rank only" in caplog.text


RANK = """
    import json, sys
    import torch, torchmetrics
    from metricbus._ingest.torchmetrics_values import TorchmetricsValues

    rank = int(sys.argv[1])
    torch.distributed.init_process_group("gloo", "file://" + sys.argv[2], rank=rank, world_size=2)
    objects = TorchmetricsValues()
    mean, seen = torchmetrics.MeanMetric(), torchmetrics.CatMetric()
    for value in ([1.0, 2.0, 6.0], [])[rank]:  # the second rank has no data at all
        mean.update(value)
        seen.update(value)
    objects.add("mean", mean, 5, 1)
    objects.add("seen", seen, 5, 1)
    both = objects.compute(sync=True, synced_names=["mean", "seen"])
    mean.update(float(rank))
    objects.add("mean", mean, 6, 1)
    alone = objects.compute(sync=False)
    print(json.dumps([{n: float(v) for one in found for n, v in one.values.items()}
                      for found in (both, alone)]))
    torch.distributed.destroy_process_group()
"""


@pytest.fixture
def run_two_ranks(tmp_path: Path) -> Callable[[str], list[Any]]:
    def run(code: str) -> list[Any]:
        (tmp_path / "rank.py").write_text(textwrap.dedent(code))
        command = [sys.executable, "rank.py"]
        ranks = [
            subprocess.Popen(
                [*command, str(rank), str(tmp_path / "rendezvous")],
                stdout=subprocess.PIPE,
                text=True,
                cwd=tmp_path,
            )
            for rank in range(2)
        ]
        return [json.loads(rank.communicate(timeout=HANG_SECS)[0]) for rank in ranks]

    return run


def test_two_ranks_share_the_value_although_one_has_no_data(
    run_two_ranks: Callable[[str], list[Any]],
) -> None:
    both = {"mean": 3.0, "seen/0": 1.0, "seen/1": 2.0, "seen/2": 6.0}
    first, second = run_two_ranks(RANK)
    assert first == [both, {"mean": 0.0}]
    assert second == [both, {"mean": 1.0}]
