"""`watch_optimizer` logs learning rates and counts real optimizer steps."""

from __future__ import annotations

import copy
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import StepLR

from metricbus import MetricBus
from metricbus._bus.default_bus import DefaultBus
from metricbus._common.device_values import ACCELERATORS
from metricbus.testing import MemorySink
from metricbus.torch._watch_optimizer import watch_optimizer
from tests.helpers.fake_accelerator import FakeAccelerator


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, bus: MetricBus) -> Iterator[FakeAccelerator]:
    device = FakeAccelerator(blocked=True)
    monkeypatch.setitem(ACCELERATORS, "cpu", device)
    yield device
    device.released.set()


@pytest.fixture
def model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def make_step(model: nn.Module, optimizer: Optimizer) -> None:
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def make_scaled_step(
    model: nn.Module, optimizer: Optimizer, scaler: GradScaler, factor: float = 1.0
) -> None:
    scaler.scale(model(torch.ones(4, 3)).sum() * factor).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def points(bus: MetricBus, sink: MemorySink, name: str) -> list[tuple[int, int | float]]:
    bus.flush()
    return [(point.step, point.value) for point in sink.series(name)]


def test_the_rate_of_a_single_group_is_named_lr(
    bus: MetricBus, sink: MemorySink, model: nn.Linear
) -> None:
    optimizer = SGD(model.parameters(), lr=0.5)
    with watch_optimizer(bus, optimizer):
        for _ in bus.steps(range(2)):
            make_step(model, optimizer)
    assert points(bus, sink, "lr") == [(0, 0.5), (1, 0.5)]


def test_groups_are_named_by_name_or_index(
    bus: MetricBus, sink: MemorySink, model: nn.Linear
) -> None:
    groups = [
        {"params": [model.weight], "lr": 0.5, "name": "head"},
        {"params": [model.bias], "lr": 0.25},
    ]
    optimizer = SGD(groups, lr=1.0)
    with watch_optimizer(bus, optimizer):
        make_step(model, optimizer)
    assert points(bus, sink, "lr/head") == [(0, 0.5)]
    assert points(bus, sink, "lr/1") == [(0, 0.25)]


def test_groups_with_the_same_name_get_an_index(
    bus: MetricBus, sink: MemorySink, model: nn.Linear
) -> None:
    groups = [
        {"params": [model.weight], "name": "all", "lr": 0.5},
        {"params": [model.bias], "name": "all", "lr": 0.25},
    ]
    optimizer = SGD(groups, lr=1.0)
    with watch_optimizer(bus, optimizer):
        make_step(model, optimizer)
    assert sink_names(bus, sink) == ["lr/all/0", "lr/all/1"]


def sink_names(bus: MetricBus, sink: MemorySink) -> list[str]:
    bus.flush()
    return sorted(sink.names())


def test_a_group_that_is_added_later_is_logged(
    bus: MetricBus, sink: MemorySink, model: nn.Linear
) -> None:
    optimizer = SGD([model.weight], lr=0.5)
    with watch_optimizer(bus, optimizer):
        make_step(model, optimizer)
        optimizer.add_param_group({"params": [model.bias], "lr": 0.25})
        make_step(model, optimizer)
    assert sink_names(bus, sink) == ["lr", "lr/0", "lr/1"]


def test_momentum_and_weight_decay_are_logged_on_request(
    bus: MetricBus, sink: MemorySink, model: nn.Linear
) -> None:
    optimizer = AdamW(model.parameters(), betas=(0.75, 0.99), weight_decay=0.125)
    with watch_optimizer(bus, optimizer, momentum=True, weight_decay=True):
        make_step(model, optimizer)
    assert points(bus, sink, "momentum") == [(0, 0.75)]
    assert points(bus, sink, "weight_decay") == [(0, 0.125)]


def test_logs_the_rate_the_step_was_made_with(
    bus: MetricBus, sink: MemorySink, model: nn.Linear
) -> None:
    optimizer = SGD(model.parameters(), lr=1.0)
    scheduler = StepLR(optimizer, step_size=1, gamma=0.5)
    with watch_optimizer(bus, optimizer):
        for _ in bus.steps(range(3)):
            make_step(model, optimizer)
            scheduler.step()
    assert points(bus, sink, "lr") == [(0, 1.0), (1, 0.5), (2, 0.25)]


