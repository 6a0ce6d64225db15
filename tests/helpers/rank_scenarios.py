"""Scenarios for `test_ranks.py`: functions that run on every rank and return JSON values."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from logging.handlers import BufferingHandler
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import torch.distributed as dist

import metricbus
from metricbus import EarlyStopping, MetricBus, RankError
from metricbus._common.distributed import Rank, agree
from tests.helpers.limits import HANG_SECS

_FORKSERVER = get_context("forkserver")
# Import these modules once, instead of in each rank.
_FORKSERVER.set_forkserver_preload(
    [
        "metricbus",
        "metricbus._bus.epoch_sync",
        "metricbus._bus.null_session",
        "torch.distributed",
        "torchmetrics",
    ]
)


def run_ranks(
    folder: Path, size: int, scenario: Callable[..., Any], *args: Any, launcher: bool = True
) -> list[Any]:
    """Run the scenario on `size` gloo ranks. Return their results, or None for a rank that died."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        _FORKSERVER.Process(
            target=_run_rank, args=(folder, rank, size, port, launcher, scenario, args)
        )
        for rank in range(size)
    ]
    for process in ranks:
        process.start()
    deadline = time.monotonic() + HANG_SECS
    for process in ranks:
        process.join(max(0.0, deadline - time.monotonic()))
        assert process.exitcode is not None, "a rank hangs"
    files = [folder / f"result-{rank}.json" for rank in range(size)]
    results = [json.loads(file.read_text()) if file.exists() else {} for file in files]
    errors = "\n".join(result["error"] for result in results if "error" in result)
    assert not errors, errors
    return [result.get("value") for result in results]


def _run_rank(
    folder: Path,
    rank: int,
    size: int,
    port: int,
    launcher: bool,
    scenario: Callable[..., Any],
    args: Sequence[Any],
) -> None:
    os.chdir(folder)
    sys.stderr = open(folder / f"stderr-{rank}.txt", "w", buffering=1)  # noqa: SIM115
    for variable in [name for name in os.environ if name.startswith("METRICBUS_")]:
        del os.environ[variable]
    if launcher:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    address = f"tcp://127.0.0.1:{port}"
    try:
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=size)
        result = {"value": scenario(rank, *args)}
        dist.destroy_process_group()
    except BaseException:
        result = {"error": f"rank {rank}: {traceback.format_exc()}"}
    (folder / f"result-{rank}.json").write_text(json.dumps(result))


def share_of(rank: int, size: int) -> list[tuple[float, float]]:
    """Return a rank's share of a fixed set of weighted values. The last rank has none."""
    values = [(1.1**i - 3.3, 0.5 + i % 7) for i in range(101)]
    return values[rank :: size - 1] if rank < size - 1 else []


def reduce_everything(rank: int, size: int) -> Any:
    """Use every reduction with uneven shares, a rank without values, and a name on one rank."""
    with MetricBus(id="r", dir=".", sinks="csv") as bus:
        for op in ("mean", "sum", "min", "max", "count", "std"):
            bus.define(op, across_ranks=op)
        bus.define("own/*", across_ranks="sum")
        bus.define("never logged", across_ranks="sum")
        for value, weight in share_of(rank, size):
            for op in ("mean", "sum", "min", "max", "count", "std"):
                bus.log(op, value, weight=weight)
        bus.log(f"own/{rank}", rank)
        merged = bus.end_epoch()
        again = bus.end_epoch()
        return {"merged": merged, "again": again, "last": bus.last("mean")}


def many_epochs(rank: int) -> Any:
    """Run two epochs with different values on each rank."""
    with MetricBus(id="r", dir=".", sinks="csv") as bus:
        bus.define("val/acc", across_ranks="mean")
        for epoch in bus.epochs(2):
            for i in bus.steps(range(3)):
                bus.log("train/loss", rank + i)
            bus.log("val/acc", (rank + 1) * (epoch + 1))
    return None


def sync_in_addition_to_steps(rank: int) -> Any:
    """Synchronize a name that is also emitted on steps, in the middle of an epoch."""
    with MetricBus(id="r", dir=".", sinks="") as bus:
        bus.define("loss", across_ranks="mean", on_step=True)
        for _ in bus.steps(range(2)):
            bus.log("loss", 10 * (rank + 1))
        return bus.sync()


