"""A process of its own for what is measured, with nothing of the one that measures in it."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from typing import Any, TypeVar

import psutil

ANSWERS_WITHIN = 240.0  # seconds
ENDS_WITHIN = 120.0  # seconds for what it has started

T = TypeVar("T")


class Worker:
    """A process that does one thing after another; it ends with all that it has started."""

    def __init__(self) -> None:
        self._executor = ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn"))
        self.process = psutil.Process(self.do(os.getpid))

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        helpers = self.process.children(recursive=True) if self.process.is_running() else []
        if kind is not None:  # it may never come to an end by itself
            _kill([self.process])
        self._executor.shutdown(cancel_futures=True)
        _kill(psutil.wait_procs(helpers, timeout=0 if kind else ENDS_WITHIN)[1])

    def begin(self, work: Callable[..., T], *arguments: Any) -> Future[T]:
        """Has it done there."""
        return self._executor.submit(work, *arguments)

    def do(self, work: Callable[..., T], *arguments: Any) -> T:
        """Has it done there, and waits; raises what it raises."""
        return self.begin(work, *arguments).result(ANSWERS_WITHIN)


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