def test_does_not_wait_for_a_rate_on_an_accelerator(
    bus: MetricBus, sink: MemorySink, model: nn.Linear, device: FakeAccelerator
) -> None:
    rate = torch.tensor(0.5)
    optimizer = Adam(model.parameters(), lr=rate, capturable=False, foreach=False)
    with watch_optimizer(bus, optimizer):
        make_step(model, optimizer)
        rate.fill_(0.25)
    device.released.set()
    assert points(bus, sink, "lr") == [(0, 0.5)]


def test_every_affects_logging_but_not_counting(
    bus: MetricBus, sink: MemorySink, model: nn.Linear
) -> None:
    optimizer = SGD(model.parameters(), lr=0.5)
    with watch_optimizer(bus, optimizer, every=2, advance=True):
        for _ in range(5):
            make_step(model, optimizer)
    assert points(bus, sink, "lr") == [(0, 0.5), (2, 0.5), (4, 0.5)]
    assert bus.step == 5


def test_does_not_advance_the_step_by_default(bus: MetricBus, model: nn.Linear) -> None:
    optimizer = SGD(model.parameters(), lr=0.5)
    with watch_optimizer(bus, optimizer):
        for _ in range(5):
            make_step(model, optimizer)
    assert bus.step == 0


def test_a_scope_prefixes_the_names_and_advances_the_step_of_its_bus(
    bus: MetricBus, sink: MemorySink, model: nn.Linear
) -> None:
    optimizer = SGD(model.parameters(), lr=0.5)
    with watch_optimizer(bus.scope("gan").scope("g"), optimizer, advance=True):
        make_step(model, optimizer)
    assert points(bus, sink, "gan/g/lr") == [(0, 0.5)]
    assert bus.step == 1


def test_a_bus_that_is_off_counts_steps(model: nn.Linear) -> None:
    optimizer = SGD(model.parameters(), lr=0.5)
    bus = MetricBus(disabled=True)
    with watch_optimizer(bus, optimizer, advance=True):
        make_step(model, optimizer)
    assert bus.step == 1


