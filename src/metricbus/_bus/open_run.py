"""Opening a bus: it creates a run, resumes one, or joins one that is being written.

A process started by a run finds that run in `METRICBUS_RUN_DIR` and joins it: it writes its own
segment into the run's folder and has no sinks, because the owner's delivery also reads its segment.
With several writing ranks, all but rank 0 join in the same way. A rank that does not write has no
run.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metricbus._bus.live_run import make_update
from metricbus._bus.null_session import NullSession
from metricbus._bus.process_copies import CopiedRun
from metricbus._bus.session import Session
from metricbus._common.distributed import (
    Rank,
    current_rank,
    is_writing_rank,
    launch_key,
    launcher_run_id,
)
from metricbus._common.settings import Settings
from metricbus._delivery.manager import DeliveryManager
from metricbus._delivery.sink_specs import SinkSpec, specs_of
from metricbus._ingest.collector import Collector
from metricbus._ingest.commands import Append
from metricbus._ingest.media_worker import MediaQueueLimits, MediaWorker
from metricbus._ingest.queue import CallQueue, QueueLimits
from metricbus._journal.resume import find_run, resume_run
from metricbus._journal.run import Run, RunFolder, create_run, plain_config, slugify
from metricbus._journal.run_env import export_run_dir, is_own_run_dir
from metricbus._journal.run_updates import has_updates
from metricbus._journal.segment_writer import SegmentWriter
from metricbus.errors import ConfigError, JournalError

_log = logging.getLogger("metricbus.run")

# The newest attempt of each run folder that this process has joined as a rank.
_joined_attempts: dict[Path, int] = {}

_RANK_0_SECS = 60.0


def open_session(
    settings: Settings, name: str | None, config: Mapping[str, Any], arguments: Mapping[str, Any]
) -> Session:
    """Open a run with its sinks, or join the run that started this process.

    `name` and the `arguments` are those of `MetricBus`, without what the environment gives. Raises
    `ConfigError` or a subclass of it if the configuration cannot work.
    """
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        _log.warning(
            "Python runs without the GIL, on which the counts of metricbus rely: values may be "
            "miscounted. Run python -X gil=1, or set PYTHON_GIL=1."
        )
    rank = current_rank()
    if not is_writing_rank(settings.ranks, rank):
        return NullSession(settings, rank)
    id, sinks = arguments.get("id"), arguments.get("sinks")
    parent = _parent_run(settings, id, name, config)
    if parent is not None:
        return _make_session(*parent, settings, rank)
    id = id if id is not None else settings.run_id
    if _is_multi_writer(settings, rank):
        id = id or _launch_run_id(settings)
        if rank.number > 0:
            path = Path(settings.dir).expanduser().absolute() / id
            folder, run = _wait_for_rank_0(path, rank)
            export_run_dir(folder.path)
            return _make_session(folder, run, settings, rank)
    specs = specs_of(settings.sinks if sinks is None else sinks)
    folder, run = _resume_or_create(
        settings,
        id,
        config=config,
        project=settings.project,
        tags=list(arguments.get("tags") or ()),
        group=arguments.get("group"),
        notes=arguments.get("notes"),
        sinks=[spec.canonical for spec in specs],
        launch=launch_key(),
    )
    session = _make_session(folder, run, settings, rank, specs, owner=True)
    tags = tuple(arguments.get("tags") or ())
    if run.attempt > 1 and (config or tags) and has_updates(folder.journal):
        # Readers and sinks apply the earlier updates first.
        fields = {"config": plain_config(config), "tags": tags}
        session.update_run(make_update("config", step=0, epoch=0, **fields), "config")
    return session


def join_run(copied: CopiedRun, settings: Settings) -> Session:
    """Open a segment in a run that is being written.

    Raises `ConfigError` if the run has ended, and `JournalError` if its run.json is unreadable.
    """
    if copied.folder is None:
        return NullSession(settings, copied.rank)
    run = copied.folder.load()
    if run.status != "running":
        raise ConfigError(f"the run {run.id} has ended; create a new MetricBus()")
    return _make_session(copied.folder, run, settings, copied.rank)


def _is_multi_writer(settings: Settings, rank: Rank) -> bool:
    """Check whether several ranks write to one run."""
    return settings.ranks in ("all", "local0") and rank.size > 1


def _launch_run_id(settings: Settings) -> str:
    """Return a run id that every rank of this launch derives in the same way.

    Raises `ConfigError` if the user wants to resume a run whose id came from another launch.
    """
    root = Path(settings.dir).expanduser()
    id = f"{slugify(settings.run or 'run')}-{launcher_run_id()}"
    if settings.resume != "never" and find_run(root, id, None) is None:
        earlier = find_run(root, None, settings.run)
        if earlier is not None or settings.resume == "must":
            raise ConfigError(
                "resume= with several writing ranks needs id= or METRICBUS_RUN_ID: the run id is "
                f"derived from the launch, and this launch has another one ({id!r})"
                + (f"; the run to resume is {earlier.path.name!r}" if earlier else "")
            )
    return id


def _make_session(
    folder: RunFolder,
    run: Run,
    settings: Settings,
    rank: Rank,
    specs: Sequence[SinkSpec] = (),
    *,
    owner: bool = False,
) -> Session:
    """Start a segment in the run's folder, and return the session that writes it."""
    queue = CallQueue(
        QueueLimits(
            calls=settings.queue_size,
            nbytes=settings.queue_bytes,
            overflow=settings.overflow,
            block_secs=settings.block_secs,
            batch_size=settings.batch_size,
            flush_bytes=settings.flush_bytes,
        ),
        strict=settings.strict,
    )
    is_multi_writer = _is_multi_writer(settings, rank)
    hosting = settings.delivery
    if is_multi_writer and hosting == "auto":
        hosting = "process"  # it keeps running until the last rank has ended
    delivery = DeliveryManager(folder, specs, run.attempt, hosting, settings.linger_secs)
    try:
        journal = SegmentWriter(
            folder.journal, run.id, rank.number, attempt=run.attempt, fsync=settings.fsync
        )
    except OSError as error:
        raise ConfigError(
            f"cannot create a journal segment in {folder.journal}: {error.strerror}"
        ) from error
    collector = Collector(
        queue,
        journal,
        settings.flush_secs,
        delivery,
        rank=rank.number if is_multi_writer else 0,
        is_multi_rank=rank.size > 1,
    )
    media = MediaWorker(
        folder.path,
        journal.segment,
        MediaQueueLimits(settings.queue_bytes, settings.overflow, settings.block_secs),
        lambda records: queue.put_command(Append(records), request_flush=False),
    )
    queue.media = media
    return Session(
        folder, run, queue, collector, media, delivery=delivery, initial_rank=rank, owner=owner
    )


