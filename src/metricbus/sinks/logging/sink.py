"""Logs each row and medium as one line to the standard library logger `metricbus`.

    step 120 epoch 1 | train/loss=0.4812 train/acc=0.8594
    step 120 epoch 1 | samples: image 28x28 in /runs/r/media/image/samples-1f/120-1.png "a seven"

The log record carries the exact data: `record.metrics` (a dict) or `record.medium`, and
`record.step` and `record.epoch`. `record.created` is the time of the `log()` call. Non-printable
characters are escaped, so that a name cannot start a new line. Each line is logged at most once.

If no handler is configured for the logger or its parents, the sink adds one that writes to stderr.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from metricbus._common.media_records import MEDIA_RECORD_TYPES, MediumRecord
from metricbus._common.records import Epoch, Number, Rewind, RunUpdate, ScalarRow, Status
from metricbus._common.tqdm_logging import TqdmStreamHandler
from metricbus._common.wakeup import yield_gil
from metricbus._journal.run import Run
from metricbus.sinks.base import Sink
from metricbus.sinks.logging.media import MediaLines
from metricbus.sinks.media_text import quote_name

_TEMPLATE_CACHE_SIZE = 256

# This sink runs in the training process, so it yields the GIL after this many records.
_RECORDS_PER_GIL_YIELD = 16


class LoggingOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The options of the logging sink, such as `logging?level=DEBUG`."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"


class LoggingSink(Sink):
    """Writes rows and media to the logger `metricbus`, in the training process."""

    kinds = (ScalarRow, Epoch, Rewind, RunUpdate, *MEDIA_RECORD_TYPES)
    shareable = True
    process = "training"
    Options = LoggingOptions
    options: LoggingOptions

    def open(self, run: Run, folder: Path, state: Mapping[str, Any]) -> None:
        """Set up the logger, and log the run's name, folder and config."""
        self._media = MediaLines(folder)
        self._logger = logging.getLogger("metricbus")
        self._level = logging.getLevelNamesMapping()[self.options.level]
        if not self._logger.hasHandlers():
            handler = TqdmStreamHandler()
            handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
            self._logger.addHandler(handler)
            self._logger.setLevel(self._level)
        self._logger.log(self._level, "run %s (%s) in %s", quote_name(run.name), run.id, folder)
        if run.config:
            config = msgspec.json.encode(run.config).decode()
            self._logger.log(self._level, "config %s", config)

    def write(
        self, records: Sequence[ScalarRow | Epoch | Rewind | RunUpdate | MediumRecord]
    ) -> None:
        """Log one line per record."""
        logger, level = self._logger, self._level
        if not logger.isEnabledFor(level):
            return
        # Format the media first: a missing file must raise before anything is logged.
        media = [self._media.line(record) for record in records if isinstance(record, MediumRecord)]
        media.reverse()
        for index, record in enumerate(records):
            if index % _RECORDS_PER_GIL_YIELD == 0 and index:
                yield_gil()
            extra: dict[str, Any] = {"step": record.step, "epoch": record.epoch}
            if isinstance(record, MediumRecord):
                extra["medium"] = record
                line = media.pop()
            else:
                if isinstance(record, ScalarRow):
                    extra["metrics"] = record.values
                line = line_of(record)
            log_record = logger.makeRecord(
                logger.name, level, "metricbus", 0, line, (), None, None, extra
            )
            log_record.created = record.time / 1e9
            log_record.msecs = record.time // 1_000_000 % 1000
            logger.handle(log_record)

    def close(self, status: Status) -> None:
        """Log the final status of the run."""
        self._logger.log(self._level, "run %s", status)

    @property
    def where(self) -> str:
        """Expression that returns the logger."""
        return 'logging.getLogger("metricbus")'


def line_of(record: ScalarRow | Epoch | Rewind | RunUpdate) -> str:
    """Return the record as one line of text; floats have six significant digits."""
    if isinstance(record, Rewind):
        return f"rewind to step {record.step} epoch {record.epoch}: later rows are superseded"
    if isinstance(record, Epoch):
        secs = record.seconds
        event = "started" if secs is None else f"finished after {secs:.6g} s"
        return f"step {record.step} epoch {record.epoch} {event}"
    if isinstance(record, RunUpdate):
        config = [f"config {msgspec.json.encode(record.config).decode()}"] if record.config else []
        tags = [f"tags {' '.join(map(quote_name, record.tags))}"] if record.tags else []
        pairs = [f"{quote_name(name)}={_number(value)}" for name, value in record.summary.items()]
        return "; ".join([*config, *tags, *([f"summary {' '.join(pairs)}"] if pairs else [])])
    values = record.values
    metrics = _template(*values, *map(type, values.values())) % (*values.values(),)
    partial = " (partial)" if record.partial else ""
    return f"step {record.step} epoch {record.epoch} | {metrics}{partial}"


def _number(value: Number | None) -> str:
    return "none" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


@functools.lru_cache(_TEMPLATE_CACHE_SIZE)
def _template(*names_and_types: str | type) -> str:
    """Return a `%` template for a row; the names come first, then the type of each value."""
    half = len(names_and_types) // 2
    names, types = names_and_types[:half], names_and_types[half:]
    return " ".join(
        f"{quote_name(str(name)).replace('%', '%%')}={'%.6g' if kind is float else '%d'}"
        for name, kind in zip(names, types, strict=True)
    )
