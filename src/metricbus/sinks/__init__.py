"""The sink contract, the registry of sink names, and one package for each backend.

In: batches of records (`Scalars`, `Rewind`, and the media records of `metricbus.media`), from the
consumer in `_delivery/consumer.py`.
Out: the backend's own files or requests, and a small state that the consumer stores after each
flush and passes to `Sink.open` after a restart.
Promises: what `Sink` documents in `sinks/base.py`; records are never changed, merged or split.
May not touch: the bus, the queue, the journal's segments, other sinks.

A package can register a sink of its own with an entry point:

    [project.entry-points."metricbus.sinks"]
    mysink = "my_package:MySink"
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar, get_origin

import msgspec

from metricbus._common.records import Rewind, Scalars
from metricbus._common.settings import in_words
from metricbus._common.sink_urls import SinkURL, redact
from metricbus._journal.media_files import MediaFolder
from metricbus._journal.run import Run
from metricbus.errors import ConfigError, MissingPackageError
from metricbus.sinks.base import FileSink, Sink, SinkOptions

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = [
    "FileSink",
    "MediaFolder",
    "Rewind",
    "Run",
    "Scalars",
    "Sink",
    "SinkOptions",
    "find_sink",
    "make_sink",
    "sink_names",
]

_OURS = {
    "csv": "metricbus.sinks.csv.sink:CsvSink",
    "logging": "metricbus.sinks.logging.sink:LoggingSink",
    "mlflow": "metricbus.sinks.mlflow.sink:MlflowSink",
    "tensorboard": "metricbus.sinks.tensorboard.sink:TensorBoardSink",
    "wandb": "metricbus.sinks.wandb.sink:WandbSink",
}


def sink_names() -> list[str]:
    """The names of all sinks that a URL may begin with, ours and installed ones."""
    return sorted({*_OURS, *(point.name for point in _theirs())})


def find_sink(name: str) -> type[Sink]:
    """The class behind a name; `ConfigError` with near names when there is none."""
    if name in _OURS:
        module, _, attribute = _OURS[name].partition(":")
        cls: type[Sink] = getattr(import_module(module), attribute)
    else:
        cls = _load(name)
    for needed in cls.requires:
        if find_spec(needed) is None:
            raise MissingPackageError(
                f"the sink {name!r} needs the package {needed!r}, which is not installed: "
                f"{cls.install or f'pip install {needed}'}"
            )
    return cls


def make_sink(url: SinkURL) -> tuple[Sink, SinkOptions]:
    """The sink that a URL stands for, not opened, and how it is to be fed; all options checked."""
    cls = find_sink(url.name)
    common = {field.name for field in msgspec.structs.fields(SinkOptions)}
    own = {field.encode_name for field in msgspec.structs.fields(cls.Options)}
    fields = (*msgspec.structs.fields(SinkOptions), *msgspec.structs.fields(cls.Options))
    lists = {field.encode_name for field in fields if get_origin(field.type) is list}
    for option, texts in url.options.items():
        if option not in common | own:
            raise ConfigError(
                f"the sink {redact(url.text)!r} has no option {option!r}"
                f"{_near(option, sorted(common | own))}; there are: "
                + ", ".join(sorted(common | own))
            )
        if len(texts) > 1 and option not in lists:
            raise ConfigError(f"the sink {redact(url.text)!r} has the option {option!r} twice")
    return (
        cls(url.location, _parse_options(url, own - common, cls.Options)),
        _parse_options(url, common, SinkOptions),
    )


_Options = TypeVar("_Options", bound=msgspec.Struct)


def _parse_options(url: SinkURL, names: set[str], into: type[_Options]) -> _Options:
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(into):
        if field.encode_name not in names & url.options.keys():
            continue
        texts = url.options[field.encode_name]
        value = texts if get_origin(field.type) is list else texts[0]
        try:
            values[field.name] = msgspec.convert(value, field.type, strict=False)
        except msgspec.ValidationError as error:
            raise ConfigError(
                f"the sink {redact(url.text)!r}, option {field.encode_name!r}: {error}; "
                f"expected {in_words(field.type)}"
            ) from None
    return into(**values)


def _load(name: str) -> type[Sink]:
    for point in _theirs():
        if point.name == name:
            try:
                cls = point.load()
            except ImportError as error:
                raise MissingPackageError(
                    f"the sink {name!r} of {point.value} cannot be imported: {error}"
                ) from error
            if not (isinstance(cls, type) and issubclass(cls, Sink)):
                raise ConfigError(f"the sink {name!r}: {point.value} is no metricbus.sinks.Sink")
            return cls
    names = sink_names()
    raise ConfigError(
        f"no sink is called {name!r}{_near(name, names)}; there are: {', '.join(names)}"
    )


def _theirs() -> list[EntryPoint]:
    from importlib.metadata import entry_points  # a third of the time that importing us would take

    return list(entry_points(group="metricbus.sinks"))


def _near(name: str, names: list[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