def sync_in_groups(rank: int) -> Any:
    """Synchronize two groups of two ranks, then all ranks."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    with MetricBus(id="r", dir=".", sinks="") as bus:
        bus.define("n", across_ranks="sum")
        bus.log("n", 10**rank)
        first = bus.sync(group=groups[rank // 2])
        bus.log("n", 2 * 10**rank)
        second = bus.sync()
        try:
            bus.sync(group=dist.new_group([0]))
            alone = ""
        except RankError as error:
            alone = str(error)
    return [first, second, alone]


def sync_without_rank_1(rank: int) -> Any:
    """Call `sync()` on rank 1 only after the other ranks have given up, then on all ranks."""
    with MetricBus(id="r", dir=".", sinks="") as bus:
        bus.define("n", across_ranks="sum")
        bus.log("n", rank + 1)
        error = ""
        if rank == 1:
            while not all(Path(f"gave-up-{other}").exists() for other in (0, 2)):
                time.sleep(0.01)
        try:
            bus.sync(timeout=0.5)
        except RankError as failure:
            error = str(failure)
        Path(f"gave-up-{rank}").touch()
        return [error, bus.sync()]


def sync_with_a_dead_rank(rank: int) -> Any:
    """Let rank 2 die between two calls of `sync()`."""
    with MetricBus(id="r", dir=".", sinks="csv") as bus:
        bus.define("n", across_ranks="sum")
        bus.log("n", rank)
        bus.sync()
        bus.log("n", 10 + rank)
        if rank == 2:
            os._exit(9)
        try:
            bus.sync(timeout=1)
        except RankError as failure:
            error = str(failure)
        started = time.monotonic()
    result = {"value": [error, time.monotonic() - started]}
    Path(f"result-{rank}.json").write_text(json.dumps(result))
    os._exit(0)  # torch would wait for the dead rank


def agree_without_store(rank: int) -> Any:
    """Agree on a value without torch's store; return it and the messages of the warnings."""
    handler = BufferingHandler(100)
    logging.getLogger("metricbus").addHandler(handler)
    del dist.distributed_c10d._get_default_store
    agreed = agree(rank)
    return [agreed, "".join(record.getMessage() for record in handler.buffer)]


def define_differently(rank: int) -> Any:
    """Define a name differently on each rank."""
    with MetricBus(id="r", dir=".", sinks="") as bus:
        bus.define("n", across_ranks="sum" if rank else "mean")
        bus.log("n", 1)
        try:
            bus.sync()
        except RankError as error:
            return str(error)


def resources(rank: int) -> Any:
    """Count the open files and child processes of a bus."""
    before = psutil.Process().children(recursive=True)
    with MetricBus(id="r", dir=".", sinks="csv,tensorboard", delivery="process") as bus:
        bus.log("x", 1.0)
        bus.log("picture", metricbus.Text("words"))
        bus.flush()
        files = [file.path for file in psutil.Process().open_files() if "/r/" in file.path]
        children = [p for p in psutil.Process().children(recursive=True) if p not in before]
        counts = {
            "files": len(files),
            "children": len(children),
            "folder": bus.dir is not None,
            "run": bus.run is not None,
            "last": bus.last("x"),
            "variable": "METRICBUS_RUN_DIR" in os.environ,
            "complete": bus.flush().complete,
        }
        dist.barrier()
    return counts


def write_values(rank: int, ranks: Any, sinks: str, id: str | None) -> Any:
    """Log values, a merged value and a medium on every rank."""
    with MetricBus(id=id, dir=".", sinks=sinks, ranks=ranks) as bus:
        bus.define("mean", across_ranks="mean")
        for i in bus.steps(range(3)):
            bus.log("loss", rank * 10 + i)
        bus.log("mean", rank)
        bus.log("words", metricbus.Text(f"of rank {rank}"))
        bus.end_epoch()
        bus.flush()
        dist.barrier()
        return [bus.dir is not None, threading.active_count()]


def open_without_id(rank: int) -> Any:
    """Open a bus that writes on all ranks, without a common id."""
    try:
        MetricBus(dir=".", sinks="", ranks="all")
    except metricbus.ConfigError as error:
        return str(error)


