"""Packages whose internals have changed: a warning, and the documented weaker behavior.

Each test removes or renames an internal of the real package.
"""

from __future__ import annotations

import logging
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow.exceptions
import pytest
import torch
import torchmetrics
import tqdm
import wandb
from torch import nn
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.wrappers import ClasswiseWrapper, Running
from wandb.sdk.interface.interface_sock import InterfaceSock
from wandb.sdk.mailbox.mailbox_handle import HandleAbandonedError

import metricbus
from metricbus import MetricBus
from metricbus._common.tqdm_logging import ConsoleHandlers, TqdmStreamHandler
from metricbus._compat import cpython, degrade
from metricbus._compat import torch as torch_internals
from metricbus._compat import tqdm as tqdm_internals
from metricbus._compat import wandb as wandb_internals
from metricbus._ingest.torchmetrics_values import TorchmetricsValues
from metricbus.errors import BackendUnavailableError
from metricbus.sinks.mlflow.store import api_calls
from metricbus.torch import watch, watch_activations, watch_optimizer
from metricbus.torch._modules import parameter_names
from tests.helpers.limits import HANG_SECS
from tests.helpers.rank_scenarios import agree_without_store, run_ranks
from tests.helpers.scripts import run_script
from tests.helpers.wandb_reader import wandb_rows

PAGE = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text()

Warned = Callable[[str], bool]


@pytest.fixture(autouse=True)
def forget_earlier_probes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(degrade, "_reported", set())
    caches = (
        torch_internals._has_foreach,
        torch_internals._check_grad_scaler,
        wandb_internals._connection_errors,
    )
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Warned:
    """A function that checks for exactly one warning, about an internal that the page lists."""

    def warned(internal: str) -> bool:
        assert f"`{internal}`" in PAGE
        messages = [
            record.getMessage() for record in caplog.records if record.name == "metricbus.compat"
        ]
        return len(messages) == 1 and f": {internal} differs" in messages[0]

    return warned


