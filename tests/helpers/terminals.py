"""Pseudo-terminals for tests, and rendering of the text that they display."""

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


def render_screen(written: str, columns: int = 80) -> list[str]:
    """Return the lines that a terminal displays for this output, without trailing empty ones."""
    lines = [""]
    row = column = 0
    for argument, command, move, character in _PIECES.findall(written):
        if command == "A":
            row = max(0, row - int(argument or 1))
        elif command == "K":
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
    screen = [line.rstrip() for line in lines]
    while screen and not screen[-1]:
        screen.pop()
    return screen


class Terminal:
    """A pseudo-terminal. `stream` writes to it, and a thread collects the output."""

    def __init__(self, columns: int = 80, rows: int = 24) -> None:
        self._master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.stream: TextIO = os.fdopen(self.slave, "w", encoding="utf-8", closefd=False)
        self._columns = columns
        self._is_closed = False
        self._output = bytearray()
        self._reader = threading.Thread(target=self._collect, daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        """All output so far."""
        return self._output.decode(errors="replace")

    def hang_up(self) -> None:
        """Close the terminal, and wait until all output has been read."""
        self.stream.close()
        if not self._is_closed:
            self._is_closed = True
            os.close(self.slave)
        self._reader.join(10)

    def screen(self) -> list[str]:
        """Close the terminal, and return the lines that it displays."""
        self.hang_up()
        return render_screen(self.text, self._columns)

    def _collect(self) -> None:
        try:
            while chunk := os.read(self._master, 1 << 16):
                self._output += chunk
        except OSError:  # the terminal is closed
            pass
        os.close(self._master)


def start_in_terminal(
    terminal: Terminal, folder: Path, code: str, **environment: str
) -> subprocess.Popen[bytes]:
    """Start the code as `train.py`, with the terminal as its input and output."""
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
