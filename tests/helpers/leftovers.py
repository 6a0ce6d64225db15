"""Helpers that find and stop threads, consumers and processes that a test left running.

Every test has a unique marker in its environment, which its child processes inherit.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import NoReturn

from metricbus._delivery.consumer import Consumer
from metricbus._delivery.lease import LeaseLost

MARKER = "TEST_PROCESS_MARKER"

# Processes that serve several tests and end with the pytest process.
_SERVICES = (b"wandb-core", b"multiprocessing.forkserver", b"multiprocessing.resource_tracker")


def own_threads() -> list[threading.Thread]:
    """Return the live threads of this process that metricbus started."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("metricbus-")]


def marked_processes(marker: str) -> dict[int, str]:
    """Return the command lines of the live processes that a test started, by process id."""
    variable = f"{MARKER}={marker}\0".encode()
    commands = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if variable not in (folder / "environ").read_bytes():
                continue
            command = (folder / "cmdline").read_bytes()
        except OSError:  # it has ended, or belongs to another user
            continue
        if command and not any(service in command for service in _SERVICES):
            commands[int(folder.name)] = command.replace(b"\0", b" ").decode(errors="replace")[:200]
    commands.pop(os.getpid(), None)
    return commands


def stop_consumers() -> None:
    """Make consumers give up on backends that never answer, so that their threads end."""
    for thread in own_threads():
        run = getattr(thread, "_target", None)  # deleted when the thread ends
        consumer = getattr(run, "__self__", None)
        if isinstance(consumer, Consumer):
            consumer._run_pass = _give_up  # type: ignore[method-assign]
            consumer._cursor.lease.check = _interrupt_wait  # type: ignore[method-assign]
            consumer.request_flush()


def _give_up() -> NoReturn:
    raise SystemExit("the test is over")


def _interrupt_wait() -> NoReturn:
    raise LeaseLost("the test is over")
