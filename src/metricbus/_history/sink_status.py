"""How far each sink of a run is, as told by its progress on disk."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from metricbus._common.processes import ProcessId
from metricbus._common.records import Status
from metricbus._delivery.control_files import delivery_status_file
from metricbus._delivery.cursor import DeliveryProgress
from metricbus._delivery.report import Tally
from metricbus._journal.run import Run, RunFolder
from metricbus._journal.segment_reader import Position

_KIND = re.compile(r"[a-z0-9_-]*")


class SinkStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One sink's share of a run; the counts are in values.

    `sink` is its canonical URL, without secrets. `share` is how much of the journal it has dealt
    with, from 0 to 1, by bytes. `deliverer` is the process that feeds it now, if one does. `error`
    is the last failure in words, as far as it was written down. `closed` is the status with which
    it was closed once it had everything.
    """

    sink: str
    delivered: int = 0
    rejected: int = 0
    filtered: int = 0
    share: float = 0.0
    deliverer: str = ""
    error: str = ""
    closed: Status | None = None
    where: str = ""
    command: str = ""

    @property
    def processed(self) -> int:
        """Values that have been dealt with, in one way or another."""
        return self.delivered + self.rejected + self.filtered

    @property
    def is_complete(self) -> bool:
        """Whether it has all there is, and refused nothing."""
        return self.share == 1.0 and not self.rejected


def read_all_progress(folder: RunFolder) -> list[DeliveryProgress]:
    """The progress of every sink that has any; a file that cannot be read counts as none.

    It does for the next delivery too.
    """
    found = []
    for path in sorted(folder.offsets.glob("*.json")):
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=DeliveryProgress))
        except (msgspec.DecodeError, UnicodeDecodeError, FileNotFoundError):
            continue
    return found


def sink_statuses(
    folder: RunFolder, run: Run, found: Sequence[DeliveryProgress], lengths: Mapping[str, int]
) -> list[SinkStatus]:
    """All sinks: those that the run was told to write to, and those it was delivered to since.

    `found` is their progress, `lengths` has the bytes of each segment's whole lines.
    """
    by_url = {progress.sink: progress for progress in found}
    urls = [*run.sinks, *(url for url in by_url if url not in run.sinks)]
    told = delivery_status_file(folder, run.attempt).read()
    errors = _errors(urls, told.tallies if told else {})
    return [
        _standing(folder, by_url.get(url, DeliveryProgress(sink=url)), lengths, errors.get(url, ""))
        for url in urls
    ]


def _standing(
    folder: RunFolder, progress: DeliveryProgress, lengths: Mapping[str, int], error: str
) -> SinkStatus:
    whole = sum(lengths.values())
    read = sum(
        min(progress.positions.get(segment, Position()).offset, length)
        for segment, length in lengths.items()
    )
    return SinkStatus(
        sink=progress.sink,
        delivered=progress.delivered,
        rejected=progress.rejected,
        filtered=progress.filtered,
        share=read / whole if whole else 1.0,
        deliverer=_deliverer(folder.offsets, progress.place),
        error=error,
        closed=progress.closed,
        where=progress.where,
        command=progress.command,
    )


def _deliverer(offsets: Path, place: str) -> str:
    """Who holds the lease of this place and lives."""
    if not place:
        return ""
    for path in sorted(offsets.iterdir()):
        if path.name.startswith(f"{place}.lease-"):
            try:
                holder = msgspec.json.decode(path.read_bytes(), type=ProcessId)
            except (OSError, msgspec.DecodeError):  # given back, or being written
                continue
            if holder.is_alive():
                return str(holder)
    return ""


def _errors(urls: Sequence[str], tallies: Mapping[str, Tally]) -> dict[str, str]:
    """What the delivery process last said of each sink.

    It names a sink as the user did (`tensorboard:logs`), which may be another spelling of its URL;
    then the kind tells which is meant, if there is but one of it.
    """
    errors = {}
    for name, tally in tallies.items():
        same = [url for url in urls if url == name]
        akin = same or [url for url in urls if _kind(url) == _kind(name)]
        if tally.error and len(akin) == 1:
            errors[akin[0]] = tally.error
    return errors


def _kind(url: str) -> str:
    found = _KIND.match(url)
    return found[0] if found else ""
