"""The ways to log whose single calls the case `latency` times: each is opened in its own process.

A deque for the floor and the controls, a bus with sinks that work or hang, and the others' loggers.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from benchmarks.framework.harness import Role
from benchmarks.peers import PEERS
from benchmarks.workloads.broken import HangingSink, hanging_server
from benchmarks.workloads.reading import complete, journal_values
from metricbus import MetricBus, Report, Sink
from metricbus._common.settings import Hosting

QUEUE = 65_536  # as long as a bus's own
FOUR = "logging,csv,tensorboard,wandb?mode=offline"
QUICK = "logging,csv,tensorboard"  # W&B and MLflow take their time to come up
PATIENCE = 120.0  # seconds for everything to arrive

IDLE = "deque.append beside an idle thread"
BUSY = "deque.append beside a busy Python thread"
PROCESS = "MetricBus, delivery has a process"
THREADS = "MetricBus, delivery=thread"
HANGS_HERE = "MetricBus, a sink in this process hangs"
HANGS_THERE = "MetricBus, MLflow's server hangs"


class Log(Protocol):
    """What logs one value."""

    def __call__(self, name: str, value: float, *, step: int) -> object:
        """Logs it."""
        ...


class Opened(Protocol):
    """An arm at work, in its own process."""

    @property
    def log(self) -> Log:
        """What the loop calls."""
        ...

    def settle(self) -> None:
        """Waits until nothing more is done in the background."""

    def close(self, logged: int) -> str:
        """Ends it and reads back; says what was found, and raises if that is not everything."""
        ...


class Arm(NamedTuple):
    """One way to log; `open` is called in the arm's process, with a folder of its own."""

    name: str
    role: Role
    open: Callable[[Path], Opened]


class Appending:
    """The floor: a method that appends to a bounded deque; alone, or beside another thread."""

    def __init__(self, beside: Callable[[threading.Event], object] | None, _: Path) -> None:
        self._calls: deque[tuple[str, float, int]] = deque(maxlen=QUEUE)
        self._over = threading.Event()
        self._thread = (
            threading.Thread(target=beside, args=[self._over], daemon=True) if beside else None
        )
        if self._thread:
            self._thread.start()

    def log(self, name: str, value: float, *, step: int) -> None:
        """Appends."""
        self._calls.append((name, value, step))

    def settle(self) -> None:
        """Nothing is done in the background; the other thread is part of the arm."""

    def close(self, logged: int) -> str:
        """Ends the thread."""
        self._over.set()
        if self._thread:
            self._thread.join()
        return complete("deque", len(self._calls), logged) if logged <= QUEUE else ""


def idle(over: threading.Event) -> None:
    """A thread that does nothing."""
    over.wait()


def busy(over: threading.Event) -> None:
    """A thread that counts, in plain Python."""
    count = 0
    while not over.is_set():
        for _ in range(1000):
            count += 1


class Bus:
    """A bus; `broken` is the name of a sink that hangs, if one does."""

    def __init__(
        self,
        sinks: str | list[str | Sink],
        folder: Path,
        delivery: Hosting = "auto",
        broken: str = "",
    ) -> None:
        self.bus = MetricBus(sinks=sinks, dir=folder, delivery=delivery, linger_secs=1)
        self.log: Log = self.bus.log
        self._broken = broken

    def settle(self) -> None:
        """Waits until all sinks that work have everything."""
        _wait_for(lambda: self._is_settled(self.bus.stats()), lambda: str(self.bus.stats()))

    def _is_settled(self, report: Report) -> bool:
        working = (sink for name, sink in report.sinks.items() if name != self._broken)
        return not report.waiting and not any(sink.pending for sink in working)

    def close(self, logged: int) -> str:
        """Everything is in the journal, and in all sinks but the one that hangs."""
        report = self.bus.close(timeout=5 if self._broken else PATIENCE)
        for name, sink in report.sinks.items():
            expected = (0, logged) if name == self._broken else (logged, 0)
            if (sink.delivered, sink.pending) != expected:
                raise RuntimeError(f"{name} was to have {expected}:\n{report}")
        if self.bus.folder is None:
            raise RuntimeError("the run has no folder")
        return complete("journal", journal_values(self.bus.folder), logged)


class BusWithHangingSink(Bus):
    """A bus with a sink object that hangs in this process until everything has been measured."""

    def __init__(self, sinks: str, folder: Path) -> None:
        self._sink = HangingSink()
        super().__init__([*sinks.split(","), self._sink], folder, broken="HangingSink")

    def settle(self) -> None:
        """The others have everything, and this one hangs indeed."""
        super().settle()
        if not self._sink.hangs.wait(PATIENCE):
            raise RuntimeError("the sink that was to hang was never written to")

    def close(self, logged: int) -> str:
        """Releases the sink: then it has everything, too."""
        self._sink.release()
        self._broken = ""
        super().settle()
        complete("the sink that hung", self._sink.values, logged)
        return super().close(logged)


class BusWithHangingServer(Bus):
    """A bus whose MLflow sink has a server that takes connections and never answers."""

    def __init__(self, sinks: str, folder: Path) -> None:
        self._exits = ExitStack()
        address, self._is_called = self._exits.enter_context(hanging_server())
        sink = f"mlflow+{address}"
        super().__init__(f"{sinks},{sink}", folder, broken=sink)

    def settle(self) -> None:
        """The others have everything, and this one waits for an answer indeed."""
        super().settle()
        if not self._is_called(PATIENCE):
            raise RuntimeError("nobody has called the server that hangs")

    def close(self, logged: int) -> str:
        """The rest is in the journal."""
        with self._exits:
            return super().close(logged)


class PeerArm:
    """One of the others, as its documentation has it."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name = name
        self._peer = PEERS[name](folder)
        self.log: Log = self._peer.log

    def settle(self) -> None:
        """Has it write what it holds."""
        self._peer.flush()

    def close(self, logged: int) -> str:
        """Reads it back by the backend's own reader."""
        self._peer.close()
        return complete(self._name, self._peer.count(), logged)


def all_arms(*, quick: bool) -> list[Arm]:
    """The floor, the controls, the bus as it may stand, and two of the others."""
    others = QUICK if quick else FOUR
    every = all_sinks(quick=quick)
    peers = {"SummaryWriter": "SummaryWriter.add_scalar", "logging": "logging.info to a file"}
    return [
        Arm("deque.append, no other thread", "floor", partial(Appending, None)),
        Arm(IDLE, "control", partial(Appending, idle)),
        Arm(BUSY, "control", partial(Appending, busy)),
        Arm(PROCESS, "ours", partial(Bus, every)),
        Arm(THREADS, "ours", partial(Bus, every, delivery="thread")),
        Arm(HANGS_HERE, "ours", partial(BusWithHangingSink, others)),
        Arm(HANGS_THERE, "ours", partial(BusWithHangingServer, others)),
        *(
            Arm(name, "peer", partial(PeerArm, peer))
            for peer, name in peers.items()
            if peer in PEERS
        ),
    ]


def all_sinks(*, quick: bool) -> str:
    """Those of a bus on which nothing hangs."""
    return QUICK if quick else f"{FOUR},mlflow"


def _wait_for(is_done: Callable[[], bool], state: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not everything has arrived after {PATIENCE:.0f} s:\n{state()}")
        time.sleep(0.01)
