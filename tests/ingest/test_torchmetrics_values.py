"""Metric objects of torchmetrics: computed late, reset, named, and in company only when asked."""

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
from metricbus._common.device_values import ACCELERATORS, is_deferred
from metricbus._common.validation import is_metric
from metricbus._ingest.torchmetrics_values import _MOST, Computed, TorchmetricsValues

LABELS = torch.tensor([0, 1, 2, 2])
GUESSES = torch.tensor([0, 1, 1, 2])


def mean_of(*values: float, **options: Any) -> torchmetrics.MeanMetric:
    metric = torchmetrics.MeanMetric(**options)
    for value in values:
        metric.update(value)
    return metric


def numbers(computed: list[Computed]) -> dict[str, float]:
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
def test_metrics_and_collections_are_told_from_everything_else(
    value: object, expected: bool
) -> None:
    assert is_metric(value) is expected


def test_nothing_is_imported_to_look_at_a_value() -> None:
    code = """
        import sys
        from metricbus._common.validation import is_metric
        assert not is_metric(object())
        assert not {"torch", "torchmetrics"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60)


def test_a_metric_is_computed_as_it_is_when_asked_for() -> None:
    objects = TorchmetricsValues()
    metric = mean_of(1.0)
    objects.remember("loss", metric, 3, 1)
    metric.update(2.0)
    assert numbers(objects.compute(sync=False)) == {"loss": 1.5}


def test_a_metric_stands_where_it_was_logged_last() -> None:
    objects = TorchmetricsValues()
    metric = mean_of(1.0)
    objects.remember("loss", metric, 3, 1)
    objects.remember("loss", metric, 7, 2)
    assert [(one.step, one.epoch) for one in objects.compute(sync=False)] == [(7, 2)]


def test_a_metric_is_reset_and_forgotten_afterwards() -> None:
    objects = TorchmetricsValues()
    metric = mean_of(1.0)
    objects.remember("loss", metric, 0, 0)
    objects.compute(sync=False)
    assert not metric.update_called
    assert objects.compute(sync=False) == []
    assert objects.names() == []


def test_a_metric_without_data_is_left_out() -> None:
    objects = TorchmetricsValues()
    objects.remember("mean", torchmetrics.MeanMetric(), 0, 0)
    objects.remember("wrapped", ClasswiseWrapper(MulticlassAccuracy(3, average=None)), 0, 0)
    objects.remember("many", torchmetrics.MetricCollection([torchmetrics.MeanMetric()]), 0, 0)
    objects.remember("running", Running(torchmetrics.MeanMetric(), window=2), 0, 0)
    assert objects.names() == ["many", "mean", "running", "wrapped"]
    assert objects.updated() == []
    assert objects.compute(sync=False) == []


def test_names_come_sorted_so_that_ranks_agree_on_the_order() -> None:
    objects = TorchmetricsValues()
    for name in ("b", "a/c", "a"):
        objects.remember(name, mean_of(1.0), 0, 0)
    assert objects.names() == ["a", "a/c", "b"]
    assert list(numbers(objects.compute(sync=False))) == ["a", "a/c", "b"]


def test_a_collection_gives_nested_names() -> None:
    metrics = torchmetrics.MetricCollection([MulticlassRecall(3), MulticlassPrecision(3)])
    metrics.update(GUESSES, LABELS)
    metrics.update(GUESSES, LABELS)  # from the second time on, its metrics share their state
    objects = TorchmetricsValues()
    objects.remember("val", metrics, 0, 0)
    assert numbers(objects.compute(sync=False)) == pytest.approx(
        {"val/MulticlassRecall": 2.5 / 3, "val/MulticlassPrecision": 2.5 / 3}
    )
    assert objects.updated() == []


def test_a_vector_gives_a_name_for_each_place() -> None:
    metric = MulticlassAccuracy(3, average=None)
    metric.update(GUESSES, LABELS)
    objects = TorchmetricsValues()
    objects.remember("acc", metric, 0, 0)
    assert numbers(objects.compute(sync=False)) == {"acc/0": 1.0, "acc/1": 1.0, "acc/2": 0.5}


def test_a_classwise_wrapper_gives_names_with_labels() -> None:
    per_class = MulticlassAccuracy(3, average=None)
    metric = ClasswiseWrapper(per_class, labels=["cat", "dog", "owl"], prefix="of_")
    metric.update(GUESSES, LABELS)
    objects = TorchmetricsValues()
    objects.remember("acc", metric, 0, 0)
    expected = {"acc/of_cat": 1.0, "acc/of_dog": 1.0, "acc/of_owl": 0.5}
    assert numbers(objects.compute(sync=False)) == expected


def test_a_running_metric_is_computed_though_it_resets_what_it_wraps() -> None:
    metric = Running(torchmetrics.MeanMetric(), window=2)
    for value in (1.0, 2.0, 4.0):
        metric.update(value)
    objects = TorchmetricsValues()
    objects.remember("loss", metric, 0, 0)
    assert numbers(objects.compute(sync=False)) == {"loss": 3.0}


def test_a_composition_of_metrics_is_a_metric() -> None:
    one, other = mean_of(3.0), mean_of(1.0)
    objects = TorchmetricsValues()
    objects.remember("difference", one - other, 0, 0)
    assert numbers(objects.compute(sync=False)) == {"difference": 2.0}
    assert not one.update_called


def test_one_object_under_two_names_is_reset_after_both() -> None:
    metric = mean_of(1.0)
    objects = TorchmetricsValues()
    objects.remember("a", metric, 0, 0)
    objects.remember("b", metric, 0, 0)
    assert numbers(objects.compute(sync=False)) == {"a": 1.0, "b": 1.0}


def test_two_objects_under_one_name_give_a_value_each() -> None:
    objects = TorchmetricsValues()
    objects.remember("a", mean_of(1.0), 0, 0)
    objects.remember("a", mean_of(2.0), 1, 0)
    computed = objects.compute(sync=False)
    assert [(one.step, float(one.values["a"])) for one in computed] == [(0, 1.0), (1, 2.0)]


def test_no_more_than_a_thousand_are_remembered(caplog: pytest.LogCaptureFixture) -> None:
    metrics = [mean_of(float(i)) for i in range(_MOST + 1)]
    objects = TorchmetricsValues()
    for step, metric in enumerate(metrics):
        objects.remember("a", metric, step, 0)
    assert "bus.end_epoch()" in caplog.text
    assert [one.step for one in objects.compute(sync=False)] == list(range(1, _MOST + 1))


def test_a_result_that_no_number_can_stand_for_is_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    matrix = MulticlassConfusionMatrix(3)
    matrix.update(GUESSES, LABELS)
    objects = TorchmetricsValues()
    objects.remember("matrix", matrix, 0, 0)
    objects.remember("next", mean_of(1.0), 0, 0)
    assert numbers(objects.compute(sync=False)) == {"next": 1.0}
    assert "'matrix'" in caplog.text
    assert "(3, 3)" in caplog.text
    assert not matrix.update_called


def test_values_on_an_accelerator_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would bring them over is not called; CPU tensors play the accelerator."""

    class Device:
        def stream(self, device: object) -> None: ...

        def bring(self, *args: object) -> Any:
            raise AssertionError("somebody waited")

    monkeypatch.setitem(ACCELERATORS, "cpu", Device())
    metric = MulticlassAccuracy(3, average=None)
    metric.update(GUESSES, LABELS)
    objects = TorchmetricsValues()
    objects.remember("acc", metric, 0, 0)
    objects.remember("loss", mean_of(1.0), 0, 0)
    computed = objects.compute(sync=False)
    assert [is_deferred(value) for one in computed for value in one.values.values()] == [True] * 4


