"""What modules put out, in one forward out of many."""

from __future__ import annotations

import copy
import gc
import io
import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from metricbus import MetricBus
from metricbus._common.device_values import ACCELERATORS, as_64_bits
from metricbus._common.records import Number
from metricbus.testing import MemorySink
from metricbus.torch._watch_activations import watch_activations


class LateDevice:
    """An accelerator in main memory, whose values do not come over until they are `let_go`."""

    def __init__(self) -> None:
        self.let_go = threading.Event()

    def stream(self, device: Any) -> str:
        return "the only one"

    def bring(self, device: Any, parts: Sequence[Tensor], streams: Iterable[Any]) -> NDArray[Any]:
        assert self.let_go.wait(30)
        found: NDArray[Any] = torch.cat([as_64_bits(part) for part in parts]).numpy().copy()
        return found


class Probe(nn.Module):
    """Keeps in `seen` how many hooks each module of the model has while it runs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.models = (model,)  # in a tuple, so that it is no module inside this one
        self.seen: list[list[int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(hooks_of(self.models[0]))
        return x


class Returns(nn.Module):
    """A module that returns whatever a function makes of its input."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 2)))


def rows(bus: MetricBus, sink: MemorySink) -> list[dict[str, Number]]:
    bus.flush()
    return [dict(record.values) for record in sink.records]


def logged(
    bus: MetricBus, sink: MemorySink, model: nn.Module, given: Tensor, **options: Any
) -> dict[str, Number]:
    """What one watched forward logs."""
    with watch_activations(bus, model, **options):
        model(given)
    (row,) = rows(bus, sink)
    return row


def hooks_of(model: nn.Module) -> list[int]:
    return [
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    ]


def test_the_numbers_are_those_of_the_outputs(
    bus: MetricBus, sink: MemorySink, model: nn.Sequential
) -> None:
    given = torch.randn(16, 3)
    hidden = model[0](given)
    row = logged(bus, sink, model, given)
    assert row["activations/0/mean"] == pytest.approx(hidden.mean().item())
    assert row["activations/0/std"] == pytest.approx(hidden.std(correction=0).item())
    assert row["activations/0/zeros"] == 0.0
    assert row["activations/1/zeros"] == pytest.approx((hidden <= 0).float().mean().item())
    assert {name.split("/")[1] for name in row} == {"0", "1", "2.0"}


def test_a_unit_that_is_zero_in_the_whole_batch_is_dead(bus: MetricBus, sink: MemorySink) -> None:
    given = torch.tensor([[0.0, 1.0, 0.0, 2.0], [0.0, 0.0, 0.0, 3.0]])
    row = logged(bus, sink, nn.Identity(), given)
    assert row["activations/dead"] == 0.5
    assert row["activations/zeros"] == 0.625


def test_the_units_of_pictures_are_their_channels(bus: MetricBus, sink: MemorySink) -> None:
    given = torch.ones(2, 4, 8, 8)
    given[:, 0] = 0.0
    given[0, 1] = 0.0
    assert logged(bus, sink, nn.Identity(), given)["activations/dead"] == 0.25


def test_another_dimension_can_have_the_units(bus: MetricBus, sink: MemorySink) -> None:
    given = torch.ones(2, 5, 4)
    given[..., :3] = 0.0
    row = logged(bus, sink, nn.Identity(), given, unit_dim=-1)
    assert row["activations/dead"] == 0.75


@pytest.mark.parametrize(("shape", "unit_dim"), [((5,), 1), ((5,), -1), ((2, 3), 2), ((2, 3), -2)])
def test_an_output_without_units_has_no_dead_ones(
    bus: MetricBus, sink: MemorySink, shape: tuple[int, ...], unit_dim: int
) -> None:
    row = logged(bus, sink, nn.Identity(), torch.ones(shape), unit_dim=unit_dim)
    assert row == {"activations/mean": 1.0, "activations/std": 0.0, "activations/zeros": 0.0}


def test_only_the_stats_that_are_asked_for_are_logged(bus: MetricBus, sink: MemorySink) -> None:
    row = logged(bus, sink, nn.Identity(), torch.zeros(2, 2), stats=["zeros", "mean"])
    assert row == {"activations/zeros": 1.0, "activations/mean": 0.0}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_all_real_types_are_measured(bus: MetricBus, sink: MemorySink, dtype: torch.dtype) -> None:
    row = logged(bus, sink, nn.Identity(), torch.tensor([[0, 300], [0, 300]], dtype=dtype))
    assert list(row.values()) == [150.0, 150.0, 0.5, 0.5]


