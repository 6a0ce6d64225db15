"""How long single calls of `log()` take at a steady rate: the tail of their distribution.

Every arm lives in a process of its own: it opens what it needs, is measured in turns, and rests
when all that it logged has arrived, while the others are measured. The loop is the same in all.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import resource
import statistics
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import psutil

from benchmarks.broken import HangingSink, hanging_server
from benchmarks.harness import Context, Figure, Result, Role, Target, Unit, interleaved, ratio
from benchmarks.peers import PEERS, quiet
from benchmarks.reading import complete, journal_values
from metricbus import MetricBus, Report, Sink
from metricbus.config import Hosting

T = TypeVar("T")

NAMES = [f"train/metric{i}" for i in range(20)]
TAILS = (0.5, 0.1, 0.01, 0.001, 0.0001)  # shares of the calls that take longer; the last is the max
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


_UNIT: Unit = "µs"
_HUNDREDTH, _THOUSANDTH = TAILS.index(0.01), TAILS.index(0.001)
_TEXT = """\
Each arm has a process of its own and runs the same loop: 20 values a step, each call timed by
itself, the wait for the next step spent busily in Python. That is the hardest case: such a loop
never lets go of the interpreter by itself; CPython takes it away after 5 ms if another thread asks.
The sinks are {sinks}; where one hangs, it stands in for MLflow, or is MLflow's.

The rate is {rate:,.0f} calls a second, half of what the collector sustains beside a loop that is
busy in Python all the time ({busy:,.0f} values/s, the journal alone; {in_all:,.0f} where the loop
waits for it when the queue is full). A peer that does not sustain this is measured at half of its
own rate. Between rounds, everything is delivered. Garbage collection is on in all arms; what is
imported is frozen before each round. At the end, everything is read back.

The controls make the floor's call, which is shorter than ours: fewer of theirs are cut in two when
another thread takes over."""


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


class Turn(NamedTuple):
    """What one turn gave, in nanoseconds: for each share of `TAILS`, and the greatest last.

    `took` is of single calls, `late` of steps: from when one was due until all its calls were done.
    """

    took: list[int]
    late: list[int]
    switches: int
    collections: int


# The loop


def loop(log: Log, rate: float, first: int, steps: int) -> Turn:
    """Logs each step's 20 values when they are due, and is busy in Python until then."""
    now = time.perf_counter_ns
    gap = int(len(NAMES) / rate * 1e9)
    took, late = array("q", bytes(8 * steps * len(NAMES))), array("q", bytes(8 * steps))
    gc.collect()
    gc.freeze()  # what is imported costs no arm anything; what is logged is collected as ever
    switches, collections = _switches(), _collections()
    call = 0
    due = now()
    for i in range(steps):
        due += gap
        while now() < due:
            pass
        for name in NAMES:
            begun = now()
            log(name, 0.5, step=first + i)
            took[call] = now() - begun
            call += 1
        late[i] = now() - due
    return Turn(_tail(took), _tail(late), _switches() - switches, _collections() - collections)


def _tail(times: array[int]) -> list[int]:
    inverted = np.quantile(np.frombuffer(times, dtype=np.int64), [1 - share for share in TAILS])
    return [*map(int, inverted), max(times)]


def _switches() -> int:
    """How often the kernel took this thread's core away for something else."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def _collections() -> int:
    return sum(int(generation["collections"]) for generation in gc.get_stats())


# The arms


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


# In an arm's process


class _State:
    """What an arm's process keeps between its turns."""

    opened: Opened
    steps = 0


def _open(arm: Arm, folder: Path) -> None:
    quiet()
    os.environ["MLFLOW_LOGGING_LEVEL"] = "WARNING"
    for name in ("CACHE", "CONFIG", "DATA"):
        os.environ[f"WANDB_{name}_DIR"] = str(folder)
    logging.basicConfig(filename=folder / "log.txt", level=logging.INFO)
    _State.opened = arm.open(folder)
    _turn(1e4, 200)  # what the first calls do once


