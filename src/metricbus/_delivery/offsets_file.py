"""The offsets file of a sink: how far it is, saved as one small JSON file.

Only acknowledged progress is saved. After a crash, everything beyond it is delivered again.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import msgspec

from metricbus._common.files import replace_file
from metricbus._common.records import Status
from metricbus._delivery.report import Tally
from metricbus._journal.segment_reader import Span

_log = logging.getLogger("metricbus.delivery")


class DeliveryProgress(Tally, kw_only=True, frozen=True, array_like=False):
    """The progress of a sink, as saved in its offsets file.

    * `sink`: the canonical URL, without secrets; `destination`: identifies what it writes to.
    * `selection`: the options that select rows; `seen`: the count of each name, for `every`.
    * `state`: the sink's own state, which `Sink.open` needs to resume.
    * `partial`: the number of processed partial rows, by segment.
    * `lease`: the number of the lease under which this was saved.
    * `closed`: the status with which the sink was closed after all this; `where` and `command` are
      those that it had then.
    * `replay`: the order in which the lines after `positions` were read and may have been written.
      A sink that recognizes rows by their position must receive them in this order again.
    * `rejected_rows`: the rows after `positions` that the sink has rejected. It must not receive
      them again, because that would change the positions of the rows behind them.
    """

    sink: str
    destination: str = msgspec.field(default="", name="place")
    selection: str = ""
    state: dict[str, Any] = msgspec.field(default_factory=dict)
    seen: dict[str, int] = msgspec.field(default_factory=dict)
    partial: dict[str, int] = msgspec.field(default_factory=dict)
    lease: int = 0
    closed: Status | None = None
    replay: list[Span] = msgspec.field(default_factory=list, name="ahead")
    rejected_rows: list[Span] = msgspec.field(default_factory=list)


decode_progress = msgspec.json.Decoder(DeliveryProgress).decode


def load_progress(path: Path, initial: DeliveryProgress) -> DeliveryProgress:
    """Load the progress saved at `path`, or return `initial` if there is none.

    A file that cannot be decoded, for example after a power failure, counts as missing: sinks
    recognize repeated records.
    """
    try:
        return decode_progress(path.read_bytes())
    except FileNotFoundError:
        return initial
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        _log.warning("cannot read %s (%s); delivering the run from the beginning", path, error)
        return initial


def find_conflict(folder: Path, own: DeliveryProgress) -> str | None:
    """Return the URL of a sink that has written other rows to the same destination."""
    for path in sorted(folder.glob("*.json")):
        other = load_progress(path, own)
        is_same = other.destination == own.destination
        if is_same and other.selection != own.selection and other.positions:
            return other.sink
    return None


def save_progress(path: Path, progress: DeliveryProgress) -> None:
    """Replace the file at `path` atomically."""
    replace_file(path, msgspec.json.encode(progress))