def test_what_is_not_finite_is_told(bus: MetricBus, sink: MemorySink) -> None:
    row = logged(bus, sink, nn.Identity(), torch.tensor([[float("nan"), 1.0]]), stats=["mean"])
    assert row["activations/mean"] != row["activations/mean"]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: (x, None),
        lambda x: {"loss": None, "logits": x},
        lambda x: [["text", (x, x + 1)]],
    ],
    ids=["tuple", "dict", "nested"],
)
def test_of_several_outputs_the_first_tensor_is_measured(
    bus: MetricBus, sink: MemorySink, wrap: Callable[[Tensor], Any]
) -> None:
    row = logged(bus, sink, Returns(wrap), torch.full((2, 2), 3.0), stats=["mean"])
    assert row == {"activations/mean": 3.0}


@pytest.mark.parametrize(
    "output",
    [None, torch.empty(0, 3), torch.ones(2, 2).to_sparse(), torch.ones(2, dtype=torch.complex64)],
    ids=["none", "empty", "sparse", "complex"],
)
def test_what_cannot_be_measured_is_left_out(
    bus: MetricBus, sink: MemorySink, output: Tensor | None
) -> None:
    model = nn.Sequential(nn.Identity(), Returns(lambda _: output))
    row = logged(bus, sink, model, torch.ones(2, 2), stats=["mean"])
    assert row == {"activations/0/mean": 1.0}


def test_a_module_that_is_called_twice_gives_the_mean(bus: MetricBus, sink: MemorySink) -> None:
    shared = Returns(lambda x: x * 2)
    row = logged(bus, sink, nn.Sequential(shared, shared), torch.ones(2, 2), stats=["mean"])
    assert row == {"activations/0/mean": 3.0}


@pytest.mark.parametrize("modules", ["2.*", ["2.0"]], ids=["glob", "list"])
def test_modules_are_chosen_by_name(
    bus: MetricBus, sink: MemorySink, model: nn.Sequential, modules: Any
) -> None:
    row = logged(bus, sink, model, torch.ones(2, 3), modules=modules, stats=["mean"])
    assert list(row) == ["activations/2.0/mean"]


def test_a_name_may_be_that_of_a_module_with_others_inside(
    bus: MetricBus, sink: MemorySink, model: nn.Sequential
) -> None:
    row = logged(bus, sink, model, torch.ones(2, 3), modules="2", stats=["mean"])
    assert list(row) == ["activations/2/mean"]


def test_every_nth_forward_is_measured_at_the_current_step(
    bus: MetricBus, sink: MemorySink, model: nn.Sequential
) -> None:
    with watch_activations(bus, model, every=3):
        for _ in bus.steps(range(7)):
            model(torch.ones(2, 3))
    bus.flush()
    assert [record.step for record in sink.records] == [0, 3, 6]


def test_in_between_the_model_has_one_hook_that_counts(
    bus: MetricBus, model: nn.Sequential
) -> None:
    probe = Probe(model)
    model.append(probe)
    with watch_activations(bus, model, every=2):
        for _ in range(2):
            model(torch.ones(2, 3))
            assert hooks_of(model) == [1, 0, 0, 0, 0, 0]
    assert probe.seen == [[2, 1, 1, 0, 1, 1], [1, 0, 0, 0, 0, 0]]


def test_the_hook_never_moves_the_step(bus: MetricBus, model: nn.Sequential) -> None:
    with watch_activations(bus, model, every=1):
        for _ in range(3):
            model(torch.ones(2, 3))
    assert bus.step == 0


def test_in_evaluation_nothing_is_measured_or_counted(
    bus: MetricBus, sink: MemorySink, model: nn.Sequential
) -> None:
    with watch_activations(bus, model, every=2):
        model.eval()
        model(torch.ones(2, 3))
        assert rows(bus, sink) == []
        model.train()
        model(torch.ones(2, 3))
    assert len(rows(bus, sink)) == 1


def test_a_bus_that_is_off_measures_nothing(model: nn.Sequential) -> None:
    probe = Probe(model)
    model.append(probe)
    with watch_activations(MetricBus(disabled=True), model, every=1):
        model(torch.ones(2, 3))
    assert probe.seen == [[1, 0, 0, 0, 0, 0]]


def test_a_scope_prefixes_the_names(bus: MetricBus, sink: MemorySink, model: nn.Sequential) -> None:
    row = logged(bus.scope("critic"), sink, model, torch.ones(2, 3), modules="0", stats=["mean"])  # type: ignore[arg-type]
    assert list(row) == ["critic/activations/0/mean"]


def test_gradients_are_what_they_are_without_it(bus: MetricBus, model: nn.Sequential) -> None:
    given = torch.randn(4, 3)
    model(given).sum().backward()
    expected = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    with watch_activations(bus, model):
        model(given).sum().backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert gradient is not None
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)


def test_removed_it_leaves_the_model_as_it_was(bus: MetricBus, model: nn.Sequential) -> None:
    before = [dict(module.__dict__) for module in model.modules()]
    handle = watch_activations(bus, model)
    model(torch.ones(2, 3))
    handle.remove()
    handle.remove()
    assert [dict(module.__dict__) for module in model.modules()] == before
    assert hooks_of(model) == [0, 0, 0, 0, 0]