class Broken(torchmetrics.MeanMetric):
    """Fails, as a metric of the user's own may."""

    def compute(self) -> Any:
        raise ZeroDivisionError("nothing to divide by")

    def reset(self) -> None:
        raise OSError("cannot")


def test_a_metric_that_fails_is_a_warning_and_the_others_come(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = Broken()
    broken.update(1.0)
    objects = TorchmetricsValues()
    objects.remember("broken", broken, 0, 0)
    objects.remember("fine", mean_of(1.0), 0, 0)
    assert numbers(objects.compute(sync=False)) == {"fine": 1.0}
    assert "ZeroDivisionError: nothing to divide by" in caplog.text


def test_a_bus_logs_a_metric_when_the_epoch_ends_and_gives_it_back(tmp_path: Path) -> None:
    metric = mean_of()
    with MetricBus(sinks="", dir=tmp_path) as bus:
        stopping = EarlyStopping(bus, "val/loss", patience=1)
        for epoch in bus.epochs(5):
            metric.update(1.0 + epoch)
            bus.log("val/loss", metric)
            metric.update(3.0 + epoch)
            if stopping(bus.end_epoch()):
                break
    assert bus.folder is not None
    losses = metricbus.read(bus.folder).series("val/loss")
    assert (losses.value.tolist(), losses.epoch.tolist()) == ([2.0, 3.0], [0, 1])


def test_a_bus_computes_at_close_what_is_left(tmp_path: Path) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus:
        bus.log({"val": {"loss": mean_of(1.0, 2.0), "other": 1.0}})
    assert bus.folder is not None
    assert metricbus.read(bus.folder).series("val/loss").value.tolist() == [1.5]


def test_a_bus_that_is_off_takes_metrics_and_leaves_them_alone(tmp_path: Path) -> None:
    metric = mean_of(1.0)
    with MetricBus(disabled=True, dir=tmp_path) as bus:
        bus.log("loss", metric)
        bus.end_epoch()
    assert metric.update_called


def in_company(calls: list[object]) -> dict[str, Any]:
    """Options of a metric that believes in a second rank, which always has the same."""

    def gather(value: torch.Tensor, group: object = None) -> list[torch.Tensor]:
        calls.append(value)
        return [value, value]

    return {"distributed_available_fn": lambda: True, "dist_sync_fn": gather}


def test_without_sync_no_metric_meets_other_ranks() -> None:
    calls: list[object] = []
    metric = torchmetrics.SumMetric(**in_company(calls))
    metric.update(2.0)
    available = metric.distributed_available_fn
    objects = TorchmetricsValues()
    objects.remember("sum", metric, 0, 0)
    assert numbers(objects.compute(sync=False)) == {"sum": 2.0}
    assert calls == []
    assert metric.distributed_available_fn is available


def test_to_set_sync_on_compute_would_not_be_enough() -> None:
    """Why `distributed_available_fn` is replaced; should this fail one day, either will do."""
    calls: list[object] = []
    metric = torchmetrics.SumMetric(**in_company(calls))
    metric.update(2.0)
    metric.sync_on_compute = False
    assert float(metric.compute()) == 4.0


def test_with_sync_each_metric_meets_the_others_by_its_own_means() -> None:
    calls: list[object] = []
    metric = torchmetrics.SumMetric(**in_company(calls))
    metric.update(2.0)
    objects = TorchmetricsValues()
    objects.remember("sum", metric, 0, 0)
    assert numbers(objects.compute(sync=True)) == {"sum": 4.0}
    assert calls


def test_with_sync_a_metric_that_not_all_ranks_have_meets_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls: list[object] = []
    metric = torchmetrics.SumMetric(**in_company(calls))
    metric.update(2.0)
    objects = TorchmetricsValues()
    objects.remember("sum", metric, 0, 0)
    with caplog.at_level(logging.WARNING):
        assert numbers(objects.compute(sync=True, together=["other"])) == {"sum": 2.0}
    assert calls == []
    assert "this rank alone" in caplog.text


RANK = """
    import json, sys
    import torch, torchmetrics
    from metricbus._ingest.torchmetrics_values import MetricObjects

    rank = int(sys.argv[1])
    torch.distributed.init_process_group("gloo", "file://" + sys.argv[2], rank=rank, world_size=2)
    objects = MetricObjects()
    mean, seen = torchmetrics.MeanMetric(), torchmetrics.CatMetric()
    for value in ([1.0, 2.0, 6.0], [])[rank]:  # the second rank has no data at all
        mean.update(value)
        seen.update(value)
    objects.remember("mean", mean, 5, 1)
    objects.remember("seen", seen, 5, 1)
    both = objects.compute(sync=True, together=["mean", "seen"])
    mean.update(float(rank))
    objects.remember("mean", mean, 6, 1)
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
                [*command, str(rank), str(tmp_path / "meeting")],
                stdout=subprocess.PIPE,
                text=True,
                cwd=tmp_path,
            )
            for rank in range(2)
        ]
        return [json.loads(rank.communicate(timeout=55)[0]) for rank in ranks]

    return run


def test_two_ranks_have_the_value_of_both_also_where_one_has_no_data(
    run_two_ranks: Callable[[str], list[Any]],
) -> None:
    both = {"mean": 3.0, "seen/0": 1.0, "seen/1": 2.0, "seen/2": 6.0}
    first, second = run_two_ranks(RANK)
    assert first == [both, {"mean": 0.0}]
    assert second == [both, {"mean": 1.0}]
