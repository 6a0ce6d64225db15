"""Parses sink URLs, and shows them without secrets.

    name                      csv
    name:location             tensorboard:logs
    name://location           wandb://team/project
    name+transport://host     mlflow+http://host:5000
    …?option=value&…          csv?include=train/*&include=val/*&every=10

Sinks are separated by commas; a comma inside a URL is written `%2C`.
"""

from __future__ import annotations

import re

import msgspec

from metricbus.errors import ConfigError

_PACE_OPTIONS = frozenset(("flush_secs", "batch_size"))
_URL = re.compile(r"(?P<name>[a-z][a-z0-9_-]*)(\+(?P<transport>[a-z0-9]+))?(:(?P<location>.+))?")
_TRANSPORT = re.compile(r"[a-z0-9]+://")
_USERINFO = re.compile(r"(?<=://)[^\s,?]*@")
_LEADING_USERINFO = re.compile(r"^[^/?]*@")
_SECRET_OPTION = re.compile(
    r"(?P<key>[?&][^=&,\s]*(?:password|passwd|token|secret|key|credential)[^=&,\s]*=)[^&,\s'\"]*",
    re.IGNORECASE,
)


class SinkURL(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed sink URL; `location` is the part between name and options, `text` the original."""

    name: str
    location: str = ""
    options: dict[str, list[str]] = {}
    text: str = ""

    @property
    def canonical(self) -> str:
        """The URL in a form that is the same for all spellings of one sink, without secrets.

        Options that only set the pace of delivery are omitted: they do not make it another sink.
        """
        from urllib.parse import urlencode

        identifying = sorted(item for item in self.options.items() if item[0] not in _PACE_OPTIONS)
        query = urlencode(identifying, doseq=True)
        location = _LEADING_USERINFO.sub("***@", self.location)
        for character in "%?,":
            location = location.replace(character, f"%{ord(character):02X}")
        separator = "" if not location else "+" if _TRANSPORT.match(location) else ":"
        return redact(self.name + separator + location + (query and f"?{query}"))

    @property
    def key(self) -> str:
        """The name of the sink's offsets file."""
        return f"{self.name}-{short_hash(self.canonical)}"

    def __repr__(self) -> str:
        return f"SinkURL({redact(self.text)})"


def parse_sinks(text: str) -> list[SinkURL]:
    """Parse a comma-separated list of sink URLs; blank text means no sinks."""
    if not text.strip():
        return []
    parts = text.split(",")
    if not all(part.strip() for part in parts):
        raise ConfigError(
            f"{redact(text)!r} has an extra comma; write one comma between two sinks, such as "
            '"logging,csv"'
        )
    return [parse_sink(part) for part in parts]


def parse_sink(text: str) -> SinkURL:
    """Parse one sink URL; raise `ConfigError` if it is malformed."""
    from urllib.parse import parse_qs, unquote

    address, _, query = text.strip().partition("?")
    match = _URL.fullmatch(address)
    if match is None:
        is_lower = text.strip().lower() == text
        raise ConfigError(
            f"{redact(text)!r} is not a sink URL{'' if is_lower else '; names are lower case'}; "
            "write name, name:location or "
            'name:location?option=value, such as "csv" or "tensorboard:logs?flush_secs=5"'
        )
    location = unquote(match["location"] or "")
    if match["transport"]:
        prefix = f"{match['name']}+{match['transport']}"
        if not location.startswith("//"):
            raise ConfigError(
                f"{redact(text)!r} is not a sink URL: {prefix} must be followed by an address, "
                f"such as {prefix}://host:5000"
            )
        location = f"{match['transport']}:{location}"
    else:
        location = location.removeprefix("//")
    try:
        options = parse_qs(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise ConfigError(
            f"{redact(text)!r} is not a sink URL: write its options as ?name=value&name=value"
        ) from None
    return SinkURL(name=match["name"], location=location, options=options, text=text.strip())


def short_hash(text: str) -> str:
    """Return the first 8 hexadecimal digits of the text's SHA-256."""
    import hashlib  # slow to import, and not every process needs it

    return hashlib.sha256(text.encode()).hexdigest()[:8]


def redact(text: str) -> str:
    """Mask user names, passwords and secret options of all URLs in the text."""
    return _SECRET_OPTION.sub(r"\g<key>***", _USERINFO.sub("***@", text))