def test_a_forward_that_raises_leaves_nothing_behind(
    bus: MetricBus, sink: MemorySink, model: nn.Sequential
) -> None:
    with watch_activations(bus, model, every=2):
        with pytest.raises(RuntimeError, match="shapes"):
            model(torch.ones(2, 5))
        model(torch.ones(2, 3))
        assert hooks_of(model) == [1, 0, 0, 0, 0]
        assert rows(bus, sink) == []
        model(torch.ones(2, 3))
    assert len(rows(bus, sink)) == 1


def test_removed_after_a_forward_that_raised_it_leaves_the_model_as_it_was(
    bus: MetricBus, model: nn.Sequential
) -> None:
    with watch_activations(bus, model), pytest.raises(RuntimeError, match="shapes"):
        model(torch.ones(2, 5))
    assert hooks_of(model) == [0, 0, 0, 0, 0]


@pytest.mark.parametrize("by", ["pickle", "copy"])
def test_copies_of_a_watched_model_are_not_watched(
    bus: MetricBus, sink: MemorySink, model: nn.Sequential, by: str
) -> None:
    with watch_activations(bus, model, every=1):
        if by == "pickle":
            saved = io.BytesIO()
            torch.save(model, saved)
            saved.seek(0)
            other = torch.load(saved, weights_only=False)
        else:
            other = copy.deepcopy(model)
        given = torch.ones(2, 3)
        assert torch.equal(other(given), model(given))
    assert len(rows(bus, sink)) == 1


