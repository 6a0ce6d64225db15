"""`watch` and `clip_grad_norm_` log what the optimizer sees at each of its steps."""

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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from metricbus import MetricBus
from metricbus._common.device_values import ACCELERATORS
from metricbus._common.media_records import HistogramRecord
from metricbus.testing import MemorySink
from metricbus.torch import _optimizer_hooks
from metricbus.torch._clip_grad_norm import clip_grad_norm_
from metricbus.torch._modules import named_modules, parameter_names, unwrap
from metricbus.torch._watch_gradients import watch
from tests.helpers.fake_accelerator import FakeAccelerator


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(3, 4)
        self.fc2 = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.fc2(self.fc1(x).relu())
        return output


NAMES = ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]


@pytest.fixture(params=["host", "accelerator"])
def on_each_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test on the host and with the CPU as a fake accelerator."""
    if request.param == "accelerator":
        monkeypatch.setitem(ACCELERATORS, "cpu", FakeAccelerator())


@pytest.fixture
def bus(sink: MemorySink, tmp_path: Path) -> Iterator[MetricBus]:
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        yield bus
    assert bus.stats().dropped == 0, str(bus.stats())


@pytest.fixture(autouse=True)
def no_leftover_listeners() -> Iterator[None]:
    yield
    _optimizer_hooks._listeners = ()
    _optimizer_hooks.remove_unused_hooks()
    assert not _global_optimizer_pre_hooks
    assert not _global_optimizer_post_hooks


@pytest.fixture
def model() -> Net:
    torch.manual_seed(0)
    return Net()


def sgd(*models: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD([p for model in models for p in model.parameters()], lr=lr)


def step(optimizer: torch.optim.Optimizer, *models: nn.Module, batches: int = 1) -> None:
    """Make a training step and keep the gradients."""
    optimizer.zero_grad()
    for batch in range(batches):
        x = torch.arange(6.0).reshape(2, 3) + batch
        for model in models:
            model(x).square().mean().backward()
    optimizer.step()


def last(bus: MetricBus, sink: MemorySink) -> dict[str, float]:
    """Return the newest value of each name."""
    assert bus.flush(30).complete
    return {name: sink.series(name)[-1].value for name in sink.names()}


def histograms(bus: MetricBus, sink: MemorySink) -> dict[str, HistogramRecord]:
    bus.flush(30)
    return {r.name: r for r in sink.media() if isinstance(r, HistogramRecord)}


def norm(tensor: torch.Tensor | None) -> float:
    assert tensor is not None
    return float(tensor.detach().double().norm())


# What is logged


@pytest.mark.usefixtures("on_each_device")
def test_logs_norms_of_the_gradients_that_the_optimizer_sees(
    bus: MetricBus, sink: MemorySink, model: Net
) -> None:
    optimizer = sgd(model)
    with watch(bus, model, histograms=False):
        step(optimizer, model, batches=3)
    values = last(bus, sink)
    for name, parameter in model.named_parameters():
        assert values[f"grad_norm/{name}"] == pytest.approx(norm(parameter.grad))
    whole = math.sqrt(sum(norm(p.grad) ** 2 for p in model.parameters()))
    assert values["grad_norm/total"] == pytest.approx(whole)
    assert not histograms(bus, sink)


@pytest.mark.usefixtures("on_each_device")
def test_logs_gradient_histograms_under_parameter_names(
    bus: MetricBus, sink: MemorySink, model: Net
) -> None:
    optimizer = sgd(model)
    with watch(bus, model, norms=False, bins=5):
        step(optimizer, model)
    records = histograms(bus, sink)
    assert list(records) == [f"gradients/{name}" for name in NAMES]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        record = records[f"gradients/{name}"]
        assert record.count == parameter.numel()
        assert record.maximum == parameter.grad.max()
        assert len(record.counts) == 5
    assert not sink.names()


@pytest.mark.usefixtures("on_each_device")
def test_logs_parameter_values_from_before_the_step(
    bus: MetricBus, sink: MemorySink, model: Net
) -> None:
    optimizer = sgd(model)
    before = copy.deepcopy(model.state_dict())
    with watch(bus, model, log="parameters"):
        step(optimizer, model)
    values, media = last(bus, sink), histograms(bus, sink)
    for name, weight in before.items():
        assert values[f"param_norm/{name}"] == pytest.approx(norm(weight))
        assert media[f"parameters/{name}"].maximum == weight.max()
    assert "param_norm/total" in values
    assert not [name for name in [*values, *media] if "grad" in name]


@pytest.mark.usefixtures("on_each_device")
def test_update_ratio_is_the_change_divided_by_the_previous_weight(
    bus: MetricBus, sink: MemorySink, model: Net
) -> None:
    optimizer = sgd(model)
    nn.init.zeros_(model.fc2.bias)
    before = copy.deepcopy(model.state_dict())
    with watch(bus, model, log="all", histograms=False):
        step(optimizer, model)
    values = last(bus, sink)
    for name, weight in model.state_dict().items():
        if name != "fc2.bias":
            expected = norm(weight - before[name]) / norm(before[name])
            assert values[f"update_ratio/{name}"] == pytest.approx(expected, rel=1e-4)
    assert math.isnan(values["update_ratio/fc2.bias"])


@pytest.mark.usefixtures("on_each_device")
def test_counts_nonfinite_elements_by_name(bus: MetricBus, sink: MemorySink, model: Net) -> None:
    optimizer = sgd(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert model.fc1.weight.grad is not None
    model.fc1.weight.grad[0, :2] = torch.tensor([math.nan, -math.inf])
    with watch(bus, model):
        optimizer.step()
    values = last(bus, sink)
    assert {name: values[f"nonfinite/{name}"] for name in NAMES} == {
        "fc1.weight": 2, "fc1.bias": 0, "fc2.weight": 0, "fc2.bias": 0,
    }  # fmt: skip
    assert math.isnan(values["grad_norm/fc1.weight"])
    record = histograms(bus, sink)["gradients/fc1.weight"]
    assert (record.nan, record.minus_infinite, record.count) == (1, 1, 10)


def test_finite_gradients_with_an_overflowing_norm_count_as_finite(
    bus: MetricBus, sink: MemorySink, model: Net
) -> None:
    optimizer = sgd(model, lr=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3e38)
    with watch(bus, model, histograms=False):
        optimizer.step()
    assert last(bus, sink)["nonfinite/fc1.weight"] == 0


def test_logs_gradients_after_clipping(bus: MetricBus, sink: MemorySink, model: Net) -> None:
    optimizer = sgd(model)
    with watch(bus, model, histograms=False):
        model(torch.ones(2, 3)).mean().mul(1e3).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    assert last(bus, sink)["grad_norm/total"] == pytest.approx(0.5, rel=1e-4)


def test_norms_of_16_bit_gradients_do_not_overflow(bus: MetricBus, sink: MemorySink) -> None:
    model = nn.Linear(100, 100, bias=False, dtype=torch.float16)
    model.weight.grad = torch.full_like(model.weight, 1000.0)
    with watch(bus, model):
        sgd(model, lr=0.0).step()
    assert last(bus, sink)["grad_norm/weight"] == pytest.approx(1e5, rel=1e-4)


def test_logs_complex_gradients_as_real_and_imaginary_parts(
    bus: MetricBus, sink: MemorySink
) -> None:
    model = nn.Linear(2, 1, bias=False, dtype=torch.complex64)
    model.weight.grad = torch.tensor([[3 + 4j, 0]])
    with watch(bus, model, log="all"):
        sgd(model).step()
    assert last(bus, sink)["grad_norm/weight"] == pytest.approx(5)
    assert histograms(bus, sink)["gradients/weight"].count == 4


# Which steps are logged


def test_logs_every_nth_step_starting_with_the_first(
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
    first, second = sgd(model.fc1), sgd(model.fc2)
    with watch(bus, model, every=2, histograms=False):
        for number in bus.steps(range(4)):
            step(first, model)
            if number:
                step(second, model)
    bus.flush(30)
    assert [point.step for point in sink.series("grad_norm/fc1.bias")] == [0, 2]
    assert [point.step for point in sink.series("grad_norm/fc2.bias")] == [1, 3]


def test_does_not_advance_the_step(bus: MetricBus, sink: MemorySink, model: Net) -> None:
    optimizer = sgd(model)
    with watch(bus, model, every=1):
        for _ in range(3):
            step(optimizer, model)
    assert bus.step == 0
    bus.log("loss", 0.5)
    bus.log("loss", 0.5)
    assert bus.step == 1


def test_logs_the_gradients_that_a_closure_computes(
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
    values = last(bus, sink)
    assert values["grad_norm/fc1.weight"] == pytest.approx(norm(model.fc1.weight.grad))
    assert values["update_ratio/fc1.weight"] > 0


def test_a_failed_step_leaves_no_state_behind(bus: MetricBus, sink: MemorySink, model: Net) -> None:
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
    """Unscales the gradients itself, like fused optimizers on CUDA."""

    _step_supports_amp_scaling = True

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for parameter in self.param_groups[0]["params"]:
            scale = self.grad_scale  # type: ignore[attr-defined]
            parameter.sub_(parameter.grad / scale, alpha=self.param_groups[0]["lr"])


@pytest.mark.usefixtures("on_each_device")
@pytest.mark.parametrize("kind", [torch.optim.SGD, Fused])
def test_logs_unscaled_gradients(
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
    values, media = last(bus, sink), histograms(bus, sink)
    for name, value in expected.items():
        assert values[f"grad_norm/{name}"] == pytest.approx(value, rel=1e-5)
        assert abs(media[f"gradients/{name}"].maximum or 0) <= value * 1.0001


def test_steps_skipped_by_grad_scaler_do_not_count(
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


def test_logs_shared_parameters_once(bus: MetricBus, sink: MemorySink) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    optimizer = torch.optim.SGD(model.parameters())
    with watch(bus, model):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert [name for name in last(bus, sink) if "weight" in name and "norm" in name] == [
        "grad_norm/0.weight"
    ]


def test_skips_parameters_without_a_gradient(bus: MetricBus, sink: MemorySink, model: Net) -> None:
    model.fc1.requires_grad_(False)
    optimizer = sgd(model)
    with watch(bus, model):
        step(optimizer, model)
    assert [name for name in last(bus, sink) if name.startswith("grad_norm")] == [
        "grad_norm/fc2.weight", "grad_norm/fc2.bias", "grad_norm/total",
    ]  # fmt: skip


def test_logs_nothing_without_gradients(bus: MetricBus, sink: MemorySink, model: Net) -> None:
    with watch(bus, model):
        sgd(model).step()
    assert last(bus, sink) == {}


def test_logs_the_values_of_a_sparse_gradient(bus: MetricBus, sink: MemorySink) -> None:
    model = nn.Embedding(10, 2, sparse=True)
    optimizer = sgd(model)
    with watch(bus, model):
        model(torch.tensor([1, 1, 3])).sum().backward()
        optimizer.step()
    assert last(bus, sink)["grad_norm/weight"] == pytest.approx(math.sqrt(2 * 4 + 2 * 1))
    assert histograms(bus, sink)["gradients/weight"].count == 4


def test_skips_a_sparse_gradient_on_an_accelerator_and_warns_once(
    bus: MetricBus,
    sink: MemorySink,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(ACCELERATORS, "cpu", FakeAccelerator())
    model = nn.Sequential(nn.Embedding(10, 2, sparse=True), nn.Linear(2, 1))
    optimizer = sgd(model)
    with watch(bus, model, every=1):
        for _ in range(2):
            model(torch.tensor([1, 1, 3])).sum().backward()
            optimizer.step()
    assert "grad_norm/0.weight" not in last(bus, sink)
    assert "grad_norm/1.weight" in last(bus, sink)
    assert [r.message for r in caplog.records if r.name == "metricbus.torch"] == [
        "watch(): skipped the gradient of 0.weight: it is sparse and on an accelerator"
    ]


def test_scopes_separate_two_models_of_one_optimizer(
    bus: MetricBus, sink: MemorySink, model: Net
) -> None:
    other = Net()
    optimizer = sgd(model, other)
    with watch(bus.scope("a"), model), watch(bus.scope("b"), other):
        step(optimizer, model, other)
    values = last(bus, sink)
    assert values["a/grad_norm/total"] != values["b/grad_norm/total"]
    assert {f"{scope}/gradients/{name}" for scope in "ab" for name in NAMES} == set(
        histograms(bus, sink)
    )


def test_each_optimizer_of_a_model_has_its_own_total(
    bus: MetricBus, sink: MemorySink, model: Net
) -> None:
    first, second = sgd(model.fc1), sgd(model.fc2)
    with watch(bus, model, histograms=False):
        step(first, model)
        step(second, model)
    values = last(bus, sink)
    expected = math.hypot(values["grad_norm/fc2.weight"], values["grad_norm/fc2.bias"])
    assert values["grad_norm/total_2"] == pytest.approx(expected)


def test_a_parameter_named_total_keeps_its_name(bus: MetricBus, sink: MemorySink) -> None:
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


def test_ignores_optimizers_without_parameters_of_the_model(
    bus: MetricBus, sink: MemorySink, model: Net
) -> None:
    other = Net()
    with watch(bus, model):
        step(sgd(other), other)
    assert last(bus, sink) == {}


def test_logs_parameters_added_to_the_optimizer_later(
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


# Effects on the model


def test_model_and_optimizer_stay_picklable_and_get_no_hooks(bus: MetricBus, model: Net) -> None:
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


def test_logs_nothing_after_remove(bus: MetricBus, sink: MemorySink, model: Net) -> None:
    optimizer = sgd(model)
    handle = watch(bus, model, every=1)
    handle.remove()
    step(optimizer, model)
    assert last(bus, sink) == {}


def test_an_optimizer_hook_can_remove_a_watch(bus: MetricBus, sink: MemorySink, model: Net) -> None:
    optimizer = sgd(model)
    first, second = watch(bus, model, every=1), watch(bus, model, every=1)

    def remove_both(*_: object) -> None:
        first.remove()
        second.remove()

    optimizer.register_step_pre_hook(remove_both)
    step(optimizer, model)
    step(optimizer, model)
    bus.flush(30)
    assert len(sink.series("grad_norm/total")) == 2


def test_a_watch_without_references_stays_active(
    bus: MetricBus, sink: MemorySink, model: Net
) -> None:
    optimizer = sgd(model)
    watch(bus, model)
    gc.collect()
    step(optimizer, model)
    assert "grad_norm/total" in last(bus, sink)


def test_keeps_neither_model_nor_optimizer_alive(bus: MetricBus) -> None:
    model = Net()
    optimizer = sgd(model)
    handle = watch(bus, model, every=1, log="all")
    step(optimizer, model)
    references = [weakref.ref(obj) for obj in (model, optimizer, model.fc1.weight)]
    del model, optimizer
    gc.collect()
    assert [reference() for reference in references] == [None] * 3
    other = Net()
    step(sgd(other), other)
    assert not _optimizer_hooks._listeners
    handle.remove()


def test_does_not_change_training(bus: MetricBus, model: Net) -> None:
    copied = copy.deepcopy(model)
    with watch(bus, model, every=1, log="all"):
        watched = torch.optim.Adam(model.parameters())
        for _ in range(3):
            step(watched, model)
    unwatched = torch.optim.Adam(copied.parameters())
    for _ in range(3):
        step(unwatched, copied)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, copied.state_dict()[name])


# Errors do not stop training


@pytest.mark.parametrize("disabled", [True, False], ids=["disabled", "closed"])
def test_training_continues_when_the_bus_is_off(disabled: bool, tmp_path: Path, model: Net) -> None:
    off = MetricBus(sinks="", dir=tmp_path, disabled=disabled)
    off.close()
    optimizer = sgd(model)
    with watch(off, model, every=1, log="all"):
        step(optimizer, model)
        clip_grad_norm_(off, model, 1.0)


def test_an_error_in_the_hook_logs_one_warning_and_training_continues(
    bus: MetricBus,
    sink: MemorySink,
    model: Net,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    optimizer = sgd(model)
    broken = True
    log = bus.log

    def fail(*args: Any, **kwargs: Any) -> None:
        if broken:
            raise ValueError("odd")
        log(*args, **kwargs)

    monkeypatch.setattr(bus, "log", fail)
    with watch(bus, model, every=1, log="all"), caplog.at_level(logging.WARNING):
        step(optimizer, model)
        step(optimizer, model)
        broken = False
        step(optimizer, model)
    assert [r.message for r in caplog.records] == [
        "watch(): failed to log a step; training continues: ValueError: odd"
    ]
    assert "grad_norm/total" in last(bus, sink)


# Wrappers


@pytest.mark.usefixtures("one_rank")
def test_names_have_no_wrapper_prefixes(bus: MetricBus, sink: MemorySink, model: Net) -> None:
    wrapped = nn.parallel.DistributedDataParallel(torch.compile(model, backend="eager"))
    assert unwrap(wrapped) is model
    optimizer = sgd(wrapped)
    with watch(bus, wrapped):
        step(optimizer, wrapped)
    assert list(histograms(bus, sink)) == [f"gradients/{name}" for name in NAMES]


def test_a_wrapped_submodule_is_named_by_its_attribute(model: Net) -> None:
    compiled: Any = torch.compile(nn.Linear(1, 1), backend="eager")
    outer = nn.Sequential(compiled, nn.DataParallel(model), model)
    assert list(parameter_names(outer).values()) == ["0.weight", "0.bias"] + [
        f"1.{name}" for name in NAMES
    ]
    assert [name for name, _ in named_modules(outer)] == ["", "0", "1", "1.fc1", "1.fc2"]


def test_a_user_module_can_be_named_module() -> None:
    outer = nn.ModuleDict({"module": nn.Linear(1, 1, bias=False)})
    assert list(parameter_names(outer).values()) == ["module.weight"]


def test_logs_compiled_optimizer_steps(bus: MetricBus, sink: MemorySink, model: Net) -> None:
    optimizer = sgd(model)
    compiled: Any = torch.compile(optimizer.step, backend="eager")
    with watch(bus, model, every=1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from torch's profiler
        for _ in bus.steps(range(2)):
            optimizer.zero_grad()
            model(torch.ones(2, 3)).mean().backward()
            compiled()
    bus.flush(30)
    assert [point.step for point in sink.series("grad_norm/total")] == [0, 1]


def test_adds_no_graph_breaks_to_a_compiled_model(
    bus: MetricBus, sink: MemorySink, model: Net
) -> None:
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    optimizer = sgd(model)
    with watch(bus, compiled, every=1, log="all"):
        step(optimizer, compiled)
        step(optimizer, compiled)
    assert "grad_norm/fc1.weight" in last(bus, sink)


class Sharded(nn.Parameter):
    """A parameter with the method that identifies a DTensor."""

    def full_tensor(self) -> None: ...


def test_rejects_sharded_parameters_with_the_reason(bus: MetricBus, model: Net) -> None:
    model.fc1.weight = Sharded(torch.ones(4, 3))
    with pytest.raises(TypeError, match=r"watch\(\) needs .* of shape \(4, 3\) is a Sharded"):
        watch(bus, model)
    with pytest.raises(TypeError, match=r"clip_grad_norm_\(\) needs .*full_tensor"):
        clip_grad_norm_(bus, model.parameters(), 1.0)


@pytest.mark.usefixtures("one_rank")
def test_rejects_fsdp_with_the_reason(bus: MetricBus, model: Net) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    fully_shard(model, mesh=mesh)
    with pytest.raises(TypeError, match=r"the model is sharded by FSDPNet: this rank has only"):
        watch(bus, model)


# Misuse


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every= must be 1 or more"),
        ({"every": 1.5}, "every= must be an int"),
        ({"log": "grads"}, "log= must be one of 'gradients', 'parameters', 'all', not 'grads'"),
        ({"bins": 0}, "bins= must be an integer"),
        ({"norms": False, "histograms": False}, "nothing to log"),
    ],
)
def test_rejects_invalid_options(
    options: dict[str, Any], message: str, bus: MetricBus, model: Net
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        watch(bus, model, **options)
    assert not _optimizer_hooks._listeners


def test_rejects_objects_that_are_not_modules(bus: MetricBus, model: Net) -> None:
    with pytest.raises(TypeError, match=r"watch\(\) takes a torch.nn.Module, not generator"):
        watch(bus, model.parameters())  # type: ignore[arg-type]


def test_error_for_swapped_arguments_names_the_first_argument(bus: MetricBus, model: Net) -> None:
    swapped: Any = (model, bus)
    with pytest.raises(TypeError, match=r"must be a MetricBus.*not Net; write watch\(bus, model\)"):
        watch(*swapped)


def test_error_for_clipping_without_a_bus_names_the_first_argument(model: Net) -> None:
    given: Any = (model.parameters(), 1.0)
    with pytest.raises(
        TypeError, match=r"must be a MetricBus.*not generator; write clip_grad_norm_\(bus, "
    ):
        clip_grad_norm_(*given)


# Warnings about unused and duplicate watches


NO_STEP = "watch(): nothing was logged, because no optimizer with parameters of this model"


def test_warns_once_on_removal_if_no_step_was_made(
    bus: MetricBus, model: Net, caplog: pytest.LogCaptureFixture
) -> None:
    other = Net()
    with watch(bus, model) as handle:
        step(sgd(other), other)
    (warning,) = caplog.messages
    assert warning.startswith(NO_STEP)
    handle.remove()
    bus.close()
    assert len(caplog.messages) == 1


def test_warns_when_the_run_is_closed_if_no_step_was_made(
    bus: MetricBus, model: Net, caplog: pytest.LogCaptureFixture
) -> None:
    handle = watch(bus.scope("net"), model)
    bus.close()
    handle.remove()
    (warning,) = caplog.messages
    assert warning.startswith(NO_STEP)


def test_warns_about_a_garbage_collected_model_too(
    bus: MetricBus, model: Net, caplog: pytest.LogCaptureFixture
) -> None:
    temporary = Net()
    reference = weakref.ref(temporary)
    watch(bus, temporary)
    del temporary
    gc.collect()
    assert reference() is None
    bus.close()
    assert len(caplog.messages) == 1


def test_does_not_warn_if_a_step_was_made(
    bus: MetricBus, model: Net, caplog: pytest.LogCaptureFixture
) -> None:
    with watch(bus, model):
        step(sgd(model), model)
    bus.close()
    assert not caplog.messages


def test_does_not_warn_if_training_fails_before_the_first_step(
    bus: MetricBus, model: Net, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ZeroDivisionError), watch(bus, model):
        raise ZeroDivisionError
    bus.close()
    assert not caplog.messages


def test_does_not_warn_if_the_bus_is_off(model: Net, caplog: pytest.LogCaptureFixture) -> None:
    off = MetricBus(disabled=True)
    with watch(off, model):
        pass
    off.close()
    assert not caplog.messages


def test_a_forked_child_does_not_warn_about_its_parents_watches(
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


def test_warns_about_a_second_watch_of_a_model(
    bus: MetricBus, model: Net, caplog: pytest.LogCaptureFixture
) -> None:
    with watch(bus, model), watch(bus, torch.nn.DataParallel(model)):
        (warning,) = caplog.messages
        step(sgd(model), model)
    assert warning.startswith("watch(): this Net is already watched")
    assert "remove() the first" in warning


def test_warns_about_a_second_watch_with_some_of_the_same_names(
    bus: MetricBus, model: Net, caplog: pytest.LogCaptureFixture
) -> None:
    with watch(bus, model, log="all"), watch(bus, model, histograms=False):
        assert len(caplog.messages) == 1
        step(sgd(model), model)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"log": "gradients"}, {"log": "parameters"}),
        ({"norms": False}, {"histograms": False}),
    ],
    ids=["gradients and parameters", "norms and histograms"],
)
def test_does_not_warn_about_watches_that_log_different_names(
    bus: MetricBus,
    model: Net,
    caplog: pytest.LogCaptureFixture,
    first: dict[str, Any],
    second: dict[str, Any],
) -> None:
    with watch(bus, model, **first), watch(bus, model, **second):
        step(sgd(model), model)
    assert not caplog.messages


@pytest.mark.parametrize(
    "where", ["another model", "another scope", "another bus", "after removal"]
)
def test_does_not_warn_about_a_second_watch_that_duplicates_nothing(
    bus: MetricBus, model: Net, caplog: pytest.LogCaptureFixture, tmp_path: Path, where: str
) -> None:
    first = watch(bus, model)
    step(sgd(model), model)
    other = Net() if where == "another model" else model
    other_bus: Any = bus
    if where == "another scope":
        other_bus = bus.scope("other")
    elif where == "another bus":
        other_bus = MetricBus(disabled=True)
    elif where == "after removal":
        first.remove()
    with watch(other_bus, other):
        step(sgd(other), other)
    first.remove()
    assert not caplog.messages


# Clipping


@pytest.mark.usefixtures("on_each_device")
@pytest.mark.parametrize("max_norm", [0.5, 1e9])
@pytest.mark.parametrize("norm_type", [1.0, 2.0, math.inf])
def test_clipping_logs_the_norm_before_and_after(
    max_norm: float, norm_type: float, bus: MetricBus, sink: MemorySink, model: Net
) -> None:
    model(torch.ones(2, 3)).square().sum().mul(10).backward()
    copied = copy.deepcopy(model)
    for copied_parameter, parameter in zip(copied.parameters(), model.parameters(), strict=True):
        copied_parameter.grad = copy.deepcopy(parameter.grad)
    expected = nn.utils.clip_grad_norm_(copied.parameters(), max_norm, norm_type)
    before = clip_grad_norm_(bus, model.parameters(), max_norm, norm_type)
    assert torch.equal(before, expected)
    for copied_parameter, parameter in zip(copied.parameters(), model.parameters(), strict=True):
        assert torch.equal(copied_parameter.grad, parameter.grad)  # type: ignore[arg-type]
    after = nn.utils.get_total_norm([p.grad for p in copied.parameters()], norm_type)  # type: ignore[misc]
    values = last(bus, sink)
    assert values["clip/norm_before"] == pytest.approx(before.item())
    assert values["clip/norm_after"] == pytest.approx(after.item(), rel=1e-5)
    assert values["clip/clipped"] == (max_norm < 1)
    assert bus.step == 0


def test_clipping_accepts_a_model_and_a_name(bus: MetricBus, sink: MemorySink, model: Net) -> None:
    model(torch.ones(2, 3)).sum().backward()
    clip_grad_norm_(bus.scope("gen"), model, 1.0, name="clipping")
    assert set(last(bus, sink)) == {
        f"gen/clipping/{what}" for what in ("norm_before", "norm_after", "clipped")
    }


def test_clipping_accepts_a_single_tensor(bus: MetricBus, sink: MemorySink) -> None:
    weight = torch.ones(2, requires_grad=True)
    weight.grad = torch.tensor([3.0, 4.0])
    clip_grad_norm_(bus, weight, 1.0)
    assert last(bus, sink)["clip/norm_before"] == 5


def test_clipping_without_gradients_logs_zeros(
    bus: MetricBus, sink: MemorySink, model: Net
) -> None:
    clip_grad_norm_(bus, model, 1.0)
    assert last(bus, sink) == {"clip/norm_before": 0, "clip/norm_after": 0, "clip/clipped": 0}


def test_a_nonfinite_norm_raises_like_torch(bus: MetricBus, sink: MemorySink, model: Net) -> None:
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
def test_does_not_synchronize_with_cuda(
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
    values = last(bus, sink)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert values[f"grad_norm/{name}"] == pytest.approx(norm(parameter.grad.cpu()), rel=1e-4)
    assert len(sink.series("clip/norm_before")) == 3
