"""How far a sink has come, kept in one small file per sink in the run's folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import msgspec

from metricbus.files import replace_file
from metricbus.journal import Position

_log = logging.getLogger("metricbus.delivery")


class Progress(msgspec.Struct, kw_only=True):
    """A sink's progress: everything before `positions` is done, in one way or another.

    `state` is what the sink itself needs to go on from there, `seen` how often each name came (for
    `every=`). The counts are in values; `values` has them by segment, all outcomes together. `sink`
    is the canonical URL, without secrets.
    """

    sink: str
    positions: dict[str, Position] = {}
    state: dict[str, Any] = {}
    seen: dict[str, int] = {}
    values: dict[str, int] = {}
    delivered: int = 0
    rejected: int = 0
    filtered: int = 0


def load_progress(path: Path, sink: str) -> Progress:
    """The progress saved at `path`; that of a sink which has seen nothing, if there is none.

    A file that cannot be read (a power cut) counts as none: sinks recognise what comes again.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Progress)
    except FileNotFoundError:
        return Progress(sink=sink)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        _log.warning("%s cannot be read (%s): delivering from the beginning", path, error)
        return Progress(sink=sink)


def save_progress(path: Path, progress: Progress) -> None:
    """Replaces the file as a whole."""
    replace_file(path, msgspec.json.encode(progress))
