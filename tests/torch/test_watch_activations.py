"""`watch_activations` logs statistics of module outputs on every n-th forward pass."""

from __future__ import annotations

import copy
import gc
import io
import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from metricbus import MetricBus
from metricbus._common.device_values import ACCELERATORS
from metricbus._common.records import Number
from metricbus.testing import MemorySink
from metricbus.torch._watch_activations import watch_activations
from tests.helpers.fake_accelerator import FakeAccelerator


class Probe(nn.Module):
    """Records in `seen` how many hooks each module of the model has while it runs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.models = (model,)  # in a tuple, so that it does not become a submodule
        self.seen: list[list[int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(hooks_of(self.models[0]))
        return x


class Returns(nn.Module):
    """A module that applies a function to its input."""

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
    """Return the row that one watched forward pass logs."""
    with watch_activations(bus, model, **options):
        model(given)
    (row,) = rows(bus, sink)
    return row


def hooks_of(model: nn.Module) -> list[int]:
    return [
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    ]


def test_logs_statistics_of_the_outputs(
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


def test_channels_are_the_units_of_images(bus: MetricBus, sink: MemorySink) -> None:
    given = torch.ones(2, 4, 8, 8)
    given[:, 0] = 0.0
    given[0, 1] = 0.0
    assert logged(bus, sink, nn.Identity(), given)["activations/dead"] == 0.25


def test_unit_dim_selects_the_dimension_of_the_units(bus: MetricBus, sink: MemorySink) -> None:
    given = torch.ones(2, 5, 4)
    given[..., :3] = 0.0
    row = logged(bus, sink, nn.Identity(), given, unit_dim=-1)
    assert row["activations/dead"] == 0.75


@pytest.mark.parametrize(("shape", "unit_dim"), [((5,), 1), ((5,), -1), ((2, 3), 2), ((2, 3), -2)])
def test_omits_dead_for_outputs_without_units(
    bus: MetricBus, sink: MemorySink, shape: tuple[int, ...], unit_dim: int
) -> None:
    row = logged(bus, sink, nn.Identity(), torch.ones(shape), unit_dim=unit_dim)
    assert row == {"activations/mean": 1.0, "activations/std": 0.0, "activations/zeros": 0.0}


def test_logs_only_the_requested_stats(bus: MetricBus, sink: MemorySink) -> None:
    row = logged(bus, sink, nn.Identity(), torch.zeros(2, 2), stats=["zeros", "mean"])
    assert row == {"activations/zeros": 1.0, "activations/mean": 0.0}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_measures_all_real_dtypes(bus: MetricBus, sink: MemorySink, dtype: torch.dtype) -> None:
    row = logged(bus, sink, nn.Identity(), torch.tensor([[0, 300], [0, 300]], dtype=dtype))
    assert list(row.values()) == [150.0, 150.0, 0.5, 0.5]


def test_logs_nonfinite_statistics(bus: MetricBus, sink: MemorySink) -> None:
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
def test_measures_the_first_tensor_of_several_outputs(
    bus: MetricBus, sink: MemorySink, wrap: Callable[[Tensor], Any]
) -> None:
    row = logged(bus, sink, Returns(wrap), torch.full((2, 2), 3.0), stats=["mean"])
    assert row == {"activations/mean": 3.0}


@pytest.mark.parametrize(
    "output",
    [None, torch.empty(0, 3), torch.ones(2, 2).to_sparse(), torch.ones(2, dtype=torch.complex64)],
    ids=["none", "empty", "sparse", "complex"],
)
def test_skips_outputs_that_cannot_be_measured(
    bus: MetricBus, sink: MemorySink, output: Tensor | None
) -> None:
    model = nn.Sequential(nn.Identity(), Returns(lambda _: output))
    row = logged(bus, sink, model, torch.ones(2, 2), stats=["mean"])
    assert row == {"activations/0/mean": 1.0}


def test_logs_the_mean_over_several_calls_of_a_module(bus: MetricBus, sink: MemorySink) -> None:
    shared = Returns(lambda x: x * 2)
    row = logged(bus, sink, nn.Sequential(shared, shared), torch.ones(2, 2), stats=["mean"])
    assert row == {"activations/0/mean": 3.0}


@pytest.mark.parametrize("modules", ["2.*", ["2.0"]], ids=["glob", "list"])
def test_modules_are_selected_by_name(
    bus: MetricBus, sink: MemorySink, model: nn.Sequential, modules: Any
) -> None:
    row = logged(bus, sink, model, torch.ones(2, 3), modules=modules, stats=["mean"])
    assert list(row) == ["activations/2.0/mean"]


def test_a_module_with_submodules_can_be_selected(
    bus: MetricBus, sink: MemorySink, model: nn.Sequential
) -> None:
    row = logged(bus, sink, model, torch.ones(2, 3), modules="2", stats=["mean"])
    assert list(row) == ["activations/2/mean"]


def test_logs_every_nth_forward_pass_at_the_current_step(
    bus: MetricBus, sink: MemorySink, model: nn.Sequential
) -> None:
    with watch_activations(bus, model, every=3):
        for _ in bus.steps(range(7)):
            model(torch.ones(2, 3))
    bus.flush()
    assert [record.step for record in sink.records] == [0, 3, 6]


def test_the_model_has_a_single_hook_between_logged_passes(
    bus: MetricBus, model: nn.Sequential
) -> None:
    probe = Probe(model)
    model.append(probe)
    with watch_activations(bus, model, every=2):
        for _ in range(2):
            model(torch.ones(2, 3))
            assert hooks_of(model) == [1, 0, 0, 0, 0, 0]
    assert probe.seen == [[2, 1, 1, 0, 1, 1], [1, 0, 0, 0, 0, 0]]


def test_does_not_advance_the_step(bus: MetricBus, model: nn.Sequential) -> None:
    with watch_activations(bus, model, every=1):
        for _ in range(3):
            model(torch.ones(2, 3))
    assert bus.step == 0


def test_ignores_forward_passes_in_evaluation_mode(
    bus: MetricBus, sink: MemorySink, model: nn.Sequential
) -> None:
    with watch_activations(bus, model, every=2):
        model.eval()
        model(torch.ones(2, 3))
        assert rows(bus, sink) == []
        model.train()
        model(torch.ones(2, 3))
    assert len(rows(bus, sink)) == 1


def test_measures_nothing_when_the_bus_is_off(model: nn.Sequential) -> None:
    probe = Probe(model)
    model.append(probe)
    with watch_activations(MetricBus(disabled=True), model, every=1):
        model(torch.ones(2, 3))
    assert probe.seen == [[1, 0, 0, 0, 0, 0]]


def test_a_scope_prefixes_the_names(bus: MetricBus, sink: MemorySink, model: nn.Sequential) -> None:
    row = logged(bus.scope("critic"), sink, model, torch.ones(2, 3), modules="0", stats=["mean"])
    assert list(row) == ["critic/activations/0/mean"]


def test_does_not_change_gradients(bus: MetricBus, model: nn.Sequential) -> None:
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


def test_remove_restores_the_model(bus: MetricBus, model: nn.Sequential) -> None:
    before = [dict(module.__dict__) for module in model.modules()]
    handle = watch_activations(bus, model)
    model(torch.ones(2, 3))
    handle.remove()
    handle.remove()
    assert [dict(module.__dict__) for module in model.modules()] == before
    assert hooks_of(model) == [0, 0, 0, 0, 0]


def test_a_forward_pass_that_raises_leaves_no_state_behind(
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


def test_remove_restores_the_model_after_a_forward_pass_that_raised(
    bus: MetricBus, model: nn.Sequential
) -> None:
    with watch_activations(bus, model), pytest.raises(RuntimeError, match="shapes"):
        model(torch.ones(2, 5))
    assert hooks_of(model) == [0, 0, 0, 0, 0]


@pytest.mark.parametrize("method", ["pickle", "copy"])
def test_copies_of_a_watched_model_are_not_watched(
    bus: MetricBus, sink: MemorySink, model: nn.Sequential, method: str
) -> None:
    with watch_activations(bus, model, every=1):
        if method == "pickle":
            saved = io.BytesIO()
            torch.save(model, saved)
            saved.seek(0)
            copied = torch.load(saved, weights_only=False)
        else:
            copied = copy.deepcopy(model)
        given = torch.ones(2, 3)
        assert torch.equal(copied(given), model(given))
    assert len(rows(bus, sink)) == 1


def test_does_not_wait_for_values_on_an_accelerator(
    bus: MetricBus, sink: MemorySink, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = FakeAccelerator(blocked=True)
    monkeypatch.setitem(ACCELERATORS, "cpu", device)
    model, given = nn.Identity(), torch.ones(2, 2)
    with watch_activations(bus, model, stats=["mean", "dead"]):
        model(given)
        given.zero_()
    device.released.set()
    assert rows(bus, sink) == [{"activations/mean": 1.0, "activations/dead": 0.0}]


@pytest.mark.usefixtures("one_rank")
def test_rejects_a_sharded_model_with_the_reason(bus: MetricBus, model: nn.Sequential) -> None:
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(TypeError, match=r"watch_activations\(\) needs .* is sharded by"):
        watch_activations(bus, model)


@pytest.mark.usefixtures("one_rank")
def test_names_in_ddp_have_no_prefix(
    bus: MetricBus, sink: MemorySink, model: nn.Sequential
) -> None:
    wrapped = DistributedDataParallel(model)
    with watch_activations(bus, wrapped, stats=["mean"]):
        wrapped(torch.ones(2, 3)).sum().backward()
    (row,) = rows(bus, sink)
    assert list(row) == ["activations/0/mean", "activations/1/mean", "activations/2.0/mean"]


def test_adds_no_graph_break_to_a_model_compiled_later(
    bus: MetricBus, model: nn.Sequential
) -> None:
    given = torch.ones(2, 3)
    expected = model(given)
    with watch_activations(bus, model, every=1):
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert torch.equal(compiled(given), expected)


@pytest.mark.parametrize("method", ["wrapped", "in place", "submodule"])
def test_rejects_a_compiled_model_with_the_reason(
    bus: MetricBus, model: nn.Sequential, method: str
) -> None:
    given: Any = model
    if method == "wrapped":
        given = torch.compile(model, backend="eager")
    elif method == "in place":
        model.compile(backend="eager")
    else:
        model[0].compile(backend="eager")
    with pytest.raises(TypeError, match="is compiled, and compiled calls skip hooks"):
        watch_activations(bus, given)
    assert hooks_of(model) == [0, 0, 0, 0, 0]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is")
def test_rejects_a_scripted_model_with_the_reason(bus: MetricBus, model: nn.Sequential) -> None:
    with pytest.raises(TypeError, match="is scripted"):
        watch_activations(bus, torch.jit.script(model))


NO_FORWARD = "watch_activations(): nothing was logged, because the hook was never called"


@pytest.mark.parametrize("order", ["compiled later", "compiled before"])
def test_warns_once_if_a_compiled_model_never_calls_the_hook(
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
    (warning,) = caplog.messages
    assert warning.startswith(NO_FORWARD)


def test_warns_when_the_run_is_closed_if_the_hook_was_never_called(
    bus: MetricBus, model: nn.Sequential, caplog: pytest.LogCaptureFixture
) -> None:
    handle = watch_activations(bus, model)
    model[0](torch.ones(2, 3))
    bus.close()
    handle.remove()
    (warning,) = caplog.messages
    assert warning.startswith(NO_FORWARD)


def test_does_not_warn_if_the_hook_was_called(
    bus: MetricBus, model: nn.Sequential, caplog: pytest.LogCaptureFixture
) -> None:
    with watch_activations(bus, model):
        model(torch.ones(2, 3))
    bus.close()
    assert not caplog.messages


def test_does_not_warn_if_the_bus_is_off(
    model: nn.Sequential, caplog: pytest.LogCaptureFixture
) -> None:
    with watch_activations(MetricBus(disabled=True), model):
        model(torch.ones(2, 3))
    assert not caplog.messages


def test_does_not_keep_the_model_alive(bus: MetricBus) -> None:
    model = nn.Linear(3, 1)
    reference = weakref.ref(model)
    watch_activations(bus, model)
    model(torch.ones(2, 3))
    del model
    gc.collect()
    assert reference() is None


def test_warns_about_a_second_watch_of_a_model(
    bus: MetricBus, model: nn.Sequential, caplog: pytest.LogCaptureFixture
) -> None:
    with watch_activations(bus, model), watch_activations(bus, model, modules="0", stats=["std"]):
        model(torch.ones(2, 3))
    (warning,) = caplog.messages
    assert warning.startswith("watch_activations(): this Sequential is already watched")


@pytest.mark.parametrize(
    ("first", "second"),
    [({"modules": "0"}, {"modules": "1"}), ({"stats": ["std"]}, {"stats": ["mean"]})],
    ids=["modules", "stats"],
)
def test_does_not_warn_about_watches_that_log_different_names(
    bus: MetricBus,
    model: nn.Sequential,
    caplog: pytest.LogCaptureFixture,
    first: dict[str, Any],
    second: dict[str, Any],
) -> None:
    with watch_activations(bus, model, **first), watch_activations(bus, model, **second):
        model(torch.ones(2, 3))
    assert not caplog.messages


def test_warns_about_values_that_cannot_be_logged_and_training_continues(
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
        (
            {"modules": "conv*"},
            ValueError,
            r"no module .* matches modules='conv\*'; its modules are 0, 1",
        ),
        ({"modules": [nn.ReLU()]}, TypeError, "takes globs and names, not ReLU"),
        ({"stats": ["median"]}, ValueError, "some of mean, std, zeros, dead"),
        ({"stats": []}, ValueError, "some of mean, std, zeros, dead"),
        ({"every": 0}, ValueError, "every= must be"),
        ({"unit_dim": 0}, ValueError, "0 is the batch"),
        ({"unit_dim": 1.0}, ValueError, "unit_dim= must be"),
    ],
)
def test_rejects_invalid_options(
    bus: MetricBus,
    model: nn.Sequential,
    options: dict[str, Any],
    kind: type[Exception],
    message: str,
) -> None:
    with pytest.raises(kind, match=message):
        watch_activations(bus, model, **options)
    assert hooks_of(model) == [0, 0, 0, 0, 0]


def test_error_for_an_unmatched_name_mentions_a_model_without_submodules(bus: MetricBus) -> None:
    with pytest.raises(ValueError, match=r"'nosuch\*'.*has no submodules; leave out modules="):
        watch_activations(bus, nn.Linear(1, 1), modules=["nosuch*"])


def test_error_for_swapped_arguments_names_the_first_argument(
    bus: MetricBus, model: nn.Sequential
) -> None:
    swapped: Any = (model, bus)
    with pytest.raises(
        TypeError, match=r"must be a MetricBus.*not Sequential.*watch_activations\(bus, mod"
    ):
        watch_activations(*swapped)


def test_rejects_objects_that_are_not_modules(bus: MetricBus) -> None:
    given: Any = torch.relu
    with pytest.raises(TypeError, match=r"watch_activations\(\) takes a torch.nn.Module"):
        watch_activations(bus, given)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_does_not_synchronize_with_cuda(
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