def test_the_warning_names_version_loss_and_way_out(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        with degrade.degrading("torch", "torch._gone", "it is slow"):
            raise AttributeError("no _gone")
    assert [record.getMessage() for record in caplog.records] == [
        f"torch {torch.__version__}: torch._gone differs from what metricbus expects "
        "(AttributeError: no _gone), so it is slow. Update metricbus, or install a version of "
        "torch that docs/compatibility.md lists"
    ]


def test_a_full_disk_is_not_a_changed_internal(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(OSError, match="full"), degrade.degrading("wandb", "its files", "none"):
        raise OSError("full")
    assert not caplog.records


# Python


def test_without_finalizers_a_worker_process_warns(
    monkeypatch: pytest.MonkeyPatch, warned: Warned
) -> None:
    monkeypatch.setattr(multiprocessing, "parent_process", object)
    monkeypatch.delattr("multiprocessing.util.Finalize")
    cpython.call_at_worker_end(print)
    assert warned("multiprocessing.util.Finalize")


def test_without_a_list_of_loggers_the_handlers_of_the_root_logger_are_known(
    monkeypatch: pytest.MonkeyPatch, warned: Warned
) -> None:
    with monkeypatch.context() as changed:
        changed.delattr(logging.getLogger().manager, "loggerDict")
        found = cpython.all_handlers()
    assert found == [*logging.getLogger().handlers, logging.lastResort]
    assert warned("logging.Logger.manager.loggerDict")


def test_if_the_class_cannot_be_changed_existing_handlers_write_above_bars(
    monkeypatch: pytest.MonkeyPatch, warned: Warned
) -> None:
    class Frozen(type):
        def __setattr__(cls, name: str, value: object) -> None:
            raise TypeError("cannot set attribute of an immutable type")

    class StreamHandler(logging.StreamHandler[Any], metaclass=Frozen):
        pass

    handler = logging.StreamHandler(sys.stderr)
    monkeypatch.setattr(logging.getLogger(), "handlers", [*logging.getLogger().handlers, handler])
    monkeypatch.setattr(logging, "StreamHandler", StreamHandler)
    console = ConsoleHandlers()
    console.wrap()
    assert "emit" in vars(handler)
    console.unwrap()
    assert "emit" not in vars(handler)
    assert warned("logging.StreamHandler.emit")


# tqdm


def test_without_a_list_of_bars_log_lines_are_written_and_loops_run(
    bus: MetricBus,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    warned: Warned,
) -> None:
    logger = logging.getLogger("own")
    monkeypatch.setattr(logger, "handlers", [TqdmStreamHandler()])
    renamed = type("tqdm", (tqdm.std.tqdm,), {"_instances": None})
    for step in bus.steps(range(2), progress=True):
        monkeypatch.setattr(tqdm.std, "tqdm", renamed)
        logger.warning("a line in step %d", step)
    written = capsys.readouterr().err
    assert "a line in step 1" in written
    assert "2/2" in written
    assert warned("tqdm._instances")


def test_without_tqdms_lock_bars_are_drawn(
    bus: MetricBus,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    warned: Warned,
) -> None:
    monkeypatch.delattr(tqdm.std.tqdm, "_lock", raising=False)
    monkeypatch.delattr(tqdm.std.TqdmDefaultWriteLock, "th_lock")
    list(bus.steps(range(2), progress=True))
    with tqdm_internals.bar_lock():
        assert "2/2" in capsys.readouterr().err
    assert warned("TqdmDefaultWriteLock.th_lock")


@pytest.mark.parametrize("method", ["__init__", "refresh"])
def test_if_tqdm_cannot_be_subclassed_the_loop_has_no_bar(
    bus: MetricBus, monkeypatch: pytest.MonkeyPatch, warned: Warned, method: str
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise TypeError("takes no arguments")

    monkeypatch.setattr(tqdm.std.tqdm, method, fail)
    assert list(bus.steps(range(3), progress=True)) == [0, 1, 2]
    assert warned("the class tqdm")


# torch


def test_without_a_store_ranks_agree(tmp_path: Path) -> None:
    internal = "torch.distributed.distributed_c10d._get_default_store"
    assert f"`{internal}`" in PAGE
    for agreed, text in run_ranks(tmp_path, 2, agree_without_store):
        assert agreed == 0
        assert internal in text


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # raised by torch.compile
def test_an_unknown_wrapper_stays_in_the_names(
    monkeypatch: pytest.MonkeyPatch, warned: Warned
) -> None:
    monkeypatch.setattr(torch_internals, "_WRAPPED", ())
    model: Any = torch.compile(nn.Linear(1, 1, bias=False))
    assert list(parameter_names(model).values()) == ["_orig_mod.weight"]
    assert warned("the wrapper OptimizedModule")


def test_a_module_that_may_be_compiled_is_watched(
    bus: MetricBus, monkeypatch: pytest.MonkeyPatch, warned: Warned
) -> None:
    model = nn.Linear(1, 1)
    with monkeypatch.context() as changed:
        changed.delattr(nn.Module, "_compiled_call_impl")
        watched = watch_activations(bus, model)
    with watched:
        model(torch.ones(1, 1))
    assert bus.last("activations/mean") is not None
    assert warned("torch.nn.Module._compiled_call_impl")


def watched_norms(bus: MetricBus) -> list[Any]:
    """Watch a step of SGD on half-precision and other weights; return the last values."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1).to(torch.bfloat16))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, foreach=False)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.25)
    with watch(bus, model, log="all", histograms=False):
        optimizer.step()
    names = [name for name, _ in model.named_parameters()]
    kinds = ("grad_norm", "param_norm", "update_ratio")
    return [bus.last(f"{kind}/{name}") for kind in kinds for name in names]


def test_without_operations_on_lists_the_norms_are_the_same(
    bus: MetricBus, monkeypatch: pytest.MonkeyPatch, warned: Warned
) -> None:
    expected = watched_norms(bus)
    monkeypatch.delattr(torch, "_foreach_norm")
    torch_internals._has_foreach.cache_clear()
    assert watched_norms(bus) == pytest.approx(expected)
    assert None not in expected
    assert warned("torch._foreach_*")


def test_with_an_unknown_grad_scaler_rates_are_logged(
    bus: MetricBus, monkeypatch: pytest.MonkeyPatch, warned: Warned
) -> None:
    monkeypatch.setattr(torch.amp.GradScaler, "step", lambda self, optimizer: optimizer.step())
    weight = nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    optimizer = torch.optim.Adam([weight], lr=0.5, fused=True)
    with watch_optimizer(bus, optimizer):
        torch.amp.GradScaler("cpu").step(optimizer)
    assert bus.last("lr") == 0.5
    assert warned("torch.amp.GradScaler.step")


# torchmetrics


def computed_names(metric: torchmetrics.Metric) -> list[str]:
    values = TorchmetricsValues()
    values.add("m", metric, 0, 0)
    return [name for one in values.compute(sync=False) for name in one.values]


def test_without_the_class_of_wrappers_their_metrics_are_computed_without_data(
    monkeypatch: pytest.MonkeyPatch, warned: Warned
) -> None:
    monkeypatch.delattr("torchmetrics.wrappers.abstract.WrapperMetric")
    metric = ClasswiseWrapper(MulticlassAccuracy(2, average=None), prefix="of_")
    assert computed_names(metric) == ["m/of_0", "m/of_1"]
    assert warned("torchmetrics.wrappers.abstract.WrapperMetric")


def test_a_running_metric_without_its_counter_counts_as_updated(warned: Warned) -> None:
    metric = Running(torchmetrics.SumMetric(), window=2)
    del metric._num_vals_seen
    values = TorchmetricsValues()
    values.add("m", metric, 0, 0)
    assert values.updated_names() == ["m"]
    assert warned("Running._num_vals_seen")


@pytest.mark.parametrize("has_ranks", [False, True])
def test_a_metric_that_cannot_be_kept_local_is_computed_unless_there_are_ranks(
    monkeypatch: pytest.MonkeyPatch, warned: Warned, has_ranks: bool
) -> None:
    metric = torchmetrics.SumMetric()
    metric.update(1.0)
    read_only = property(lambda self: lambda: False)
    monkeypatch.setattr(
        torchmetrics.SumMetric, "distributed_available_fn", read_only, raising=False
    )
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: has_ranks)
    assert computed_names(metric) == ([] if has_ranks else ["m"])
    assert warned("Metric.distributed_available_fn")


# mlflow


def test_an_answer_without_headers_is_retried_without_their_delay(warned: Warned) -> None:
    answer = {"error_code": "RESOURCE_EXHAUSTED", "message": "slow down"}
    with pytest.raises(BackendUnavailableError) as raised, api_calls(1):
        raise mlflow.exceptions.RestException(answer)  # type: ignore[no-untyped-call]
    assert raised.value.retry_after is None
    assert warned("the variable 'response' of its REST calls")


# wandb


def deliver_rows(folder: Path) -> list[dict[str, Any]]:
    """Log rows to an offline W&B run; return those in its files."""
    with MetricBus(id="r", sinks="", dir=folder) as bus:
        for step in range(20):
            bus.log("x", float(step), step=step)
    assert bus.folder is not None
    metricbus.deliver(bus.folder, "wandb?mode=offline", timeout=HANG_SECS)
    return list(wandb_rows(bus.folder))


def test_rows_are_delivered_if_wandbs_files_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warned: Warned
) -> None:
    monkeypatch.setattr(wandb_internals, "_HEADER", b"another")
    assert [row["x"] for row in deliver_rows(tmp_path)] == list(range(20))
    assert warned("the format of run-*.wandb")


def test_without_the_message_of_rows_a_file_counts_as_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warned: Warned
) -> None:
    file = tmp_path / "run-1.wandb"
    file.write_bytes(wandb_internals._HEADER + b"\0\0\0\0\0\0\1")
    history = wandb_internals.HistoryFile(file)
    monkeypatch.delattr("wandb.proto.wandb_internal_pb2.Record")
    assert history.read_new() == -1
    assert not history.is_readable
    assert warned("the format of run-*.wandb")


def test_all_rows_are_delivered_by_a_wandb_version_that_waits_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warned: Warned
) -> None:
    def publish(self: Any, record: Any) -> None:
        original(self, record)

    original = InterfaceSock._publish
    monkeypatch.setattr(InterfaceSock, "_publish", publish)
    monkeypatch.setattr(InterfaceSock, "publish_output", lambda *_, **__: None)
    monkeypatch.setattr(InterfaceSock, "publish_output_raw", lambda *_, **__: None)
    assert [row["x"] for row in deliver_rows(tmp_path)] == list(range(20))
    assert warned("Run._interface._publish")


def test_other_connection_errors_are_known_if_one_is_renamed(
    monkeypatch: pytest.MonkeyPatch, warned: Warned
) -> None:
    monkeypatch.delattr("wandb.sdk.mailbox.mailbox.MailboxClosedError")
    assert wandb_internals.is_connection_error(HandleAbandonedError())
    assert wandb_internals.is_connection_error(BrokenPipeError())
    assert not wandb_internals.is_connection_error(ValueError())
    assert warned("wandb.sdk.mailbox.mailbox.MailboxClosedError")


def test_a_setting_that_wandb_no_longer_has_is_left_out(
    monkeypatch: pytest.MonkeyPatch, warned: Warned
) -> None:
    monkeypatch.delitem(wandb.Settings.model_fields, "x_stats_pid")
    settings = wandb_internals.make_settings(x_stats_pid=-1, silent=True)
    assert settings.silent
    assert settings.x_stats_pid != -1
    assert warned("Settings.x_stats_pid")


def test_a_run_that_cannot_be_hidden_from_the_script_is_used(
    monkeypatch: pytest.MonkeyPatch, warned: Warned
) -> None:
    monkeypatch.delattr("wandb.sdk.wandb_setup._WandbSetup.remove_active_run")
    wandb_internals.forget_active_run(object())  # type: ignore[arg-type]
    assert warned("setup().remove_active_run")


def test_without_one_limit_of_rows_the_other_is_raised(
    monkeypatch: pytest.MonkeyPatch, warned: Warned
) -> None:
    monkeypatch.delattr(wandb.Table, "MAX_ROWS")
    monkeypatch.setattr(wandb.Table, "MAX_ARTIFACT_ROWS", 1)
    wandb_internals.raise_row_limits(2)
    assert wandb.Table.MAX_ARTIFACT_ROWS == 2
    assert warned("Table.MAX_ROWS")


# tensorboard


def test_without_hparams_the_rows_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warned: Warned
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.plugins.hparams.summary_v2", None)
    with MetricBus(sinks="tensorboard", dir=tmp_path, config={"lr": 0.1}) as bus:
        bus.log("x", 1.0)
    assert bus.stats().complete
    assert warned("tensorboard.plugins.hparams")


def test_without_tensorboards_messages_other_sinks_receive_everything(tmp_path: Path) -> None:
    assert "`tensorboard.compat.proto`" in PAGE
    code = """
        import sys
        sys.modules["tensorboard.compat.proto.event_pb2"] = None
        from metricbus import MetricBus
        bus = MetricBus(sinks="csv,tensorboard", dir=".")
        bus.log("x", 1.0)
        report = bus.close(timeout=3)
        print({name: sink.delivered for name, sink in report.sinks.items()})
    """
    done = run_script(tmp_path, code)
    assert done.stdout == "{'csv': 1, 'tensorboard': 0}\n"
    assert "this version of tensorboard is not supported" in done.stderr
