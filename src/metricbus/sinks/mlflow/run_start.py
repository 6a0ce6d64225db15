"""Maps a run to MLflow: its description to tags, its config to params."""

from __future__ import annotations

import getpass
import json
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from metricbus._common.records import RunUpdate, ScalarRow
from metricbus._common.throttled_log import OnceLogger
from metricbus._journal.run import Run, flat_config
from metricbus.sinks.mlflow.metric_names import PARAM_NAME_TAG, KeyMapper

if TYPE_CHECKING:
    from mlflow.entities import Param, RunData, RunTag

_log = logging.getLogger("metricbus.sinks.mlflow")

RUN_ID_TAG = "metricbus.run_id"
_TAG_NAME_TAG = "metricbus.tag."
_PARAM_VALUE_TAG = "metricbus.value."
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


def new_tags(run: Run, data: RunData) -> list[RunTag]:
    """Return the run's tags that MLflow's `data` of it lacks."""
    from mlflow.entities import RunTag

    return [RunTag(key, text) for key, text in run_tags(run).items() if key not in data.tags]


def summary_row(run: Run, updates: Sequence[RunUpdate]) -> ScalarRow:
    """Return the final values that the updates have changed as a row; NaN for a removed one.

    MLflow shows the newest of the values at step 0.
    """
    names = dict.fromkeys(name for update in updates for name in update.summary)
    values = {f"summary/{name}": run.summary.get(name, math.nan) for name in names}
    return ScalarRow(step=0, epoch=0, time=updates[-1].time, values=values)


def new_params(
    config: Mapping[str, Any], data: RunData, once: OnceLogger
) -> tuple[list[Param], list[RunTag]]:
    """Return the params that MLflow's `data` of the run lacks.

    Also returns tags with the original of changed names, and with the values of changed params.
    """
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
        if key not in data.params:
            params.append(Param(key, text))
            if key != name:
                tags.append(RunTag(PARAM_NAME_TAG + key, name))
        elif data.tags.get(_PARAM_VALUE_TAG + key, data.params[key]) != text:
            tags.append(RunTag(_PARAM_VALUE_TAG + key, text))
            _log.warning(
                "MLflow does not allow params to change: %r stays %.80s, although the config now "
                "has %.80s, which the tag %s shows",
                name,
                data.params[key],
                text,
                _PARAM_VALUE_TAG + key,
            )
    return params, tags