def stop_together(rank: int) -> Any:
    """Stop early on values for which the ranks would stop in different epochs."""
    with MetricBus(id="r", dir=".", sinks="") as bus:
        stopping = EarlyStopping(bus, "val/loss", patience=2)
        for epoch in bus.epochs(20):
            bus.log("val/loss", 1.0 if rank == 0 else 1 / (epoch + 1))
            if stopping():
                break
        return [epoch, agree({"from": rank})]


def resume_from_rank_0(rank: int) -> Any:
    """Load the checkpoint of rank 0 on every rank, in the middle of an epoch."""
    with MetricBus(id="r", dir=".", sinks="") as bus:
        bus.define("n", across_ranks="sum")
        bus.log("n", 1)
        state = agree(bus.state_dict())
        bus.load_state_dict(state)
        return bus.sync()


def sync_torchmetrics_object(rank: int) -> Any:
    """Synchronize a torchmetrics object that has seen different data on each rank."""
    import torch
    import torchmetrics

    accuracy = torchmetrics.Accuracy("multiclass", num_classes=3)
    with MetricBus(id="r", dir=".", sinks="") as bus:
        for _ in range(rank + 1):
            accuracy.update(torch.tensor([0, 1, 2]), torch.tensor([0, 1, rank]))
            bus.log("acc", accuracy)
        merged = bus.sync()
        return [merged, accuracy.update_called]


def train_together(rank: int) -> Any:
    """Make one optimizer step under DDP, with half of the batch on each rank."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    from metricbus.torch import watch, watch_optimizer

    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    batch = torch.randn(8, 4)
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        MetricBus(id="r", dir=".", sinks="") as bus,
        watch(bus, wrapped, every=1),
        watch_optimizer(bus, optimizer, advance=True),
    ):
        bus.define("loss", across_ranks="mean")
        loss = wrapped(batch[rank::2]).square().mean()
        loss.backward()
        optimizer.step()
        bus.log("loss", loss, weight=4)
        single = torch.nn.Linear(4, 1)
        torch.manual_seed(0)
        single.reset_parameters()
        full_loss = single(batch).square().mean()
        full_loss.backward()
        norm = torch.cat(
            [p.grad.flatten() for p in single.parameters() if p.grad is not None]
        ).norm()
        return [bus.sync()["loss"], full_loss.item(), norm.item(), bus.step]


def log_different_numbers_of_metrics(rank: int) -> Any:
    """Log a different number of torchmetrics objects under one name on each rank."""
    import torch
    import torchmetrics

    with MetricBus(id="r", dir=".", sinks="") as bus:
        for _ in range(2 - rank):
            metric = torchmetrics.MeanMetric()
            metric.update(torch.tensor(float(rank)))
            bus.log("m", metric)
        return bus.sync(timeout=10)


def sum_beyond_64_bits(rank: int) -> Any:
    """Sum integers to a result that does not fit into 64 bits."""
    with MetricBus(id="r", dir=".", sinks="") as bus:
        bus.define("n", across_ranks="sum")
        for _ in range(3):
            bus.log("n", 2**62)
        return bus.sync()


def interrupt_sync(rank: int) -> Any:
    """Send a signal while rank 0 waits for rank 1."""
    import signal

    def handle(*_: object) -> None:
        raise InterruptedError

    with MetricBus(id="r", dir=".", sinks="") as bus:
        bus.define("n", across_ranks="sum")
        bus.log("n", 1)
        if rank == 1:
            while not Path("interrupted").exists():
                time.sleep(0.01)
            return None
        signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        try:
            bus.sync(timeout=HANG_SECS)
        except InterruptedError:
            Path("interrupted").touch()
            return bus.stats().dropped


def make_different_calls(rank: int) -> Any:
    """Call `agree()` on rank 0 while rank 1 calls `sync()`."""
    with MetricBus(id="r", dir=".", sinks="") as bus:
        bus.define("n", across_ranks="sum")
        bus.log("n", 1)
        try:
            return bus.sync() if rank else agree(1)
        except RankError as error:
            return str(error)


def close_at_different_times(rank: int) -> Any:
    """Close the run on rank 0 before rank 1 logs its last values."""
    bus = MetricBus(id="r", dir=".", sinks="csv", ranks="all")
    bus.log("x", rank)
    dist.barrier()
    if rank == 0:
        bus.close()
        Path("closed").touch()
        dist.barrier()
        return None
    while not Path("closed").exists():
        time.sleep(0.01)
    bus.log("last", 1.0)
    bus.close()
    dist.barrier()
    return "METRICBUS_RUN_DIR" in os.environ


def load_state_on_all_ranks(rank: int) -> Any:
    """Load each rank's own checkpoint and repeat the calls that followed it."""
    with MetricBus(id="r", dir=".", sinks="", ranks="all") as bus:
        for _ in bus.steps(range(3)):
            bus.log("train", rank)
        state = bus.state_dict()
        bus.log("val", rank)  # after the checkpoint, at its step
        bus.flush()
        dist.barrier()
        bus.load_state_dict(state)
        dist.barrier()
        bus.log("val", 10 + rank)
    return None


