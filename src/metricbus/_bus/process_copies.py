"""What happens to a bus behind its back: the process ends, or it is copied.

A copy in another process, forked or pickled, joins the run when it first logs. Until then it costs
nothing: no thread, no file.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from metricbus._aggregate.rules import Definition, Definitions
from metricbus._bus import shutdown
from metricbus._bus.lazy_queue import LazyQueue
from metricbus._common.distributed import Rank, find_rank
from metricbus._common.records import Status
from metricbus._common.settings import Settings
from metricbus._ingest.queue import CallQueue
from metricbus._ingest.recorder import Recorder
from metricbus._ingest.torchmetrics_values import TorchmetricsValues
from metricbus._journal.run import Run, RunFolder

if TYPE_CHECKING:
    from metricbus._bus.session import Session

_log = logging.getLogger("metricbus")


class ProcessCopies(Recorder):
    """A bus as far as its process, and copies of it, are concerned."""

    _session: Session | None
    _elsewhere: tuple[RunFolder, Run] | None  # the run of which this is a copy
    _rank: Rank  # of the process that this is a copy from
    _settings: Settings
    _config: Mapping[str, Any]
    _definitions: Definitions
    _ends: list[Callable[[], object]]  # what is to be called before the run is closed

    @abstractmethod
    def _begin_idle(self) -> None:
        """Sets the state of a bus that has no run yet."""

    @abstractmethod
    def _compute_left(self) -> None:
        """Logs what waits for the end of an epoch that will not come."""

    @property
    def run(self) -> Run | None:
        """Who the run is; None while nothing is logged anywhere."""
        if self._session is not None:
            return self._session.run
        return self._elsewhere[1] if self._elsewhere else None

    @property
    def is_on(self) -> bool:
        """Whether what is logged goes anywhere.

        So it does on a rank that does not write, too: it may be reduced across ranks.
        """
        return self._session is not None or self._elsewhere is not None

    def _run_id(self) -> str:
        return self.run.id if self.run else ""

    @property
    def folder(self) -> Path | None:
        """The run's folder, for `metricbus.read`."""
        if self._session is not None:
            return self._session.folder.path if self._session.folder else None
        return self._elsewhere[0].path if self._elsewhere else None

    def _come_to_an_end(self) -> None:
        """Lets those end that log by themselves, and logs what waits for an epoch to end."""
        while self._ends:
            end = self._ends.pop()
            try:
                end()
            except Exception as error:  # of a hook; the run ends in any case
                _log.warning("what was to end before the run failed: %r", error)
        self._compute_left()

    def _save_at_sigterm(self) -> None:
        """What SIGTERM does under `sigterm="flush"`: brings everything into the journal, soon."""
        if self._session is not None:
            self._session.save()

    def _close_at_exit(self, status: Status) -> None:
        """What the end of the script does to a bus that was left open; never raises."""
        if self._session is not None:
            self._come_to_an_end()
            self._session.close(status, self._settings.close_timeout)

    def _sleep_in_child(self) -> None:
        """What a fork does to the child's copy: the threads behind this bus are the parent's."""
        self._metrics = TorchmetricsValues()  # the parent computes its own
        self._ends = []
        if self._session is None:
            return
        folder, run = self._session.folder, self._session.run
        if folder is None or run is None:  # of a rank that does not write
            self._session = None
            self._switch_off()
        else:
            self._sleep(folder, run, self._session.known_as)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        """The bus itself: a model that has one may be copied, and goes on logging to it."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled, it is the run: the same bus in this process, a copy that joins in another."""
        stands = (self._clock.step, self._clock.epoch)
        rank = self._session.known_as if self._session else find_rank()
        config = self.run.config if self.run else {}
        definitions = _picklable(self._definitions)
        pickled = _Pickled(self.folder, self._settings, config, definitions, stands, rank)
        return _unpickled, (type(self), pickled)

    def _awake(self) -> Session | None:
        """What works behind this bus; a copy that sleeps joins its run."""
        if self._is_asleep():
            self._queue.on_high_water()
        return self._session

    def _dropped_asleep(self) -> int:
        return self._queue.dropped if self._is_asleep() else 0

    def _is_asleep(self) -> bool:
        """Whether this is a copy that has not joined its run; its queue is a dormant one."""
        return self._session is None and self._elsewhere is not None

    def _sleep(self, folder: RunFolder, run: Run, rank: Rank) -> None:
        self._session = None
        self._rank = rank
        self._elsewhere = folder, run
        self._queue = LazyQueue(self._wake)

    def _wake(self) -> CallQueue:
        assert self._elsewhere is not None
        from metricbus._bus.open_run import join_engine

        self._session = join_engine(self._elsewhere[0], self._settings, self._rank)
        for definition in self._definitions:
            self._session.define(definition, default=False)
        self._queue = self._session.queue
        shutdown.watch(self)
        if self._settings.sigterm == "flush":
            shutdown.flush_at_sigterm()
        return self._queue


class _Pickled(NamedTuple):
    """What goes along with a pickled bus; `stands` is its step and epoch, `rank` its process's."""

    folder: Path | None
    settings: Settings
    config: Mapping[str, Any]
    definitions: Sequence[Definition]
    stands: tuple[int, int]
    rank: Rank


def _unpickled(kind: type[ProcessCopies], pickled: _Pickled) -> ProcessCopies:
    folder = pickled.folder
    for live in shutdown.opened():
        if isinstance(live, ProcessCopies) and folder is not None and live.folder == folder:
            return live
    bus = kind.__new__(kind)
    bus._begin_idle()
    bus._settings = pickled.settings
    bus._config = MappingProxyType(dict(pickled.config))
    bus._clock.step, bus._clock.epoch = pickled.stands
    for definition in pickled.definitions:
        bus._definitions.add(definition)
    if folder is None:
        bus._switch_off()
    else:
        bus._sleep(RunFolder(folder), Run(id=folder.name, name=folder.name), pickled.rank)
    return bus


def _picklable(definitions: Iterable[Definition]) -> list[Definition]:
    """Those that can be taken along: a function must have a name that others can import."""
    import pickle  # nearly no run needs it

    found = []
    for definition in definitions:
        try:
            pickle.dumps(definition)
        except Exception as error:
            _log.warning(
                "a copy of the bus in another process does not have the definition of %r: %s",
                definition.pattern,
                error,
            )
        else:
            found.append(definition)
    return found
