"""Delivery survives a crash between any two steps: a model-based test of cursor and consumer.

The machine appends to a real journal and runs a real consumer, pass by pass. Each pass may be
killed before or after any call of a sink, any transition of the cursor, and any save. The backends
of the sinks survive; everything else is rebuilt from the run folder. At the end everything is
delivered, and the backend must contain every value: at least once, or exactly once if the sink
promises it.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, get_args
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from metricbus._common.processes import ProcessId, this_process
from metricbus._common.records import PartialAggregates
from metricbus._delivery import consumer as consumer_module
from metricbus._delivery.consumer import Consumer
from metricbus._delivery.cursor import DeliveryCursor, State
from metricbus._delivery.offsets_file import DeliveryProgress
from metricbus._delivery.sink_specs import spec_of
from metricbus._journal.run import Run, create_run
from metricbus._journal.segment_writer import SegmentWriter
from metricbus.sinks import (
    BackendUnavailableError,
    Flushed,
    RecordsLostError,
    RecordsRejectedError,
    Rewind,
    ScalarRow,
    Sink,
    SinkOptions,
)

EXCLUDED = "excluded"
OPTIONS = SinkOptions(batch_size=4, exclude=[EXCLUDED])
DEAD = ProcessId(this_process().host, 2**22 + 1, 1)


class Crash(BaseException):
    """The death of the process that delivers."""


class WrongOrder(BaseException):
    """Records were repeated in a different order. Not an error that a consumer handles."""


class ModelSink(Sink):
    """A sink with a backend that outlives it; the machine decides what goes wrong in it.

    `backend` is what the backend has stored, and `buffer` what was written after that. What becomes
    of the buffer in a crash is up to the machine.
    """

    exactly_once = True

    def __init__(self) -> None:
        super().__init__()
        self.backend: list[Any] = []
        self.buffer: list[Any] = []
        self.refused: set[Any] = set()
        self.failures: dict[str, Exception] = {}  # by method
        self.step: Callable[[str], None] = lambda name: None

    def open(self, run: Run, folder: Path, state: Mapping[str, Any]) -> None:
        """Find out what the backend has."""
        self._enter("open")
        self.step("opened")

    def write(self, records: Sequence[Any]) -> None:
        """Put the records into the buffer."""
        self._enter("write")
        new = self.new(list(map(key_of, records)))
        if self.refused.intersection(new):
            raise RecordsRejectedError("refused")
        for number, key in enumerate(new):
            self.buffer.append(key)
            if number == len(new) // 2:
                self.step("half written")
        self.wrote(len(records))
        self.step("written")

    def new(self, keys: list[Any]) -> list[Any]:
        """Return the records that the backend does not have."""
        return keys

    def wrote(self, count: int) -> None:
        """Note that so many records were accepted."""

    def flush(self) -> Mapping[str, Any] | Flushed:
        """Empty the buffer into the backend."""
        self._enter("flush")
        self.store(len(self.buffer))
        self.step("flushed")
        return self.state()

    def state(self) -> Mapping[str, Any]:
        """Return what `open` needs."""
        return {}

    def store(self, count: int) -> None:
        """Store the first part of the buffer in the backend."""
        self.backend += self.buffer[:count]
        del self.buffer[:count]

    def close(self, status: str) -> None:
        """Store everything."""
        self._enter("close")
        self.store(len(self.buffer))
        self.step("closed")

    def _enter(self, method: str) -> None:
        self.step(method)
        if error := self.failures.pop(method, None):
            if isinstance(error, RecordsLostError):
                self.buffer.clear()
            raise error


class Plain(ModelSink):
    """Promises nothing."""

    exactly_once = False


class ByContent(ModelSink):
    """Has a backend that keeps one of several equal records."""

    dedup = "content"

    def store(self, count: int) -> None:
        """Store only what is new."""
        super().store(count)
        self.backend = list(dict.fromkeys(self.backend))


class Truncating(ModelSink):
    """Returns to its state when it is opened, like a file that is truncated."""

    def open(self, run: Run, folder: Path, state: Mapping[str, Any]) -> None:
        """Remove everything beyond the state."""
        super().open(run, folder, state)
        self.buffer.clear()
        del self.backend[state.get("length", 0) :]

    def state(self) -> Mapping[str, Any]:
        """Return the length."""
        return {"length": len(self.backend)}


class ByPosition(ModelSink):
    """Counts records, and skips what the backend has beyond the state."""

    dedup = "position"

    def open(self, run: Run, folder: Path, state: Mapping[str, Any]) -> None:
        """Find out how many records the backend has beyond the state."""
        super().open(run, folder, state)
        self.buffer.clear()
        self.base = state.get("count", 0)
        self.count = 0

    def new(self, keys: list[Any]) -> list[Any]:
        """Skip what the backend has. It must be the same records."""
        position = self.base + self.count
        stored = (self.backend + self.buffer)[position : position + len(keys)]
        if stored != keys[: len(stored)]:
            raise WrongOrder(f"{stored} was repeated as {keys}")
        return keys[len(stored) :]

    def wrote(self, count: int) -> None:
        """Count the records."""
        self.count += count

    def state(self) -> Mapping[str, Any]:
        """Return the number of records."""
        return {"count": self.base + self.count}


class Late(ByPosition):
    """Has a backend that stores records some time after they were flushed."""

    lag = 0

    def flush(self) -> Flushed:
        """Report how many records are stored; the newest ones are not."""
        self._enter("flush")
        self.store(max(0, len(self.buffer) - self.lag))
        self.step("flushed")
        stored = max(0, len(self.backend) - self.base)
        return Flushed(self.state(), min(stored, self.count))


SINKS = [Plain, ByContent, Truncating, ByPosition, Late]
FAILURES: dict[str, list[type[Exception]]] = {
    "open": [BackendUnavailableError, RuntimeError],
    "write": [BackendUnavailableError, RecordsLostError, OSError],
    "flush": [BackendUnavailableError, RecordsLostError, RuntimeError],
}


def key_of(record: Any) -> Any:
    """Return the identity of a record: the names of its values, or the time of a rewind."""
    return record.time if isinstance(record, Rewind) else tuple(record.values)


def documented_transitions() -> dict[str, tuple[list[str], list[str]]]:
    """Return the table in the docstring: from and to which states each transition leads."""
    table: dict[str, tuple[list[str], list[str]]] = {}
    name = ""
    for line in (DeliveryCursor.__doc__ or "").splitlines():
        if "| " in line and "next" not in line:
            states, new_name, after, _ = (cell.strip() for cell in line.strip()[1:-1].split("|"))
            name = new_name or name  # a line without a name continues the one above it
            before, afterwards = table.setdefault(name, ([], []))
            before += [state for state in re.split(r", ?", states) if state]
            afterwards += [after] if after else []
    return table


TRANSITIONS = documented_transitions()


def kill_points(step: Callable[[str], None], base: type[DeliveryCursor]) -> type[DeliveryCursor]:
    """Return a cursor that reports each transition and each save, before and after it."""

    def reporting(name: str) -> Callable[..., Any]:
        def method(self: DeliveryCursor, *args: Any, **kwargs: Any) -> Any:
            step(f"before {name}")
            result = getattr(base, name)(self, *args, **kwargs)
            step(f"after {name}")
            return result

        return method

    names = [*TRANSITIONS, "_save"]
    return type("KillableCursor", (base,), {name: reporting(name) for name in names})


class Machine(RuleBasedStateMachine):
    """A run, its journal, and the delivery to one sink."""

    sink_class: ClassVar[type[ModelSink]]
    cursor_class: ClassVar[type[DeliveryCursor]] = DeliveryCursor
    consumer_class: ClassVar[type[Consumer]] = Consumer

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.folder, _ = create_run(self.root, id="r", name="r", config={})
        self.writers: list[SegmentWriter] = []
        self.next_key = 0
        self.logged: list[Any] = []  # what the sink should get
        self.excluded = 0
        self.partial: set[Any] = set()
        self.superseded: set[Any] = set()  # may be missing
        self.steps_left: int | None = None
        self.has_failed = False
        self.sink = self.sink_class()
        self.sink.step = self.step
        self.consumer: Consumer | None = None
        killable = kill_points(self.step, self.cursor_class)
        self.patches = ExitStack()
        self.patches.enter_context(mock.patch.object(consumer_module, "_POLL_SECS", 0.0))
        self.patches.enter_context(mock.patch.object(consumer_module, "DeliveryCursor", killable))

    def step(self, name: str) -> None:
        """Crash if it is time."""
        if self.steps_left is not None:
            if self.steps_left == 0:
                self.steps_left = None
                raise Crash(name)
            self.steps_left -= 1

    # The training

    def new_row(self, *, partial: bool = False) -> ScalarRow:
        """Return a row with one or two new values, of which one may be excluded."""
        key = self.next_key = self.next_key + 1
        names = [f"x{key}"]
        if key % 3 == 0:
            names.append(f"y{key}")
        self.logged.append(tuple(names))
        if partial:
            self.partial.add(tuple(names))
        elif key % 4 == 0:
            names.append(EXCLUDED)
            self.excluded += 1
        values = dict.fromkeys(names, 1.0)
        return ScalarRow(step=5 * partial, epoch=0, time=key, values=values, partial=partial)

    def new_rewind(self) -> Rewind:
        """Return a rewind that supersedes all partial rows so far."""
        self.next_key += 1
        self.logged.append(self.next_key)
        self.superseded |= self.partial
        return Rewind(step=1, epoch=0, time=self.next_key)

    @initialize(process_count=st.sampled_from([1, 1, 2, 3]), lag=st.integers(0, 12))
    def start(self, process_count: int, lag: int) -> None:
        """Decide how many processes write to the run; several make the order ambiguous."""
        self.process_count = process_count
        if isinstance(self.sink, Late):
            self.sink.lag = lag

    @rule(
        rows=st.lists(st.integers(0, 4), min_size=3, max_size=3),
        rewinds=st.booleans(),
        refuses=st.integers(0, 6),
    )
    def log(self, rows: list[int], rewinds: bool, refuses: int) -> None:
        """Each process of the run writes rows, of which one may be rejected."""
        for number in range(self.process_count):
            if len(self.writers) <= number:
                self.writers.append(SegmentWriter(self.folder.journal, "r"))
            records: list[Any] = [self.new_row() for _ in range(rows[number])]
            if refuses < rows[number]:
                self.sink.refused.add(self.logged[-1 - refuses])
            if rewinds and number == 0:
                records.append(self.new_rewind())
            if records:
                self.writers[number].append(records)

    @precondition(lambda self: self.process_count > 1 or self.next_key == 0)
    @rule(rows=st.integers(0, 5), partial=st.integers(1, 3), refuses=st.integers(0, 5))
    def die(self, rows: int, partial: int, refuses: int) -> None:
        """A process of the run dies, and leaves partial rows."""
        path = "metricbus._journal.segment_writer.this_process"
        with mock.patch(path, return_value=DEAD):
            writer = SegmentWriter(self.folder.journal, "r")
        writer.append([self.new_row() for _ in range(rows)])
        pending = [self.new_row(partial=True) for _ in range(partial)]
        if refuses < partial:
            self.sink.refused.add(self.logged[-1 - refuses])
        writer.append([PartialAggregates(time=0, rows=pending)])
        writer._file.close()

    @rule()
    def end_run(self) -> None:
        """All live processes of the run end; it may be resumed."""
        for writer in self.writers:
            writer.close()
        self.writers.clear()

    # The delivery

    @rule(
        passes=st.integers(1, 10),
        steps_left=st.one_of(st.none(), st.integers(0, 30)),
        failing=st.one_of(
            st.none(),
            st.sampled_from([(name, kind) for name, kinds in FAILURES.items() for kind in kinds]),
        ),
        stored=st.integers(0, 8),
        closes=st.booleans(),
    )
    def deliver(
        self,
        passes: int,
        steps_left: int | None,
        failing: tuple[str, type[Exception]] | None,
        stored: int,
        closes: bool,
    ) -> None:
        """Deliver a few batches, with a failure or a crash somewhere in between."""
        if failing:
            method, kind = failing
            is_outage = issubclass(kind, BackendUnavailableError)
            self.sink.failures[method] = kind("down", 0.0) if is_outage else kind("broken")
        self.run(passes, steps_left, stored, closes=closes)

    # Others may have rejected and accepted a record.
    @precondition(lambda self: self.sink.dedup == "position" and self.sink.refused)
    @rule()
    def forgive(self) -> None:
        """The backend accepts from now on what it has refused."""
        self.sink.refused.clear()

    def run(self, passes: int, steps_left: int | None, stored: int, *, closes: bool) -> None:
        """Run passes of the consumer; after a crash, the backend has stored some of its buffer."""
        self.steps_left = steps_left
        try:
            if self.consumer is None:
                self.consumer = self.consumer_class(
                    self.folder, spec_of(self.sink)._replace(options=OPTIONS)
                )
                self.consumer._backoff.next_delay = lambda error: (0.0, True)  # type: ignore[method-assign]
            self.consumer.end("killed")
            for _ in range(passes):
                if self.consumer._run_pass():
                    if closes and (
                        self.consumer._cursor.state == "acquired" or self.consumer._close()
                    ):
                        self.consumer._cursor.release()
                        self.consumer = None
                    break
            self.steps_left = None
        except Crash:
            self.crash(stored)
        except BaseException:
            self.has_failed = True
            raise

    def crash(self, stored: int) -> None:
        """Lose everything but the run folder and what the backend has stored."""
        if self.consumer is not None:
            self.consumer._cursor.lease.release()  # the process is dead
        self.consumer = None
        self.sink.failures.clear()
        self.sink.store(min(stored, len(self.sink.buffer)))
        self.sink.buffer.clear()

    def teardown(self) -> None:
        """Deliver everything, and compare."""
        try:
            if not self.has_failed:
                self.deliver_everything()
                self.check()
        finally:
            for writer in self.writers:
                writer._file.close()
            self.patches.close()
            shutil.rmtree(self.root)

    def deliver_everything(self) -> None:
        """Deliver until the sink is closed."""
        self.end_run()
        self.sink.failures.clear()
        for _ in range(5 * self.next_key + 20):
            self.run(1, None, 0, closes=True)
            if self.consumer is None:
                return
        raise AssertionError("delivery does not end")

    def check(self) -> None:
        """Compare the backend and the counts with what was logged."""
        found = Counter(self.sink.backend)
        if self.sink.exactly_once:
            assert max(found.values(), default=1) == 1, "a record was delivered twice"
        assert not found.keys() - set(self.logged)
        missing = set(self.logged) - found.keys()
        counts = DeliveryCursor(self.folder, spec_of(self.sink)._replace(options=OPTIONS)).progress
        if self.sink.dedup != "position":
            assert missing - self.superseded == self.sink.refused - self.superseded
        assert counts.delivered == sum(map(count, found))
        rejected = sum(map(count, missing - self.superseded)), sum(map(count, missing))
        assert rejected[0] <= counts.rejected <= rejected[1]
        assert counts.filtered == self.excluded
        assert counts.replay == counts.rejected_rows == []


def count(key: Any) -> int:
    """Return the number of values of a record."""
    return len(key) if isinstance(key, tuple) else 0


SETTINGS = settings(
    max_examples=30,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("sink", SINKS)
def test_delivers_everything_whatever_crashes_when(sink: type[ModelSink]) -> None:
    machine = type("Machine", (Machine,), {"sink_class": sink})
    run_state_machine_as_test(machine, settings=SETTINGS)


# Faults that the machine must notice


class FlushesNothing(Consumer):
    """Counts a batch without flushing it."""

    def _flush(self) -> Flushed:
        assert isinstance(self._sink, ModelSink)
        return Flushed(self._sink.state())


class SavesUnflushed(DeliveryCursor):
    """Saves the progress before the sink has flushed the batch."""

    def written(self) -> None:
        """Save at once."""
        super().written()
        self._save(self.batch.after)


class AcknowledgesEarly(DeliveryCursor):
    """Saves progress that the backend has not acknowledged."""

    def acknowledged(self, records: int | None = None) -> None:
        """Ignore the number of records."""
        super().acknowledged(None)


class IntendsNothing(DeliveryCursor):
    """Does not save the order of rows before they are written."""

    def intend(self) -> None:
        """Change the state only."""
        self.state = "intended"


class ForgetsRejections(DeliveryCursor):
    """Does not save which rows were rejected."""

    def _save(self, progress: DeliveryProgress) -> None:
        rejected_rows, self._rejected_rows = self._rejected_rows, []
        super()._save(progress)
        self._rejected_rows = rejected_rows


class StaysAfterLoss(DeliveryCursor):
    """Continues after the last batch when the backend has lost records."""

    def lost(self) -> None:
        """Change the state only."""
        self.state = "acquired"


class KeepsLostBatches(DeliveryCursor):
    """Takes a later acknowledgement for one of batches that the backend has lost."""

    def lost(self) -> None:
        """Keep the batches that were not acknowledged."""
        unacknowledged = list(self._unacknowledged)
        super().lost()
        self._unacknowledged = unacknowledged


class ReadsOn(DeliveryCursor):
    """Skips a batch whose write has failed."""

    def roll_back(self) -> None:
        """Change the state only."""
        self.state = "ready"


FAULTS: list[tuple[type, type[ModelSink]]] = [
    (FlushesNothing, Plain),
    (FlushesNothing, ByPosition),
    (SavesUnflushed, Plain),
    (AcknowledgesEarly, Late),
    (StaysAfterLoss, Late),
    (ReadsOn, Plain),
]


def machine_with(fault: type, sink: type[ModelSink]) -> type[Machine]:
    role = "cursor_class" if issubclass(fault, DeliveryCursor) else "consumer_class"
    return type("Machine", (Machine,), {"sink_class": sink, role: fault})


@pytest.mark.parametrize(("fault", "sink"), FAULTS)
def test_the_machine_notices_a_fault(fault: type, sink: type[ModelSink]) -> None:
    found = settings(
        SETTINGS,
        max_examples=1000,
        phases=[Phase.generate],
        derandomize=True,
        database=None,
        report_multiple_bugs=False,
    )
    with pytest.raises((AssertionError, WrongOrder)):
        run_state_machine_as_test(machine_with(fault, sink), settings=found)


# Faults that it may find only after hundreds of runs, with the shortest run that shows each


def lose_the_order(machine: Machine) -> None:
    machine.start(process_count=2, lag=12)
    machine.log(rows=[1, 1, 0], rewinds=False, refuses=6)
    machine.run(1, None, 0, closes=False)
    machine.crash(stored=8)
    machine.log(rows=[1, 0, 0], rewinds=False, refuses=6)


def lose_a_rejection(machine: Machine) -> None:
    machine.start(process_count=1, lag=12)
    machine.log(rows=[3, 0, 0], rewinds=False, refuses=1)
    machine.run(10, None, 0, closes=False)
    machine.crash(stored=8)


def lose_a_large_batch_and_repeat_it_in_parts(machine: Machine) -> None:
    machine.start(process_count=1, lag=12)
    machine.log(rows=[3, 0, 0], rewinds=False, refuses=6)
    machine.run(1, None, 0, closes=False)
    machine.log(rows=[1, 0, 0], rewinds=False, refuses=6)
    machine.sink.failures["write"] = RecordsLostError("gone", 0.0)
    machine.run(1, None, 0, closes=False)
    machine.sink.refused.add(machine.logged[2])
    assert isinstance(machine.sink, Late)
    machine.sink.lag = 0
    machine.run(2, None, 0, closes=False)
    machine.crash(stored=0)


@pytest.mark.parametrize(
    ("fault", "scenario"),
    [
        (IntendsNothing, lose_the_order),
        (ForgetsRejections, lose_a_rejection),
        (KeepsLostBatches, lose_a_large_batch_and_repeat_it_in_parts),
    ],
)
def test_the_machine_notices_a_rare_fault(
    fault: type[DeliveryCursor], scenario: Callable[[Machine], None]
) -> None:
    sound = machine_with(DeliveryCursor, Late)()
    scenario(sound)
    sound.teardown()
    faulty = machine_with(fault, Late)()
    scenario(faulty)
    with pytest.raises((AssertionError, WrongOrder)):
        faulty.teardown()


ARGUMENTS: dict[str, dict[str, Any]] = {
    "read": {"ended": False},
    "flushed": {"state": {}},
    "close": {"status": "finished", "where": "", "command": ""},
}


@pytest.mark.parametrize("state", [state for state in get_args(State) if state != "closed"])
@pytest.mark.parametrize("transition", TRANSITIONS)
def test_only_the_transitions_in_the_table_are_possible(
    tmp_path: Path, state: State, transition: str
) -> None:
    def call(name: str) -> None:
        getattr(cursor, name)(**ARGUMENTS.get(name, {}))

    folder, _ = create_run(tmp_path, id="r", name="r", config={})
    writer = SegmentWriter(folder.journal, "r")
    writer.append([ScalarRow(step=0, epoch=0, time=0, values={})])
    writer.close()
    cursor = DeliveryCursor(folder, spec_of(Plain()))
    for name in ("acquire", "opened", "read", "intend", "written"):
        if cursor.state != state:
            call(name)
    assert cursor.state == state
    before, after = TRANSITIONS[transition]
    if before == ["any"] or state in before:
        call(transition)
        assert cursor.state in after
    else:
        with pytest.raises(RuntimeError, match=f"is {state}; this transition requires"):
            call(transition)
        assert cursor.state == state
