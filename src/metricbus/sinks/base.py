"""The contract of a sink: one required method, `write`.

A sink is opened, written to, flushed and closed by one thread, its consumer's; it needs no locks.
It knows records and the run, never the bus. Order is that of the journal, and one record is one
write in the backend: sinks neither merge nor split.

Progress is saved after each `flush`, together with what `flush` returns. After a crash the sink is
opened with that state again and is given everything after it once more. What stands in the backend
beyond the state is the sink's to recognise: a file is cut to the saved length, for one. A sink that
recognises records by their place among all that it was given says so (`dedup`), and gets them in
the same order again. A sink whose backend takes its time says how much is safe (`acknowledged`); only
that is saved.

Failures: raise `Unavailable` (or any `OSError`) when the backend cannot be had right now, and the
same records come again later; raise `Rejected`, or let anything else escape, when they can never be
taken, and they come again one by one so that the bad ones are found. Either way `write` must have
undone or not begun what it was asked to do, or recognise it when it comes again. When `flush`
fails, `flush` alone is called again. Raise `Lost` when the backend died with what was not settled:
the sink is opened again, with the state of what was.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeGuard

import msgspec

from metricbus._common.records import Rewind, Scalars, Status
from metricbus._journal.run import Run
from metricbus.errors import ConfigError

_log = logging.getLogger("metricbus.sinks")

_OWNER = ".metricbus-run"  # in a folder outside the run's own: whose it is


class NoOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The options of a sink that has none of its own."""


class SinkOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the URL of every sink may say.

    `include` and `exclude` are globs over names. `every=n` thins: of each name, the first value and
    every n-th after it. `flush_secs` is the pace at which the sink is written to, `batch_size` the
    largest number of records in one `write`.
    """

    include: list[str] = []
    exclude: list[str] = []
    every: Annotated[int, msgspec.Meta(ge=1)] = 1
    flush_secs: Annotated[float, msgspec.Meta(ge=0)] = 0.2
    batch_size: Annotated[int, msgspec.Meta(ge=1)] = 1000


class Sink(ABC):
    """Writes a run's records to one backend.

    Class attributes:

    * `kinds`: the classes of records that it takes; others never reach it. Left out: scalars.
    * `Options`: a `msgspec.Struct` with the options that the sink's URL may have, with types and
      defaults; they are checked when the bus is made.
    * `shareable`: whether two sinks of one location can live side by side; files cannot.
    * `exclusive_reason`: why a bus cannot have two of the kind, if it cannot.
    * `training_process_only`: whether it only makes sense in the process that trains.
    * `prefers_subprocess`: whether it imports or computes so much that it wants a process of its own.
    * `dedup`: how the sink recognises records that it receives again after a crash. `"content"`: by
      their content, independently of other records. `"position"`: by their position among all
      records, so they are repeated in the same order. `"none"`: not at all.
    * `requires`: names of the modules that must be importable; they are looked for, not imported,
      when the bus is made.
    * `install`: the command that installs them, for the error message.
    """

    kinds: ClassVar[tuple[type[msgspec.Struct], ...]] = (Scalars,)
    Options: ClassVar[type[msgspec.Struct]] = NoOptions
    shareable: ClassVar[bool] = False
    exclusive_reason: ClassVar[str] = ""
    training_process_only: ClassVar[bool] = False
    prefers_subprocess: ClassVar[bool] = False
    dedup: ClassVar[Literal["none", "content", "position"]] = "none"
    requires: ClassVar[Sequence[str]] = ()
    install: ClassVar[str] = ""

    def __init__(self, location: str = "", options: Any = None) -> None:
        """Takes the URL's location and options. No I/O and no heavy import here."""
        self.location = location
        self.options = self.Options() if options is None else options
        self._fallbacks: set[str] = set()

    def open(self, run: Run, folder: Path, state: Mapping[str, Any]) -> None:
        """Connects to the backend for this run.

        `folder` is the run's folder. `state` is what `flush` last returned for this run, and empty
        the first time. Called again after a failure until it succeeds, and after `Lost`.
        """

    @abstractmethod
    def write(self, records: Sequence[Any]) -> None:
        """Takes the records (of its `kinds`), all or none."""

    def skip_rejected(self, count: int) -> None:
        """So many records, which were rejected, are left out here: for a sink that numbers them."""

    def flush(self) -> Mapping[str, Any]:
        """Makes what was written safe, and returns what `open` needs to go on from here (JSON)."""
        return {}

    def acknowledged(self) -> int | None:
        """How many of the records written since `open` outlive this process and the backend's own.

        None: all that were flushed. Asked after each flush, and now and then.
        """
        return None

    def close(self, status: Status) -> None:
        """The run has ended so; let go of the backend. Called once, after the last flush.

        What was flushed counts as settled once this has returned.
        """

    def log_fallback(self, kind: str, instead: str) -> None:
        """Says, once for each kind, what the backend gets for lack of something better."""
        if kind not in self._fallbacks:
            self._fallbacks.add(kind)
            sink = type(self).__name__.removesuffix("Sink").lower()
            _log.warning("%s takes no %s as it is: it gets %s", sink, kind, instead)

    @property
    def where(self) -> str:
        """Where the records can be found, for people; empty if there is no such place."""
        return ""

    @property
    def command(self) -> str:
        """The command that opens them, for people; empty if there is none."""
        return ""


def with_marked_names(records: Sequence[Scalars | Rewind]) -> Sequence[Scalars | Rewind]:
    """The records, for a backend that cannot mark a value: partial ones get names of their own.

    What was in the reduction of `loss` when its process died is called `loss_partial`.
    """
    if not any(_is_partial(record) for record in records):
        return records
    return [_marked(record) if _is_partial(record) else record for record in records]


def _is_partial(record: Scalars | Rewind) -> TypeGuard[Scalars]:
    return isinstance(record, Scalars) and record.partial


def _marked(record: Scalars) -> Scalars:
    values = {f"{name}_partial": value for name, value in record.values.items()}
    return msgspec.structs.replace(record, values=values)


class FileSink(Sink):
    """A sink that writes into a folder: the run's, or one for each run at its URL's location."""

    def __init__(self, location: str = "", options: Any = None) -> None:
        """Settles where the location is: a training script may change its folder later."""
        absolute = str(Path(location).expanduser().absolute()) if location else ""
        super().__init__(absolute, options)

    def folder_for(self, run: Run, folder: Path, name: str) -> Path:
        """Where to write: `<location>/<run's id>`, or `<run's folder>/<name>` without one."""
        if not self.location:
            return folder / name
        found = Path(self.location) / run.id
        owner = found / _OWNER
        who = f"{run.id}, begun at {run.started}"
        try:
            found.mkdir(parents=True, exist_ok=True)
            with open(owner, "x", encoding="utf-8") as new:
                new.write(who)
        except FileExistsError:
            if owner.read_text(encoding="utf-8") not in ("", who):
                raise ConfigError(
                    f"{found} is another run's, which has the same id; give the sink a folder of "
                    f"its own, such as {name}:elsewhere"
                ) from None
        return found
