"""Delivers a run's journal to one sink.

A consumer needs only the run folder and a sink, and reads at its own pace. A slow, hanging or
failing backend therefore neither delays the other consumers nor costs memory: unread records stay
in the journal.

Each pass takes a batch through the states of the `DeliveryCursor`: it is read, written, and
flushed, and the progress is saved. If `write` fails

* temporarily (`BackendUnavailableError`, `OSError`), the consumer rolls the batch back and retries
  it after a delay (see `backoff`);
* with the loss of unacknowledged records (`RecordsLostError`), it also reopens the sink, and
  resumes after the last acknowledged record;
* permanently (any other exception), it retries the batch in halves until it has isolated the
  records that fail. These count as rejected; all others are delivered.

Any exception of a sink is handled like this. Of metricbus's own code, only failures of the disk are
retried: any other exception is an internal error, which stops the consumer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import ParamSpec, TypeVar

import msgspec

from metricbus._common.records import Rewind, Status
from metricbus._common.wakeup import Wakeup
from metricbus._delivery.backoff import Backoff
from metricbus._delivery.batch_reader import Batch
from metricbus._delivery.cursor import DeliveryCursor
from metricbus._delivery.lease import LeaseLost
from metricbus._delivery.report import Tally
from metricbus._delivery.sink_specs import SinkSpec
from metricbus._journal.run import RunFolder
from metricbus.errors import (
    BackendUnavailableError,
    ConfigError,
    MetricBusError,
    RecordsLostError,
)
from metricbus.sinks.base import Flushed

# Other processes write segments too, and do not wake this one.
_POLL_SECS = 1.0

# Failures of metricbus's own code that a later attempt may not have.
_RETRIED = (OSError, MemoryError, MetricBusError)

P = ParamSpec("P")
T = TypeVar("T")


class Consumer:
    """Delivers to one sink; `run` is the body of its thread.

    `changed` is notified whenever `tally()` or `finished` has changed.
    """

    def __init__(
        self, folder: RunFolder, spec: SinkSpec, *, in_training_process: bool = False
    ) -> None:
        self.spec = spec
        self.finished = False
        self.changed = threading.Condition()
        self._folder = folder
        self._sink = spec.sink
        self._cursor = DeliveryCursor(folder, spec, yields_gil=in_training_process)
        self._in_sink = False  # whether the sink was called last, and has not returned
        self._wakeup = Wakeup()
        self._flush_requested = False
        self._final_status: Status | None = None
        self._where = self._command = ""
        self._backoff = Backoff(spec.name)
        self._publish_tally()

    # Called from other threads.

    def wake(self) -> None:
        """Notify the consumer that the journal has grown."""
        self._wakeup.wake()

    def request_flush(self) -> None:
        """Deliver everything that is in the journal now, without waiting for `flush_secs`."""
        self._flush_requested = True
        self._wakeup.wake()

    def end(self, status: Status) -> None:
        """Deliver everything that is in the journal, close the sink with this status, and stop."""
        self._final_status = status
        self._backoff.reset_backoff()
        self.request_flush()

    def tally(self) -> Tally:
        """Return a consistent snapshot of the progress."""
        return self._tally

    # Called from the consumer's own thread.

    def run(self) -> None:
        """Deliver until everything has been delivered after `end`."""
        try:
            # Without a sink that is open, there is nothing to close: it has everything already.
            while not (self._run_pass() and (self._cursor.state == "acquired" or self._close())):
                pass
        except BaseException as error:  # a backend may even call sys.exit()
            self.give_up(error)
        else:
            self._finish()

    def give_up(self, error: BaseException) -> None:
        """Stop because of this error; what is not delivered remains in the journal."""
        try:
            self._backoff.give_up(error, is_internal=self._is_internal(error))
        finally:
            self._finish()

    def _finish(self) -> None:
        with suppress(OSError):  # the lease of a process that has ended can be taken over
            self._cursor.release()
        # Publish the final tally before `finished`, for threads that wait for either.
        self._publish_tally()
        self.finished = True
        self._publish_tally()

    def _run_pass(self) -> bool:
        """Deliver a batch or wait for one; return whether everything has been delivered."""
        started = time.monotonic()
        # A request that arrives from here on needs a further pass. Everything that was journalled
        # before `end` is seen by this pass.
        self._flush_requested = False
        self._in_sink = False
        ending = self._final_status is not None
        try:
            if self._cursor.state == "released":
                self._acquire_lease()
            if self._cursor.state == "acquired":
                self._cursor.lease.check()  # before the sink can touch anything
                if ending and self._cursor.is_complete(self._final_status):
                    return True
                self._open()
            caught_up = not self._deliver_batch()
            if caught_up and not ending:
                self._cursor.lease.check()
                if not self._cursor.is_acknowledged:
                    self._acknowledge(self._flush())
                self._wait_until(started + self.spec.options.flush_secs)
                if not (self._flush_requested or self._cursor.reader.has_more()):
                    self._wakeup.wait(_POLL_SECS)
        except LeaseLost as error:
            self._wait_for_lease(error)
            return False
        except Exception as error:
            if self._is_internal(error):
                raise
            is_open = self._cursor.state not in ("released", "acquired")
            if ending and not is_open and isinstance(error, ConfigError):
                raise  # retrying cannot help
            self._recover_from(error)
            return False
        return caught_up and ending

    def _call(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a method of the sink, and note whether it raises."""
        self._in_sink = True
        result = method(*args, **kwargs)
        self._in_sink = False
        return result

    def _is_internal(self, error: BaseException) -> bool:
        is_expected = self._in_sink or isinstance(error, _RETRIED)
        return isinstance(error, Exception) and not is_expected

    def _wait_for_lease(self, error: LeaseLost) -> None:
        """Compete for the lease again, and resume after what its new holder has delivered."""
        self._cursor.release()
        self._warn("delivery is paused", error)

    def _acquire_lease(self) -> None:
        self._cursor.acquire()
        self._where, self._command = self._cursor.progress.where, self._cursor.progress.command
        self._backoff.clear_error()
        self._publish_tally()

    def _open(self) -> None:
        state = self._cursor.progress.state
        self._call(self._sink.open, self._folder.load(), self._folder.path, state)
        self._cursor.opened()
        try:
            self._where, self._command = str(self._sink.where or ""), str(self._sink.command or "")
        except Exception as error:
            self._warn("cannot determine its location", error)

    def _deliver_batch(self) -> bool:
        """Deliver one batch; return whether there was one. It counts only once it is flushed."""
        cursor = self._cursor
        if cursor.state == "ready":
            batch = cursor.read(ended=self._final_status not in (None, "running"))
            if batch is None:
                return False
            if not self._write(batch):
                return True
        # If the flush fails, the next pass repeats it without writing again.
        flushed = self._flush()
        cursor.flushed(flushed.state)
        if cursor.batch.values:
            self._backoff.recover()
        self._acknowledge(flushed)
        self._publish_tally()
        return True

    def _write(self, batch: Batch) -> bool:
        """Write the batch; return False if it must be read again, in part or as rejected."""
        self._cursor.intend()
        try:
            if batch.records:
                self._call(self._sink.write, batch.records)
        except (BackendUnavailableError, OSError):
            raise
        except Exception as error:
            self._in_sink = False
            if len(batch.rows) == 1:
                (record,) = batch.records
                is_rewind = isinstance(record, Rewind)
                what = "the rewind to" if is_rewind else f"{batch.values} values at"
                self._warn(f"rejected {what} step {record.step}", error)
            self._cursor.refused()
            return False
        self._cursor.written()
        return True

    def _flush(self) -> Flushed:
        return self._call(self._flush_sink)

    def _flush_sink(self) -> Flushed:
        """Flush the sink. Raise `TypeError` if what it returns cannot be saved."""
        result = self._sink.flush()
        flushed = result if isinstance(result, Flushed) else Flushed(result or {})
        try:
            msgspec.json.encode(dict(flushed.state))
            if not isinstance(flushed.acknowledged, int | None):
                raise TypeError(f"{flushed.acknowledged!r} is not a number of records")
        except (TypeError, ValueError, OverflowError) as error:
            raise TypeError(
                "flush() must return a mapping that JSON can represent, or Flushed(mapping, number "
                f"of records), not {result!r:.200}: {error}"
            ) from error
        return flushed

    def _acknowledge(self, flushed: Flushed) -> None:
        """Save the progress that would survive a crash."""
        try:
            self._cursor.acknowledged(flushed.acknowledged)
        except OSError as error:  # after a crash, the sink recognizes the repeated records
            self._warn("cannot save the delivery progress", error)

    def _close(self) -> bool:
        """Close the sink; return False if it must be opened and closed again."""
        status = self._final_status or "finished"
        try:
            self._cursor.lease.check()
            self._call(self._sink.close, status)
            self._cursor.close(status, self._where, self._command)
        except LeaseLost as error:
            self._wait_for_lease(error)
            return False
        except RecordsLostError as error:
            self._recover_from(error)
            return False
        except Exception as error:
            if self._is_internal(error):
                raise
            self._warn("cannot close the sink", error)
        return True

    def _recover_from(self, error: Exception) -> None:
        """Wait before the next attempt; if records were lost, reopen the sink for it."""
        if isinstance(error, RecordsLostError):
            self._cursor.lost()
        elif self._cursor.state in ("read", "intended"):
            self._cursor.roll_back()
        delay, is_requested = self._backoff.next_delay(error)
        self._warn("delivery delayed, will retry", error)
        self._wait_until(time.monotonic() + delay, ignore_flush=is_requested)

    def _wait_until(self, deadline: float, *, ignore_flush: bool = False) -> None:
        """Wait until the deadline or, unless `ignore_flush` is set, until a flush is requested."""
        while ignore_flush or not self._flush_requested:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return
            try:
                self._cursor.lease.check()
            except LeaseLost:
                return  # the next pass handles it
            except OSError:
                pass  # the next pass fails as well, and is retried
            self._wakeup.wait(min(remaining, _POLL_SECS))

    def _warn(self, message: str, error: Exception) -> None:
        self._backoff.warn(message, error)
        self._publish_tally()

    def _publish_tally(self) -> None:
        progress = self._cursor.progress
        fields = {name: getattr(progress, name) for name in Tally.__struct_fields__}
        fields |= {"error": self._backoff.error, "where": self._where, "command": self._command}
        self._tally = Tally(**fields)
        with self.changed:
            self.changed.notify_all()
