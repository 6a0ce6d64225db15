"""The hot path: a call of `log()` becomes an entry in the queue.

`log()` does no I/O, waits for no thread or device and holds no lock: it looks at the value, stamps
it with step, epoch and time, and appends it to a bounded queue. (The one exception is a queue that
is full under `overflow="block"`.) Everything that is wrong with a call shows here, before any of it
is logged.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from operator import countOf
from time import time_ns
from typing import Any, overload

from metricbus._common.clock import Clock, check_step
from metricbus._common.device_values import defer, is_deferred
from metricbus._common.media_base import EncodeJob, LogContext, MediaValue
from metricbus._common.validation import (
    INT_MAX,
    INT_MIN,
    check_name,
    check_weight,
    flatten,
    is_metric,
    to_number,
)
from metricbus._ingest.queue import CallQueue, Deferred
from metricbus._ingest.torchmetrics_values import TorchmetricsValues
from metricbus.errors import ClosedError

_MISSING: Any = object()
_NUMBERS = frozenset((float, int))


class Recorder:
    """Stamps what is logged and puts it into `_queue`, which whoever opens a run sets."""

    _queue: CallQueue

    def __init__(self) -> None:
        self._clock = Clock()
        self._metrics = TorchmetricsValues()
        self._known: set[str] = set()  # the names that were checked
        self._newest: dict[str, Any] = {}  # the last values by name

    @overload
    def log(
        self,
        name: str,
        value: Any,
        *,
        step: int | None = None,
        epoch: int | None = None,
        weight: float | None = None,
    ) -> None: ...

    @overload
    def log(
        self,
        name: Mapping[str, Any],
        *,
        step: int | None = None,
        epoch: int | None = None,
        weight: float | None = None,
    ) -> None: ...

    def log(
        self,
        name: str | Mapping[str, Any],
        value: Any = _MISSING,
        *,
        step: int | None = None,
        epoch: int | None = None,
        weight: float | None = None,
    ) -> None:
        """Logs one value, or a mapping of names to values (nested ones flatten with `/`).

        A value is a number, a medium (a `Histogram`, an `Image` and so on), or a metric object of
        torchmetrics, which is computed and reset when the epoch ends.

        `step` and `epoch` default to where the bus stands; see docs/steps.md. `weight` is for means
        by a definition: the batch's size, for one. What a value may be is in `metricbus._common.validation`.

        Raises `TypeError` or `ValueError` for a name, value, step, epoch or weight that cannot be
        logged; then nothing of the call is logged, of a mapping neither.
        """
        # What nearly every call is comes first and whole: a float, at a step that is not behind.
        if (
            type(value) is not float
            or type(name) is not str
            or epoch is not None
            or weight is not None
        ):
            if type(name) is not dict or not self._log_numbers(name, value, step, epoch, weight):
                self._log_other(name, value, step, epoch, weight)
            return
        if name not in self._known:
            self._known.add(check_name(name))
        clock = self._clock
        if type(step) is int and clock.step <= step <= INT_MAX:
            clock.step = step
        elif step is None and clock.driven:
            step = clock.step
        else:
            step = self._see_step(step, (name,))
        self._newest[name] = value
        queue = self._queue
        calls = queue.calls
        calls.append((name, value, step, clock.epoch, time_ns()))
        if len(calls) > queue.high_water_mark[0]:
            queue.on_high_water()

    def _log_numbers(
        self,
        row: dict[str, Any],
        value: object,
        step: int | None,
        epoch: int | None,
        weight: float | None,
    ) -> bool:
        """Logs what nearly every mapping is, plain numbers and a step at most; whether it was."""
        row = row.copy()
        values = len(row)
        are_floats = countOf(map(type, row.values()), float) == values
        if (
            not (are_floats or _are_plain_numbers(row))
            or not values
            or value is not _MISSING
            or epoch is not None
            or weight is not None
        ):
            return False
        if not self._known.issuperset(row):
            self._known.update([check_name(name) for name in row])
        clock = self._clock
        if type(step) is int and clock.step <= step <= INT_MAX:
            clock.step = step
        else:
            step = self._see_step(step, row)
        self._newest.update(row)
        self._queue.put_row((row, 1.0, step, clock.epoch, time_ns()), values)
        return True

    def _log_other(
        self,
        what: object,
        value: object,
        step: int | None,
        epoch: int | None,
        weight: float | None,
    ) -> None:
        """Whatever else there is: another type of number, a medium, a mapping of all that."""
        is_one_number = type(value) is int or not (
            value is _MISSING
            or isinstance(value, MediaValue)
            or is_deferred(value)
            or is_metric(value)
        )
        if is_one_number and type(what) is str and weight is None:
            self._log_number(what, value, step, epoch)
        else:
            self._log_mapping(what, value, step, epoch, weight)

    def _log_number(self, name: str, value: object, step: int | None, epoch: int | None) -> None:
        number = to_number(name, value)
        if name not in self._known:
            self._known.add(check_name(name))
        step = None if step is None else check_step(step)
        epoch = self._clock.epoch if epoch is None else self._see_epoch(epoch)
        step = self._see_step(step, (name,))
        self._newest[name] = number
        self._queue.put((name, number, step, epoch, time_ns()))

    def _log_mapping(
        self,
        mapping: object,
        value: object,
        step: int | None,
        epoch: int | None,
        weight: float | None,
    ) -> None:
        if isinstance(mapping, str):
            if value is _MISSING:
                raise TypeError(f"log({mapping!r:.80}) has no value; write log(name, value)")
            mapping = {check_name(mapping): value}
        elif not isinstance(mapping, Mapping):
            check_name(mapping)
        elif value is not _MISSING:
            raise TypeError("log() takes a name and a value, or a mapping alone")
        share = 1.0 if weight is None else check_weight(weight)
        epoch = None if epoch is None else check_step(epoch, "epoch")
        step = None if step is None else check_step(step)
        row: dict[str, Any] = dict(mapping)  # type: ignore[call-overload]  # a mapping by now
        taken: dict[str, EncodeJob] = {}
        metrics: dict[str, Any] = {}
        has_device_values = False
        row = flatten(row)
        if not _NUMBERS.issuperset(map(type, row.values())):
            row, taken, metrics, has_device_values = self._apart(row)
        if not row and not taken and not metrics:
            return
        clock = self._clock
        epoch = clock.epoch if epoch is None else self._see_epoch(epoch)
        step = self._see_step(step, [*row, *taken, *metrics])
        now = time_ns()
        if row:
            self._newest.update(row)
            call = (row, share, step, epoch, now)
            self._queue.put_row(Deferred(*call) if has_device_values else call, len(row))
        for name, metric in metrics.items():
            self._metrics.remember(name, metric, step, epoch)
        closed: ClosedError | None = None
        for name, medium in taken.items():
            medium.commit()
            try:
                self._queue.put_medium(LogContext(name, step, epoch, now), medium)
            except ClosedError as error:  # all of them are to be counted
                closed = error
        if closed is not None:
            raise closed

    def _apart(
        self, flat: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, EncodeJob], dict[str, Any], bool]:
        """The numbers; what is taken of the media, nothing of those that have nothing new; metrics.

        And whether some of the numbers are still to come over from a device.
        """
        row: dict[str, Any] = {}
        taken: dict[str, EncodeJob] = {}
        metrics: dict[str, Any] = {}
        on_devices: dict[str, Any] = {}
        run = self._run_id()
        try:
            for name, value in flat.items():
                if is_metric(value):
                    metrics[name] = value
                elif not isinstance(value, MediaValue):
                    row[name] = value
                    if is_deferred(value):
                        on_devices[name] = value
                elif (found := value._capture_for_run(run, name)) is not None:
                    taken[name] = found
            if on_devices:
                row |= defer(on_devices)
        except BaseException:
            for found in taken.values():
                found.undo()
            raise
        return row, taken, metrics, bool(on_devices)

    def _run_id(self) -> str:
        """The run that is logged to."""
        return ""

    def _see_step(self, step: int | None, names: Collection[str]) -> int:
        """The step of a call that logs `names`, to which the bus moves on if it is behind."""
        clock = self._clock
        if step is None:
            return clock.implied(names)
        step = check_step(step)
        if step > clock.step:  # a statement with max() in it could be divided
            clock.step = step
        return step

    def _see_epoch(self, epoch: object) -> int:
        number = check_step(epoch, "epoch")
        if number > self._clock.epoch:
            self._clock.epoch = number
        return number

    def _flush_every(self, steps: int) -> None:
        """Makes `log` also look at how far the step has moved; only who asks for it pays for it."""
        flushed_at = self._clock.step

        def log(*args: Any, **kwargs: Any) -> None:
            nonlocal flushed_at
            type(self).log(self, *args, **kwargs)
            if self._clock.step >= flushed_at + steps:
                flushed_at = self._clock.step
                self._queue.request_flush()

        self.__dict__["log"] = log

    def _switch_off(self) -> None:
        """Makes `log` cost next to nothing."""
        self.__dict__["log"] = _do_nothing


def _are_plain_numbers(row: Mapping[str, Any]) -> bool:
    types = map(type, row.values())
    return _NUMBERS.issuperset(types) and all(
        type(value) is float or INT_MIN <= value <= INT_MAX for value in row.values()
    )


def _do_nothing(*args: object, **kwargs: object) -> None:
    """What `log` is while a bus is off."""
