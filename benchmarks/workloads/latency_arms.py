"""Arms of the case `latency`, whose single calls are timed; each is opened in its own process.

The arms are a deque as floor and control, buses whose sinks work or hang, and peers.
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

QUEUE = 65_536  # the default length of a bus's queue
FOUR_SINKS = "logging,csv,tensorboard,wandb?mode=offline"
QUICK_SINKS = "logging,csv,tensorboard"  # W&B and MLflow start slowly
TIMEOUT_SECS = 120.0  # seconds until everything must be delivered

IDLE = "deque.append with an idle thread"
BUSY = "deque.append with a busy Python thread"
PROCESS = "MetricBus, delivery process"
THREADS = "MetricBus, delivery=thread"
HANGING_SINK = "MetricBus, a sink in this process hangs"
HANGING_SERVER = "MetricBus, the MLflow server hangs"


class Log(Protocol):
    """Callable that logs one value."""

    def __call__(self, name: str, value: float, *, step: int) -> object:
        """Log the value."""
        ...


class Opened(Protocol):
    """An open arm, in its own process."""

    @property
    def log(self) -> Log:
        """The callable that the loop times."""
        ...

    def settle(self) -> None:
        """Wait until no background work is left."""

    def close(self, logged: int) -> str:
        """Close the arm; return what was read back, or raise if any value is missing."""
        ...


class Arm(NamedTuple):
    """One way to log; `open` is called in the arm's process, with a new folder."""

    name: str
    role: Role
    open: Callable[[Path], Opened]


class BoundedDeque:
    """Floor and control: appends to a bounded deque, optionally next to a second thread."""

    def __init__(self, background: Callable[[threading.Event], object] | None, _: Path) -> None:
        self._calls: deque[tuple[str, float, int]] = deque(maxlen=QUEUE)
        self._stop = threading.Event()
        self._thread = (
            threading.Thread(target=background, args=[self._stop], daemon=True)
            if background
            else None
        )
        if self._thread:
            self._thread.start()

    def log(self, name: str, value: float, *, step: int) -> None:
        """Append the value."""
        self._calls.append((name, value, step))

    def settle(self) -> None:
        """Return at once: there is no background work, and the second thread is part of the arm."""

    def close(self, logged: int) -> str:
        """Stop the second thread."""
        self._stop.set()
        if self._thread:
            self._thread.join()
        return complete("deque", len(self._calls), logged) if logged <= QUEUE else ""


def idle(stop: threading.Event) -> None:
    """Wait until stopped: the body of an idle thread."""
    stop.wait()


def busy(stop: threading.Event) -> None:
    """Count in pure Python until stopped: the body of a busy thread."""
    count = 0
    while not stop.is_set():
        for _ in range(1000):
            count += 1


class Bus:
    """A bus; `broken` is the name of a sink that hangs, if any."""

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
        """Wait until all working sinks have received everything."""
        _wait_for(lambda: self._is_settled(self.bus.stats()), lambda: str(self.bus.stats()))

    def _is_settled(self, report: Report) -> bool:
        working = (sink for name, sink in report.sinks.items() if name != self._broken)
        return not report.waiting and not any(sink.pending for sink in working)

    def close(self, logged: int) -> str:
        """Close the bus; raise unless the journal and all working sinks have every value."""
        report = self.bus.close(timeout=5 if self._broken else TIMEOUT_SECS)
        for name, sink in report.sinks.items():
            expected = (0, logged) if name == self._broken else (logged, 0)
            if (sink.delivered, sink.pending) != expected:
                raise RuntimeError(
                    f"{name} should have {expected[0]:,} values delivered and {expected[1]:,} "
                    f"pending:\n{report}"
                )
        if self.bus.dir is None:
            raise RuntimeError("The run has no folder.")
        return complete("journal", journal_values(self.bus.dir), logged)


class BusWithHangingSink(Bus):
    """A bus with a sink object that hangs in this process until the measurements are complete."""

    def __init__(self, sinks: str, folder: Path) -> None:
        self._sink = HangingSink()
        super().__init__([*sinks.split(","), self._sink], folder, broken="HangingSink")

    def settle(self) -> None:
        """Wait until the other sinks have everything and this sink hangs."""
        super().settle()
        if not self._sink.hangs.wait(TIMEOUT_SECS):
            raise RuntimeError(f"The hanging sink was not written to within {TIMEOUT_SECS:.0f} s.")

    def close(self, logged: int) -> str:
        """Release the sink, so that it receives everything too, and close the bus."""
        self._sink.release()
        self._broken = ""
        super().settle()
        complete("HangingSink", self._sink.values, logged)
        return super().close(logged)


class BusWithHangingServer(Bus):
    """A bus whose MLflow sink connects to a server that never answers."""

    def __init__(self, sinks: str, folder: Path) -> None:
        self._exits = ExitStack()
        address, self._wait_for_client = self._exits.enter_context(hanging_server())
        sink = f"mlflow+{address}"
        super().__init__(f"{sinks},{sink}", folder, broken=sink)

    def settle(self) -> None:
        """Wait until the other sinks have everything and this sink waits for the server."""
        super().settle()
        if not self._wait_for_client(TIMEOUT_SECS):
            raise RuntimeError(f"No client connected to the server within {TIMEOUT_SECS:.0f} s.")

    def close(self, logged: int) -> str:
        """Close the bus; the values for the hanging sink remain in the journal."""
        with self._exits:
            return super().close(logged)


class PeerArm:
    """A peer, called as its documentation recommends."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name = name
        self._peer = PEERS[name](folder)
        self.log: Log = self._peer.log

    def settle(self) -> None:
        """Flush the peer."""
        self._peer.flush()

    def close(self, logged: int) -> str:
        """Close the peer; read the values back with the backend's own reader."""
        self._peer.close()
        return complete(self._name, self._peer.count(), logged)


def all_arms(*, quick: bool) -> list[Arm]:
    """Return the floor, the controls, the bus in several configurations, and two peers."""
    working = QUICK_SINKS if quick else FOUR_SINKS
    sinks = all_sinks(quick=quick)
    peers = {"SummaryWriter": "SummaryWriter.add_scalar", "logging": "logging.info to a file"}
    return [
        Arm("deque.append without other threads", "floor", partial(BoundedDeque, None)),
        Arm(IDLE, "control", partial(BoundedDeque, idle)),
        Arm(BUSY, "control", partial(BoundedDeque, busy)),
        Arm(PROCESS, "ours", partial(Bus, sinks)),
        Arm(THREADS, "ours", partial(Bus, sinks, delivery="thread")),
        Arm(HANGING_SINK, "ours", partial(BusWithHangingSink, working)),
        Arm(HANGING_SERVER, "ours", partial(BusWithHangingServer, working)),
        *(
            Arm(name, "peer", partial(PeerArm, peer))
            for peer, name in peers.items()
            if peer in PEERS
        ),
    ]


def all_sinks(*, quick: bool) -> str:
    """Return the sinks of a bus without a hanging sink."""
    return QUICK_SINKS if quick else f"{FOUR_SINKS},mlflow"


def _wait_for(is_done: Callable[[], bool], state: Callable[[], str]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECS
    while not is_done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"Values not delivered within {TIMEOUT_SECS:.0f} s:\n{state()}")
        time.sleep(0.01)
