"""Find and stop what a test left running: threads, consumers and processes of metricbus.

Every test has a marker of its own in its environment, which the processes that it starts inherit.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import NoReturn

from metricbus._delivery.consumer import Consumer
from metricbus._delivery.lease import LeaseLost

MARKER = "TEST_PROCESS_MARKER"

# They belong to the pytest process, serve several tests, and end with it.
_SERVICES = (b"wandb-core", b"multiprocessing.forkserver", b"multiprocessing.resource_tracker")


def own_threads() -> list[threading.Thread]:
    """Living threads of this process that metricbus started."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("metricbus-")]


def marked_processes(marker: str) -> dict[int, str]:
    """Living processes that a test started, by id, with their command lines."""
    variable = f"{MARKER}={marker}\0".encode()
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if variable not in (folder / "environ").read_bytes():
                continue
            command = (folder / "cmdline").read_bytes()
        except OSError:  # it ended meanwhile, or belongs to another user
            continue
        if command and not any(service in command for service in _SERVICES):
            found[int(folder.name)] = command.replace(b"\0", b" ").decode(errors="replace")[:200]
    found.pop(os.getpid(), None)
    return found


def stop_consumers() -> None:
    """Make consumers whose backend never answers give up, so that their threads end."""
    for thread in own_threads():
        run = getattr(thread, "_target", None)  # deleted when the thread ends
        consumer = getattr(run, "__self__", None)
        if isinstance(consumer, Consumer):
            consumer._run_pass = _give_up  # type: ignore[method-assign]
            consumer._lease.check = _interrupt_wait  # type: ignore[method-assign]
            consumer.request_flush()


def _give_up() -> NoReturn:
    raise SystemExit("the test is over")


def _interrupt_wait() -> NoReturn:
    raise LeaseLost("the test is over")
