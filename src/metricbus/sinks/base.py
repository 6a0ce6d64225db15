"""The sink contract.

A sink writes the records of one run to one backend. Subclass `Sink` and implement `write`; every
other method is optional.

**Threads.** All methods are called from one thread, that of the sink's consumer. A sink needs no
locks and no retries of its own.

**Records.** A sink receives instances of the classes in `Sink.kinds`, in journal order. It writes
each record separately: it never changes, merges or splits records. By default these are rows and
rewinds. A `Rewind` supersedes the rows above its step; if the backend cannot remove them, write a
visible mark.

**Lifecycle.** The consumer calls `open`, then `write` and `flush` for each batch, and finally
`close`.

**Restarts.** After each `flush`, the consumer stores the returned state together with its position
in the journal. After a crash it calls `open` with the stored state and repeats every record after
the stored position. `Sink.dedup` declares what the sink promises about repeated records:

* `"content"`: the backend identifies duplicates by content, for example because it keeps one value
  per name, step and time. The sink has to do nothing.
* `"position"`: the sink counts records. In `open`, it finds out how many records the backend has
  beyond the stored state, and skips as many. The consumer repeats the same records in the same
  order, without rejected ones.
* `"none"`: nothing. Every record reaches the backend at least once, and exactly once if `open`
  removes everything beyond the stored state. A file sink, for example, truncates its file to the
  stored length.

If records become durable only after `flush` returns, return a `Flushed` from it: the consumer then
stores its position only up to the last acknowledged record.

**Errors.** The consumer reacts to the type of an exception:

* `BackendUnavailableError`, or any `OSError`: the backend cannot be reached now. The consumer waits
  and repeats the same records.
* `RecordsRejectedError`, or any other exception from `write`: the backend will never accept the
  batch. The consumer writes it again in halves until it has isolated the records that fail, and
  counts those as rejected.
* `RecordsLostError`: the backend has lost records that were not acknowledged. The consumer waits,
  opens the sink with the last acknowledged state, and repeats all records after it.

After any other exception from `open` or `flush`, the consumer waits and repeats only that
call, not the writes before it.
If `write` raises, it must have had no effect, or the sink must recognize the repeated records.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeGuard

import msgspec

from metricbus._common.records import Rewind, ScalarRow, Status
from metricbus._common.throttled_log import OnceLogger
from metricbus._journal.run import Run
from metricbus.errors import ConfigError

_log = logging.getLogger("metricbus.sinks")

_OWNER = ".metricbus-run"
"""The file that names the run to which a folder outside the run folder belongs."""


class NoOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The options of a sink that defines none."""


class SinkOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The URL options that every sink has.

    `include` and `exclude` are glob patterns for names. With `every=n`, the sink receives the first
    value of each name and every n-th value after it; values reduced over an epoch are exempt.
    `flush_secs` is the interval between batches in seconds, `batch_size` the maximum number of
    records in one `write`.
    """

    include: list[str] = []
    exclude: list[str] = []
    every: Annotated[int, msgspec.Meta(ge=1)] = 1
    flush_secs: Annotated[float, msgspec.Meta(ge=0)] = 0.2
    batch_size: Annotated[int, msgspec.Meta(ge=1)] = 1000


class Flushed(NamedTuple):
    """What `Sink.flush` returns if the backend makes records durable only later.

    `state` is what `open` needs to resume. `acknowledged` is the number of records written since
    `open` that are durable: they survive the death of this process and of the backend's own
    processes. None means all of them. While it is less, `flush` is called again and again.
    """

    state: Mapping[str, Any]
    acknowledged: int | None = None


class Sink(ABC):
    """Base class of all sinks; writes a run's records to one backend.

    Class attributes, all of them optional:

    * `kinds`: record classes that the sink accepts; it never receives others. Default: rows and
      rewinds.
    * `Options`: a `msgspec.Struct` with the sink's own URL options, their types and defaults. They
      are validated when the bus is created.
    * `shareable`: whether several sinks may write to the same location at the same time.
    * `exclusive_reason`: why a bus cannot have two sinks of this kind; empty if it can.
    * `process`: where the sink should run. `"training"`: only in the training process, because it
      is useless elsewhere. `"delivery"`: in the delivery process, because of what it imports or
      computes.
    * `dedup`: what the sink promises about records that are repeated after a crash: `"content"`,
      `"position"` or `"none"`.
    * `requires`: modules that must be installed. This is checked, without importing them, when the
      bus is created.
    * `install`: the command that installs them, for the error message.
    """

    kinds: ClassVar[tuple[type[msgspec.Struct], ...]] = (ScalarRow, Rewind)
    Options: ClassVar[type[msgspec.Struct]] = NoOptions
    shareable: ClassVar[bool] = False
    exclusive_reason: ClassVar[str] = ""
    process: ClassVar[Literal["any", "training", "delivery"]] = "any"
    dedup: ClassVar[Literal["none", "content", "position"]] = "none"
    requires: ClassVar[Sequence[str]] = ()
    install: ClassVar[str] = ""

    def __init__(self, location: str = "", options: Any = None) -> None:
        """Store the location and the options of the URL; do no I/O and no expensive import."""
        self.location = location
        self.options = self.Options() if options is None else options
        self._once = OnceLogger(_log)

    def open(self, run: Run, folder: Path, state: Mapping[str, Any]) -> None:
        """Connect to the backend.

        `run` describes the run, `folder` is its folder, and `state` is what the last `flush`
        returned, empty for a new sink. The consumer calls `open` until it succeeds, and again after
        each `RecordsLostError`.
        """

    @abstractmethod
    def write(self, records: Sequence[Any]) -> None:
        """Write all records.

        If this raises, either nothing was written, or the sink recognizes the records when they are
        repeated.
        """

    def flush(self) -> Mapping[str, Any] | Flushed:
        """Make the written records durable and return the state that `open` needs to resume.

        The state must be serializable as JSON. A backend that makes records durable only later
        returns a `Flushed`, with their number.
        """
        return {}

    def close(self, status: Status) -> None:
        """Disconnect from the backend. All flushed records count as acknowledged afterwards.

        `status` is the final status of the run, or `"running"` if the sink is closed while the run
        continues, for example at the end of `deliver()`.
        """

    def log_fallback(self, unsupported: str, replacement: str) -> None:
        """Warn, once per kind of data, that the backend receives a replacement for it.

        Both arguments are noun phrases that complete the message "csv does not support
        <unsupported>; logging <replacement> instead".
        """
        sink = type(self).__name__.removesuffix("Sink").lower()
        message = "%s does not support %s; logging %s instead"
        self._once.warn(message, sink, unsupported, replacement, key=unsupported)

    @property
    def where(self) -> str:
        """Path or address at which users find the records; empty if there is none."""
        return ""

    @property
    def command(self) -> str:
        """Shell command that opens the records for viewing; empty if there is none."""
        return ""


class FileSink(Sink):
    """A sink that writes files into the run folder, or into one folder per run at its location."""

    def __init__(self, location: str = "", options: Any = None) -> None:
        """Make the location absolute, because the training script may change directory later."""
        absolute = str(Path(location).expanduser().absolute()) if location else ""
        super().__init__(absolute, options)

    def folder_for(self, run: Run, folder: Path, name: str) -> Path:
        """Return the output folder: `<location>/<run id>`, or `<folder>/<name>` without a location.

        A folder at a location is created and marked with the run that owns it. Raises `ConfigError`
        if it belongs to a run with the same id in another `dir`.
        """
        if not self.location:
            return folder / name
        output = Path(self.location) / run.id
        marker = output / _OWNER
        owner = f"{run.id}, begun at {run.started}"
        try:
            output.mkdir(parents=True, exist_ok=True)
            with open(marker, "x", encoding="utf-8") as file:
                file.write(owner)
        except FileExistsError:
            if marker.read_text(encoding="utf-8") not in ("", owner):
                raise ConfigError(
                    f"{output} belongs to another run with the same id; use another location, "
                    f"such as {name}:elsewhere"
                ) from None
        return output


def with_partial_suffix(records: Sequence[ScalarRow | Rewind]) -> Sequence[ScalarRow | Rewind]:
    """Rename the values of partial rows from `loss` to `loss_partial`.

    For backends in which a value cannot be marked as partial.
    """
    if not any(map(_is_partial, records)):
        return records
    return [
        msgspec.structs.replace(
            record, values={f"{name}_partial": value for name, value in record.values.items()}
        )
        if _is_partial(record)
        else record
        for record in records
    ]


def _is_partial(record: ScalarRow | Rewind) -> TypeGuard[ScalarRow]:
    return isinstance(record, ScalarRow) and record.partial
