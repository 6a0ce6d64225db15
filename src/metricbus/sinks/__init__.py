"""The sink contract, the registry of sink names, and one package for each backend.

Input: batches of records (`ScalarRow`, `Epoch`, `Rewind`, `RunUpdate`, and the media records
of `metricbus.media`) from the consumer in `_delivery/consumer.py`.
Output: the backend's own files or requests, and a small state that the consumer stores after each
flush and passes to `Sink.open` after a restart.
Guarantees: the contract in `sinks/base.py`; records are never changed, merged or split.
Must not access: the bus, the queue, the journal's segments, other sinks.

Other packages can register a sink with an entry point:

    [project.entry-points."metricbus.sinks"]
    mysink = "my_package:MySink"
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, get_origin

import msgspec

from metricbus._common.records import Rewind, RunUpdate, ScalarRow
from metricbus._common.settings import describe_type
from metricbus._common.sink_urls import SinkURL, redact
from metricbus._common.validation import suggestion
from metricbus._journal.media_files import MediaFolder
from metricbus._journal.run import Run
from metricbus.errors import (
    BackendUnavailableError,
    ConfigError,
    MissingPackageError,
    RecordsLostError,
    RecordsRejectedError,
)
from metricbus.sinks.base import FileSink, Flushed, Sink, SinkOptions

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = [
    "BackendUnavailableError",
    "FileSink",
    "Flushed",
    "MediaFolder",
    "RecordsLostError",
    "RecordsRejectedError",
    "Rewind",
    "Run",
    "RunUpdate",
    "ScalarRow",
    "Sink",
    "SinkOptions",
    "find_sink",
    "make_sink",
    "sink_names",
]

_BUILTIN = {
    "csv": "metricbus.sinks.csv.sink:CsvSink",
    "logging": "metricbus.sinks.logging.sink:LoggingSink",
    "mlflow": "metricbus.sinks.mlflow.sink:MlflowSink",
    "tensorboard": "metricbus.sinks.tensorboard.sink:TensorBoardSink",
    "wandb": "metricbus.sinks.wandb.sink:WandbSink",
}


def sink_names() -> list[str]:
    """Return the names of all sinks, built-in and installed."""
    return sorted({*_BUILTIN, *(point.name for point in _entry_points())})


def find_sink(name: str) -> type[Sink]:
    """Return the sink class with this name.

    Raises `ConfigError` if there is none, and `MissingPackageError` if a package it needs is not
    installed.
    """
    if name in _BUILTIN:
        module, _, attribute = _BUILTIN[name].partition(":")
        cls: type[Sink] = getattr(import_module(module), attribute)
    else:
        cls = _load(name)
    for module_name in cls.requires:
        if find_spec(module_name) is None:
            raise MissingPackageError(
                f"sink {name!r} requires the package {module_name!r}, which is not installed; "
                f"install it with: {cls.install or f'pip install {module_name}'}"
            )
    return cls


def make_sink(url: SinkURL) -> tuple[Sink, SinkOptions]:
    """Create the sink that a URL describes, without opening it, and validate all options.

    Returns the sink and the options that all sinks share. Raises `ConfigError` for an unknown,
    repeated or invalid option.
    """
    cls = find_sink(url.name)
    fields = {
        field.encode_name: (struct, field)
        for struct in (cls.Options, SinkOptions)
        for field in msgspec.structs.fields(struct)
    }
    own: dict[str, Any] = {}
    common: dict[str, Any] = {}
    for option, texts in url.options.items():
        if option not in fields:
            raise ConfigError(
                f"sink {redact(url.text)!r} has no option {option!r}"
                f"{suggestion(option, fields)} Available options: {', '.join(sorted(fields))}"
            )
        struct, field = fields[option]
        is_list = get_origin(field.type) is list
        if len(texts) > 1 and not is_list:
            raise ConfigError(f"sink {redact(url.text)!r} has the option {option!r} twice")
        try:
            value = msgspec.convert(texts if is_list else texts[0], field.type, strict=False)
        except msgspec.ValidationError as error:
            raise ConfigError(
                f"sink {redact(url.text)!r}, option {option!r}: {error}; "
                f"expected {describe_type(field.type)}"
            ) from None
        (common if struct is SinkOptions else own)[field.name] = value
    return cls(url.location, cls.Options(**own)), SinkOptions(**common)


def _load(name: str) -> type[Sink]:
    for point in _entry_points():
        if point.name == name:
            try:
                cls = point.load()
            except ImportError as error:
                raise MissingPackageError(
                    f"sink {name!r}: cannot import {point.value}: {error}"
                ) from error
            if not (isinstance(cls, type) and issubclass(cls, Sink)):
                raise ConfigError(
                    f"sink {name!r}: {point.value} is not a subclass of metricbus.sinks.Sink"
                )
            return cls
    names = sink_names()
    raise ConfigError(
        f"unknown sink {name!r}{suggestion(name, names)} Available sinks: {', '.join(names)}"
    )


def _entry_points() -> list[EntryPoint]:
    # Imported here because it would take a third of the import time of metricbus.
    from importlib.metadata import entry_points

    return list(entry_points(group="metricbus.sinks"))
