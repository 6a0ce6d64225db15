"""W&B's service process, which receives the rows: detects its death and restarts it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from metricbus.errors import RecordsLostError, RecordsRejectedError

if TYPE_CHECKING:
    import wandb

_CONNECTION_ERRORS = (  # names of W&B's exceptions
    "AlreadyJoinedError",
    "HandleAbandonedError",
    "MailboxClosedError",
    "WandbServiceConnectionError",
)


class WandbService:
    """The service process as one sink sees it. All W&B runs of this process share it."""

    def __init__(self) -> None:
        self.is_dead = False
        self._setup: object = None  # W&B's object for the process in which our run began

    def restart_if_dead(self) -> None:
        """Let W&B start a new process if the old one, with all of its runs, is dead."""
        import wandb

        if not self.is_dead:
            return
        if wandb.setup() is self._setup:  # otherwise other code has restarted it already
            with suppress(Exception, SystemExit):
                wandb.teardown()
        self.is_dead = False

    def remember(self) -> None:
        """Note that our run has begun in the current process."""
        import wandb

        self._setup = wandb.setup()

    @contextmanager
    def map_errors(self) -> Iterator[None]:
        """Map errors of W&B calls in the block.

        Raises `RecordsLostError` if the service process is dead or other code has finished the run.
        """
        try:
            yield
        except Exception as error:
            if isinstance(error, PermissionError):  # of the folder in which W&B stages tables
                raise RecordsRejectedError(str(error)) from error
            if isinstance(error, OSError) and error.filename is not None:
                raise  # of a file, such as a full disk, and not of the connection
            if isinstance(error, OSError) or type(error).__name__ in _CONNECTION_ERRORS:
                self.is_dead = True
                raise RecordsLostError(
                    f"W&B's service process has died ({type(error).__name__}); it is restarted, "
                    "and rows that it had not saved are sent again"
                ) from error
            if type(error).__name__ == "UsageError" and "is finished" in str(error):
                raise RecordsLostError(f"other code has finished the W&B run ({error})") from error
            raise


@contextmanager
def without_waiting(run: wandb.Run) -> Iterator[None]:
    """Send rows that are logged in the block to the service process without waiting.

    `Run.log()` normally waits until another thread has written to the socket, which takes longer
    than the rest of the call. W&B sends console output without waiting; this uses the same path.
    Order is kept. The next call outside the block waits for all of them, and raises if one failed.

    This uses private parts of W&B. In a version without them, each row is waited for.
    """
    interface: Any = getattr(run, "_interface", None)
    publish = getattr(interface, "_publish", None)
    if publish is None or "nowait" not in inspect.signature(publish).parameters:
        yield
        return
    interface._publish = partial(publish, nowait=True)
    try:
        yield
    finally:
        del interface._publish
