"""tqdm: the open bars, and the lock that serializes drawing between threads.

Nothing here imports tqdm: if no other code has imported it, there are no bars.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from metricbus._compat.degrade import degrading

_INSTANCES = (
    "tqdm",
    "tqdm._instances",
    "log lines may break progress bars, and tqdm(bus.steps(...)) may have a second bar",
)

_own_lock = threading.RLock()


def bar_lock() -> Any:
    """Return the lock that serializes drawing between threads; tqdm must be imported.

    tqdm creates its own lock lazily; that one contains this one and a lock between processes.
    Creating it here would fix the start method of multiprocessing, which is the user's choice.
    """
    std: Any = sys.modules["tqdm.std"]
    with degrading(
        "tqdm", "TqdmDefaultWriteLock.th_lock", "bars of several threads may overwrite each other"
    ):
        return getattr(std.tqdm, "_lock", None) or std.TqdmDefaultWriteLock.th_lock
    return _own_lock


def open_bars() -> list[Any]:
    """Return all open bars, including those of the user."""
    tqdm = getattr(sys.modules.get("tqdm.std"), "tqdm", None)
    with degrading(*_INSTANCES):
        if tqdm is not None and len(tqdm._instances):
            with bar_lock():
                return list(tqdm._instances)
    return []


@contextmanager
def bars_cleared(stream: object) -> Iterator[None]:
    """Clear the bars from `stream` while something is written to it, then redraw them."""
    if all(getattr(bar, "gui", True) for bar in open_bars()):  # bars of a notebook, or none
        yield
        return
    with bar_lock(), sys.modules["tqdm.std"].tqdm.external_write_mode(file=stream, nolock=True):
        yield


def forget_in_child(bars: Iterable[Any]) -> None:
    """After a fork, forget these bars, and the lock: a thread missing in the child may hold it."""
    global _own_lock
    _own_lock = threading.RLock()
    std: Any = sys.modules["tqdm.std"]
    std.TqdmDefaultWriteLock.th_lock = threading.RLock()
    with degrading(*_INSTANCES):
        for bar in bars:
            std.tqdm._instances.discard(bar)
