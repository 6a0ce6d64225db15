"""Standard library logging: one line a row or medium, on the logger `metricbus`.

    step 120 epoch 1 | train/loss=0.4812 train/acc=0.8594
    step 120 epoch 1 | samples: image 28x28 in /runs/r/media/image/samples-1f/120-1.png "a seven"

The exact values are on the log record: `record.metrics` (a dict) or `record.medium`, and
`record.step`, `record.epoch`; `record.created` is the time at which they were logged. Characters
that do not print are escaped, so no name can break out of its line. Lines are written at most once:
what a crash cuts off here is still in the journal.

Where no handler is configured for the logger or above it, one that writes to stderr is attached, so
that the default can be seen.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from metricbus._common.media_records import MEDIA, MediumRecord
from metricbus._common.records import Epoch, Rewind, Scalars, Status
from metricbus._common.tqdm_logging import BesideBars
from metricbus._common.wakeup import yield_gil
from metricbus._journal.run import Run
from metricbus.sinks.base import Sink
from metricbus.sinks.logging.media import MediaLines

_TEMPLATES = 256  # rows with different names at a time
_ROWS_A_BREATH = 16  # in the training's process, which gets the interpreter in between


class LoggingOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`logging?level=DEBUG`; `every=` and the like are options of all sinks."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"


class LoggingSink(Sink):
    """Writes rows and media to the logger `metricbus`, in this process."""

    kinds = (Scalars, Epoch, Rewind, *MEDIA)
    shareable = True
    training_process_only = True
    Options = LoggingOptions
    options: LoggingOptions

    def open(self, run: Run, folder: Path, state: Mapping[str, Any]) -> None:
        """Finds the logger, and says which run this is, with which hyperparameters."""
        self._media = MediaLines(folder, printable)
        self._logger = logging.getLogger("metricbus")
        self._level = logging.getLevelNamesMapping()[self.options.level]
        if not self._logger.hasHandlers():
            handler = BesideBars()
            handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
            self._logger.addHandler(handler)
            self._logger.setLevel(self._level)
        self._logger.log(self._level, "run %s (%s) in %s", printable(run.name), run.id, folder)
        if run.config:
            config = msgspec.json.encode(run.config).decode()
            self._logger.log(self._level, "config %s", config)

    def write(self, records: Sequence[Scalars | Epoch | Rewind | MediumRecord]) -> None:
        """One log record each."""
        logger, level = self._logger, self._level
        if not logger.isEnabledFor(level):
            return
        media = [self._media.line(record) for record in records if isinstance(record, MediumRecord)]
        media.reverse()  # made before anything is logged: a file may be missing
        for number, record in enumerate(records):
            if number % _ROWS_A_BREATH == 0 and number:
                yield_gil()
            extra: dict[str, Any] = {"step": record.step, "epoch": record.epoch}
            if isinstance(record, MediumRecord):
                extra["medium"] = record
                line = media.pop()
            else:
                if isinstance(record, Scalars):
                    extra["metrics"] = record.values
                line = line_of(record)
            entry = logger.makeRecord(
                logger.name, level, "metricbus", 0, line, (), None, None, extra
            )
            entry.created = record.time / 1e9
            entry.msecs = record.time // 1_000_000 % 1000
            logger.handle(entry)

    def close(self, status: Status) -> None:
        """Says how the run ended."""
        self._logger.log(self._level, "run %s", status)

    @property
    def where(self) -> str:
        """The logger."""
        return 'logging.getLogger("metricbus")'


def line_of(record: Scalars | Epoch | Rewind) -> str:
    """The record as one line of text, numbers to six significant digits."""
    if isinstance(record, Rewind):
        return f"back to step {record.step} epoch {record.epoch}: what came after is superseded"
    if isinstance(record, Epoch):
        ends = "begins" if record.seconds is None else f"ended after {record.seconds:.6g} s"
        return f"step {record.step} epoch {record.epoch} {ends}"
    values = record.values
    metrics = _template(*values, *map(type, values.values())) % (*values.values(),)
    partial = " (partial)" if record.partial else ""
    return f"step {record.step} epoch {record.epoch} | {metrics}{partial}"


@functools.lru_cache(_TEMPLATES)  # the same names come again and again, step after step
def _template(*names_and_types: str | type) -> str:
    """What the values of these names, of these types, are put into by `%`."""
    half = len(names_and_types) // 2
    names, types = names_and_types[:half], names_and_types[half:]
    return " ".join(
        f"{printable(str(name)).replace('%', '%%')}={'%.6g' if kind is float else '%d'}"
        for name, kind in zip(names, types, strict=True)
    )


def printable(name: str) -> str:
    """The name with what does not print escaped as in Python; quoted if it has a blank or `=`."""
    if name.isprintable() and not (" " in name or "=" in name):
        return name
    escaped = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in name
    )
    return f'"{escaped}"'