def rewind_past_the_best_value(rank: int, first: int) -> Any:
    """Go back to a step before the best value on each rank, `first` before the other one."""
    with MetricBus(id="r", dir=".", sinks="", ranks="all") as bus:
        bus.define("x", best="max")
        bus.log("x", 0.5, step=0)
        bus.log("x", 0.9, step=5)
        bus.flush()
        dist.barrier()
        if rank == first:
            bus.rewind(0)
            bus.flush()
        dist.barrier()
        if rank != first:
            bus.rewind(0)
            bus.flush()
        dist.barrier()
        bus.log("x", 0.6, step=1)
        bus.flush()
        dist.barrier()
    return None


def grow_the_run(rank: int) -> Any:
    """Add to config, tags and summary on each rank."""
    with MetricBus(id="r", dir=".", sinks="", ranks="all") as bus:
        bus.define("x", best="max")
        for step in range(3):
            bus.log("x", rank + step % 2, step=step)
        bus.config.update({f"of-{rank}": rank})
        bus.add_tags("common", f"rank-{rank}")
        bus.summarize("y", rank)
        bus.flush()
        dist.barrier()
        if rank:
            bus.close()
        dist.barrier()
    return None


def make_two_attempts(rank: int) -> Any:
    """Make two attempts in one process. Rank 0 starts its second attempt later."""
    for attempt in range(2):
        if rank == 0 and attempt:
            time.sleep(0.5)
        with MetricBus(id="r", dir=".", sinks="", ranks="all", resume=True) as bus:
            bus.log("x", attempt, step=attempt)
            bus.flush()
            dist.barrier()
    return None


def resume_with_new_launcher_id(rank: int) -> Any:
    """Resume after the launcher has generated a new id."""
    os.environ["TORCHELASTIC_RUN_ID"] = "first"
    with MetricBus("Best Run", dir=".", sinks="", ranks="all") as bus:
        bus.log("x", 1)
        name = str(bus.dir and bus.dir.name)
        dist.barrier()
    os.environ["TORCHELASTIC_RUN_ID"] = "second"
    dist.barrier()
    try:
        MetricBus("Best Run", dir=".", sinks="", ranks="all", resume=True)
    except metricbus.ConfigError as error:
        return [name, str(error)]


def create_bus_too_early(rank: int) -> Any:
    """Create a bus before the rank is known."""
    for variable in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        os.environ.pop(variable, None)
    bus = MetricBus(id=f"r{rank}", dir=".", sinks="", ranks=rank)
    assert bus._core.session is not None
    bus._core.session.initial_rank = Rank()
    with bus:
        bus.define("n", across_ranks="sum")
        bus.log("n", 1)
        return [bus.sync(), bus.sync()]


def log_by_hooks(rank: int) -> Any:
    """Log values by hooks, also on a rank that does not write."""
    import torch

    from metricbus.torch import StepTimer, clip_grad_norm_

    weight = torch.nn.Parameter(torch.ones(1))
    with MetricBus(id="r", dir=".", sinks="") as bus:
        bus.define("clip/norm_before", across_ranks="sum")
        bus.define("time/step", across_ranks="count")
        timer = StepTimer(bus)
        for _ in timer(bus.steps(range(2))):
            weight.grad = torch.full((1,), 1.0 + rank)
            clip_grad_norm_(bus, [weight], 10.0)
        return bus.sync()
