"""`watch` and `clip_grad_norm_`: what the optimizer sees, at its own steps, and nothing else."""

from __future__ import annotations

import copy
import gc
import logging
import math
import os
import pickle
import signal
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from metricbus import MetricBus
from metricbus._common.device_values import ACCELERATORS, as_64_bits
from metricbus._common.media_records import HistogramRecord
from metricbus.testing import MemorySink
from metricbus.torch import _optimizer_hooks
from metricbus.torch._clip_grad_norm import clip_grad_norm_
from metricbus.torch._modules import named_modules, parameter_names, unwrapped
from metricbus.torch._watch import watch


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(3, 4)
        self.fc2 = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.fc2(self.fc1(x).relu())
        return found


NAMES = ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]


class InMemory:
    """An accelerator that is none."""

    def stream(self, device: Any) -> str:
        return "the current stream"

    def bring(self, device: Any, parts: Sequence[Any], streams: Any) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = torch.cat([as_64_bits(part) for part in parts]).numpy()
        return found


@pytest.fixture(params=["memory", "accelerator"])
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the tensors are; the CPU plays both."""
    kind: str = request.param
    if kind == "accelerator":
        monkeypatch.setitem(ACCELERATORS, "cpu", InMemory())
    return kind


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink()


@pytest.fixture
def bus(sink: MemorySink, tmp_path: Path) -> Iterator[MetricBus]:
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        yield bus
    assert bus.stats().dropped == 0, str(bus.stats())


@pytest.fixture(autouse=True)
def no_listener_stays() -> Iterator[None]:
    yield
    _optimizer_hooks._listeners = ()
    _optimizer_hooks.tidy_up()
    assert not _global_optimizer_pre_hooks
    assert not _global_optimizer_post_hooks


@pytest.fixture
def model() -> Net:
    torch.manual_seed(0)
    return Net()


def sgd(*models: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD([p for model in models for p in model.parameters()], lr=lr)


def step(optimizer: torch.optim.Optimizer, *models: nn.Module, batches: int = 1) -> None:
    """A training step; the gradients stay."""
    optimizer.zero_grad()
    for batch in range(batches):
        x = torch.arange(6.0).reshape(2, 3) + batch
        for model in models:
            model(x).square().mean().backward()
    optimizer.step()


def last(bus: MetricBus, sink: MemorySink) -> dict[str, float]:
    """The newest value of each name."""
    assert bus.flush(30).complete
    return {name: sink.series(name)[-1].value for name in sink.names()}


def histograms(bus: MetricBus, sink: MemorySink) -> dict[str, HistogramRecord]:
    bus.flush(30)
    return {r.name: r for r in sink.media() if isinstance(r, HistogramRecord)}


def norm(tensor: torch.Tensor | None) -> float:
    assert tensor is not None
    return float(tensor.detach().double().norm())


# What is logged


@pytest.mark.usefixtures("where")
def test_norms_of_gradients_are_those_that_the_optimizer_sees(
    bus: MetricBus, sink: MemorySink, model: Net
) -> None:
    optimizer = sgd(model)
    with watch(bus, model, histograms=False):
        step(optimizer, model, batches=3)
    found = last(bus, sink)
    for name, parameter in model.named_parameters():
        assert found[f"grad_norm/{name}"] == pytest.approx(norm(parameter.grad))
    whole = math.sqrt(sum(norm(p.grad) ** 2 for p in model.parameters()))
    assert found["grad_norm/total"] == pytest.approx(whole)
    assert not histograms(bus, sink)


@pytest.mark.usefixtures("where")
def test_histograms_of_gradients_have_the_names_of_the_parameters(
    bus: MetricBus, sink: MemorySink, model: Net
) -> None:
    optimizer = sgd(model)
    with watch(bus, model, norms=False, bins=5):
        step(optimizer, model)
    found = histograms(bus, sink)
    assert list(found) == [f"gradients/{name}" for name in NAMES]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        record = found[f"gradients/{name}"]
        assert record.count == parameter.numel()
        assert record.maximum == parameter.grad.max()
        assert len(record.counts) == 5
    assert not sink.names()


@pytest.mark.usefixtures("where")
def test_parameters_are_told_as_they_are_before_the_step(
    bus: MetricBus, sink: MemorySink, model: Net
) -> None:
    optimizer = sgd(model)
    before = copy.deepcopy(model.state_dict())
    with watch(bus, model, log="parameters"):
        step(optimizer, model)
    found, media = last(bus, sink), histograms(bus, sink)
    for name, weight in before.items():
        assert found[f"param_norm/{name}"] == pytest.approx(norm(weight))
        assert media[f"parameters/{name}"].maximum == weight.max()
    assert "param_norm/total" in found
    assert not [name for name in [*found, *media] if "grad" in name]


@pytest.mark.usefixtures("where")
def test_update_ratios_are_the_change_by_the_weight_before(
    bus: MetricBus, sink: MemorySink, model: Net
) -> None:
    optimizer = sgd(model)
    nn.init.zeros_(model.fc2.bias)
    before = copy.deepcopy(model.state_dict())
    with watch(bus, model, log="all", histograms=False):
        step(optimizer, model)
    found = last(bus, sink)
    for name, weight in model.state_dict().items():
        if name != "fc2.bias":
            expected = norm(weight - before[name]) / norm(before[name])
            assert found[f"update_ratio/{name}"] == pytest.approx(expected, rel=1e-4)
    assert math.isnan(found["update_ratio/fc2.bias"])


@pytest.mark.usefixtures("where")
def test_elements_that_are_not_finite_are_counted_by_name(
    bus: MetricBus, sink: MemorySink, model: Net
) -> None:
    optimizer = sgd(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert model.fc1.weight.grad is not None
    model.fc1.weight.grad[0, :2] = torch.tensor([math.nan, -math.inf])
    with watch(bus, model):
        optimizer.step()
    found = last(bus, sink)
    assert {name: found[f"nonfinite/{name}"] for name in NAMES} == {
        "fc1.weight": 2, "fc1.bias": 0, "fc2.weight": 0, "fc2.bias": 0,
    }  # fmt: skip
    assert math.isnan(found["grad_norm/fc1.weight"])
    record = histograms(bus, sink)["gradients/fc1.weight"]
    assert (record.nan, record.minus_infinite, record.count) == (1, 1, 10)


def test_finite_gradients_whose_norm_is_too_large_are_finite(
    bus: MetricBus, sink: MemorySink, model: Net
) -> None:
    optimizer = sgd(model, lr=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3e38)
    with watch(bus, model, histograms=False):
        optimizer.step()
    assert last(bus, sink)["nonfinite/fc1.weight"] == 0


def test_clipped_gradients_are_told_clipped(bus: MetricBus, sink: MemorySink, model: Net) -> None:
    optimizer = sgd(model)
    with watch(bus, model, histograms=False):
        model(torch.ones(2, 3)).mean().mul(1e3).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    assert last(bus, sink)["grad_norm/total"] == pytest.approx(0.5, rel=1e-4)


def test_16_bit_gradients_have_norms_beyond_16_bits(bus: MetricBus, sink: MemorySink) -> None:
    model = nn.Linear(100, 100, bias=False, dtype=torch.float16)
    model.weight.grad = torch.full_like(model.weight, 1000.0)
    with watch(bus, model):
        sgd(model, lr=0.0).step()
    assert last(bus, sink)["grad_norm/weight"] == pytest.approx(1e5, rel=1e-4)


def test_complex_gradients_are_told_as_pairs(bus: MetricBus, sink: MemorySink) -> None:
    model = nn.Linear(2, 1, bias=False, dtype=torch.complex64)
    model.weight.grad = torch.tensor([[3 + 4j, 0]])
    with watch(bus, model, log="all"):
        sgd(model).step()
    assert last(bus, sink)["grad_norm/weight"] == pytest.approx(5)
    assert histograms(bus, sink)["gradients/weight"].count == 4


# When


def test_every_nth_step_is_logged_from_the_first_on(
    bus: MetricBus, sink: MemorySink, model: Net
) -> None:
    optimizer = sgd(model)
    with watch(bus, model, every=3):
        for _ in bus.steps(range(8)):
            step(optimizer, model)
    bus.flush(30)
    assert [point.step for point in sink.series("grad_norm/total")] == [0, 3, 6]
    assert [r.step for r in sink.media("gradients/fc1.bias")] == [0, 3, 6]


def test_each_optimizer_counts_its_own_steps(bus: MetricBus, sink: MemorySink, model: Net) -> None:
    one, other = sgd(model.fc1), sgd(model.fc2)
    with watch(bus, model, every=2, histograms=False):
        for number in bus.steps(range(4)):
            step(one, model)
            if number:
                step(other, model)
    bus.flush(30)
    assert [point.step for point in sink.series("grad_norm/fc1.bias")] == [0, 2]
    assert [point.step for point in sink.series("grad_norm/fc2.bias")] == [1, 3]


def test_the_step_is_never_moved(bus: MetricBus, sink: MemorySink, model: Net) -> None:
    optimizer = sgd(model)
    with watch(bus, model, every=1):
        for _ in range(3):
            step(optimizer, model)
    assert bus.step == 0
    bus.log("loss", 0.5)
    bus.log("loss", 0.5)
    assert bus.step == 1


def test_with_a_closure_the_gradients_are_those_of_the_closure(
    bus: MetricBus, sink: MemorySink, model: Net
) -> None:
    optimizer = sgd(model)

    def closure() -> float:
        optimizer.zero_grad()
        loss = model(torch.ones(2, 3)).square().mean()
        loss.backward()
        return float(loss.detach())

    with watch(bus, model, log="all"):
        optimizer.step(closure)
    found = last(bus, sink)
    assert found["grad_norm/fc1.weight"] == pytest.approx(norm(model.fc1.weight.grad))
    assert found["update_ratio/fc1.weight"] > 0


def test_a_step_that_fails_leaves_nothing_behind(
    bus: MetricBus, sink: MemorySink, model: Net
) -> None:
    optimizer = sgd(model)

    def broken() -> float:
        raise KeyError("mine")

    with watch(bus, model, every=1, log="all"):
        with pytest.raises(KeyError, match="mine"):
            optimizer.step(broken)
        step(optimizer, model)
    bus.flush(30)
    assert len(sink.series("update_ratio/fc1.bias")) == 1


# Under GradScaler


class Fused(torch.optim.SGD):
    """Unscales by itself, as fused optimizers do on CUDA."""

    _step_supports_amp_scaling = True

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for parameter in self.param_groups[0]["params"]:
            scale = self.grad_scale  # type: ignore[attr-defined]
            parameter.sub_(parameter.grad / scale, alpha=self.param_groups[0]["lr"])


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("kind", [torch.optim.SGD, Fused])
def test_gradients_are_told_unscaled(
    kind: Callable[..., torch.optim.SGD], bus: MetricBus, sink: MemorySink, model: Net
) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = kind(model.parameters(), lr=0.1)
    x = torch.ones(2, 3)
    model(x).square().mean().backward()
    expected = {name: norm(p.grad) for name, p in model.named_parameters()}
    optimizer.zero_grad()
    with watch(bus, model):
        scaler.scale(model(x).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
    found, media = last(bus, sink), histograms(bus, sink)
    for name, value in expected.items():
        assert found[f"grad_norm/{name}"] == pytest.approx(value, rel=1e-5)
        assert abs(media[f"gradients/{name}"].maximum or 0) <= value * 1.0001


def test_a_step_that_grad_scaler_leaves_out_does_not_count(
    bus: MetricBus, sink: MemorySink, model: Net
) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    optimizer = sgd(model)
    with watch(bus, model, every=2, histograms=False):
        for number in bus.steps(range(4)):
            optimizer.zero_grad()
            scaler.scale(model(torch.ones(2, 3)).square().mean()).backward()
            if number == 1:
                model.fc1.weight.grad.fill_(math.inf)  # type: ignore[union-attr]
            scaler.step(optimizer)
            scaler.update()
    bus.flush(30)
    assert [point.step for point in sink.series("grad_norm/total")] == [0, 3]


# Which parameters


def test_shared_parameters_come_once(bus: MetricBus, sink: MemorySink) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    optimizer = torch.optim.SGD(model.parameters())
    with watch(bus, model):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert [name for name in last(bus, sink) if "weight" in name and "norm" in name] == [
        "grad_norm/0.weight"
    ]


def test_parameters_without_a_gradient_are_left_out(
    bus: MetricBus, sink: MemorySink, model: Net
) -> None:
    model.fc1.requires_grad_(False)
    optimizer = sgd(model)
    with watch(bus, model):
        step(optimizer, model)
    assert [name for name in last(bus, sink) if name.startswith("grad_norm")] == [
        "grad_norm/fc2.weight", "grad_norm/fc2.bias", "grad_norm/total",
    ]  # fmt: skip


def test_without_any_gradient_nothing_is_logged(
    bus: MetricBus, sink: MemorySink, model: Net
) -> None:
    with watch(bus, model):
        sgd(model).step()
    assert last(bus, sink) == {}


def test_a_sparse_gradient_is_told_by_its_values(bus: MetricBus, sink: MemorySink) -> None:
    model = nn.Embedding(10, 2, sparse=True)
    optimizer = sgd(model)
    with watch(bus, model):
        model(torch.tensor([1, 1, 3])).sum().backward()
        optimizer.step()
    assert last(bus, sink)["grad_norm/weight"] == pytest.approx(math.sqrt(2 * 4 + 2 * 1))
    assert histograms(bus, sink)["gradients/weight"].count == 4


def test_a_sparse_gradient_on_an_accelerator_is_left_out_with_one_warning(
    bus: MetricBus,
    sink: MemorySink,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(ACCELERATORS, "cpu", InMemory())
    model = nn.Sequential(nn.Embedding(10, 2, sparse=True), nn.Linear(2, 1))
    optimizer = sgd(model)
    with watch(bus, model, every=1):
        for _ in range(2):
            model(torch.tensor([1, 1, 3])).sum().backward()
            optimizer.step()
    assert "grad_norm/0.weight" not in last(bus, sink)
    assert "grad_norm/1.weight" in last(bus, sink)
    assert [r.message for r in caplog.records if r.name == "metricbus.torch"] == [
        "watch(): the gradient of 0.weight is left out: it is sparse, on an accelerator"
    ]


def test_two_models_of_one_optimizer_are_told_apart_by_scopes(
    bus: MetricBus, sink: MemorySink, model: Net
) -> None:
    other = Net()
    optimizer = sgd(model, other)
    with watch(bus.scope("a"), model), watch(bus.scope("b"), other):
        step(optimizer, model, other)
    found = last(bus, sink)
    assert found["a/grad_norm/total"] != found["b/grad_norm/total"]
    assert {f"{scope}/gradients/{name}" for scope in "ab" for name in NAMES} == set(
        histograms(bus, sink)
    )


def test_several_optimizers_of_one_model_have_totals_of_their_own(
    bus: MetricBus, sink: MemorySink, model: Net
) -> None:
    one, other = sgd(model.fc1), sgd(model.fc2)
    with watch(bus, model, histograms=False):
        step(one, model)
        step(other, model)
    found = last(bus, sink)
    expected = math.hypot(found["grad_norm/fc2.weight"], found["grad_norm/fc2.bias"])
    assert found["grad_norm/total_2"] == pytest.approx(expected)


def test_a_parameter_that_is_called_total_keeps_its_name(bus: MetricBus, sink: MemorySink) -> None:
    model = nn.ParameterDict({"total": nn.Parameter(torch.ones(1))})
    model["total"].grad = torch.full((1,), 3.0)
    with watch(bus, model, histograms=False):
        sgd(model).step()
    assert {"grad_norm/total", "grad_norm/total_"} <= set(last(bus, sink))


def test_two_watches_of_one_model_both_log(bus: MetricBus, sink: MemorySink, model: Net) -> None:
    optimizer = sgd(model)
    with watch(bus, model), watch(bus.scope("weights"), model, log="parameters"):
        step(optimizer, model)
    assert {"grad_norm/total", "weights/param_norm/total"} <= set(last(bus, sink))


def test_an_optimizer_that_has_nothing_of_the_model_is_not_looked_at(
    bus: MetricBus, sink: MemorySink, model: Net
) -> None:
    other = Net()
    with watch(bus, model):
        step(sgd(other), other)
    assert last(bus, sink) == {}


def test_parameters_that_are_given_to_the_optimizer_later_are_logged(
    bus: MetricBus, sink: MemorySink, model: Net
) -> None:
    optimizer = sgd(model.fc2)
    with watch(bus, model, every=1, histograms=False):
        step(optimizer, model)
        assert "grad_norm/fc1.bias" not in last(bus, sink)
        optimizer.add_param_group({"params": model.fc1.parameters()})
        step(optimizer, model)
    assert "grad_norm/fc1.bias" in last(bus, sink)
    assert "grad_norm/total_2" not in last(bus, sink)


# The model as it was


def test_the_model_and_the_optimizer_have_nothing_of_a_watch(bus: MetricBus, model: Net) -> None:
    optimizer = sgd(model)
    before = pickle.dumps(model)
    handle = watch(bus, model, every=1, log="all")
    assert pickle.dumps(model) == before
    step(optimizer, model)
    optimizer.zero_grad()
    pickle.loads(pickle.dumps((model, optimizer)))
    copy.deepcopy((model, optimizer))
    handle.remove()
    handle.remove()
    assert not _global_optimizer_pre_hooks
    assert not _global_optimizer_post_hooks
    assert not optimizer._optimizer_step_pre_hooks
    assert not any(module._forward_hooks for module in model.modules())


def test_after_remove_nothing_is_logged(bus: MetricBus, sink: MemorySink, model: Net) -> None:
    optimizer = sgd(model)
    handle = watch(bus, model, every=1)
    handle.remove()
    step(optimizer, model)
    assert last(bus, sink) == {}


def test_a_watch_may_be_removed_by_a_hook_of_the_optimizer(
    bus: MetricBus, sink: MemorySink, model: Net
) -> None:
    optimizer = sgd(model)
    one, other = watch(bus, model, every=1), watch(bus, model, every=1)

    def end(*_: object) -> None:
        one.remove()
        other.remove()

    optimizer.register_step_pre_hook(end)
    step(optimizer, model)
    step(optimizer, model)
    bus.flush(30)
    assert len(sink.series("grad_norm/total")) == 2


def test_a_watch_that_nobody_holds_goes_on(bus: MetricBus, sink: MemorySink, model: Net) -> None:
    optimizer = sgd(model)
    watch(bus, model)
    gc.collect()
    step(optimizer, model)
    assert "grad_norm/total" in last(bus, sink)


def test_a_watch_keeps_neither_the_model_nor_the_optimizer_alive(bus: MetricBus) -> None:
    model = Net()
    optimizer = sgd(model)
    handle = watch(bus, model, every=1, log="all")
    step(optimizer, model)
    gone = [weakref.ref(one) for one in (model, optimizer, model.fc1.weight)]
    del model, optimizer
    gc.collect()
    assert [one() for one in gone] == [None] * 3
    other = Net()
    step(sgd(other), other)
    assert not _optimizer_hooks._listeners
    handle.remove()


def test_training_is_the_same_with_a_watch(bus: MetricBus, model: Net) -> None:
    twin = copy.deepcopy(model)
    with watch(bus, model, every=1, log="all"):
        one = torch.optim.Adam(model.parameters())
        for _ in range(3):
            step(one, model)
    other = torch.optim.Adam(twin.parameters())
    for _ in range(3):
        step(other, twin)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, twin.state_dict()[name])


# A loop that goes on


@pytest.mark.parametrize("disabled", [True, False], ids=["disabled", "closed"])
def test_with_a_bus_that_is_off_training_goes_on(
    disabled: bool, tmp_path: Path, model: Net
) -> None:
    off = MetricBus(sinks="", dir=tmp_path, disabled=disabled)
    off.close()
    optimizer = sgd(model)
    with watch(off, model, every=1, log="all"):
        step(optimizer, model)
        clip_grad_norm_(off, model, 1.0)


def test_an_error_in_the_hook_is_warned_of_once_and_training_goes_on(
    bus: MetricBus,
    sink: MemorySink,
    model: Net,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    optimizer = sgd(model)
    broken = True
    log = bus.log

    def fail(*args: Any, **where: Any) -> None:
        if broken:
            raise ValueError("odd")
        log(*args, **where)

    monkeypatch.setattr(bus, "log", fail)
    with watch(bus, model, every=1, log="all"), caplog.at_level(logging.WARNING):
        step(optimizer, model)
        step(optimizer, model)
        broken = False
        step(optimizer, model)
    assert [r.message for r in caplog.records] == [
        "watch(): something of a step is not logged, and training goes on: ValueError: odd"
    ]
    assert "grad_norm/total" in last(bus, sink)


# Wrappers


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_names_have_no_prefixes_of_wrappers(bus: MetricBus, sink: MemorySink, model: Net) -> None:
    wrapped = nn.parallel.DistributedDataParallel(torch.compile(model, backend="eager"))
    assert unwrapped(wrapped) is model
    optimizer = sgd(wrapped)
    with watch(bus, wrapped):
        step(optimizer, wrapped)
    assert list(histograms(bus, sink)) == [f"gradients/{name}" for name in NAMES]


def test_a_wrapped_module_inside_a_model_has_the_name_of_its_place(model: Net) -> None:
    compiled: Any = torch.compile(nn.Linear(1, 1), backend="eager")
    outer = nn.Sequential(compiled, nn.DataParallel(model), model)
    assert list(parameter_names(outer).values()) == ["0.weight", "0.bias"] + [
        f"1.{name}" for name in NAMES
    ]
    assert [name for name, _ in named_modules(outer)] == ["", "0", "1", "1.fc1", "1.fc2"]


def test_a_module_of_the_users_own_may_be_called_module() -> None:
    outer = nn.ModuleDict({"module": nn.Linear(1, 1, bias=False)})
    assert list(parameter_names(outer).values()) == ["module.weight"]


def test_a_compiled_optimizer_step_is_seen(bus: MetricBus, sink: MemorySink, model: Net) -> None:
    optimizer = sgd(model)
    compiled: Any = torch.compile(optimizer.step, backend="eager")
    with watch(bus, model, every=1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its profiler
        for _ in bus.steps(range(2)):
            optimizer.zero_grad()
            model(torch.ones(2, 3)).mean().backward()
            compiled()
    bus.flush(30)
    assert [point.step for point in sink.series("grad_norm/total")] == [0, 1]


def test_no_graph_breaks_are_added_to_a_compiled_model(
    bus: MetricBus, sink: MemorySink, model: Net
) -> None:
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    optimizer = sgd(model)
    with watch(bus, compiled, every=1, log="all"):
        step(optimizer, compiled)
        step(optimizer, compiled)
    assert "grad_norm/fc1.weight" in last(bus, sink)


class Sharded(nn.Parameter):
    """What shows that a tensor is a DTensor."""

    def full_tensor(self) -> None: ...


def test_sharded_parameters_are_refused_with_the_reason(bus: MetricBus, model: Net) -> None:
    model.fc1.weight = Sharded(torch.ones(4, 3))
    with pytest.raises(TypeError, match=r"watch\(\) takes .* of shape \(4, 3\) is a Sharded"):
        watch(bus, model)
    with pytest.raises(TypeError, match=r"clip_grad_norm_\(\) takes .*full_tensor"):
        clip_grad_norm_(bus, model.parameters(), 1.0)


@pytest.mark.usefixtures("one_rank")
def test_fsdp_is_refused_with_the_reason(bus: MetricBus, model: Net) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    fully_shard(model, mesh=mesh)
    with pytest.raises(TypeError, match=r"the model is sharded by FSDPNet: this rank has only"):
        watch(bus, model)


# Misuse


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"every": 0}, "every= must be 1 or more"),
        ({"every": 1.5}, "every= must be an int"),
        ({"log": "grads"}, "log= is one of 'gradients', 'parameters', 'all', not 'grads'"),
        ({"bins": 0}, "bins= is a whole number"),
        ({"norms": False, "histograms": False}, "nothing to log"),
    ],
)
def test_bad_options_are_refused(
    options: dict[str, Any], told: str, bus: MetricBus, model: Net
) -> None:
    with pytest.raises((TypeError, ValueError), match=told):
        watch(bus, model, **options)
    assert not _optimizer_hooks._listeners


def test_what_is_no_module_is_refused(bus: MetricBus, model: Net) -> None:
    with pytest.raises(TypeError, match=r"watch\(\) takes a torch.nn.Module, not generator"):
        watch(bus, model.parameters())  # type: ignore[arg-type]


def test_swapped_with_the_bus_it_says_what_comes_first(bus: MetricBus, model: Net) -> None:
    swapped: Any = (model, bus)
    with pytest.raises(TypeError, match=r"is the bus.*not Net; write watch\(bus, model\)"):
        watch(*swapped)


def test_clipping_without_a_bus_says_what_comes_first(model: Net) -> None:
    given: Any = (model.parameters(), 1.0)
    with pytest.raises(TypeError, match=r"is the bus.*not generator; write clip_grad_norm_\(bus, "):
        clip_grad_norm_(*given)


# Silence, and too much


NO_STEP = "watch(): no optimizer that has parameters of the model has made a step"


def test_a_watch_that_sees_no_step_says_so_once_when_it_ends(
    bus: MetricBus, model: Net, caplog: pytest.LogCaptureFixture
) -> None:
    other = Net()
    with watch(bus, model) as handle:
        step(sgd(other), other)
    (told,) = caplog.messages
    assert told.startswith(NO_STEP)
    handle.remove()
    bus.close()
    assert len(caplog.messages) == 1


def test_a_watch_that_nobody_removes_says_so_when_the_run_is_closed(
    bus: MetricBus, model: Net, caplog: pytest.LogCaptureFixture
) -> None:
    handle = watch(bus.scope("net"), model)
    bus.close()
    handle.remove()
    (told,) = caplog.messages
    assert told.startswith(NO_STEP)


def test_a_model_that_is_gone_is_told_of_too(
    bus: MetricBus, model: Net, caplog: pytest.LogCaptureFixture
) -> None:
    temporary = Net()
    gone = weakref.ref(temporary)
    watch(bus, temporary)
    del temporary
    gc.collect()
    assert gone() is None
    bus.close()
    assert len(caplog.messages) == 1


def test_a_watch_that_has_seen_a_step_ends_in_silence(
    bus: MetricBus, model: Net, caplog: pytest.LogCaptureFixture
) -> None:
    with watch(bus, model):
        step(sgd(model), model)
    bus.close()
    assert not caplog.messages


def test_a_training_that_fails_before_its_first_step_is_not_told_of_silence(
    bus: MetricBus, model: Net, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ZeroDivisionError), watch(bus, model):
        raise ZeroDivisionError
    bus.close()
    assert not caplog.messages


def test_a_watch_of_a_bus_that_is_off_ends_in_silence(
    model: Net, caplog: pytest.LogCaptureFixture
) -> None:
    off = MetricBus(disabled=True)
    with watch(off, model):
        pass
    off.close()
    assert not caplog.messages


def test_a_forked_child_says_nothing_of_the_watches_of_its_parent(
    bus: MetricBus, model: Net, caplog: pytest.LogCaptureFixture
) -> None:
    handle = watch(bus, model)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        handle.remove()
        os._exit(len(caplog.messages))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    handle.remove()


def test_a_second_watch_of_a_model_beside_the_first_is_warned_of(
    bus: MetricBus, model: Net, caplog: pytest.LogCaptureFixture
) -> None:
    with watch(bus, model), watch(bus, torch.nn.DataParallel(model)):
        (told,) = caplog.messages
        step(sgd(model), model)
    assert told.startswith("watch(): this Net is watched already")
    assert "remove() the first" in told


def test_a_second_watch_that_logs_the_same_names_in_part_is_warned_of(
    bus: MetricBus, model: Net, caplog: pytest.LogCaptureFixture
) -> None:
    with watch(bus, model, log="all"), watch(bus, model, histograms=False):
        assert len(caplog.messages) == 1
        step(sgd(model), model)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"log": "gradients"}, {"log": "parameters"}),
        ({"norms": False}, {"histograms": False}),
    ],
    ids=["gradients and parameters", "norms and histograms"],
)
def test_watches_of_a_model_that_log_different_names_go_together(
    bus: MetricBus,
    model: Net,
    caplog: pytest.LogCaptureFixture,
    one: dict[str, Any],
    other: dict[str, Any],
) -> None:
    with watch(bus, model, **one), watch(bus, model, **other):
        step(sgd(model), model)
    assert not caplog.messages


@pytest.mark.parametrize("where", ["another model", "another scope", "another bus", "afterwards"])
def test_a_second_watch_that_doubles_nothing_is_not_warned_of(
    bus: MetricBus, model: Net, caplog: pytest.LogCaptureFixture, tmp_path: Path, where: str
) -> None:
    first = watch(bus, model)
    step(sgd(model), model)
    other = Net() if where == "another model" else model
    place: Any = bus
    if where == "another scope":
        place = bus.scope("other")
    elif where == "another bus":
        place = MetricBus(disabled=True)
    elif where == "afterwards":
        first.remove()
    with watch(place, other):
        step(sgd(other), other)
    first.remove()
    assert not caplog.messages


# Clipping


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("max_norm", [0.5, 1e9])
@pytest.mark.parametrize("norm_type", [1.0, 2.0, math.inf])
def test_clipping_tells_the_norm_before_and_after(
    max_norm: float, norm_type: float, bus: MetricBus, sink: MemorySink, model: Net
) -> None:
    model(torch.ones(2, 3)).square().sum().mul(10).backward()
    twin = copy.deepcopy(model)
    for one, other in zip(twin.parameters(), model.parameters(), strict=True):
        one.grad = copy.deepcopy(other.grad)
    expected = nn.utils.clip_grad_norm_(twin.parameters(), max_norm, norm_type)
    before = clip_grad_norm_(bus, model.parameters(), max_norm, norm_type)
    assert torch.equal(before, expected)
    for one, other in zip(twin.parameters(), model.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)  # type: ignore[arg-type]
    after = nn.utils.get_total_norm([p.grad for p in twin.parameters()], norm_type)  # type: ignore[misc]
    found = last(bus, sink)
    assert found["clip/norm_before"] == pytest.approx(before.item())
    assert found["clip/norm_after"] == pytest.approx(after.item(), rel=1e-5)
    assert found["clip/clipped"] == (max_norm < 1)
    assert bus.step == 0


def test_clipping_takes_a_model_and_a_name(bus: MetricBus, sink: MemorySink, model: Net) -> None:
    model(torch.ones(2, 3)).sum().backward()
    clip_grad_norm_(bus.scope("gen"), model, 1.0, name="clipping")
    assert set(last(bus, sink)) == {
        f"gen/clipping/{what}" for what in ("norm_before", "norm_after", "clipped")
    }


def test_clipping_takes_a_single_tensor(bus: MetricBus, sink: MemorySink) -> None:
    weight = torch.ones(2, requires_grad=True)
    weight.grad = torch.tensor([3.0, 4.0])
    clip_grad_norm_(bus, weight, 1.0)
    assert last(bus, sink)["clip/norm_before"] == 5


def test_clipping_without_gradients_is_0(bus: MetricBus, sink: MemorySink, model: Net) -> None:
    clip_grad_norm_(bus, model, 1.0)
    assert last(bus, sink) == {"clip/norm_before": 0, "clip/norm_after": 0, "clip/clipped": 0}


def test_a_norm_that_is_not_finite_raises_as_torch_does(
    bus: MetricBus, sink: MemorySink, model: Net
) -> None:
    model.fc1.weight.grad = torch.full_like(model.fc1.weight, math.nan)
    with pytest.raises(RuntimeError, match="non-finite"):
        clip_grad_norm_(bus, model, 1.0, error_if_nonfinite=True)
    assert last(bus, sink) == {}
    clip_grad_norm_(bus, model, 1.0)
    assert math.isnan(last(bus, sink)["clip/norm_after"])


# On CUDA


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("fused", [False, True])
def test_on_cuda_nobody_waits_for_the_device(
    fused: bool, bus: MetricBus, sink: MemorySink, model: Net
) -> None:
    model.cuda()
    optimizer = torch.optim.Adam(model.parameters(), fused=fused)
    x = torch.ones(2, 3, device="cuda")
    with watch(bus, model, every=1, log="all"):
        for number in bus.steps(range(3)):
            if number == 1:
                torch.cuda.set_sync_debug_mode("error")
            optimizer.zero_grad()
            model(x).square().mean().backward()
            clip_grad_norm_(bus, model, 0.1)
            optimizer.step()
        torch.cuda.set_sync_debug_mode("default")
    found = last(bus, sink)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert found[f"grad_norm/{name}"] == pytest.approx(norm(parameter.grad.cpu()), rel=1e-4)
    assert len(sink.series("clip/norm_before")) == 3
