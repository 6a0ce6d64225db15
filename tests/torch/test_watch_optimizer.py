"""Learning rates as they are used, and a step that counts real optimizer steps."""

from __future__ import annotations

import copy
import io
import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import StepLR

from metricbus import MetricBus
from metricbus._bus.default_bus import DefaultBus
from metricbus._common.device_values import ACCELERATORS, as_64_bits
from metricbus.testing import MemorySink
from metricbus.torch._watch_optimizer import watch_optimizer


class LateDevice:
    """An accelerator in main memory, whose values do not come over until they are `let_go`."""

    def __init__(self) -> None:
        self.let_go = threading.Event()

    def stream(self, device: Any) -> str:
        return "the only one"

    def bring(
        self, device: Any, parts: Sequence[torch.Tensor], streams: Iterable[Any]
    ) -> NDArray[Any]:
        assert self.let_go.wait(30)
        found: NDArray[Any] = torch.cat([as_64_bits(part) for part in parts]).numpy().copy()
        return found


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, bus: MetricBus) -> Iterator[LateDevice]:
    device = LateDevice()
    monkeypatch.setitem(ACCELERATORS, "cpu", device)
    yield device
    device.let_go.set()


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


def test_the_rate_of_one_group_is_called_lr(
    bus: MetricBus, sink: MemorySink, model: nn.Linear
) -> None:
    optimizer = SGD(model.parameters(), lr=0.5)
    with watch_optimizer(bus, optimizer):
        for _ in bus.steps(range(2)):
            make_step(model, optimizer)
    assert points(bus, sink, "lr") == [(0, 0.5), (1, 0.5)]


