"""TensorBoard: the messages in its event files, and its own reader of them.

TensorBoard has no public API for them; `torch.utils.tensorboard` uses the same modules. Importing
this module imports TensorBoard, and raises `ConfigError` if it has no such messages.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from metricbus._compat.degrade import degrading
from metricbus.errors import ConfigError


@contextmanager
def _required() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"this version of tensorboard is not supported ({error}); update metricbus, or install "
            "a version of tensorboard that docs/compatibility.md lists"
        ) from error


with _required():
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.histogram_pb2 import HistogramProto
    from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_BLOB_SEQUENCE, Summary
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING
    from tensorboard.plugins.audio import metadata as audio
    from tensorboard.plugins.text import metadata as text
    from tensorboard.util.tensor_util import make_ndarray

__all__ = [  # for type checkers
    "DATA_CLASS_BLOB_SEQUENCE", "DT_STRING", "Event", "HistogramProto", "SessionLog", "Summary",
    "TensorProto", "TensorShapeProto", "audio", "hparams_plugin", "make_ndarray",
    "read_raw_events", "text",
]  # fmt: skip


def hparams_plugin() -> Any:
    """Return what the page HPARAMS consists of; None if this version does not have it."""
    loss = "hyperparameters are neither written to event files nor imported from them"
    with degrading("tensorboard", "tensorboard.plugins.hparams", loss):
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        return SimpleNamespace(
            STATUS_FAILURE=api_pb2.STATUS_FAILURE,
            STATUS_SUCCESS=api_pb2.STATUS_SUCCESS,
            HParamsPluginData=plugin_data_pb2.HParamsPluginData,
            SessionEndInfo=plugin_data_pb2.SessionEndInfo,
            hparams_pb=hparams_pb,
            metadata=metadata,
        )
    return None


def read_raw_events(file: Path) -> Iterator[bytes]:
    """Yield the serialized events of a file, up to the first damaged one."""
    with _required():
        from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader

    yield from RawEventFileLoader(str(file)).Load()
