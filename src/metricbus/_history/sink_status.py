"""Reports how much of a run each sink has received, from the progress files in the run folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from metricbus._common.processes import decode_process_id
from metricbus._common.records import Status
from metricbus._delivery.control_files import delivery_status_file
from metricbus._delivery.offsets_file import DeliveryProgress, decode_progress
from metricbus._delivery.report import Outcomes, Tally
from metricbus._journal.run import Run, RunFolder
from metricbus._journal.segment_reader import Position


class SinkStatus(Outcomes, frozen=True, kw_only=True):
    """The delivery status of one sink of a run; the counts are in values.

    `sink` is the canonical URL, without secrets. `share` is the share of the journal's bytes that
    the sink has processed, from 0 to 1. `deliverer` is the live process that delivers to it, and
    `error` the last recorded error. `closed` is the run status with which the sink was closed after
    it had received everything. `where` is what it writes to, and `command` opens that.
    """

    sink: str
    share: float = 0.0
    deliverer: str = ""
    error: str = ""
    closed: Status | None = None
    where: str = ""
    command: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether the sink has processed the whole journal and rejected nothing."""
        return self.share == 1.0 and not self.rejected


def read_all_progress(folder: RunFolder) -> list[DeliveryProgress]:
    """Return the stored progress of all sinks.

    Unreadable files are skipped. The next delivery ignores them too and starts from the beginning.
    """
    all_progress = []
    for path in sorted(folder.offsets.glob("*.json")):
        try:
            all_progress.append(decode_progress(path.read_bytes()))
        except (msgspec.DecodeError, UnicodeDecodeError, FileNotFoundError):
            continue
    return all_progress


def sink_statuses(
    folder: RunFolder,
    run: Run,
    all_progress: Sequence[DeliveryProgress],
    lengths: Mapping[str, int],
) -> list[SinkStatus]:
    """Return the status of every sink that the run names, and of every other one delivered to.

    `all_progress` comes from `read_all_progress`. `lengths` has the number of bytes in the complete
    lines of each segment.
    """
    by_url = {progress.sink: progress for progress in all_progress}
    urls = [*run.sinks, *(url for url in by_url if url not in run.sinks)]
    delivery = delivery_status_file(folder, run.attempt).read()
    errors = _errors_by_url(urls, delivery.tallies if delivery else {})
    return [
        _sink_status(
            folder, by_url.get(url, DeliveryProgress(sink=url)), lengths, errors.get(url, "")
        )
        for url in urls
    ]


def _sink_status(
    folder: RunFolder, progress: DeliveryProgress, lengths: Mapping[str, int], error: str
) -> SinkStatus:
    total = sum(lengths.values())
    read = sum(
        min(progress.positions.get(segment, Position()).offset, length)
        for segment, length in lengths.items()
    )
    return SinkStatus(
        sink=progress.sink,
        delivered=progress.delivered,
        rejected=progress.rejected,
        filtered=progress.filtered,
        share=read / total if total else 1.0,
        deliverer=_live_lease_holder(folder.offsets, progress.destination),
        error=error,
        closed=progress.closed,
        where=progress.where,
        command=progress.command,
    )


def _live_lease_holder(offsets: Path, target: str) -> str:
    """Return the live process that holds a lease on `target`; empty if there is none."""
    if not target:
        return ""
    for path in sorted(offsets.iterdir()):
        if path.name.startswith(f"{target}.lease-"):
            try:
                holder = decode_process_id(path.read_bytes())
            except (OSError, msgspec.DecodeError):
                # The lease was released meanwhile, or its file is just being written.
                continue
            if holder.is_alive():
                return str(holder)
    return ""


def _errors_by_url(urls: Sequence[str], tallies: Mapping[str, Tally]) -> dict[str, str]:
    """Return the last error of each sink, as reported by the delivery process.

    The delivery process uses the user's spelling of a sink (`tensorboard:logs`), which can differ
    from its canonical URL. It is then assigned by its kind, if only one sink is of that kind.
    """
    errors = {}
    for name, tally in tallies.items():
        exact = [url for url in urls if url == name]
        candidates = exact or [url for url in urls if _kind(url) == _kind(name)]
        if tally.error and len(candidates) == 1:
            errors[candidates[0]] = tally.error
    return errors


def _kind(url: str) -> str:
    return re.split(r"[^a-z0-9_-]", url, maxsplit=1)[0]
