"""What a SIGKILL takes: known calls, a kill, and what each backend's own reader finds afterwards.

.venv/bin/python -m tests.helpers.killed_writers          # all of them: a Markdown table, in some minutes
.venv/bin/python -m tests.helpers.killed_writers wandb    # one

A child logs one value a call at a steady pace, with the defaults of each, and says when it is done.
Then it is killed at once, and it alone: what a writer leaves behind (W&B's own process, metricbus's
delivery) may go on, as it may when a training is out of memory. After a while the values are read.
With `--everything`, all its processes are killed with it, as a container or a scheduler does.
CLU and trackio run in their own environment (`make .venv/peers/installed`).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peers import APART_PYTHON, quiet
from benchmarks.workloads.reading import (
    journal_values,
    mlflow_values,
    tensorboard_values,
    tidy_csv_values,
    wandb_values,
    wide_csv_values,
)

ROOT = Path(__file__).resolve().parents[2]

Log = Callable[[float, int], object]


def _summary_writer(folder: Path) -> Log:
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(str(folder))
    return lambda value, step: writer.add_scalar("loss", value, step)


def _tensorboardx(folder: Path) -> Log:
    writer = importlib.import_module("tensorboardX").SummaryWriter(str(folder))
    return lambda value, step: writer.add_scalar("loss", value, step)


def _lightning_csv(folder: Path) -> Log:
    """As the trainer drives it, which saves each time that it has logged."""
    logger = importlib.import_module("lightning.pytorch.loggers").CSVLogger(folder)

    def log(value: float, step: int) -> None:
        logger.log_metrics({"loss": value}, step)
        logger.save()

    return log


def _fabric_csv(folder: Path) -> Log:
    """As Fabric and scripts use it: the logger itself saves every 100th step."""
    logger = importlib.import_module("lightning.fabric.loggers").CSVLogger(folder)
    return lambda value, step: logger.log_metrics({"loss": value}, step)


def _lightning_tensorboard(folder: Path) -> Log:
    logger = importlib.import_module("lightning.pytorch.loggers").TensorBoardLogger(folder)
    return lambda value, step: logger.log_metrics({"loss": value}, step)


def _clu(folder: Path) -> Log:
    writer = importlib.import_module("clu.metric_writers").create_default_writer(str(folder))
    return lambda value, step: writer.write_scalars(step, {"loss": value})


def _wandb(folder: Path) -> Log:
    wandb: Any = importlib.import_module("wandb")
    run = wandb.init(mode="offline", project="killed", dir=folder)
    return lambda value, step: run.log({"loss": value}, step=step)


def _mlflow(folder: Path) -> Log:
    mlflow: Any = importlib.import_module("mlflow")
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.start_run()
    return lambda value, step: mlflow.log_metric("loss", value, step=step)


def _mlflow_async(folder: Path) -> Log:
    mlflow: Any = importlib.import_module("mlflow")
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.start_run()
    return lambda value, step: mlflow.log_metric("loss", value, step=step, synchronous=False)


def _trackio(folder: Path) -> Log:
    os.environ["TRACKIO_DIR"] = str(folder)
    trackio = importlib.import_module("trackio")
    trackio.init(project="killed", name="killed", embed=False)
    return lambda value, step: trackio.log({"loss": value}, step=step)


def _trackio_values(folder: Path) -> int:
    """By its own storage, in its own environment."""
    code = (
        "from trackio.sqlite_storage import SQLiteStorage as s;"
        "print(sum('loss' in row for row in s.get_logs('killed', 'killed')))"
    )
    environment = os.environ | {"TRACKIO_DIR": str(folder)}
    found = subprocess.run(
        [APART_PYTHON, "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    return int(found.stdout.split()[-1])


def _metricbus(folder: Path) -> Log:
    from metricbus import MetricBus

    bus = MetricBus(sinks="csv,tensorboard", dir=folder, delivery="process")
    return lambda value, step: bus.log("loss", value, step=step)


def _in_one_csv(folder: Path) -> int:
    (file,) = folder.rglob("metrics.csv")
    return wide_csv_values(file)


def _in_journal_and_sinks(folder: Path) -> int:
    """The journal's; the sinks must have the same, once they have been delivered."""
    from metricbus import deliver

    (run,) = folder.glob("*/")
    deliver(run, timeout=20)
    found = journal_values(run)
    assert tidy_csv_values(run / "csv" / "metrics.csv") == tensorboard_values(run) == found
    return found


