"""How a bus gets its run: a new one, one that goes on, or one that others have begun.

A process that a run started finds the run by `METRICBUS_RUN_DIR` and joins it: it writes a segment
of its own into the same folder, which the owner's delivery brings along, and has no sinks itself.
So does a rank, where several of them write. A rank that does not write has no run at all.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metricbus._bus.null_session import NullSession
from metricbus._bus.session import Session
from metricbus._common.distributed import Rank, find_rank, launch, launchers_id, writes
from metricbus._common.settings import Settings
from metricbus._delivery.manager import Delivery
from metricbus._delivery.sink_specs import SinkSpec, specs_of
from metricbus._ingest.collector import Collector
from metricbus._ingest.commands import Append
from metricbus._ingest.media_worker import MediaBounds, MediaWorker
from metricbus._ingest.queue import Bounds, CallQueue
from metricbus._journal.resume import find_run, go_on
from metricbus._journal.run import Run, RunFolder, create_run, plain_config, slug_of
from metricbus._journal.run_env import announce, is_own
from metricbus._journal.segment_writer import SegmentWriter
from metricbus.errors import ConfigError, JournalError
from metricbus.sinks import Sink

_log = logging.getLogger("metricbus.run")

_joined: dict[Path, int] = {}  # the attempts of runs in which this process took part as a rank

_RANK_0_SECS = 60.0  # how long the other ranks wait for the run that it makes


class About(NamedTuple):
    """What a run is told about itself when it is made, by arguments alone."""

    id: str | None
    name: str | None
    config: Mapping[str, Any]
    tags: Sequence[str]
    group: str | None
    notes: str | None


def open_engine(
    settings: Settings, about: About, sinks: str | Sequence[str | Sink] | None
) -> Session:
    """A new run with its sinks; or, in a process that a run started, a further segment of that run.

    Raises `ConfigError` for whatever cannot work.
    """
    rank = find_rank()
    if not writes(settings.ranks, rank):
        return NullSession(settings, rank)
    joined = _run_to_join(settings, about)
    if joined is not None:
        return _engine_of(*joined, settings, rank)
    id = about.id if about.id is not None else settings.run_id
    if settings.ranks in ("all", "local0") and rank.size > 1:
        id = id or _id_of_launch(settings)
        if rank.number > 0:
            folder, run = _run_of_rank_0(Path(settings.dir).expanduser().absolute() / id, rank)
            announce(folder.path)
            return _engine_of(folder, run, settings, rank)
    specs = specs_of(settings.sinks if sinks is None else sinks)
    folder, run = _find_or_create(
        settings,
        id,
        config=about.config,
        project=settings.project,
        tags=list(about.tags),
        group=about.group,
        notes=about.notes,
        sinks=[spec.canonical for spec in specs],
        launch=launch(),
    )
    return _engine_of(folder, run, settings, rank, specs, owner=True)


def _id_of_launch(settings: Settings) -> str:
    """An id that all ranks come to by themselves; `ConfigError` if it would split a run in two."""
    root = Path(settings.dir).expanduser()
    id = f"{slug_of(settings.run or 'run')}-{launchers_id()}"
    if settings.resume != "never" and find_run(root, id, None) is None:
        earlier = find_run(root, None, settings.run)
        if earlier is not None or settings.resume == "must":
            raise ConfigError(
                "resume= with several ranks that write needs id= or METRICBUS_RUN_ID: the "
                f"launcher's id is another one this time, which makes {id!r}"
                + (f"; the run to go on with is {earlier.path.name!r}" if earlier else "")
            )
    return id


def _engine_of(
    folder: RunFolder,
    run: Run,
    settings: Settings,
    rank: Rank,
    specs: Sequence[SinkSpec] = (),
    *,
    owner: bool = False,
) -> Session:
    """What works behind a bus that writes into this folder; begins a segment there."""
    queue = CallQueue(
        Bounds(
            calls=settings.queue_size,
            nbytes=settings.queue_bytes,
            overflow=settings.overflow,
            block_secs=settings.block_secs,
            batch_size=settings.batch_size,
            flush_bytes=settings.flush_bytes,
        ),
        strict=settings.strict,
    )
    several = settings.ranks in ("all", "local0") and rank.size > 1
    hosting = settings.delivery
    if several and hosting == "auto":
        hosting = "process"  # which stays until the last rank has ended
    delivery = Delivery(folder, specs, run.attempt, hosting, settings.linger_secs)
    try:
        journal = SegmentWriter(
            folder.journal, run.id, rank.number, attempt=run.attempt, fsync=settings.fsync
        )
    except OSError as error:
        raise ConfigError(
            f"cannot begin a journal in {folder.journal}: {error.strerror}"
        ) from error
    collector = Collector(
        queue,
        journal,
        settings.flush_secs,
        delivery,
        rank=rank.number if several else 0,
        several=rank.size > 1,
    )
    media = MediaWorker(
        folder.path,
        journal.segment,
        MediaBounds(settings.queue_bytes, settings.overflow, settings.block_secs),
        lambda record: queue.put_control(Append(record), request_flush=False),
    )
    queue.media = media
    parts = queue, collector, media, delivery
    return Session((folder, run), *parts, initial_rank=rank, owner=owner)


def _run_of_rank_0(path: Path, rank: Rank) -> tuple[RunFolder, Run]:
    """The run that rank 0 of the same launch makes, as soon as it is there."""
    folder = RunFolder(path)
    deadline = time.monotonic() + _RANK_0_SECS
    while True:
        try:
            run = folder.load()
        except JournalError:
            run = None
        if run is not None and _is_of_this_launch(run) and run.attempt > _joined.get(path, 0):
            _joined[path] = run.attempt
            return folder, run
        if time.monotonic() > deadline:
            raise ConfigError(
                f"rank {rank.number} has waited {_RANK_0_SECS:.0f} s for rank 0 to begin the run "
                f"{path}; every rank makes its bus with the same id=, dir= and ranks="
            )
        time.sleep(0.05)


def _find_or_create(settings: Settings, id: str | None, **about: Any) -> tuple[RunFolder, Run]:
    root = Path(settings.dir).expanduser()
    if settings.resume != "never":
        found = find_run(root, id, settings.run)
        if found is not None:
            return go_on(found, **about)
        if settings.resume == "must":
            which = f"the id {id!r}" if id is not None else f"the name {settings.run!r}"
            raise ConfigError(f"there is no run with {which} in {root} to go on with")
    return create_run(root, id=id, name=settings.run, **about)


def _is_of_this_launch(run: Run) -> bool:
    """Whether it is on its way, and not what an earlier launch of the same id has left."""
    return run.status == "running" and run.launch == launch() and run.process.is_alive()


def join_engine(folder: RunFolder, settings: Settings, rank: Rank) -> Session:
    """A further segment of a run that is on its way; `MetricBusError` if it has ended."""
    run = folder.load()
    if run.status != "running":
        raise ConfigError(f"the run {run.id} has ended; make a new MetricBus()")
    return _engine_of(folder, run, settings, rank)


def _run_to_join(settings: Settings, about: About) -> tuple[RunFolder, Run] | None:
    """The run that this process was started by; none if it announced that itself or wants another.

    Another id or name, given as an argument, is another run; another config alone is not.
    """
    if settings.run_dir is None or is_own(settings.run_dir):
        return None
    folder = RunFolder(Path(settings.run_dir))
    run = folder.load()
    if about.id not in (None, run.id) or about.name not in (None, run.name):
        return None
    if run.status != "running":
        _log.warning("the run %s that started this process has ended: this is a new one", run.id)
        return None
    if about.config and plain_config(about.config) != run.config:
        _log.warning(
            "joined the run %s that started this process; its config stays as it is there. "
            "For a run of its own give it another name: MetricBus(run=...)",
            run.id,
        )
    return folder, run
