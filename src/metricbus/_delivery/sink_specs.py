"""From what `sinks=` says to the sinks that are to be fed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from metricbus._common.sink_urls import SinkURL, digest, parse_sinks, redact
from metricbus.errors import ConfigError
from metricbus.sinks import Sink, SinkOptions, make_sink

OBJECT = "object:"
"""How the canonical name of a user's own sink object begins."""


class SinkSpec(NamedTuple):
    """A sink to be fed: its name for people, its key for files, and how it wants its records.

    `kind` is the first part of its URL, or the class of a user's own object: what `sinks=` of a
    definition names. Of two sinks with one `place`, one at a time can be written to. `url` has the
    location as the sink understands it: a folder is absolute.
    """

    name: str
    kind: str
    key: str
    place: str
    canonical: str
    sink: Sink
    options: SinkOptions
    url: SinkURL | None  # None for an object

    @property
    def selection(self) -> str:
        """Which rows the sink gets, as far as its URL says."""
        options = self.options
        return f"include={options.include} exclude={options.exclude} every={options.every}"


def spec_of(sink: SinkURL | Sink) -> SinkSpec:
    """The spec for a URL, or for a user's own sink object."""
    if isinstance(sink, SinkURL):
        made, options = make_sink(sink)
        sink = msgspec.structs.replace(sink, location=made.location)
        place = sink.key if made.shareable else f"{sink.name}-{digest(made.location)}"
        name = redact(sink.text)
        return SinkSpec(name, sink.name, sink.key, place, sink.canonical, made, options, sink)
    name = type(sink).__name__
    key = f"object-{name}"
    return SinkSpec(name, name, key, key, OBJECT + name, sink, SinkOptions(), None)


def specs_of(sinks: str | Sequence[str | Sink]) -> list[SinkSpec]:
    """The specs for what `sinks=` was given; `ConfigError` for what cannot work."""
    given: list[Any] = []
    if not isinstance(sinks, Iterable):
        sinks = [sinks]
    for sink in [sinks] if isinstance(sinks, str) else sinks:
        if isinstance(sink, str):
            given += parse_sinks(sink)
        elif isinstance(sink, Sink):
            given.append(sink)
        else:
            raise ConfigError(
                f"sinks= takes URLs and Sink objects, made like MemorySink(), not {sink!r:.60}"
            )
    specs: list[SinkSpec] = []
    for sink in given:
        spec = spec_of(sink)
        twins = sum(other.key.partition("#")[0] == spec.key for other in specs)
        if not isinstance(sink, Sink):
            _check_apart(spec, specs, twins)
        if twins:
            number = f"#{twins + 1}"
            spec = spec._replace(
                name=spec.name + number, key=spec.key + number, place=spec.place + number
            )
        specs.append(spec)
    return specs


def _check_apart(spec: SinkSpec, others: Sequence[SinkSpec], twins: int) -> None:
    """Two sinks must not be in each other's way."""
    if twins:
        raise ConfigError(f"the sink {spec.name!r} is named twice")
    for other in others:
        if spec.sink.exclusive_reason and other.kind == spec.kind:
            raise ConfigError(
                f"{other.name!r} and {spec.name!r} do not go together: {spec.sink.exclusive_reason}"
            )
        same = (other.kind, other.sink.location) == (spec.kind, spec.sink.location)
        if same and not spec.sink.shareable:
            raise ConfigError(
                f"the sinks {other.name!r} and {spec.name!r} would write to the same place; give "
                f"one a place of its own, such as {spec.kind}:elsewhere"
            )