def _wait_for_rank_0(path: Path, rank: Rank) -> tuple[RunFolder, Run]:
    """Wait until rank 0 of this launch has created or resumed the run, and return it."""
    folder = RunFolder(path)
    deadline = time.monotonic() + _RANK_0_SECS
    while True:
        try:
            run = folder.load()
        except JournalError:
            run = None
        if (
            run is not None
            and _belongs_to_this_launch(run)
            and run.attempt > _joined_attempts.get(path, 0)
        ):
            _joined_attempts[path] = run.attempt
            return folder, run
        if time.monotonic() > deadline:
            raise ConfigError(
                f"rank {rank.number} waited {_RANK_0_SECS:.0f} s for rank 0 to create the run "
                f"{path}; create the bus on every rank, with the same id=, dir= and ranks="
            )
        time.sleep(0.05)


def _resume_or_create(settings: Settings, id: str | None, **fields: Any) -> tuple[RunFolder, Run]:
    root = Path(settings.dir).expanduser()
    if settings.resume != "never":
        folder = find_run(root, id, settings.run)
        if folder is not None:
            return resume_run(folder, **fields)
        if settings.resume == "must":
            wanted = f"the id {id!r}" if id is not None else f"the name {settings.run!r}"
            raise ConfigError(
                f"resume='must': there is no run with {wanted} in {root}; use resume=True to "
                "create it"
            )
    return create_run(root, id=id, name=settings.run, **fields)


def _belongs_to_this_launch(run: Run) -> bool:
    """Check that a run is being written, and is not left over from an earlier launch."""
    return run.status == "running" and run.launch == launch_key() and run.process.is_alive()


def _parent_run(
    settings: Settings, id: str | None, name: str | None, config: Mapping[str, Any]
) -> tuple[RunFolder, Run] | None:
    """Return the run that started this process.

    Return None if there is none, if this process announced the run itself, or if the arguments name
    another id or name. A different config alone does not make it another run.
    """
    if settings.run_dir is None or is_own_run_dir(settings.run_dir):
        return None
    folder = RunFolder(Path(settings.run_dir))
    run = folder.load()
    if id not in (None, run.id) or name not in (None, run.name):
        return None
    if run.status != "running":
        _log.warning("The run %s that started this process has ended; a new run is created", run.id)
        return None
    if config and plain_config(config) != run.config:
        _log.warning(
            "Joined the run %s that started this process. Its config does not change. For a "
            "separate run, give it another name: MetricBus(name=...)",
            run.id,
        )
    return folder, run