def _turn(rate: float, calls: int) -> Turn:
    steps = math.ceil(calls / len(NAMES))
    seen = loop(_State.opened.log, rate, _State.steps, steps)
    _State.steps += steps
    _State.opened.settle()
    return seen


def _flood(calls: int) -> float:
    """Calls a second that it takes as fast as possible, until they have arrived."""
    start = time.perf_counter()
    _turn(math.inf, calls)
    return calls / (time.perf_counter() - start)


def _close() -> str:
    return _State.opened.close(_State.steps * len(NAMES))


class Rates(NamedTuple):
    """Values a second from the queue into the journal, with what logs them working against it."""

    beside_busy: float
    in_all: float


def _collectors_rates(folder: Path, calls: int) -> Rates:
    """The loop never lets go of the interpreter by itself; or only where the queue is full."""
    steps = calls // len(NAMES)
    with MetricBus(sinks="", dir=folder, queue_size=10 * calls) as bus:
        _log_at_once(bus, range(steps))  # from here on, more waits than the collector can take
        before, start = bus.stats().journalled, time.perf_counter()
        _log_at_once(bus, range(steps, 3 * steps))
        seconds = time.perf_counter() - start
        beside_busy = (bus.stats().journalled - before) / seconds
    with MetricBus(sinks="", dir=folder) as bus:
        start = time.perf_counter()
        _log_at_once(bus, range(3 * steps))
        report = bus.flush(PATIENCE)
        in_all = report.journalled / (time.perf_counter() - start)
        complete("journal", report.journalled, 3 * steps * len(NAMES))
    return Rates(beside_busy, in_all)


def _log_at_once(bus: MetricBus, steps: range) -> None:
    for step in steps:
        for name in NAMES:
            bus.log(name, 0.5, step=step)


# The measurement


class Worker:
    """A process of its own for one arm; it ends with all processes that it has started."""

    def __init__(self) -> None:
        self._executor = ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn"))
        self.process = psutil.Process(self.do(os.getpid))

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        helpers = self.process.children(recursive=True) if self.process.is_running() else []
        if kind is not None:  # it may never come to an end by itself
            _kill([self.process])
        self._executor.shutdown(cancel_futures=True)
        _kill(psutil.wait_procs(helpers, timeout=0 if kind else PATIENCE)[1])

    def begin(self, work: Callable[..., T], *arguments: Any) -> Future[T]:
        """Has it done there."""
        return self._executor.submit(work, *arguments)

    def do(self, work: Callable[..., T], *arguments: Any) -> T:
        """Has it done there, and waits; raises what it raises."""
        return self.begin(work, *arguments).result(2 * PATIENCE)


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


class Seen(NamedTuple):
    """What the rounds gave of one arm."""

    arm: Arm
    rate: float
    turns: list[Turn]
    complete: str

    def figure(self, samples: list[float], at: float | None = None) -> Figure:
        """The samples, with what the kernel took away meanwhile."""
        switches = sum(turn.switches for turn in self.turns)
        note = f"{self.rate:,.0f} calls a second; {switches} involuntary switches"
        collections = sum(turn.collections for turn in self.turns)
        note += f", {collections} garbage collections"
        return Figure(self.arm.name, samples, self.arm.role, at, self.complete, note)


def measure(context: Context) -> list[Result]:
    rates = _measure_rates(context)
    context.tell(
        f"the collector sustains {rates.beside_busy:,.0f} values/s beside a loop that is busy in "
        f"Python, {rates.in_all:,.0f} where the loop waits for it"
    )
    seen = _measure_arms(context, rates.beside_busy / 2)
    return [
        _calls(seen, rates, all_sinks(quick=context.quick)),
        _greatest(seen),
        _tails(seen),
        _steps(seen),
    ]


def _measure_rates(context: Context) -> Rates:
    calls = context.pick(100_000, 10_000)
    with Worker() as worker:
        place = context.place("rates")
        found = [worker.do(_collectors_rates, place, calls) for _ in range(context.pick(3, 1))]
    return Rates(*map(statistics.median, zip(*found, strict=True)))