def loss_curve(folder: Path, accumulation: int) -> list[tuple[int, int | float]]:
    """Train a model for 6 optimizer steps on the same data, in batches of 16 / accumulation."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
    inputs, targets = torch.randn(6 * 16, 5), torch.randn(6 * 16, 1)
    optimizer = AdamW(model.parameters(), lr=0.05)
    sink = MemorySink()
    with (
        MetricBus(sinks=[sink], dir=folder) as bus,
        watch_optimizer(bus, optimizer, advance=True),
    ):
        bus.define("loss", every=accumulation, reduce="mean")
        size = 16 // accumulation
        batches = zip(torch.split(inputs, size), torch.split(targets, size), strict=True)
        for number, (x, y) in enumerate(batches, start=1):
            loss = nn.functional.mse_loss(model(x), y)
            bus.log("loss", loss)
            (loss / accumulation).backward()  # type: ignore[no-untyped-call]
            if number % accumulation == 0:
                optimizer.step()
                optimizer.zero_grad()
    return [(point.step, point.value) for point in sink.series("loss")]


@pytest.mark.parametrize("accumulation", [2, 4, 8])
def test_gradient_accumulation_gives_the_same_loss_curve(tmp_path: Path, accumulation: int) -> None:
    steps, losses = zip(*loss_curve(tmp_path, 1), strict=True)
    accumulated_steps, accumulated_losses = zip(*loss_curve(tmp_path, accumulation), strict=True)
    assert accumulated_steps == steps == (0, 1, 2, 3, 4, 5)
    assert accumulated_losses == pytest.approx(losses, rel=1e-5)


def test_combines_with_a_loop_that_does_not_advance(
    bus: MetricBus, sink: MemorySink, model: nn.Linear
) -> None:
    optimizer = SGD(model.parameters(), lr=0.5)
    with watch_optimizer(bus, optimizer, advance=True):
        for batch in bus.steps(range(4), advance=False):
            bus.log("loss", float(batch))
            if batch % 2:
                make_step(model, optimizer)
    assert points(bus, sink, "loss") == [(0, 0.0), (0, 1.0), (1, 2.0), (1, 3.0)]


def test_error_inside_an_advancing_loop_names_both_drivers(
    bus: MetricBus, model: nn.Linear
) -> None:
    optimizer = SGD(model.parameters(), lr=0.5)
    both = r"bus\.steps\(\) and watch_optimizer\(advance=True\).*steps\(loader, advance=False\)"
    for _ in bus.steps(range(1)):
        with pytest.raises(RuntimeError, match=both):
            watch_optimizer(bus, optimizer, advance=True)
    make_step(model, optimizer)
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("within", [False, True])
def test_error_for_an_advancing_loop_names_both_drivers(
    bus: MetricBus, model: nn.Linear, within: bool
) -> None:
    both = r"bus\.steps\(\) and watch_optimizer\(advance=True\).*steps\(loader, advance=False\)"
    with watch_optimizer(bus, SGD(model.parameters(), lr=0.5), advance=True):
        for _ in bus.steps(range(1), advance=False):
            with pytest.raises(RuntimeError, match=both):
                next(iter(bus.steps(range(1))))


def test_error_for_bus_advance_names_both_drivers(bus: MetricBus, model: nn.Linear) -> None:
    with (
        watch_optimizer(bus, SGD(model.parameters(), lr=0.5), advance=True),
        pytest.raises(RuntimeError, match=r"bus\.advance\(\) and watch_optimizer\(advance=True\)"),
    ):
        bus.advance()


def test_one_of_two_optimizers_advances_the_step(
    bus: MetricBus, sink: MemorySink, model: nn.Linear
) -> None:
    first, second = SGD([model.weight], lr=0.5), SGD([model.bias], lr=0.25)
    with (
        watch_optimizer(bus.scope("g"), first, advance=True),
        watch_optimizer(bus.scope("d"), second),
    ):
        for _ in range(2):
            make_step(model, second)
            make_step(model, first)
    assert points(bus, sink, "d/lr") == [(0, 0.25), (1, 0.25)]
    assert points(bus, sink, "g/lr") == [(0, 0.5), (1, 0.5)]


def test_rejects_two_optimizers_that_advance_the_step(bus: MetricBus, model: nn.Linear) -> None:
    first, second = SGD([model.weight], lr=0.5), SGD([model.bias], lr=0.25)
    with (
        watch_optimizer(bus, first, advance=True),
        pytest.raises(RuntimeError, match="use only one of them"),
    ):
        watch_optimizer(bus, second, advance=True)


def test_keeps_counting_after_the_default_bus_is_reconfigured(
    model: nn.Linear, tmp_path: Path
) -> None:
    bus = DefaultBus()
    bus._open(sinks="", dir=tmp_path)
    optimizer = SGD(model.parameters(), lr=0.5)
    with watch_optimizer(bus, optimizer, advance=True):
        make_step(model, optimizer)
        bus._open(sinks="", dir=tmp_path)
        make_step(model, optimizer)
        with pytest.raises(RuntimeError, match="would both"):
            bus.advance()
    assert bus.step == 1
    bus.close()


def test_a_checkpoint_at_the_end_of_an_epoch_resumes_with_the_next(
    bus: MetricBus, model: nn.Linear, tmp_path: Path
) -> None:
    states = []
    with watch_optimizer(bus, SGD(model.parameters(), lr=0.5), advance=True):
        for _ in bus.epochs(1):
            for _ in bus.steps(range(2), advance=False):
                states.append(bus.state_dict())
            states.append(bus.state_dict())
    mid_epoch, end_of_epoch = states[0], states[-1]
    for state, epoch in ((mid_epoch, 0), (end_of_epoch, 1)):
        with MetricBus(sinks="", dir=tmp_path) as resumed:
            resumed.load_state_dict(state)
            assert list(resumed.epochs(1)) == [epoch]


def test_steps_skipped_by_grad_scaler_do_not_count(
    bus: MetricBus, sink: MemorySink, model: nn.Linear
) -> None:
    optimizer, scaler = SGD(model.parameters(), lr=0.5), GradScaler("cpu", init_scale=8.0)
    with watch_optimizer(bus, optimizer, advance=True):
        for factor in (1.0, float("inf"), 1.0):
            make_scaled_step(model, optimizer, scaler, factor)
    assert points(bus, sink, "lr") == [(0, 0.5), (1, 0.5)]
    assert bus.step == 2


def test_skipped_fused_steps_do_not_count(
    bus: MetricBus, sink: MemorySink, model: nn.Linear
) -> None:
    optimizer = Adam(model.parameters(), lr=0.5, fused=True)
    scaler = GradScaler("cpu", init_scale=8.0)
    with watch_optimizer(bus, optimizer, advance=True):
        for factor in (1.0, float("inf"), 1.0):
            make_scaled_step(model, optimizer, scaler, factor)
    assert points(bus, sink, "amp/skipped") == [(0, 0.0), (1, 1.0), (1, 0.0)]
    assert points(bus, sink, "amp/scale") == [(0, 8.0), (1, 8.0), (1, 4.0)]
    assert bus.step == 2


def test_a_skip_that_becomes_known_late_is_corrected_at_a_later_step(
    bus: MetricBus, sink: MemorySink, model: nn.Linear, device: FakeAccelerator
) -> None:
    optimizer = Adam(model.parameters(), lr=0.5, fused=True)
    scaler = GradScaler("cpu", init_scale=8.0)
    seen = []
    with watch_optimizer(bus, optimizer, advance=True):
        for factor in (1.0, float("inf"), 1.0):
            make_scaled_step(model, optimizer, scaler, factor)
            seen.append(bus.step)
        device.released.set()
        bus.flush()
        for _ in range(2):
            make_scaled_step(model, optimizer, scaler)
            seen.append(bus.step)
    assert seen == [1, 2, 3, 3, 4]  # four steps were made
    assert [value for _, value in points(bus, sink, "amp/skipped")] == [0.0, 1.0, 0.0, 0.0, 0.0]


def test_omits_the_scale_if_gradients_were_unscaled_before(
    bus: MetricBus, sink: MemorySink, model: nn.Linear
) -> None:
    optimizer = Adam(model.parameters(), lr=0.5, fused=True)
    scaler = GradScaler("cpu", init_scale=8.0)
    with watch_optimizer(bus, optimizer, advance=True):
        scaler.scale(model(torch.ones(4, 3)).sum()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
    assert sink_names(bus, sink) == ["amp/skipped", "lr"]
    assert bus.step == 1


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is")  # torch.compile imports it
def test_a_compiled_step_counts_and_is_compiled_once(
    bus: MetricBus, sink: MemorySink, model: nn.Linear
) -> None:
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    optimizer = SGD(model.parameters(), lr=0.5)
    step = torch.compile(optimizer.step, backend=backend)
    model(torch.ones(4, 3)).sum().backward()
    with watch_optimizer(bus, optimizer, advance=True):
        step()
        first = len(graphs)
        for _ in range(4):
            step()
    assert points(bus, sink, "lr") == [(number, 0.5) for number in range(5)]
    assert len(graphs) == first


def test_remove_restores_the_optimizer(bus: MetricBus, model: nn.Linear) -> None:
    optimizer = SGD(model.parameters(), lr=0.5)
    before = dict(optimizer.__dict__)
    handle = watch_optimizer(bus, optimizer, advance=True)
    handle.remove()
    handle.remove()
    assert optimizer.__dict__ == before
    assert not optimizer._optimizer_step_post_hooks
    make_step(model, optimizer)
    assert bus.step == 0
    assert list(bus.steps("ab")) == ["a", "b"]


def test_a_watched_optimizer_is_saved_and_copied_without_the_hook(
    bus: MetricBus, model: nn.Linear
) -> None:
    optimizer = SGD(model.parameters(), lr=0.5, momentum=0.5)
    with watch_optimizer(bus, optimizer, advance=True):
        make_step(model, optimizer)
        saved = io.BytesIO()
        torch.save(optimizer, saved)
        saved.seek(0)
        loaded = torch.load(saved, weights_only=False)
        copied = copy.deepcopy(optimizer)
        copied.load_state_dict(optimizer.state_dict())
        for other in (loaded, copied):
            other.step()
    assert bus.step == 1
    assert set(optimizer.state_dict()) == {"state", "param_groups"}


def test_warns_about_values_that_cannot_be_logged_and_advances_the_step(
    bus: MetricBus, model: nn.Linear, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = SGD(model.parameters(), lr=0.5)
    optimizer.param_groups[0]["name"] = "n" * 2000
    with (
        watch_optimizer(bus, optimizer, advance=True),
        caplog.at_level(logging.WARNING, logger="metricbus"),
    ):
        make_step(model, optimizer)
        make_step(model, optimizer)
    assert len(caplog.records) == 1
    assert "watch_optimizer() cannot log" in caplog.text
    assert bus.step == 2


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        (None, "NoneType"),
        (nn.Linear(1, 1), "Linear"),
        (StepLR(SGD([torch.zeros(1)], lr=0.5), 1), r"StepLR; pass its \.optimizer"),
    ],
    ids=["none", "model", "scheduler"],
)
def test_rejects_objects_that_are_not_optimizers(bus: MetricBus, given: Any, hint: str) -> None:
    with pytest.raises(TypeError, match=f"takes a torch.optim.Optimizer, not {hint}"):
        watch_optimizer(bus, given)


def test_error_for_swapped_arguments_names_the_first_argument(
    bus: MetricBus, model: nn.Linear
) -> None:
    swapped: Any = (SGD(model.parameters(), lr=0.5), bus)
    with pytest.raises(
        TypeError, match=r"must be a MetricBus.*not SGD.*watch_optimizer\(bus, optimizer\)"
    ):
        watch_optimizer(*swapped)


def test_warns_about_a_second_watch_of_an_optimizer(
    bus: MetricBus, model: nn.Linear, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = SGD(model.parameters(), lr=0.5)
    with watch_optimizer(bus, optimizer), watch_optimizer(bus.scope("other"), optimizer):
        assert not caplog.records
        with watch_optimizer(bus, optimizer, advance=True):
            (warning,) = caplog.messages
    assert warning.startswith("watch_optimizer(): this SGD is already watched")


def test_rejects_a_quantity_that_the_optimizer_lacks(bus: MetricBus, model: nn.Linear) -> None:
    with pytest.raises(ValueError, match="Adagrad has no momentum; leave out momentum=True"):
        watch_optimizer(bus, Adagrad(model.parameters()), momentum=True)


@pytest.mark.parametrize(
    ("every", "kind"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)]
)
def test_rejects_an_invalid_every(
    bus: MetricBus, model: nn.Linear, every: Any, kind: type[Exception]
) -> None:
    with pytest.raises(kind, match="every= must be"):
        watch_optimizer(bus, SGD(model.parameters(), lr=0.5), every=every)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_does_not_synchronize_with_cuda(bus: MetricBus, sink: MemorySink) -> None:
    model = nn.Linear(3, 1, device="cuda")
    optimizer = Adam(model.parameters(), lr=torch.tensor(0.5, device="cuda"), fused=True)
    scaler = GradScaler("cuda", init_scale=8.0)
    inputs = torch.ones(4, 3, device="cuda")
    with watch_optimizer(bus, optimizer, advance=True):
        for factor in (1.0, float("inf"), 1.0):
            scaler.scale(model(inputs).sum() * factor).backward()
            torch.cuda.set_sync_debug_mode("error")
            try:
                scaler.step(optimizer)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            scaler.update()
            optimizer.zero_grad()
        bus.flush()
        scaler.scale(model(inputs).sum()).backward()
        scaler.step(optimizer)
    assert bus.step == 3
    assert [value for _, value in points(bus, sink, "lr")] == [0.5] * 4
