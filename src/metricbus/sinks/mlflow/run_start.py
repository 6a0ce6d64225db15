"""Maps a run to MLflow: its description to tags, its config to params."""

from __future__ import annotations

import getpass
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from metricbus._common.throttled_log import OnceLogger
from metricbus._journal.run import Run, flat_config
from metricbus.sinks.mlflow.metric_names import PARAM_NAME_TAG, KeyMapper

if TYPE_CHECKING:
    from mlflow.entities import Param, RunTag

_log = logging.getLogger("metricbus.sinks.mlflow")

RUN_ID_TAG = "metricbus.run_id"
_TAG_NAME_TAG = "metricbus.tag."
_RESERVED = ("mlflow.", "metricbus.")  # MLflow and this sink interpret tags with these prefixes
_MAX_TAG_LENGTH = 8000  # mlflow.utils.validation
_MAX_PARAM_LENGTH = 6000


def run_tags(run: Run) -> dict[str, str]:
    """Return the tags of a new MLflow run: the user's own, and the run's description."""
    keys = KeyMapper({})
    tags = {}
    for tag in run.tags:
        key = keys.key(f"tag.{tag}" if tag.startswith(_RESERVED) else tag)
        tags[key] = "true"
        if key != tag:
            tags[_TAG_NAME_TAG + key] = tag
    tags |= {RUN_ID_TAG: run.id, "metricbus.host": run.host}
    with suppress(KeyError, OSError):  # in a container, the user may have no name
        tags["mlflow.user"] = getpass.getuser()
    if run.group:
        tags["metricbus.group"] = run.group
    if run.notes:
        tags["mlflow.note.content"] = run.notes
    for key, text in tags.items():
        if len(text) > _MAX_TAG_LENGTH:
            _log.warning("tag %r is cut to %s characters, MLflow's limit", key, _MAX_TAG_LENGTH)
            tags[key] = text[: _MAX_TAG_LENGTH - 1] + "…"
    return tags


def new_params(
    config: Mapping[str, Any], logged: Mapping[str, str], once: OnceLogger
) -> tuple[list[Param], list[RunTag]]:
    """Return the params that are not `logged` yet, and tags with the original of changed names."""
    from mlflow.entities import Param, RunTag

    keys = KeyMapper({})
    params: list[Param] = []
    tags: list[RunTag] = []
    for name, value in flat_config(config).items():
        key = keys.key(name)
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if len(text) > _MAX_PARAM_LENGTH:
            once.warn(
                "param %r is cut from %s characters to %s, MLflow's limit; the full value is in "
                "the run's run.json",
                name,
                f"{len(text):,}",
                f"{_MAX_PARAM_LENGTH:,}",
                key="long param",
            )
            text = text[: _MAX_PARAM_LENGTH - 1] + "…"
        if key not in logged:
            params.append(Param(key, text))
            if key != name:
                tags.append(RunTag(PARAM_NAME_TAG + key, name))
        elif logged[key] != text:
            _log.warning(
                "MLflow does not allow params to change: %r stays %.80s, although the config now "
                "has %.80s",
                name,
                logged[key],
                text,
            )
    return params, tags
