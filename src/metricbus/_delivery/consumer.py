"""A consumer: reads the journal at its own pace and feeds one sink.

It needs nothing but the run's folder and a sink. The journal is its only source, so a slow, hanging
or failing backend costs the others nothing and costs no memory: it is behind, and catches up.

A pass is: read a batch, filter, `write`, `flush`, save the progress. When `write` fails

* for now (`Unavailable`, `OSError`), the consumer goes back to before the batch and tries again
  after a while: 0.5 s, doubled each time up to 30 s, with jitter, or as long as the backend said;
* for now, and taking with it what was not settled (`Lost`), it goes back to what was;
* for good (anything else), the batch comes again in halves, until the records that fail alone are
  found. Those are counted as rejected; all others are delivered.
"""

from __future__ import annotations

import threading
import time

from metricbus._common.records import Status
from metricbus._common.wakeup import Wakeup
from metricbus._delivery.backoff import Backoff
from metricbus._delivery.batch_reader import Batch, BatchReader
from metricbus._delivery.cursor import other_at
from metricbus._delivery.lease import Lease, Superseded
from metricbus._delivery.report import Tally
from metricbus._delivery.sink_specs import SinkSpec
from metricbus._journal.run import RunFolder
from metricbus.errors import ConfigError, Lost, Unavailable

_LOOK_EVERY = 1.0  # other processes write segments too, and ring no bell here


