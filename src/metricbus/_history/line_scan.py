"""Decodes single lines of a journal, for readers that do not read it as a whole."""

from __future__ import annotations

from pathlib import Path

from metricbus._common.records import DECODE_ERRORS, Record, decode
from metricbus._journal.rewind import Rewinds
from metricbus._journal.segment_reader import SUFFIX, JournalReader, Row


def decode_or_none(line: bytes) -> Record | None:
    """Return the record in a line; None if the line is damaged."""
    try:
        return decode(line)
    except DECODE_ERRORS:
        return None


def find_rewinds(journal: Path) -> Rewinds:
    """Find the rewinds of a run, decoding only headers and the lines that mention a rewind."""
    rows = []
    for segment in JournalReader(journal).segments():
        with open(journal / (segment + SUFFIX), "rb") as file:
            for number, line in enumerate(file):
                if (number == 0 or b'"rewind"' in line) and line.endswith(b"\n"):
                    rows.append(Row(segment, number, 0, decode_or_none(line)))
    return Rewinds(rows)
