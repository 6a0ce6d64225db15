"""Writes the updates of a run: those of the user, and the best values of `define(best=)`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from metricbus._aggregate.row_builder import Emission
from metricbus._aggregate.rules import Definitions
from metricbus._common.records import Best, Number, Record, Rewind, RunUpdate
from metricbus._journal.run import is_better
from metricbus._journal.run_updates import BEST_PREFIX


class RunFile(Protocol):
    """Where the run is stored, besides the journal."""

    def save(self, updates: Sequence[RunUpdate] = ()) -> None:
        """Apply the updates, and write run.json."""

    @property
    def has_earlier_attempts(self) -> bool:
        """Whether the journal has rows of earlier attempts."""

    def current_best(
        self, mode_of: Callable[[str], Best | None] | None
    ) -> dict[int, dict[str, Number | None]]:
        """Return the best values in the journal, by rank and name; None where none is left."""


class RunUpdates:
    """The updates that one collector writes to the journal with `append`, then to `run_file`.

    A rewind may supersede best values. After it, they are determined from the rows that remain, and
    written as plain values. Readers and sinks therefore only have to apply all updates in order.
    """

    def __init__(
        self, definitions: Definitions, append: Callable[[Sequence[Record]], None], rank: int
    ) -> None:
        self.run_file: RunFile | None = None
        self._definitions = definitions
        self._append = append
        self._rank = rank
        self._best: dict[str, Number | None] = {}
        self._has_earlier_best = False
        self._changed: dict[str, tuple[Best, Emission]] = {}

    @property
    def has_new_best(self) -> bool:
        """Whether a best value is not written yet."""
        return bool(self._changed)

    def write(self, update: RunUpdate) -> None:
        """Write an update that is applied already."""
        self._append([update])
        if self.run_file:
            self.run_file.save()

    def add(self, emissions: Iterable[Emission]) -> None:
        """Compare emitted values with the best ones so far."""
        for emission in emissions if self._definitions.keeps_best else ():
            if not self._has_earlier_best:
                self._has_earlier_best = True
                self._add_earlier(emission)
            self._compare(emission)

    def _add_earlier(self, emission: Emission) -> None:
        """Compare the values of earlier attempts, which may have been killed before they wrote."""
        if self.run_file and self.run_file.has_earlier_attempts:
            best = self.run_file.current_best(self._definitions.best).get(self._rank, {})
            for name, value in best.items():
                if value is not None:
                    self._compare(emission._replace(name=name, value=value))

    def _compare(self, emission: Emission) -> None:
        name, value = emission.name, emission.value
        mode = self._definitions.best(name)
        if mode and is_better(value, self._best.get(name), mode):
            self._best[name] = value
            self._changed[name] = mode, emission

    def forget_best(self) -> None:
        """Write the next value of each name, because rank 0 writes a rewind of all ranks."""
        self.write_best()
        self._best.clear()

    def write_best(self) -> None:
        """Write the best values that have changed since the last call."""
        changed, self._changed = self._changed, {}
        by_mode: dict[Best, list[Emission]] = {}
        for mode, emission in changed.values():
            by_mode.setdefault(mode, []).append(emission)
        self._write_all(
            RunUpdate(
                step=emissions[-1].time.step,
                epoch=emissions[-1].time.epoch,
                time=time.time_ns(),
                summary={BEST_PREFIX + emission.name: emission.value for emission in emissions},
                best=mode,
            )
            for mode, emissions in by_mode.items()
        )

    def write_rewind(self, rewind: Rewind) -> None:
        """Write a rewind, and what the best values are after it."""
        self.write_best()
        self._append([rewind])
        mode_of = self._definitions.best if self._definitions.keeps_best else None
        by_rank = self.run_file.current_best(mode_of) if self.run_file else {}
        self._best |= by_rank.get(self._rank, {})
        self._write_all(
            RunUpdate(
                step=rewind.step,
                epoch=rewind.epoch,
                time=time.time_ns(),
                summary={BEST_PREFIX + name: value for name, value in best.items()},
                rank=rank,
            )
            for rank, best in by_rank.items()
        )

    def _write_all(self, updates: Iterable[RunUpdate]) -> None:
        if updates := list(updates):
            self._append(updates)
            if self.run_file:
                self.run_file.save(updates)