def test_groups_are_called_by_their_names_or_numbers(
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


def test_groups_of_the_same_name_are_told_apart(
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


def test_the_rate_is_that_with_which_the_step_was_made(
    bus: MetricBus, sink: MemorySink, model: nn.Linear
) -> None:
    optimizer = SGD(model.parameters(), lr=1.0)
    scheduler = StepLR(optimizer, step_size=1, gamma=0.5)
    with watch_optimizer(bus, optimizer):
        for _ in bus.steps(range(3)):
            make_step(model, optimizer)
            scheduler.step()
    assert points(bus, sink, "lr") == [(0, 1.0), (1, 0.5), (2, 0.25)]


def test_a_rate_that_is_a_tensor_is_not_waited_for(
    bus: MetricBus, sink: MemorySink, model: nn.Linear, device: LateDevice
) -> None:
    rate = torch.tensor(0.5)
    optimizer = Adam(model.parameters(), lr=rate, capturable=False, foreach=False)
    with watch_optimizer(bus, optimizer):
        make_step(model, optimizer)
        rate.fill_(0.25)
    device.let_go.set()
    assert points(bus, sink, "lr") == [(0, 0.5)]


def test_every_thins_the_rates_and_not_the_counting(
    bus: MetricBus, sink: MemorySink, model: nn.Linear
) -> None:
    optimizer = SGD(model.parameters(), lr=0.5)
    with watch_optimizer(bus, optimizer, every=2, advance=True):
        for _ in range(5):
            make_step(model, optimizer)
    assert points(bus, sink, "lr") == [(0, 0.5), (2, 0.5), (4, 0.5)]
    assert bus.step == 5


def test_the_hook_alone_never_moves_the_step(bus: MetricBus, model: nn.Linear) -> None:
    optimizer = SGD(model.parameters(), lr=0.5)
    with watch_optimizer(bus, optimizer):
        for _ in range(5):
            make_step(model, optimizer)
    assert bus.step == 0


def test_a_scope_prefixes_the_names_and_moves_the_step_of_its_bus(
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
    """A model trained with 6 optimizer steps on the same data, in batches of 16 / accumulation."""
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
def test_accumulation_gives_the_same_loss_curve(tmp_path: Path, accumulation: int) -> None:
    steps, losses = zip(*loss_curve(tmp_path, 1), strict=True)
    found_steps, found_losses = zip(*loss_curve(tmp_path, accumulation), strict=True)
    assert found_steps == steps == (0, 1, 2, 3, 4, 5)
    assert found_losses == pytest.approx(losses, rel=1e-5)


def test_a_loop_that_does_not_advance_goes_with_it(
    bus: MetricBus, sink: MemorySink, model: nn.Linear
) -> None:
    optimizer = SGD(model.parameters(), lr=0.5)
    with watch_optimizer(bus, optimizer, advance=True):
        for batch in bus.steps(range(4), advance=False):
            bus.log("loss", float(batch))
            if batch % 2:
                make_step(model, optimizer)
    assert points(bus, sink, "loss") == [(0, 0.0), (0, 1.0), (1, 2.0), (1, 3.0)]


def test_within_a_running_loop_it_is_an_error_that_names_both(
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
def test_a_loop_that_advances_beside_it_is_an_error_that_names_both(
    bus: MetricBus, model: nn.Linear, within: bool
) -> None:
    both = r"bus\.steps\(\) and watch_optimizer\(advance=True\).*steps\(loader, advance=False\)"
    with watch_optimizer(bus, SGD(model.parameters(), lr=0.5), advance=True):
        for _ in bus.steps(range(1), advance=False):
            with pytest.raises(RuntimeError, match=both):
                next(iter(bus.steps(range(1))))


def test_advance_beside_it_is_an_error_that_names_both(bus: MetricBus, model: nn.Linear) -> None:
    with (
        watch_optimizer(bus, SGD(model.parameters(), lr=0.5), advance=True),
        pytest.raises(RuntimeError, match=r"bus\.advance\(\) and watch_optimizer\(advance=True\)"),
    ):
        bus.advance()


def test_of_two_optimizers_one_moves_the_step(
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


def test_two_optimizers_that_both_move_the_step_are_an_error(
    bus: MetricBus, model: nn.Linear
) -> None:
    first, second = SGD([model.weight], lr=0.5), SGD([model.bias], lr=0.25)
    with (
        watch_optimizer(bus, first, advance=True),
        pytest.raises(RuntimeError, match="leave it to one of them"),
    ):
        watch_optimizer(bus, second, advance=True)


def test_a_process_wide_bus_that_is_configured_anew_goes_on_counting(
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


def test_a_checkpoint_at_the_end_of_an_epoch_goes_on_with_the_next(
    bus: MetricBus, model: nn.Linear, tmp_path: Path
) -> None:
    states = []
    with watch_optimizer(bus, SGD(model.parameters(), lr=0.5), advance=True):
        for _ in bus.epochs(1):
            for _ in bus.steps(range(2), advance=False):
                states.append(bus.state_dict())
            states.append(bus.state_dict())
    within, at_the_end = states[0], states[-1]
    for state, epoch in ((within, 0), (at_the_end, 1)):
        with MetricBus(sinks="", dir=tmp_path) as resumed:
            resumed.load_state_dict(state)
            assert list(resumed.epochs(1)) == [epoch]


def test_a_step_that_the_scaler_skips_does_not_count(
    bus: MetricBus, sink: MemorySink, model: nn.Linear
) -> None:
    optimizer, scaler = SGD(model.parameters(), lr=0.5), GradScaler("cpu", init_scale=8.0)
    with watch_optimizer(bus, optimizer, advance=True):
        for factor in (1.0, float("inf"), 1.0):
            make_scaled_step(model, optimizer, scaler, factor)
    assert points(bus, sink, "lr") == [(0, 0.5), (1, 0.5)]
    assert bus.step == 2


def test_a_fused_step_that_is_skipped_does_not_count(
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


def test_a_skip_that_comes_over_late_holds_the_step_still(
    bus: MetricBus, sink: MemorySink, model: nn.Linear, device: LateDevice
) -> None:
    optimizer = Adam(model.parameters(), lr=0.5, fused=True)
    scaler = GradScaler("cpu", init_scale=8.0)
    seen = []
    with watch_optimizer(bus, optimizer, advance=True):
        for factor in (1.0, float("inf"), 1.0):
            make_scaled_step(model, optimizer, scaler, factor)
            seen.append(bus.step)
        device.let_go.set()
        bus.flush()
        for _ in range(2):
            make_scaled_step(model, optimizer, scaler)
            seen.append(bus.step)
    assert seen == [1, 2, 3, 3, 4]  # four steps were made
    assert [value for _, value in points(bus, sink, "amp/skipped")] == [0.0, 1.0, 0.0, 0.0, 0.0]


def test_gradients_that_were_unscaled_before_leave_out_the_scale(
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


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is")  # what compiling imports
def test_a_step_that_is_compiled_counts_and_is_compiled_once(
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


def test_removed_it_leaves_the_optimizer_as_it_was(bus: MetricBus, model: nn.Linear) -> None:
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


def test_what_cannot_be_logged_is_told_and_the_step_moves(
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
        (StepLR(SGD([torch.zeros(1)], lr=0.5), 1), r"StepLR; give its \.optimizer"),
    ],
    ids=["nothing", "model", "scheduler"],
)
def test_what_is_no_optimizer_is_refused(bus: MetricBus, given: Any, hint: str) -> None:
    with pytest.raises(TypeError, match=f"takes a torch.optim.Optimizer, not {hint}"):
        watch_optimizer(bus, given)


def test_swapped_with_the_bus_it_says_what_comes_first(bus: MetricBus, model: nn.Linear) -> None:
    swapped: Any = (SGD(model.parameters(), lr=0.5), bus)
    with pytest.raises(TypeError, match=r"is the bus.*not SGD.*watch_optimizer\(bus, optimizer\)"):
        watch_optimizer(*swapped)


def test_an_optimizer_that_is_watched_twice_is_warned_of(
    bus: MetricBus, model: nn.Linear, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = SGD(model.parameters(), lr=0.5)
    with watch_optimizer(bus, optimizer), watch_optimizer(bus.scope("other"), optimizer):
        assert not caplog.records
        with watch_optimizer(bus, optimizer, advance=True):
            (told,) = caplog.messages
    assert told.startswith("watch_optimizer(): this SGD is watched already")


def test_a_quantity_that_the_optimizer_does_not_have_is_refused(
    bus: MetricBus, model: nn.Linear
) -> None:
    with pytest.raises(ValueError, match="Adagrad has no momentum; leave out momentum=True"):
        watch_optimizer(bus, Adagrad(model.parameters()), momentum=True)


@pytest.mark.parametrize(
    ("every", "kind"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)]
)
def test_a_bad_every_is_refused(
    bus: MetricBus, model: nn.Linear, every: Any, kind: type[Exception]
) -> None:
    with pytest.raises(kind, match="every= must be"):
        watch_optimizer(bus, SGD(model.parameters(), lr=0.5), every=every)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_nothing_waits_for_the_device(bus: MetricBus, sink: MemorySink) -> None:
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
