"""The part of a run's history that plots and notebook displays need.

`History` satisfies this protocol and imports plots and displays only inside its methods. Plots and
displays depend on the protocol instead of on `History`, which avoids circular imports.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from metricbus._common.records import ScalarRow
from metricbus._history.columns import Series
from metricbus._journal.run import Run


class SeriesSource(Protocol):
    """One run's identity, series, and partial rows."""

    folder: Path
    run: Run
    partial: list[ScalarRow]
    damaged: int

    def __len__(self) -> int: ...

    @property
    def span(self) -> tuple[int, int]:
        """Times of the first and the last row, in nanoseconds since 1970-01-01 UTC."""

    def names(self) -> list[str]:
        """Names of all scalar series, in the order of their first values."""

    def series(self, name: str) -> Series:
        """The values of one series; `KeyError` if it was never logged."""

    def media(self) -> Sequence[object]:
        """Records of all logged media."""