class Writer(NamedTuple):
    """How to open a writer with its defaults, how to read what it left, and where it runs."""

    open: Callable[[Path], Log]
    count: Callable[[Path], int]
    apart: bool = False


WRITERS: dict[str, Writer] = {
    "metricbus": Writer(_metricbus, _in_journal_and_sinks),
    "SummaryWriter": Writer(_summary_writer, tensorboard_values),
    "tensorboardX": Writer(_tensorboardx, tensorboard_values),
    "Lightning TensorBoardLogger": Writer(_lightning_tensorboard, tensorboard_values),
    "Lightning CSVLogger, by its Trainer": Writer(_lightning_csv, _in_one_csv),
    "Lightning CSVLogger, by itself": Writer(_fabric_csv, _in_one_csv),
    "CLU": Writer(_clu, tensorboard_values, apart=True),
    "wandb": Writer(_wandb, wandb_values),
    "mlflow": Writer(_mlflow, lambda folder: mlflow_values(f"sqlite:///{folder}/mlflow.db")),
    "mlflow, synchronous=False": Writer(
        _mlflow_async, lambda folder: mlflow_values(f"sqlite:///{folder}/mlflow.db")
    ),
    "trackio": Writer(_trackio, _trackio_values, apart=True),
}


def kept(
    name: str,
    folder: Path,
    *,
    calls: int,
    pace: float,
    patience: float = 30.0,
    everything: bool = False,
) -> int:
    """How many of `calls` values, one every `pace` seconds, are there after the kill.

    They are counted `patience` seconds after it, or as soon as all are there; with `everything`,
    which leaves nobody who could still write, at once.
    """
    writer = WRITERS[name]
    python = str(APART_PYTHON) if writer.apart else sys.executable
    command = [python, "-W", "ignore", "-m", "tests.helpers.killed_writers", "--write", name]
    child = subprocess.Popen(
        [*command, f"--into={folder}", f"--calls={calls}", f"--pace={pace}"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": _path()},
    )
    assert child.stdout is not None
    victims = [child.pid]
    try:
        told = child.stdout.read(5)
        if everything:
            import psutil

            victims += [one.pid for one in psutil.Process(child.pid).children(recursive=True)]
    finally:
        for victim in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        child.wait()
        child.stdout.close()
    if told != b"done\n":
        raise RuntimeError(f"{name}: the child did not get as far as its last call")
    deadline = time.monotonic() + (0.0 if everything else patience)
    found = _count(writer, folder)
    while found < calls and time.monotonic() < deadline:
        time.sleep(0.2)
        found = _count(writer, folder)
    return found


def _path() -> str:
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))


def _count(writer: Writer, folder: Path) -> int:
    """Zero while there is nothing that could be read."""
    with contextlib.suppress(ValueError, AssertionError, FileNotFoundError):
        return writer.count(folder)
    return 0


def _write(name: str, folder: Path, calls: int, pace: float) -> None:
    """The child's part: logs at its pace, tells that it is done, and waits to be killed."""
    with contextlib.redirect_stdout(sys.stderr):
        log = WRITERS[name].open(folder)
        begin = time.monotonic()
        for step in range(calls):
            time.sleep(max(0.0, begin + step * pace - time.monotonic()))
            log(1.0 / (step + 1), step)
    os.write(1, b"done\n")
    time.sleep(600)


def main() -> None:
    """Reads the command line; the parent's part, or the child's."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(WRITERS))
    parser.add_argument("--calls", type=int, default=1077)
    parser.add_argument("--pace", type=float, default=0.02, help="seconds from call to call")
    parser.add_argument("--patience", type=float, default=30.0, help="seconds until it is read")
    parser.add_argument("--everything", action="store_true", help="kill all its processes")
    parser.add_argument("--write", help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    told = parser.parse_args()
    quiet()
    if told.write:
        _write(told.write, told.into, told.calls, told.pace)
        return
    print(f"| {told.calls} calls, one every {told.pace * 1e3:g} ms | read back | lost |")
    print("|---|---:|---:|")
    for name in told.names or WRITERS:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            found = kept(
                name,
                Path(folder),
                calls=told.calls,
                pace=told.pace,
                patience=told.patience,
                everything=told.everything,
            )
        print(f"| {name} | {found} | {told.calls - found} |", flush=True)


if __name__ == "__main__":
    main()
