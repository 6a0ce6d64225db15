"""What every case is made of: arms that are measured in turn, figures, targets, results.

A case is a function that takes a `Context` and returns `Result`s. Its arms (ways to do the same
thing) are measured in rounds, there and back (A B C, C B A, …), so that what the machine does
meanwhile falls on all of them alike. Everything that is compared was measured in one run, round by
round; a ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

Role = Literal["floor", "ours", "peer", "control"]
Unit = Literal["ns", "µs", "ms", "s", "values/s", "bytes", "MB", "x", "values"]


class Figure(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one arm gave: a sample for each round, in the result's unit.

    A `floor` is what plain Python or the hardware cannot beat, a `control` what is compared to for
    another reason. `at` is where it stands on the x axis of a result about growth. `complete` says
    what reading back found, such as `20,000 of 20,000`; `note` what else is to be known.
    """

    name: str
    samples: list[float]
    role: Role = "peer"
    at: float | None = None
    complete: str = ""
    note: str = ""

    @property
    def median(self) -> float:
        """The middle of the rounds."""
        return statistics.median(self.samples)

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the greatest round."""
        return min(self.samples), max(self.samples)


class Target(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was aimed at, and what was seen."""

    what: str
    seen: float
    limit: float
    unit: Unit = "x"
    at_most: bool = True
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether it was reached."""
        return self.seen <= self.limit if self.at_most else self.seen >= self.limit


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """One table, and one chart unless `chart` is "none"; `beside` names the figure that is 1.0.

    `text` is what a reader must know to trust it, in Markdown. `x` labels the axis of `lines`.
    """

    id: str
    title: str
    text: str
    unit: Unit
    figures: list[Figure]
    targets: list[Target] = []
    beside: str = ""
    better: Literal["less", "more"] = "less"
    chart: Literal["bars", "lines", "none"] = "bars"
    x: str = ""

    def figure(self, name: str) -> Figure:
        """The first one of this name; `KeyError` if there is none."""
        for figure in self.figures:
            if figure.name == name:
                return figure
        raise KeyError(name)


class Context(NamedTuple):
    """Where and how a case is measured; `tell` prints a line of progress.

    A `quick` one only has to show that everything works: one round or two, of few values.
    """

    folder: Path
    quick: bool
    tell: Callable[[str], None]

    def pick(self, full: int, quick: int) -> int:
        """The number for a full run, or the one for a quick run."""
        return quick if self.quick else full

    def place(self, name: str) -> Path:
        """A new folder below the benchmark's own."""
        number = sum(1 for _ in self.folder.iterdir())
        place = self.folder / f"{name}-{number}"
        place.mkdir(parents=True)
        return place


Case = Callable[[Context], Sequence[Result]]


def interleaved(
    arms: Mapping[str, Callable[[int], float]], rounds: int, *, warm_up: bool = False
) -> dict[str, list[float]]:
    """What each arm gave in each round; an arm is called with the number of the round.

    With `warm_up`, a round -1 goes before and does not count.
    """
    seen: dict[str, list[float]] = {name: [] for name in arms}
    for number, name, measure in turns(arms, rounds, warm_up=warm_up):
        value = measure(number)
        if number >= 0:
            seen[name].append(value)
    return seen


def turns(
    arms: Mapping[str, Callable[[int], float]], rounds: int, *, warm_up: bool = False
) -> Iterator[tuple[int, str, Callable[[int], float]]]:
    """The order in which arms are measured: there in even rounds, back in odd ones."""
    there = list(arms.items())
    for number in range(-1 if warm_up else 0, rounds):
        for name, measure in there if number % 2 == 0 else reversed(there):
            yield number, name, measure


def ratio(figure: Figure, beside: Figure) -> float:
    """How many times the other one: the median of the rounds' ratios."""
    return statistics.median(ratios(figure, beside))


def ratios(figure: Figure, beside: Figure) -> list[float]:
    """Round by round; by the medians if the two were not measured in the same rounds."""
    if len(figure.samples) != len(beside.samples):
        return [figure.median / beside.median]
    return [one / other for one, other in zip(figure.samples, beside.samples, strict=True)]
