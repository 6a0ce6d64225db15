"""Terminals to look at: real pseudo-terminals, and what a person would see on them."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import textwrap
import threading
from pathlib import Path
from typing import TextIO

_PIECES = re.compile(r"\x1b\[([0-9;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n])", re.DOTALL)


def screen_of(written: str, columns: int = 80) -> list[str]:
    """The lines that a terminal shows after this, without empty ones at the end."""
    lines = [""]
    row = column = 0
    for argument, order, move, character in _PIECES.findall(written):
        if order == "A":
            row = max(0, row - int(argument or 1))
        elif order == "K":
            lines[row] = lines[row][:column]
        elif move == "\r":
            column = 0
        elif move == "\n":
            row += 1
        elif character:
            if column == columns:
                row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
            line = lines[row].ljust(column)
            lines[row] = line[:column] + character + line[column + 1 :]
            column += 1
        lines += [""] * (row + 1 - len(lines))
    shown = [line.rstrip() for line in lines]
    while shown and not shown[-1]:
        shown.pop()
    return shown


class Terminal:
    """A pseudo-terminal that somebody reads; `stream` writes to it."""

    def __init__(self, columns: int = 80, rows: int = 24) -> None:
        self._master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.stream: TextIO = os.fdopen(self.slave, "w", encoding="utf-8", closefd=False)
        self._columns = columns
        self._is_hung_up = False
        self._read = bytearray()
        self._reader = threading.Thread(target=self._read_on, daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        """All that was written so far."""
        return self._read.decode(errors="replace")

    def hang_up(self) -> None:
        """Nobody is there any more: what is read by now is all that there will be."""
        self.stream.close()
        if not self._is_hung_up:
            self._is_hung_up = True
            os.close(self.slave)
        self._reader.join(10)

    def screen(self) -> list[str]:
        """What is seen in the end."""
        self.hang_up()
        return screen_of(self.text, self._columns)

    def _read_on(self) -> None:
        try:
            while piece := os.read(self._master, 1 << 16):
                self._read += piece
        except OSError:  # the end of a terminal
            pass
        os.close(self._master)


def start_in_terminal(
    terminal: Terminal, folder: Path, code: str, **environment: str
) -> subprocess.Popen[bytes]:
    """Begins the code as `train.py`, with a terminal for its input and output."""
    (folder / "train.py").write_text(textwrap.dedent(code))
    slave = terminal.slave
    return subprocess.Popen(
        [sys.executable, "train.py"],
        cwd=folder,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=os.environ | environment,
    )
