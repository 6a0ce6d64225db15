"""Copies of a bus in other processes, made by a fork or by pickling.

A copy joins the run when it is first used. Until then it has no thread and no open file.
"""

from __future__ import annotations

import logging
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from metricbus._aggregate.rules import Definition, Definitions
from metricbus._bus import shutdown
from metricbus._bus.lazy_queue import LazyQueue
from metricbus._common.config import read_only_config
from metricbus._common.distributed import Rank, current_rank
from metricbus._common.settings import Settings
from metricbus._ingest.queue import CallQueue
from metricbus._ingest.recorder import Recorder
from metricbus._ingest.torchmetrics_values import TorchmetricsValues
from metricbus._journal.run import Run, RunFolder

if TYPE_CHECKING:
    from metricbus._bus.session import Session

_log = logging.getLogger("metricbus")


class ProcessCopies(Recorder):
    """The part of a bus that knows its run, and joins it from a copy in another process."""

    _session: Session | None
    # Of a copy: the run to join, and the rank of the process that the copy comes from.
    _copied_run: tuple[RunFolder, Run] | None
    _copied_rank: Rank
    _config: Mapping[str, Any]
    _definitions: Definitions
    _close_hooks: list[Callable[[], object]]

    @abstractmethod
    def _init_without_run(self) -> None:
        """Initialize the state of a bus that has no run yet."""

    @abstractmethod
    def _register_for_shutdown(self) -> None:
        """Have the bus closed at the end of the script."""

    @property
    def run(self) -> Run | None:
        """The run's identity: id, label, config, status and so on. None if the bus has no run."""
        if self._session is not None:
            return self._session.run
        return self._copied_run[1] if self._copied_run else None

    @property
    def is_on(self) -> bool:
        """Whether `log()` has any effect.

        Also True on a rank that does not write, because its values may be reduced across ranks.
        """
        return self._session is not None or self._copied_run is not None

    def _run_id(self) -> str:
        return self.run.id if self.run else ""

    @property
    def folder(self) -> Path | None:
        """The run folder, as `metricbus.read` accepts it. None if the bus has no run."""
        if self._session is not None:
            return self._session.folder.path if self._session.folder else None
        return self._copied_run[0].path if self._copied_run else None

    def _after_fork_in_child(self) -> None:
        """Turn the child's bus into a copy: the threads of its session exist in the parent only."""
        self._metrics = TorchmetricsValues()  # the parent computes the metrics logged so far
        self._close_hooks = []
        if self._session is None:
            return
        folder, run = self._session.folder, self._session.run
        if folder is None or run is None:  # a rank that does not write
            self._session = None
            self._switch_off()
        else:
            self._become_copy(folder, run, self._session.initial_rank)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        """Return the bus itself, so that a copied model that holds it logs to the same run."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the run: unpickling returns this bus in this process, and a copy in another."""
        clock = (self._clock.step, self._clock.epoch)
        rank = self._session.initial_rank if self._session else current_rank()
        config = self.run.config if self.run else {}
        definitions = _picklable(self._definitions)
        pickled = _PickledBus(self.folder, self._settings, config, definitions, clock, rank)
        return _unpickle, (type(self), pickled)

    def _joined_session(self) -> Session | None:
        """Return the session of an open bus. A copy joins its run first."""
        if self._is_unjoined_copy():
            self._queue.on_high_water()
        return self._session

    def _dropped_before_joining(self) -> int:
        return self._queue.dropped if self._is_unjoined_copy() else 0

    def _is_unjoined_copy(self) -> bool:
        """Check whether this is a copy that has not joined its run. It then has a `LazyQueue`."""
        return self._session is None and self._copied_run is not None

    def _become_copy(self, folder: RunFolder, run: Run, rank: Rank) -> None:
        self._session = None
        self._clock.owner_thread = threading.get_ident()
        self._copied_rank = rank
        self._copied_run = folder, run
        self._queue = LazyQueue(self._join_run)

    def _join_run(self) -> CallQueue:
        assert self._copied_run is not None
        from metricbus._bus.open_run import join_run

        self._session = join_run(self._copied_run[0], self._settings, self._copied_rank)
        for definition in self._definitions:
            self._session.define(definition, default=False)
        self._queue = self._session.queue
        self._register_for_shutdown()
        return self._queue


class _PickledBus(NamedTuple):
    """The content of a pickled bus. `clock` is (step, epoch), `rank` that of the process."""

    folder: Path | None
    settings: Settings
    config: Mapping[str, Any]
    definitions: Sequence[Definition]
    clock: tuple[int, int]
    rank: Rank


def _unpickle(bus_class: type[ProcessCopies], pickled: _PickledBus) -> ProcessCopies:
    folder = pickled.folder
    for open_bus in shutdown.open_buses():
        if isinstance(open_bus, ProcessCopies) and folder and open_bus.folder == folder:
            return open_bus
    bus = bus_class.__new__(bus_class)
    bus._init_without_run()
    bus._settings = pickled.settings
    bus._config = read_only_config(pickled.config)
    bus._clock.step, bus._clock.epoch = pickled.clock
    for definition in pickled.definitions:
        bus._definitions.add(definition)
    if folder is None:
        bus._switch_off()
    else:
        bus._become_copy(RunFolder(folder), Run(id=folder.name, name=folder.name), pickled.rank)
    return bus


def _picklable(definitions: Iterable[Definition]) -> list[Definition]:
    """Return the definitions that can be pickled. Reduction functions must be importable."""
    import pickle  # imported here because few runs need it

    picklable = []
    for definition in definitions:
        try:
            pickle.dumps(definition)
        except Exception as error:
            _log.warning(
                "The copy of the bus in another process does not have the definition of %r, "
                "because it cannot be pickled: %s",
                definition.pattern,
                error,
            )
        else:
            picklable.append(definition)
    return picklable