def test_numbers_on_an_accelerator_are_not_waited_for(
    bus: MetricBus, sink: MemorySink, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = LateDevice()
    monkeypatch.setitem(ACCELERATORS, "cpu", device)
    model, given = nn.Identity(), torch.ones(2, 2)
    with watch_activations(bus, model, stats=["mean", "dead"]):
        model(given)
        given.zero_()
    device.let_go.set()
    assert rows(bus, sink) == [{"activations/mean": 1.0, "activations/dead": 0.0}]


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_a_sharded_model_is_refused_with_the_reason(bus: MetricBus, model: nn.Sequential) -> None:
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(TypeError, match=r"watch_activations\(\) takes .* is sharded by"):
        watch_activations(bus, model)


@pytest.mark.usefixtures("one_rank")
def test_in_ddp_names_have_no_prefix(
    bus: MetricBus, sink: MemorySink, model: nn.Sequential
) -> None:
    wrapped = DistributedDataParallel(model)
    with watch_activations(bus, wrapped, stats=["mean"]):
        wrapped(torch.ones(2, 3)).sum().backward()
    (row,) = rows(bus, sink)
    assert list(row) == ["activations/0/mean", "activations/1/mean", "activations/2.0/mean"]


def test_a_model_that_is_compiled_later_has_no_graph_break(
    bus: MetricBus, model: nn.Sequential
) -> None:
    given = torch.ones(2, 3)
    expected = model(given)
    with watch_activations(bus, model, every=1):
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert torch.equal(compiled(given), expected)


@pytest.mark.parametrize("how", ["wrapped", "in place", "inside"])
def test_a_compiled_model_is_refused_with_the_reason(
    bus: MetricBus, model: nn.Sequential, how: str
) -> None:
    given: Any = model
    if how == "wrapped":
        given = torch.compile(model, backend="eager")
    elif how == "in place":
        model.compile(backend="eager")
    else:
        model[0].compile(backend="eager")
    with pytest.raises(TypeError, match="compiled calls do not see the hooks"):
        watch_activations(bus, given)
    assert hooks_of(model) == [0, 0, 0, 0, 0]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is")
def test_a_scripted_model_is_refused_with_the_reason(bus: MetricBus, model: nn.Sequential) -> None:
    with pytest.raises(TypeError, match="is scripted"):
        watch_activations(bus, torch.jit.script(model))


NO_FORWARD = "watch_activations(): it has seen no forward of the model in training mode"


@pytest.mark.parametrize("order", ["compiled later", "compiled before"])
def test_a_compiled_model_whose_forwards_are_not_seen_is_told_of_once(
    bus: MetricBus, model: nn.Sequential, caplog: pytest.LogCaptureFixture, order: str
) -> None:
    if order == "compiled before":
        compiled = torch.compile(model, backend="eager")
    with watch_activations(bus, model) as handle:
        if order == "compiled later":
            compiled = torch.compile(model, backend="eager")
        compiled(torch.ones(2, 3))
    handle.remove()
    bus.close()
    (told,) = caplog.messages
    assert told.startswith(NO_FORWARD)


def test_forwards_that_are_never_seen_are_told_of_when_the_run_is_closed(
    bus: MetricBus, model: nn.Sequential, caplog: pytest.LogCaptureFixture
) -> None:
    handle = watch_activations(bus, model)
    model[0](torch.ones(2, 3))
    bus.close()
    handle.remove()
    (told,) = caplog.messages
    assert told.startswith(NO_FORWARD)


def test_a_watch_that_has_seen_a_forward_ends_in_silence(
    bus: MetricBus, model: nn.Sequential, caplog: pytest.LogCaptureFixture
) -> None:
    with watch_activations(bus, model):
        model(torch.ones(2, 3))
    bus.close()
    assert not caplog.messages


def test_a_watch_of_a_bus_that_is_off_ends_in_silence(
    model: nn.Sequential, caplog: pytest.LogCaptureFixture
) -> None:
    with watch_activations(MetricBus(disabled=True), model):
        model(torch.ones(2, 3))
    assert not caplog.messages


def test_a_bus_keeps_no_watched_model_alive(bus: MetricBus) -> None:
    model = nn.Linear(3, 1)
    gone = weakref.ref(model)
    watch_activations(bus, model)
    model(torch.ones(2, 3))
    del model
    gc.collect()
    assert gone() is None


def test_a_model_that_is_watched_twice_is_warned_of(
    bus: MetricBus, model: nn.Sequential, caplog: pytest.LogCaptureFixture
) -> None:
    with watch_activations(bus, model), watch_activations(bus, model, modules="0", stats=["std"]):
        model(torch.ones(2, 3))
    (told,) = caplog.messages
    assert told.startswith("watch_activations(): this Sequential is watched already")


@pytest.mark.parametrize(
    ("one", "other"),
    [({"modules": "0"}, {"modules": "1"}), ({"stats": ["std"]}, {"stats": ["mean"]})],
    ids=["modules", "stats"],
)
def test_two_watches_that_log_different_names_go_together(
    bus: MetricBus,
    model: nn.Sequential,
    caplog: pytest.LogCaptureFixture,
    one: dict[str, Any],
    other: dict[str, Any],
) -> None:
    with watch_activations(bus, model, **one), watch_activations(bus, model, **other):
        model(torch.ones(2, 3))
    assert not caplog.messages


def test_what_cannot_be_logged_is_told_and_training_goes_on(
    bus: MetricBus, caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.Sequential(OrderedDict({"n" * 2000: nn.Identity()}))
    with (
        caplog.at_level(logging.WARNING, logger="metricbus"),
        watch_activations(bus, model, every=1),
    ):
        model(torch.ones(2, 2))
        model(torch.ones(2, 2))
    assert len(caplog.records) == 1
    assert "watch_activations() cannot log" in caplog.text


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"modules": "conv*"}, ValueError, r"'conv\*', which no module matches; there is: 0, 1"),
        ({"modules": [nn.ReLU()]}, TypeError, "takes globs and names, not ReLU"),
        ({"stats": ["median"]}, ValueError, "some of mean, std, zeros, dead"),
        ({"stats": []}, ValueError, "some of mean, std, zeros, dead"),
        ({"every": 0}, ValueError, "every= must be"),
        ({"unit_dim": 0}, ValueError, "0 is the batch"),
        ({"unit_dim": 1.0}, ValueError, "unit_dim= is"),
    ],
)
def test_bad_options_are_refused(
    bus: MetricBus,
    model: nn.Sequential,
    options: dict[str, Any],
    kind: type[Exception],
    message: str,
) -> None:
    with pytest.raises(kind, match=message):
        watch_activations(bus, model, **options)
    assert hooks_of(model) == [0, 0, 0, 0, 0]


def test_a_model_without_modules_inside_says_so_when_a_name_matches_none(bus: MetricBus) -> None:
    with pytest.raises(ValueError, match=r"'nosuch\*'.*has no modules inside; leave out modules="):
        watch_activations(bus, nn.Linear(1, 1), modules=["nosuch*"])


def test_swapped_with_the_bus_it_says_what_comes_first(
    bus: MetricBus, model: nn.Sequential
) -> None:
    swapped: Any = (model, bus)
    with pytest.raises(TypeError, match=r"is the bus.*not Sequential.*watch_activations\(bus, mod"):
        watch_activations(*swapped)


def test_what_is_no_model_is_refused(bus: MetricBus) -> None:
    given: Any = torch.relu
    with pytest.raises(TypeError, match=r"watch_activations\(\) takes a torch.nn.Module"):
        watch_activations(bus, given)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_nothing_waits_for_the_device(
    bus: MetricBus, sink: MemorySink, model: nn.Sequential
) -> None:
    model, given = model.cuda(), torch.ones(2, 3, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        with watch_activations(bus, model, every=1):
            model(given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    (row,) = rows(bus, sink)
    assert len(row) == 12
