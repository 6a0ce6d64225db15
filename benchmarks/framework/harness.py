"""Building blocks of a case: interleaved arms, figures, targets and results.

A case is a function that takes a `Context` and returns `Result`s. Its arms are alternative ways to
do the same work. They are measured in rounds of alternating order (A B C, then C B A), so that
changes in the speed of the machine affect all arms alike. Compared figures always come from the
same run, and a ratio is the median of the ratios of the rounds.
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
    """Samples of one arm: one per round, in the unit of the result.

    A `floor` is an arm that plain Python or the hardware cannot beat. A `control` is a reference
    that does not compete. `x` is the position on the x axis of a line chart. `read_back` describes
    what was read back, such as `20,000 of 20,000`. `note` holds any further remarks.
    """

    name: str
    samples: list[float]
    role: Role = "peer"
    x: float | None = None
    read_back: str = ""
    note: str = ""

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.samples)

    @property
    def spread(self) -> tuple[float, float]:
        """The smallest and the largest round."""
        return min(self.samples), max(self.samples)


class Target(msgspec.Struct, frozen=True, omit_defaults=True):
    """A limit that was set before measuring, and the measured value."""

    name: str
    measured: float
    limit: float
    unit: Unit = "x"
    at_most: bool = True
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the measured value is within the limit."""
        return self.measured <= self.limit if self.at_most else self.measured >= self.limit


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """One table, with one chart unless `chart` is "none".

    `text` describes the method, in Markdown. `baseline` names the figure that ratios are relative
    to. `x_label` is the label of the x axis of a line chart.
    """

    id: str
    title: str
    text: str
    unit: Unit
    figures: list[Figure]
    targets: list[Target] = []
    baseline: str = ""
    better: Literal["lower", "higher"] = "lower"
    chart: Literal["bars", "lines", "none"] = "bars"
    x_label: str = ""

    def figure(self, name: str) -> Figure:
        """Return the first figure with this name; raise `KeyError` if there is none."""
        for figure in self.figures:
            if figure.name == name:
                return figure
        raise KeyError(name)


class Context(NamedTuple):
    """Folder and extent of a measurement; `log` prints a progress message.

    A `quick` run only checks that everything works: it has one or two rounds with few values.
    """

    folder: Path
    quick: bool
    log: Callable[[str], None]

    def pick(self, full: int, quick: int) -> int:
        """Return `quick` in a quick run, and `full` otherwise."""
        return quick if self.quick else full

    def new_folder(self, name: str) -> Path:
        """Create a folder with a unique name below the folder of the case."""
        number = sum(1 for _ in self.folder.iterdir())
        folder = self.folder / f"{name}-{number}"
        folder.mkdir(parents=True)
        return folder


Case = Callable[[Context], Sequence[Result]]


def interleaved(
    arms: Mapping[str, Callable[[int], float]], rounds: int, *, warm_up: bool = False
) -> dict[str, list[float]]:
    """Measure all arms in rounds of alternating order; return the samples by arm.

    Each arm is called with the number of the round. With `warm_up`, an additional round -1 comes
    first, and its samples are discarded.
    """
    samples: dict[str, list[float]] = {name: [] for name in arms}
    for number, name, measure in turns(arms, rounds, warm_up=warm_up):
        value = measure(number)
        if number >= 0:
            samples[name].append(value)
    return samples


def turns(
    arms: Mapping[str, Callable[[int], float]], rounds: int, *, warm_up: bool = False
) -> Iterator[tuple[int, str, Callable[[int], float]]]:
    """Yield the arms of each round: forward in even rounds, backward in odd ones."""
    forward = list(arms.items())
    for number in range(-1 if warm_up else 0, rounds):
        for name, measure in forward if number % 2 == 0 else reversed(forward):
            yield number, name, measure


def ratio(figure: Figure, baseline: Figure) -> float:
    """Return the median of the ratios of the rounds."""
    return statistics.median(ratios(figure, baseline))


def ratios(figure: Figure, baseline: Figure) -> list[float]:
    """Return the ratio of each round.

    If the two figures have different numbers of rounds, return the ratio of their medians.
    """
    if len(figure.samples) != len(baseline.samples):
        return [figure.median / baseline.median]
    pairs = zip(figure.samples, baseline.samples, strict=True)
    return [sample / reference for sample, reference in pairs]
