"""A separate worker process that shares no state with the measuring process."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from typing import Any, TypeVar

import psutil

CALL_TIMEOUT = 240.0  # seconds for one call
EXIT_TIMEOUT = 120.0  # seconds for the child processes of the worker to exit

T = TypeVar("T")


class Worker:
    """A process that executes one call after another.

    On exit, its child processes are given time to exit, and are then killed.
    """

    def __init__(self) -> None:
        self._executor = ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn"))
        self.process = psutil.Process(self.call(os.getpid))

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        children = self.process.children(recursive=True) if self.process.is_running() else []
        if kind is not None:  # after an error, the worker may never exit on its own
            _kill([self.process])
        self._executor.shutdown(cancel_futures=True)
        _kill(psutil.wait_procs(children, timeout=0 if kind else EXIT_TIMEOUT)[1])

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Schedule a call in the worker."""
        return self._executor.submit(function, *arguments)

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in the worker; return its result, or raise its exception."""
        return self.submit(function, *arguments).result(CALL_TIMEOUT)


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