class Consumer:
    """Feeds one sink; `run` is the body of its thread."""

    def __init__(self, folder: RunFolder, spec: SinkSpec, *, beside_training: bool = False) -> None:
        self.spec = spec
        self.finished = False
        self.changed = threading.Condition()  # told at each step that somebody may wait for
        self._folder = folder
        self._sink = spec.sink
        self._lease = Lease(folder.offsets / spec.place)
        self._beside_training = beside_training
        self._feed = self._new_feed()
        self._given = 0  # records that the sink was given since it was opened
        self._bell = Wakeup()
        self._in_a_hurry = False
        self._ending: Status | None = None
        self._opened = False
        self._number: int | None = None  # of the lease
        self._written: Batch | None = None  # what is written, or rejected, and not yet flushed
        self._rejected = False
        self._where = self._command = ""
        self._failures = Backoff(spec.name)
        self._tell()

    # What other threads call.

    def wake(self) -> None:
        """The journal has grown."""
        self._bell.ring()

    def request_flush(self) -> None:
        """Deliver what is there now, without regard to the pace."""
        self._in_a_hurry = True
        self._bell.ring()

    def end(self, status: Status) -> None:
        """Deliver what is there, close the sink with this status, and finish."""
        self._ending = status
        self._failures.reset_backoff()
        self.request_flush()

    def tally(self) -> Tally:
        """What has been dealt with so far, at one moment."""
        return self._tally

    # The consumer's own thread.

    def run(self) -> None:
        """Works until `end`, or for as long as the process lives."""
        try:
            while not (self._turn() and (self._is_closed() or self._close())):
                pass
        except BaseException as error:  # a backend may even call sys.exit()
            self._failures.give_up(error)
        finally:
            self._lease.release()
            self._tell()  # the last counts first, then that they are the last
            self.finished = True
            self._tell()

    def _turn(self) -> bool:
        """One pass and the rest after it; whether everything is done."""
        started = time.monotonic()
        self._in_a_hurry = False  # one that comes from here on is not yet served
        ending = self._ending is not None  # what was journalled before the end is seen by this pass
        try:
            if not self._opened:
                self._take_lease()
                self._lease.check()  # before the sink may touch anything
                if ending and self._is_closed():
                    return True
                self._open()
            caught_up = not self._pass()
            if caught_up and not ending:
                self._lease.check()
                self._settle()
                self._rest_until(started + self.spec.options.flush_secs)
                if not (self._in_a_hurry or self._feed.has_more()):
                    self._bell.wait(_LOOK_EVERY)
        except Superseded as error:
            self._step_back(error)
            return False
        except Exception as error:
            if ending and not self._opened and isinstance(error, ConfigError):
                raise  # waiting would not mend it
            self._recede(error)
            return False
        return caught_up and ending

    def _step_back(self, error: Superseded) -> None:
        """Queues for the lease again, and goes on from where the other one comes to."""
        self._number = None
        self._opened = False
        self._written = None
        self._lease.release()
        self._complain("will go on later", error)

    def _take_lease(self) -> None:
        if self._number is None:
            self._number = self._lease.acquire(above=self._feed.progress.lease)
            self._feed = self._new_feed()  # another process may have gone on
            self._check_place()
            self._where, self._command = self._feed.progress.where, self._feed.progress.command
            self._failures.forget()
            self._tell()

    def _new_feed(self) -> BatchReader:
        return BatchReader(self._folder, self.spec, gently=self._beside_training)

    def _check_place(self) -> None:
        """A sink that knows rows by their place in the order cannot take others in between."""
        if self._sink.dedup == "content":
            return
        other = other_at(self._folder.offsets, self._feed.progress)
        if other is not None:
            raise ConfigError(
                f"{other} has written other rows to the same place; give {self.spec.name} a place "
                f"of its own, such as {self.spec.kind}:elsewhere"
            )

    def _is_closed(self) -> bool:
        """Whether the sink had been closed with all that there is, as the run ended, before."""
        closed = self._feed.progress.closed
        if self._opened or closed != self._ending or self._feed.has_more():
            return False
        return not self._feed.partial_rows()

    def _open(self) -> None:
        self._sink.open(self._folder.load(), self._folder.path, self._feed.progress.state)
        self._opened = True
        self._given = 0
        self._look_where()

    def _look_where(self) -> None:
        try:
            self._where, self._command = self._sink.where, self._sink.command
        except Exception as error:
            self._complain("cannot tell where it writes to", error)

    def _pass(self) -> bool:
        """Delivers one batch; whether there was one. Nothing counts until it is all done."""
        if self._written is None:
            batch = self._feed.next(ended=self._ending not in (None, "running"))
            if batch is None:
                return False
            if not self._write(batch):
                return True
        state = dict(self._sink.flush() or {})  # if this fails, it alone is tried again
        assert self._written is not None
        self._lease.check()
        self._feed.done(self._written, state, self._given, self._number, rejected=self._rejected)
        if self._written.values and not self._rejected:
            self._failures.recover()
        self._written = None
        self._settle()
        self._tell()
        return True

    def _write(self, batch: Batch) -> bool:
        """Writes the batch, or rejects it; False if it has to come again in parts."""
        self._rejected = False
        try:
            self._lease.check()
            if batch.records:
                self._sink.write(batch.records)
                self._given += len(batch.records)
        except (Unavailable, OSError, Superseded):
            self._feed.go_back()
            raise
        except Exception as error:
            if batch.lines > 1:
                self._feed.halve(batch)
                return False
            self._complain(f"rejected {batch.values} values at step {batch.records[0].step}", error)
            self._rejected = True
            self._sink.skip_rejected(len(batch.records))
            self._given += len(batch.records)
        self._written = batch
        return True

    def _settle(self) -> None:
        """Saves as much of the progress as would outlive a crash."""
        if self._feed.ledger.is_settled():
            return
        try:
            self._feed.ledger.settle(self._sink.acknowledged())
        except OSError as error:  # after a crash the sink's own state finds what came twice
            self._complain("cannot save its progress", error)

    def _close(self) -> bool:
        """Closes the sink; False if that lost something that has to come again."""
        try:
            self._lease.check()
            self._sink.close(self._ending or "finished")
            self._feed.ledger.close(self._ending or "finished", self._where, self._command)
        except Superseded as error:
            self._step_back(error)
            return False
        except Lost as error:
            self._recede(error)
            return False
        except Exception as error:
            self._complain("failed to close", error)
        return True

    def _recede(self, error: Exception) -> None:
        """Rests after a failure; and if the backend is lost, begins again with what was settled."""
        if isinstance(error, Lost):
            self._opened = False
            self._written = None
            self._feed.fall_back()
        self._rest_after(error)

    def _rest_until(self, due: float, *, patiently: bool = False) -> None:
        """Waits, but for a hurry; `patiently`, through that too."""
        while (patiently or not self._in_a_hurry) and (left := due - time.monotonic()) > 0:
            try:
                self._lease.check()
            except Superseded:
                return  # the next turn finds that out
            self._bell.wait(min(left, _LOOK_EVERY))

    def _rest_after(self, error: Exception) -> None:
        """Waits before the next attempt."""
        rest = self._failures.rest_after(error)
        self._complain("will try again", error)
        self._rest_until(time.monotonic() + rest.secs, patiently=rest.is_asked_for)

    def _complain(self, what: str, error: Exception) -> None:
        self._failures.complain(what, error)
        self._tell()

    def _tell(self) -> None:
        done = self._feed.progress
        self._tally = Tally(
            delivered=done.delivered,
            rejected=done.rejected,
            filtered=done.filtered,
            values=done.values,
            positions=done.positions,
            damaged=done.damaged,
            error=self._failures.error,
            where=self._where,
            command=self._command,
        )
        with self.changed:
            self.changed.notify_all()
