"""Delivers a run's journal to one sink.

A consumer needs only the run folder and a sink, and reads at its own pace. A slow, hanging or
failing backend therefore neither delays the other consumers nor costs memory: unread records stay
in the journal.

Each pass reads and filters a batch, calls `write` and `flush`, and saves the progress. If `write`
fails

* temporarily (`BackendUnavailableError`, `OSError`), the consumer rolls the batch back and retries
  it after a delay (see `backoff`);
* with the loss of unacknowledged records (`RecordsLostError`), it also reopens the sink, and
  resumes after the last acknowledged record;
* permanently (any other exception), it retries the batch in halves until it has isolated the
  records that fail. These count as rejected; all others are delivered.
"""

from __future__ import annotations

import threading
import time

from metricbus._common.records import Status
from metricbus._common.wakeup import Wakeup
from metricbus._delivery.backoff import Backoff
from metricbus._delivery.batch_reader import Batch, BatchReader
from metricbus._delivery.cursor import find_conflict
from metricbus._delivery.lease import Lease, LeaseLost
from metricbus._delivery.report import Progress, Tally
from metricbus._delivery.sink_specs import SinkSpec
from metricbus._journal.run import RunFolder
from metricbus.errors import BackendUnavailableError, ConfigError, RecordsLostError

# Other processes write segments too, and do not wake this one.
_POLL_SECS = 1.0


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
        self._lease = Lease(folder.offsets / spec.destination)
        self._lease_number: int | None = None
        self._in_training_process = in_training_process
        self._reader = self._new_reader()
        self._wakeup = Wakeup()
        self._flush_requested = False
        self._final_status: Status | None = None
        self._is_open = False
        self._record_count = 0  # records written or rejected since the sink was opened
        self._written_batch: Batch | None = None  # written or rejected, but not flushed
        self._is_rejected = False  # whether that batch was rejected
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
            while not (self._run_pass() and (self._was_closed_before() or self._close())):
                pass
        except BaseException as error:  # a backend may even call sys.exit()
            self._backoff.give_up(error)
        finally:
            self._lease.release()
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
        ending = self._final_status is not None
        try:
            if not self._is_open:
                self._acquire_lease()
                self._lease.check()  # before the sink can touch anything
                if ending and self._was_closed_before():
                    return True
                self._open()
            caught_up = not self._deliver_batch()
            if caught_up and not ending:
                self._lease.check()
                self._save_acknowledged()
                self._wait_until(started + self.spec.options.flush_secs)
                if not (self._flush_requested or self._reader.has_more()):
                    self._wakeup.wait(_POLL_SECS)
        except LeaseLost as error:
            self._wait_for_lease(error)
            return False
        except Exception as error:
            if ending and not self._is_open and isinstance(error, ConfigError):
                raise  # retrying cannot help
            self._recover_from(error)
            return False
        return caught_up and ending

    def _wait_for_lease(self, error: LeaseLost) -> None:
        """Compete for the lease again, and resume after what its new holder has delivered."""
        self._lease_number = None
        self._is_open = False
        self._written_batch = None
        self._lease.release()
        self._warn("delivery is paused", error)

    def _acquire_lease(self) -> None:
        if self._lease_number is None:
            self._lease_number = self._lease.acquire(above=self._reader.progress.lease)
            self._reader = self._new_reader()  # another process may have made progress
            # A sink that recognizes rows by their position cannot distinguish other rows.
            if self._sink.dedup != "content" and (
                other := find_conflict(self._folder.offsets, self._reader.progress)
            ):
                raise ConfigError(
                    f"{other} has already written a different selection of rows to the same "
                    f"location; give {self.spec.name} another location, such as "
                    f"{self.spec.kind}:elsewhere"
                )
            self._where = self._reader.progress.where
            self._command = self._reader.progress.command
            self._backoff.clear_error()
            self._publish_tally()

    def _new_reader(self) -> BatchReader:
        return BatchReader(self._folder, self.spec, yields_gil=self._in_training_process)

    def _was_closed_before(self) -> bool:
        """Check whether an earlier delivery has written all records and closed the sink."""
        closed = self._reader.progress.closed
        if self._is_open or closed != self._final_status or self._reader.has_more():
            return False
        return not self._reader.partial_rows()

    def _open(self) -> None:
        progress = self._reader.progress
        self._sink.open(self._folder.load(), self._folder.path, progress.state)
        self._is_open = True
        self._record_count = 0
        try:
            self._where, self._command = self._sink.where, self._sink.command
        except Exception as error:
            self._warn("cannot determine its location", error)

    def _deliver_batch(self) -> bool:
        """Deliver one batch; return whether there was one. It counts only once it is flushed."""
        if self._written_batch is None:
            batch = self._reader.next(ended=self._final_status not in (None, "running"))
            if batch is None:
                return False
            if not self._write(batch):
                return True
        # If the flush fails, the next pass repeats it without writing again.
        state = dict(self._sink.flush() or {})
        batch = self._written_batch
        assert batch is not None
        self._lease.check()
        self._reader.commit(
            batch, state, self._record_count, self._lease_number, rejected=self._is_rejected
        )
        if batch.values and not self._is_rejected:
            self._backoff.recover()
        self._written_batch = None
        self._save_acknowledged()
        self._publish_tally()
        return True

    def _write(self, batch: Batch) -> bool:
        """Write or reject the batch; return False if it must be read again in smaller parts."""
        self._is_rejected = False
        try:
            self._lease.check()
            if batch.records:
                self._sink.write(batch.records)
        except (BackendUnavailableError, OSError, LeaseLost):
            self._reader.roll_back()
            raise
        except Exception as error:
            if batch.lines > 1:
                self._reader.halve(batch)
                return False
            self._warn(f"rejected {batch.values} values at step {batch.records[0].step}", error)
            self._is_rejected = True
            self._sink.skip_rejected(len(batch.records))
        self._record_count += len(batch.records)
        self._written_batch = batch
        return True

    def _save_acknowledged(self) -> None:
        """Save the progress that would survive a crash."""
        if self._reader.ledger.is_acknowledged():
            return
        try:
            self._reader.ledger.acknowledge(self._sink.acknowledged())
        except OSError as error:  # after a crash, the sink recognizes the repeated records
            self._warn("cannot save the delivery progress", error)

    def _close(self) -> bool:
        """Close the sink; return False if records were lost and must be delivered again."""
        status = self._final_status or "finished"
        try:
            self._lease.check()
            self._sink.close(status)
            self._reader.ledger.close(status, self._where, self._command)
        except LeaseLost as error:
            self._wait_for_lease(error)
            return False
        except RecordsLostError as error:
            self._recover_from(error)
            return False
        except Exception as error:
            self._warn("cannot close the sink", error)
        return True

    def _recover_from(self, error: Exception) -> None:
        """Wait before the next attempt; if records were lost, reopen the sink for it."""
        if isinstance(error, RecordsLostError):
            self._is_open = False
            self._written_batch = None
            self._reader.roll_back_to_acknowledged()
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
                self._lease.check()
            except LeaseLost:
                return  # the next pass handles it
            self._wakeup.wait(min(remaining, _POLL_SECS))

    def _warn(self, message: str, error: Exception) -> None:
        self._backoff.warn(message, error)
        self._publish_tally()

    def _publish_tally(self) -> None:
        progress = self._reader.progress
        shared = {name: getattr(progress, name) for name in Progress.__struct_fields__}
        error, where, command = self._backoff.error, self._where, self._command
        self._tally = Tally(**shared, error=error, where=where, command=command)
        with self.changed:
            self.changed.notify_all()
