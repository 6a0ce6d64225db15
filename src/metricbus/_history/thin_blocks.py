"""Replaces the values in the blocks of a long journal by those that a plot needs.

Of each series in a block, the first, the last, the minimum and the maximum are kept, as in
`plots/downsample.py`. A block is only replaced if it is narrower than a pixel, or if no value is
left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from metricbus._common.records import EPOCH_TIME, ScalarRow
from metricbus._journal.rewind import Rewinds
from metricbus._journal.segment_reader import JournalReader
from metricbus._journal.segment_summary import Block
from metricbus._journal.series_stats import SeriesStats

_MIN_PARTS = 500
"""A block is narrow if each of its series would fit into it this many times."""


class ThinBlocks:
    """A `ReplaceBlock` for the series that match, drawn over their steps.

    A block is read in full if it is too wide, contains superseded values, values that are not
    finite, or durations of epochs (these are drawn over the epochs), or if it holds the last
    partial aggregates of its segment.
    """

    def __init__(
        self, reader: JournalReader, rewinds: Rewinds, matches: Callable[[str], bool]
    ) -> None:
        self._rewinds = rewinds
        self._matches = matches
        self._steps: dict[str, tuple[int, int]] = {}
        self._last_partial: dict[str, int] = {}
        for segment in reader.segments():
            for block in reader.blocks(segment):
                if block.partial:
                    self._last_partial[segment] = block.lines.line
                for name, stats in block.series.items():
                    first, last = self._steps.get(name, (stats.min_step, stats.max_step))
                    self._steps[name] = min(first, stats.min_step), max(last, stats.max_step)

    def __call__(self, segment: str, block: Block) -> Sequence[ScalarRow] | None:
        """Return one row per kept value; None if the block must be read."""
        if self._last_partial.get(segment) == block.lines.line:
            return None
        if self._rewinds.supersedes_block(segment, block) is not False:
            return None
        series = {name: stats for name, stats in block.series.items() if self._matches(name)}
        if not all(self._can_replace(name, stats) for name, stats in series.items()):
            return None
        return [
            ScalarRow(step, block.max_epoch, block.max_time, {name: value})
            for name, stats in series.items()
            for step, value in _kept_values(stats)
        ]

    def _can_replace(self, name: str, stats: SeriesStats) -> bool:
        if name.endswith(EPOCH_TIME) or stats.nan or not math.isfinite(sum(stats.total)):
            return False
        first, last = self._steps[name]
        is_narrow = (stats.max_step - stats.min_step) * _MIN_PARTS <= last - first
        return is_narrow or stats.count <= 2


def _kept_values(stats: SeriesStats) -> list[tuple[int, float]]:
    values = {
        (stats.first_at, stats.first),
        (stats.low_at, stats.low),
        (stats.high_at, stats.high),
        (stats.last_at, stats.last),
    }
    return sorted(values)
