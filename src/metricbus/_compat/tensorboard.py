"""TensorBoard: the messages in its event files.

TensorBoard has no public API for them; `torch.utils.tensorboard` uses the same modules. Importing
this module imports TensorBoard, and raises `ConfigError` if it has no such messages.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from metricbus._compat.degrade import degrading
from metricbus.errors import ConfigError

try:
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.histogram_pb2 import HistogramProto
    from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_BLOB_SEQUENCE, Summary
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING
    from tensorboard.plugins.audio import metadata as audio
    from tensorboard.plugins.text import metadata as text
except ImportError as error:
    raise ConfigError(
        f"this version of tensorboard is not supported ({error}); update metricbus, or install a "
        "version of tensorboard that docs/compatibility.md lists"
    ) from error

__all__ = [  # for type checkers
    "DATA_CLASS_BLOB_SEQUENCE", "DT_STRING", "Event", "HistogramProto", "SessionLog", "Summary",
    "TensorProto", "TensorShapeProto", "audio", "hparams_plugin", "tensor_to_array",
    "text",
]  # fmt: skip


def tensor_to_array(tensor: TensorProto) -> Any:
    """Return the numpy array that is stored in a summary value."""
    # The import starts thread pools, which is not possible when the interpreter exits.
    from tensorboard.util.tensor_util import make_ndarray

    return make_ndarray(tensor)


def hparams_plugin() -> Any:
    """Return what the page HPARAMS consists of; None if this version does not have it."""
    loss = "hyperparameters are neither written to event files nor imported from them"
    with degrading("tensorboard", "tensorboard.plugins.hparams", loss):
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        return SimpleNamespace(
            api=api_pb2, data=plugin_data_pb2, metadata=metadata, start=hparams_pb
        )
    return None
