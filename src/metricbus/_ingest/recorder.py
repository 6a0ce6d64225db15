"""The hot path: validates the values of `log()` and appends them to the call queue.

`log()` does no I/O, takes no lock for numbers, and waits for no thread or device, except while the
queue is full under `overflow="block"`. An invalid call raises before any of its values is logged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from functools import partial, wraps
from operator import countOf
from time import time_ns
from typing import Any, SupportsIndex, TypeAlias

from metricbus._common.clock import Clock, check_step
from metricbus._common.device_values import copy_device_values, is_device_value
from metricbus._common.media_base import EncodeJob, LogContext, MediaValue
from metricbus._common.settings import Settings, Unloggable
from metricbus._common.validation import (
    INT_MAX,
    INT_MIN,
    check_name,
    check_weight,
    flatten,
    is_metric_object,
    to_number,
)
from metricbus._ingest.queue import CallQueue, DeferredCall
from metricbus._ingest.torchmetrics_values import TorchmetricsValues
from metricbus.errors import ClosedError

_log = logging.getLogger("metricbus.values")

Skip: TypeAlias = Callable[[str, Exception], object]
"""Handles the name of a value that cannot be logged, and the error."""

MISSING: Any = object()
_NUMBERS = frozenset((float, int))


class Recorder:
    """The values logged to one bus: checks them, and appends them to the queue of its run.

    The bus sets `queue` and `run_id`, each time its run is opened, joined or left. `clock` has the
    current step and epoch, `newest` the newest value of each name, and `metrics` the torchmetrics
    objects whose epoch has not ended.
    """

    queue: CallQueue

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.metrics = TorchmetricsValues()
        self.newest: dict[str, Any] = {}
        self.run_id = ""
        self._settings = settings
        self._checked_names: set[str] = set()
        self._skipped_names: set[str] = set()

    def log(
        self,
        name: str | Mapping[str, Any],
        value: Any = MISSING,
        *,
        step: SupportsIndex | None = None,
        epoch: SupportsIndex | None = None,
        weight: float | None = None,
        unloggable: Unloggable | None = None,
    ) -> None:
        """See `MetricBus.log`, whose documentation this method gets."""
        # The most common call is inlined: a float, at a step that is not in the past.
        if (
            type(value) is not float
            or type(name) is not str
            or epoch is not None
            or weight is not None
        ):
            is_row = type(name) is dict and value is MISSING and epoch is None and weight is None
            if not is_row or not self._try_log_row(name, step):
                self._log_other(name, value, step, epoch, weight, unloggable=unloggable)
            return
        if name not in self._checked_names:
            self._checked_names.add(check_name(name))
        clock = self.clock
        if type(step) is int and clock.step <= step <= INT_MAX:
            clock.step = step
        elif step is None and clock.has_driver:
            step = clock.step
        else:
            step = self._resolve_step(step, (name,))
        self.newest[name] = value
        queue = self.queue
        calls = queue.calls
        calls.append((name, value, step, clock.epoch, time_ns()))
        if len(calls) > queue.high_water_mark[0]:
            queue.on_high_water()

    def _try_log_row(self, mapping: Any, step: SupportsIndex | None) -> bool:
        """Log a mapping of plain numbers. Return False, and log nothing, if it is another one."""
        row: dict[str, Any] = mapping.copy()
        size = len(row)
        are_floats = countOf(map(type, row.values()), float) == size
        if not size or not (are_floats or _are_plain_numbers(row)):
            return False
        if not self._checked_names.issuperset(row):
            self._checked_names.update([check_name(name) for name in row])
        clock = self.clock
        if type(step) is int and clock.step <= step <= INT_MAX:
            clock.step = step
        else:
            step = self._resolve_step(step, row)
        self.newest.update(row)
        self.queue.put_row((row, 1.0, step, clock.epoch, time_ns()), size)
        return True

    def _log_other(
        self,
        name: object,
        value: object,
        step: SupportsIndex | None,
        epoch: SupportsIndex | None,
        weight: float | None,
        *,
        unloggable: Unloggable | None,
    ) -> None:
        """Log any other call: a number of another type, a medium, a metric object or a mapping."""
        is_number = type(value) is int or not (
            value is MISSING
            or isinstance(value, MediaValue)
            or is_device_value(value)
            or is_metric_object(value)
        )
        unloggable = self._settings.unloggable if unloggable is None else unloggable
        if is_number and type(name) is str and weight is None and unloggable == "raise":
            self._log_number(name, value, step, epoch)
        else:
            skip = None if unloggable == "raise" else partial(self._skip_value, unloggable)
            self._log_mapping(name, value, step, epoch, weight, skip=skip)

    def _skip_value(self, unloggable: Unloggable, name: str, error: Exception) -> None:
        if unloggable not in ("warn", "ignore"):
            raise ValueError(f'unloggable= must be "raise", "warn" or "ignore", not {unloggable!r}')
        if unloggable == "warn" and name not in self._skipped_names:
            self._skipped_names.add(name)
            _log.warning("%s. The values of %r are left out", error, name)

    def _log_number(
        self, name: str, value: object, step: SupportsIndex | None, epoch: SupportsIndex | None
    ) -> None:
        number = to_number(name, value)
        if name not in self._checked_names:
            self._checked_names.add(check_name(name))
        step = None if step is None else check_step(step)
        epoch = self.clock.epoch if epoch is None else self._resolve_epoch(epoch)
        step = self._resolve_step(step, (name,))
        self.newest[name] = number
        self.queue.put((name, number, step, epoch, time_ns()))

    def _log_mapping(
        self,
        mapping: object,
        value: Any,
        step: SupportsIndex | None,
        epoch: SupportsIndex | None,
        weight: float | None,
        *,
        skip: Skip | None,
    ) -> None:
        if isinstance(mapping, str):
            if value is MISSING:
                raise TypeError(f"log({mapping!r:.80}) has no value; write log(name, value)")
            mapping = {check_name(mapping): value}
        elif not isinstance(mapping, Mapping):
            check_name(mapping)
        elif value is not MISSING:
            raise TypeError(
                "log() takes a name and a value, or only a mapping, not a mapping and "
                f"{value!r:.40}; to pass a step, write log({{…}}, step=10)"
            )
        weight = 1.0 if weight is None else check_weight(weight)
        epoch = None if epoch is None else check_step(epoch, "epoch")
        step = None if step is None else check_step(step)
        row: dict[str, Any] = dict(mapping)  # type: ignore[call-overload]  # checked above
        jobs: dict[str, EncodeJob] = {}
        metrics: dict[str, Any] = {}
        has_device_values = False
        row = flatten(row, skip=skip)
        if not _NUMBERS.issuperset(map(type, row.values())):
            row, jobs, metrics, has_device_values = self._capture(row, skip)
        if not row and not jobs and not metrics:
            return
        clock = self.clock
        epoch = clock.epoch if epoch is None else self._resolve_epoch(epoch)
        step = self._resolve_step(step, [*row, *jobs, *metrics])
        now = time_ns()
        if row:
            self.newest.update(row)
            call = (row, weight, step, epoch, now)
            self.queue.put_row(DeferredCall(*call) if has_device_values else call, len(row))
        for name, metric in metrics.items():
            self.metrics.add(name, metric, step, epoch)
        closed_error: ClosedError | None = None
        for name, job in jobs.items():
            job.commit()
            try:
                self.queue.put_medium(LogContext(name, step, epoch, now), job)
            except ClosedError as error:
                # Raised later, so that the remaining media are counted as dropped.
                closed_error = error
        if closed_error is not None:
            raise closed_error

    def _capture(
        self, flat: Mapping[str, Any], skip: Skip | None
    ) -> tuple[dict[str, Any], dict[str, EncodeJob], dict[str, Any], bool]:
        """Capture the values of a flat mapping, and split them by kind.

        Returns the row of numbers, the encode jobs of media (without media that have nothing new),
        the metric objects, and whether the row has device values.
        """
        row: dict[str, Any] = {}
        jobs: dict[str, EncodeJob] = {}
        metrics: dict[str, Any] = {}
        device_values: dict[str, Any] = {}
        run = self.run_id
        try:
            for name, value in flat.items():
                if is_metric_object(value):
                    metrics[name] = value
                elif not isinstance(value, MediaValue):
                    row[name] = value
                    if is_device_value(value):
                        device_values[name] = value
                else:
                    try:
                        job = value._capture_for_run(run, name)
                    except (TypeError, ValueError) as error:
                        if skip is None:
                            raise
                        skip(name, error)
                        continue
                    if job is not None:
                        jobs[name] = job
            if device_values:
                row |= copy_device_values(device_values)
        except BaseException:
            for job in jobs.values():
                job.undo()
            raise
        return row, jobs, metrics, bool(device_values)

    def _resolve_step(self, step: SupportsIndex | None, names: Collection[str]) -> int:
        """Return the step of a call that logs `names`. Advance the current step to it if needed."""
        clock = self.clock
        if step is None:
            return clock.implicit_step(names)
        step = check_step(step)
        # No max() here: a call would let another thread run before the assignment.
        if step > clock.step:
            clock.step = step
        return step

    def _resolve_epoch(self, epoch: object) -> int:
        number = check_step(epoch, "epoch")
        if number > self.clock.epoch:
            self.clock.epoch = number
        return number

    def log_and_flush(self, every: int) -> Callable[..., None]:
        """Return a `log` that also requests a flush every `every` steps."""
        flushed_at = self.clock.step

        @wraps(self.log)
        def log(*args: Any, **kwargs: Any) -> None:
            nonlocal flushed_at
            self.log(*args, **kwargs)
            if self.clock.step >= flushed_at + every:
                flushed_at = self.clock.step
                self.queue.request_flush()

        return log


def _are_plain_numbers(row: Mapping[str, Any]) -> bool:
    types = map(type, row.values())
    return _NUMBERS.issuperset(types) and all(
        type(value) is float or INT_MIN <= value <= INT_MAX for value in row.values()
    )


def do_nothing(*args: object, **kwargs: object) -> None:
    """Take the place of `log` on a bus that is off."""
