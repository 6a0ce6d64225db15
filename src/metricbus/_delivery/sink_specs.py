"""Turns the argument `sinks` of a bus into specifications of sinks to deliver to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from metricbus._common.sink_urls import SinkURL, parse_sinks, redact, short_hash
from metricbus.errors import ConfigError
from metricbus.sinks import Sink, SinkOptions, make_sink

OBJECT_PREFIX = "object:"
"""The prefix of the canonical name of a sink object."""


class SinkSpec(NamedTuple):
    """A sink, and how to deliver to it.

    `name` identifies it in reports and logs. `kind`, the first part of its URL or the class of a
    sink object, is what the `sinks` of a definition refer to. `key` is the name of its files, and
    `destination` identifies what it writes to: only one sink at a time may write there. `canonical`
    is the same for all spellings of one URL. `url` has an absolute location.
    """

    name: str
    kind: str
    key: str
    destination: str
    canonical: str
    sink: Sink
    options: SinkOptions
    url: SinkURL | None  # None for a sink object

    @property
    def selection(self) -> str:
        """The options that select the sink's rows."""
        options = self.options
        return f"include={options.include} exclude={options.exclude} every={options.every}"


def spec_of(sink: SinkURL | Sink) -> SinkSpec:
    """Return the specification for a URL or a sink object."""
    if isinstance(sink, SinkURL):
        instance, options = make_sink(sink)
        url = msgspec.structs.replace(sink, location=instance.location)
        hashed = f"{url.name}-{short_hash(instance.location)}"
        destination = url.key if instance.shareable else hashed
        name = redact(url.text)
        return SinkSpec(name, url.name, url.key, destination, url.canonical, instance, options, url)
    name = type(sink).__name__
    key = f"object-{name}"
    return SinkSpec(name, name, key, key, OBJECT_PREFIX + name, sink, SinkOptions(), None)


def specs_of(sinks: str | Sequence[str | Sink]) -> list[SinkSpec]:
    """Return the specifications for the argument `sinks` of a bus.

    Raises `ConfigError` for an invalid sink, and for sinks that cannot be combined.
    """
    requested: list[Any] = []
    if not isinstance(sinks, Iterable):
        sinks = [sinks]
    for sink in [sinks] if isinstance(sinks, str) else sinks:
        if isinstance(sink, str):
            requested += parse_sinks(sink)
        elif isinstance(sink, Sink):
            requested.append(sink)
        else:
            raise ConfigError(
                f"sinks= must contain sink URLs or sink objects such as MemorySink(), "
                f"not {sink!r:.60}"
            )
    specs: list[SinkSpec] = []
    for sink in requested:
        spec = spec_of(sink)
        duplicates = sum(other.key.partition("#")[0] == spec.key for other in specs)
        if not isinstance(sink, Sink):
            if duplicates:
                raise ConfigError(f"the sink {spec.name!r} is listed twice")
            _check_combination(spec, specs)
        if duplicates:
            suffix = f"#{duplicates + 1}"
            spec = spec._replace(
                name=spec.name + suffix,
                key=spec.key + suffix,
                destination=spec.destination + suffix,
            )
        specs.append(spec)
    return specs


def _check_combination(spec: SinkSpec, others: Sequence[SinkSpec]) -> None:
    """Raise `ConfigError` if the sink cannot be combined with one of the others."""
    for other in others:
        if spec.sink.exclusive_reason and other.kind == spec.kind:
            raise ConfigError(
                f"{other.name!r} and {spec.name!r} cannot be combined: {spec.sink.exclusive_reason}"
            )
        same = (other.kind, other.sink.location) == (spec.kind, spec.sink.location)
        if same and not spec.sink.shareable:
            raise ConfigError(
                f"the sinks {other.name!r} and {spec.name!r} write to the same location; give one "
                f"of them another location, such as {spec.kind}:elsewhere"
            )
