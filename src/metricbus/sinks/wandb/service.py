"""W&B's service process, which receives the rows: detects its death and restarts it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from metricbus._compat.wandb import is_connection_error
from metricbus.errors import RecordsLostError, RecordsRejectedError


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
            if is_connection_error(error):
                self.is_dead = True
                raise RecordsLostError(
                    f"W&B's service process has died ({type(error).__name__}); it is restarted, "
                    "and rows that it had not saved are sent again"
                ) from error
            if type(error).__name__ == "UsageError" and "is finished" in str(error):
                raise RecordsLostError(f"other code has finished the W&B run ({error})") from error
            raise
