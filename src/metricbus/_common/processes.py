"""Identity of processes, and whether they are alive.

A process is identified by host, process id and start time, because process ids are reused.

Here and wherever a class is decoded, its decoder is created by the module that defines it. msgspec
0.22 shares what it has learned about a class before it is complete, and a second thread that
decodes the class at that moment ends the process with a segmentation fault.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec


class ProcessId(msgspec.Struct, frozen=True):
    """One process; `started` is its start time in clock ticks since boot, 0 if unknown."""

    host: str
    pid: int
    started: int = 0

    @property
    def is_local(self) -> bool:
        """Whether the process belongs to this machine."""
        return self.host == os.uname().nodename

    def is_alive(self) -> bool:
        """Check whether the process runs; a process of another machine counts as alive."""
        if not self.is_local:
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # it exists and belongs to another user
            pass
        return self.started in (0, _start_time(self.pid)) and not _is_zombie(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


decode_process_id = msgspec.json.Decoder(ProcessId).decode


def this_process() -> ProcessId:
    """Return the identity of the calling process."""
    return ProcessId(os.uname().nodename, os.getpid(), _start_time(os.getpid()))


def _start_time(pid: int) -> int:
    fields = _proc_stat(pid)
    return int(fields[19]) if fields else 0


def _is_zombie(pid: int) -> bool:
    return _proc_stat(pid)[:1] in (["Z"], ["X"])


def _proc_stat(pid: int) -> list[str]:
    """Return the fields after the process name (proc_pid_stat(5)); empty without /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()
