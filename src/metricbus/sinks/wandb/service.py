"""W&B's own process, which takes the rows: whether it lives, and what to do when it is dead."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from metricbus.errors import Lost, Rejected

if TYPE_CHECKING:
    import wandb

_OF_THE_DEAD = frozenset(  # errors of W&B that mean that the connection to its process is gone
    (
        "AlreadyJoinedError",
        "HandleAbandonedError",
        "MailboxClosedError",
        "WandbServiceConnectionError",
    )
)


class WandbProcess:
    """The process as one sink knows it; it serves every run of the script."""

    def __init__(self) -> None:
        self.is_dead = False
        self._setup: object = None  # what it belonged to

    def revive(self) -> None:
        """If it is dead, and with it every run of the script, has W&B start a new one."""
        import wandb

        if not self.is_dead:
            return
        if wandb.setup() is self._setup:  # else somebody has done so already
            with suppress(Exception, SystemExit):
                wandb.teardown()
        self.is_dead = False

    def remember(self) -> None:
        """A run has begun in the process that there is now."""
        import wandb

        self._setup = wandb.setup()

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Around calls: `Lost` if W&B's own process is gone."""
        try:
            yield
        except Exception as error:
            if isinstance(error, PermissionError):
                raise Rejected(str(error)) from error  # the folder in which W&B keeps tables
            if isinstance(error, OSError) and error.filename is not None:
                raise  # a full disk, for one
            if isinstance(error, OSError) or type(error).__name__ in _OF_THE_DEAD:
                self.is_dead = True
                raise Lost(f"W&B's own process is gone ({type(error).__name__})") from error
            if type(error).__name__ == "UsageError" and "is finished" in str(error):
                raise Lost(f"somebody else has ended the run ({error})") from error
            raise


@contextmanager
def without_waiting(run: wandb.Run) -> Iterator[None]:
    """What is logged inside goes to W&B's process in its order, but is not waited for.

    `Run.log()` waits each time until another thread has written to the socket, which takes longer
    than all else that it does. What W&B logs of the console is not waited for; this uses the same
    way. The next call outside waits for everything before it, and raises if that failed.

    It is no public part of W&B: in a version that does not have it, each row is waited for.
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
