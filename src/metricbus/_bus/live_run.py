"""What a run can gain while it is open: config, tags and final values."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, Self

import msgspec

from metricbus._common.config import read_only_config
from metricbus._common.records import (
    Best,
    Number,
    RunUpdate,
    Status,
    encode,
    with_rank,
    with_rank_prefix,
)
from metricbus._common.throttled_log import ThrottledLogger
from metricbus._journal.run import Run, RunFolder, flat_config, plain_config
from metricbus._journal.run_updates import complete_run, current_best
from metricbus._journal.segment_reader import JournalReader
from metricbus.errors import ConfigError, JournalError

_log = logging.getLogger("metricbus.run")


class _Core(Protocol):
    """What a config needs of the core of its bus."""

    config: RunConfig

    @property
    def run(self) -> Run | None: ...
    def opened(self) -> Self: ...
    def update_run(self, what: str, **fields: Any) -> bool: ...


class RunConfig(Mapping[str, Any]):
    """The config of a run: a mapping that is read-only at every level, except for `update()`."""

    __slots__ = ("_core", "_values")

    def __init__(self, core: _Core, config: object) -> None:
        self._core = core
        self._values = dict(read_only_config(config))

    def update(self, config: object = None, /, **values: Any) -> None:
        """Merge a mapping and keyword arguments into the config, key by key.

        Accepts what `MetricBus(config=)` does. A nested mapping replaces the previous value of its
        key as a whole. The new values are in `run.json` and reach every sink; see docs/sinks.md.

        Raises `TypeError` if `config` is no mapping or config object, and `ConfigError` if two
        values would have the same name, or a value cannot be stored.
        """
        call = "bus.config.update()"
        given = {**read_only_config({} if config is None else config, call), **values}
        given = dict(read_only_config(given, call))
        plain, core = plain_config(given), self._core.opened()
        flat_config((core.run.config if core.run else {}) | plain)
        if core is not self._core:
            core.config.update(given)
        elif given and core.update_run("config", config=plain):
            self._values.update(given)

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._values))  # a copy: another thread may update it

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)


def check_tags(tags: Sequence[object]) -> tuple[str, ...]:
    """Return the tags; raise `TypeError` or `ValueError` unless each of them is text."""
    for tag in tags:
        if not isinstance(tag, str):
            raise TypeError(
                f'add_tags() takes text, such as add_tags("baseline", "lr-0.1"), not '
                f"{type(tag).__name__}: {tag!r:.80}"
            )
        if not tag:
            raise ValueError("a tag must not be empty")
    return tuple(map(str.__str__, tags))


class LiveRun:
    """The run of an open bus, as it grows.

    `run` has all updates of this process. Only the owner of the run writes them to run.json. An
    update of another process is in the journal, and in run.json once the owner has closed the run.
    `error` says why run.json could not be written the last time.
    """

    def __init__(
        self, folder: RunFolder, run: Run, segment: str, rank: int, *, owner: bool
    ) -> None:
        self.run = run
        self.error: str | None = None
        self._folder = folder
        self._segment = segment
        self._rank = rank
        self._is_owner = owner
        self._throttled_log = ThrottledLogger(_log)
        # The caller's thread and the collector update the run; a signal handler may interrupt both.
        self._lock = threading.RLock()

    def apply(self, updates: Sequence[RunUpdate]) -> None:
        """Apply updates of this process."""
        with self._lock:
            if self._rank:
                updates = [with_rank(update, self._rank) for update in updates]
            self.run = self.run.updated(*map(with_rank_prefix, updates))

    def save(self, updates: Sequence[RunUpdate] = ()) -> None:
        """Apply updates, and write run.json if this process owns the run."""
        with self._lock:
            self.apply(updates)
            if not self._is_owner:
                return
            try:
                # A later attempt may have resumed the run; run.json is then that attempt's.
                if self._folder.load().attempt == self.run.attempt:
                    self._folder.save(self.run)
                self.error = None
            except (OSError, JournalError) as error:
                self.error = f"run.json cannot be written: {error}"
                self._throttled_log.warn(
                    "%s. Nothing is lost: the journal has the changes", self.error
                )

    def end(self, status: Status) -> None:
        """End the run with this status, and add the updates of other processes that joined it."""
        with self._lock:
            try:
                if JournalReader(self._folder.journal).segments()[-1] > self._segment:
                    complete = complete_run(self._folder)
                    grown = {
                        name: getattr(complete, name) for name in ("config", "tags", "summary")
                    }
                    self.run = msgspec.structs.replace(self.run, **grown)
            except (OSError, JournalError) as error:
                _log.warning("The journal cannot be read to complete run.json: %s", error)
            self.run = msgspec.structs.replace(self.run, status=status, ended=time.time_ns())
            self.save()

    @property
    def has_earlier_attempts(self) -> bool:
        """Whether the journal has rows of earlier attempts."""
        return self.run.attempt > 1

    def current_best(
        self, mode_of: Callable[[str], Best | None] | None
    ) -> dict[int, dict[str, Number | None]]:
        """Return the best values in the journal by rank and name; none if it cannot be read."""
        try:
            return current_best(self._folder.journal, self._rank, mode_of)
        except (OSError, JournalError) as error:
            _log.warning("The best values cannot be read from the journal: %s", error)
            return {}


def make_update(what: str, **fields: Any) -> RunUpdate:
    """Return the update. Raises `ConfigError` if it cannot be stored as JSON."""
    update = RunUpdate(time=time.time_ns(), **fields)
    try:
        encode([update])
    except Exception as error:
        raise ConfigError(f"the {what} of the run cannot be stored: {error}") from error
    return update
