"""Starts or resumes a W&B run: its options, mode and settings."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from metricbus._common.records import RunUpdate
from metricbus._compat.wandb import forget_active_run, make_settings
from metricbus._journal.run import Run
from metricbus.errors import ConfigError
from metricbus.sinks.wandb.names import column_name, run_id, short_tags

if TYPE_CHECKING:
    import wandb

Mode: TypeAlias = Literal["online", "offline"] | None

_log = logging.getLogger("metricbus.sinks.wandb")


class WandbOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the sink URL. Those left out come from the run, or from W&B's own settings.

    `tags` are added to the run's tags.
    """

    entity: str | None = None
    project: str | None = None
    mode: Mode = None
    group: str | None = None
    tags: list[str] = []
    notes: str | None = None


def start_run(
    run: Run,
    folder: Path,
    options: WandbOptions,
    *,
    entity: str | None,
    project: str | None,
    mode: Mode,
) -> wandb.Run:
    """Start a W&B run with its files in `folder`; resume it if it exists and `mode` is online."""
    import wandb

    started = wandb.init(
        entity=entity,
        project=project,
        id=run_id(run.id),
        name=run.name,
        config=dict(run.config),
        group=options.group or run.group,
        tags=short_tags([*run.tags, *options.tags]),
        notes=options.notes or run.notes,
        dir=str(folder),
        mode=mode,
        resume="allow" if mode == "online" else None,
        reinit="create_new",  # leave the script's own runs open
        settings=make_settings(
            console="off",
            silent=True,
            # together: hard links instead of copies of media
            allow_media_symlink=True,
            symlink=False,
            **_training_settings(run),
        ),
    )
    forget_active_run(started)
    return started


def update_run(started: wandb.Run, run: Run, update: RunUpdate, options: WandbOptions) -> None:
    """Update the W&B run of a `run` that has the update already."""
    if update.config:
        started.config.update(update.config, allow_val_change=True)  # type: ignore[no-untyped-call]
    if update.tags:
        started.tags = tuple(short_tags([*run.tags, *options.tags]))
    update_summary(started, run, update.summary)


def update_summary(started: wandb.Run, run: Run, names: Iterable[str]) -> None:
    """Copy values from the summary of a run to that of its W&B run; remove those that it lacks."""
    for name in names:
        column = column_name(name)
        if name in run.summary:
            started.summary[column] = run.summary[name]
        else:
            del started.summary[column]  # type: ignore[no-untyped-call]


def choose_mode(requested: Mode) -> Mode:
    """Return the mode that is requested, here or in W&B's settings; None leaves it to W&B.

    Without a request, it is online if W&B has an API key and offline otherwise: W&B itself would
    ask for the key in the terminal and block. Raises `ConfigError` for online without a key.
    """
    mode = requested or os.environ.get("WANDB_MODE") or None
    if mode not in (None, "online"):
        return requested
    if _has_api_key():
        return "online"
    if mode == "online":
        raise ConfigError(
            "W&B mode is online, but there is no API key; run 'wandb login', set WANDB_API_KEY, or "
            "choose wandb?mode=offline"
        )
    _log.warning(
        "W&B has no API key, so this run is offline; upload it later with 'wandb sync'. For the "
        "next run, use 'wandb login', or wandb?mode=offline to avoid this warning"
    )
    return "offline"


def _training_settings(run: Run) -> dict[str, Any]:
    """Return settings that make W&B record the training process, not the delivering one.

    If the training has ended or is on another host, only its program can be recorded.
    """
    is_here = run.process.is_local and run.process.is_alive()
    settings: dict[str, Any] = {"x_disable_stats": not is_here, "disable_git": not is_here}
    if is_here:
        settings["x_stats_pid"] = run.pid
        settings["git_root"] = os.getcwd()  # W&B would look in the run's folder
    if run.program:
        settings["program"] = run.program
    return settings


def _has_api_key() -> bool:
    """Check whether W&B finds an API key, or the script already uses W&B online."""
    import wandb

    if wandb.run is not None:
        return not wandb.run.offline
    return wandb.login(prompt=False, verify=False)
