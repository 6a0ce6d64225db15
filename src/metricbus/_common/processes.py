"""Which process is which, and whether it lives.

A process is known by its machine, its number and when it started: numbers come again.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec


class ProcessId(msgspec.Struct, frozen=True):
    """One process of one machine; `started` is in ticks since that booted, 0 if unknown."""

    host: str
    pid: int
    started: int = 0

    @property
    def is_local(self) -> bool:
        """Whether it is a process of this machine."""
        return self.host == os.uname().nodename

    def is_alive(self) -> bool:
        """Whether it runs; of another machine's process nobody knows, and it counts as alive."""
        if not self.is_local:
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # it is somebody else's
            pass
        return self.started in (0, _started(self.pid)) and not _only_waits_to_be_reaped(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def this_process() -> ProcessId:
    """The process that asks."""
    return ProcessId(os.uname().nodename, os.getpid(), _started(os.getpid()))


def _started(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[19]) if fields else 0


def _only_waits_to_be_reaped(pid: int) -> bool:
    return _stat(pid)[:1] in (["Z"], ["X"])


def _stat(pid: int) -> list[str]:
    """What Linux tells of a process (proc_pid_stat(5)) after its name; nothing elsewhere."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()
