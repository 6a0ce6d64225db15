"""A reader for TensorBoard's HPARAMS page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups


def session_groups(folder: Path, status: int = api_pb2.STATUS_SUCCESS) -> list[Any]:
    """Return what the page lists for a folder: one session group for each run with this status."""
    runs = EventMultiplexer()
    runs.AddRunsFromDirectory(str(folder))
    runs.Reload()
    provider = MultiplexerDataProvider(runs, str(folder))
    context = backend_context.Context(TBContext(data_provider=provider, logdir=str(folder)))
    request = api_pb2.ListSessionGroupsRequest(slice_size=10, allowed_statuses=[status])
    response = list_session_groups.Handler(RequestContext(), context, "x", request).run()
    return list(response.session_groups)


def hparams(group: Any) -> dict[str, Any]:
    """Return the hyperparameters of a session group."""
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in group.hparams.items()}


def metrics(group: Any) -> dict[str, float]:
    """Return the metrics of a session group."""
    return {value.name.tag: value.value for value in group.metric_values}
