"""How a run of Weights & Biases is begun: in which mode, under which name, with which settings."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from metricbus._journal.run import Run
from metricbus.errors import ConfigError
from metricbus.sinks.wandb.names import run_id, short_tags

if TYPE_CHECKING:
    import wandb

Mode: TypeAlias = Literal["online", "offline"] | None

_log = logging.getLogger("metricbus.sinks.wandb")


def begin(
    run: Run,
    folder: Path,
    *,
    entity: str | None,
    project: str | None,
    mode: Mode,
    group: str | None,
    tags: Sequence[str],
    notes: str | None,
) -> wandb.Run:
    """Begins the run in `folder`, or goes on with it if it is online.

    What is None, the run says, or else W&B's settings; `tags` are added to the run's own.
    """
    import wandb

    begun = wandb.init(
        entity=entity,
        project=project,
        id=run_id(run.id),
        name=run.name,
        config=dict(run.config),
        group=group or run.group,
        tags=short_tags([*run.tags, *tags]),
        notes=notes or run.notes,
        dir=str(folder),
        mode=mode,
        resume="allow" if mode == "online" else None,
        reinit="create_new",  # a run of ours beside those that the script may have
        settings=wandb.Settings(
            console="off",
            silent=True,
            allow_media_symlink=True,  # no copies of media; by the next line hard links
            symlink=False,
            **_about_training(run),
        ),
    )
    with suppress(AttributeError):  # it is no part of W&B's public face
        # else `wandb.init()` in the script would give out our run, or end it
        wandb.setup().remove_active_run(begun)
    return begun


def choose_mode(wanted: Mode) -> Mode:
    """What is `wanted`, or W&B's own settings say; else online with a key, and offline without.

    W&B would ask for a missing key in the terminal, in the midst of training.
    """
    mode = wanted or os.environ.get("WANDB_MODE") or None
    if mode not in (None, "online"):
        return wanted
    if _has_key():
        return "online"
    if mode == "online":
        raise ConfigError(
            "W&B is to be online, but has no API key: run 'wandb login', set WANDB_API_KEY, or "
            "choose wandb?mode=offline"
        )
    _log.warning(
        "W&B has no API key, so this run is offline, until 'wandb sync' sends it; for the next "
        "one, run 'wandb login', or choose wandb?mode=offline"
    )
    return "offline"


def _about_training(run: Run) -> dict[str, Any]:
    """Settings that have W&B record the training rather than the process that delivers.

    Of a training that is over or elsewhere, there is nothing to record but its name.
    """
    is_here = run.process.is_here and run.process.is_alive()
    about: dict[str, Any] = {"x_disable_stats": not is_here, "disable_git": not is_here}
    if is_here:
        about["x_stats_pid"] = run.pid
        about["git_root"] = os.getcwd()  # W&B would look around the run's folder
    if run.program:
        about["program"] = run.program
    return about


def _has_key() -> bool:
    """Whether W&B finds an API key, or is in use by the script itself."""
    import wandb

    if wandb.run is not None:
        return not wandb.run.offline
    return wandb.login(prompt=False, verify=False)
