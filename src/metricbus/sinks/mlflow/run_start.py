"""What a run becomes in MLflow: its description as tags, its config as params."""

from __future__ import annotations

import getpass
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from metricbus._journal.run import Run, flat_config
from metricbus.sinks.mlflow.rows import PARAM_TAG, Names

if TYPE_CHECKING:
    from mlflow.entities import Param, RunTag

_log = logging.getLogger("metricbus.sinks.mlflow")

RUN_ID = "metricbus.run_id"
TAG, TAG_TAG = "tag.", "metricbus.tag."
_RESERVED = ("mlflow.", "metricbus.")  # tags that have a meaning
_LONGEST_TAG = 8000  # mlflow.utils.validation
_LONGEST_PARAM = 6000


def tags_of(run: Run) -> dict[str, str]:
    """The tags of MLflow's run: those that were given, and what the run says of itself."""
    names = Names({})
    tags = {}
    for tag in run.tags:
        key = names.key(TAG + tag if tag.startswith(_RESERVED) else tag)
        tags[key] = "true"
        if key != tag:
            tags[TAG_TAG + key] = tag
    tags |= {RUN_ID: run.id, "metricbus.host": run.host}
    with suppress(KeyError, OSError):  # in a container, the user may have no name
        tags["mlflow.user"] = getpass.getuser()
    if run.group:
        tags["metricbus.group"] = run.group
    if run.notes:
        tags["mlflow.note.content"] = run.notes
    for key, text in tags.items():
        if len(text) > _LONGEST_TAG:
            _log.warning("tag %r is cut to the %s characters that MLflow takes", key, _LONGEST_TAG)
            tags[key] = text[: _LONGEST_TAG - 1] + "…"
    return tags


def params_of(
    config: Mapping[str, Any], logged: Mapping[str, str], tell_once: Callable[..., None]
) -> tuple[list[Param], list[RunTag]]:
    """The params that are not `logged` yet, and tags with the names of those that are renamed."""
    from mlflow.entities import Param, RunTag

    names = Names({})
    params: list[Param] = []
    tags: list[RunTag] = []
    for name, value in flat_config(config).items():
        key, text = names.key(name), _text(value)
        if len(text) > _LONGEST_PARAM:
            tell_once(
                "param %r has %s characters, MLflow takes %s: it is cut there, and whole in "
                "the run's run.json",
                name,
                f"{len(text):,}",
                f"{_LONGEST_PARAM:,}",
            )
            text = text[: _LONGEST_PARAM - 1] + "…"
        if logged.get(key, text) != text:
            _log.warning(
                "MLflow keeps the param %r as it was, %.80s: it cannot be changed to %.80s",
                name,
                logged[key],
                text,
            )
        if key not in logged:
            params.append(Param(key, text))
            if key != name:
                tags.append(RunTag(PARAM_TAG + key, name))
    return params, tags


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