def _measure_arms(context: Context, rate: float) -> list[Seen]:
    arms = all_arms(quick=context.quick)
    calls = context.pick(40_000, 400)
    with ExitStack() as exits:
        workers = {arm.name: exits.enter_context(Worker()) for arm in arms}
        opening = [workers[arm.name].begin(_open, arm, context.place("latency")) for arm in arms]
        for one in opening:
            one.result(2 * PATIENCE)
        rates = dict.fromkeys(workers, rate)
        for arm in arms:
            if arm.role == "peer":
                own = workers[arm.name].do(_flood, context.pick(5_000, 200))
                rates[arm.name] = min(rate, own / 2)
        turns: dict[str, list[Turn]] = {arm.name: [] for arm in arms}

        def measure_one(name: str, _: int) -> float:
            turns[name].append(workers[name].do(_turn, rates[name], min(calls, int(rates[name]))))
            return turns[name][-1].took[-1]

        interleaved({name: partial(measure_one, name) for name in workers}, context.pick(3, 2))
        context.tell("reading back")
        closing = {name: worker.begin(_close) for name, worker in workers.items()}
        complete = {name: one.result(2 * PATIENCE) for name, one in closing.items()}
    return [Seen(arm, rates[arm.name], turns[arm.name], complete[arm.name]) for arm in arms]


# What is told


def _calls(seen: list[Seen], rates: Rates, sinks: str) -> Result:
    figures = _figures(seen, lambda turn: turn.took[_THOUSANDTH])
    return Result(
        "latency",
        "One call in a thousand takes longer than this",
        _TEXT.format(sinks=sinks, rate=seen[0].rate, busy=rates.beside_busy, in_all=rates.in_all),
        _UNIT,
        figures,
        _targets(figures, "p99.9 of a call"),
        beside=BUSY,
    )


def _greatest(seen: list[Seen]) -> Result:
    figures = _figures(seen, lambda turn: turn.took[-1])
    return Result(
        "latency-max",
        "The longest call of a round",
        "Of the same calls. A single number of many thousands: what the kernel takes away shows "
        "here first, in every row.",
        _UNIT,
        figures,
        _targets(figures, "the longest call"),
        beside=BUSY,
    )


def _steps(seen: list[Seen]) -> Result:
    figures = _figures(seen, lambda turn: turn.late[_HUNDREDTH])
    return Result(
        "latency-steps",
        "One step in a hundred is done later than this after it was due",
        "The same rounds, seen from the loop: from when a step's 20 calls were due until the last "
        "of them returned. It counts what other threads took between the calls, too, and what was "
        "then to be made up for. (A time per call alone would leave that out.)",
        _UNIT,
        figures,
        beside=BUSY,
    )


def _tails(seen: list[Seen]) -> Result:
    """What share of the calls takes longer than how long."""
    return Result(
        "latency-tail",
        "How many calls take how long",
        "The tail of the distribution: a point says which share of an arm's calls takes longer. "
        "The median of the rounds.",
        _UNIT,
        [
            one.figure([turn.took[i] / 1e3 for turn in one.turns], at=share)
            for one in seen
            for i, share in enumerate(TAILS)
        ],
        chart="lines",
        x="share of the calls that take longer",
    )


def _figures(seen: list[Seen], of: Callable[[Turn], int]) -> list[Figure]:
    return [one.figure([of(turn) / 1e3 for turn in one.turns]) for one in seen]


def _targets(figures: list[Figure], what: str) -> list[Target]:
    """No worse than beside an idle thread where delivery has a process, else than a busy one."""
    by_name = {figure.name: figure for figure in figures}
    compared = {PROCESS: IDLE, HANGS_HERE: IDLE, HANGS_THERE: IDLE, THREADS: BUSY}
    pairs = [(ours, BUSY) for ours in compared] + [
        (ours, beside) for ours, beside in compared.items() if beside == IDLE
    ]
    return [
        Target(f"{what}, {ours}: to {beside}", ratio(by_name[ours], by_name[beside]), 1.0)
        for ours, beside in pairs
    ]
