"""Sinks by URL: how they are written, taken apart, and shown without their secrets.

    name                      csv
    name:location             tensorboard:logs
    name://location           wandb://team/project
    name+transport://host     mlflow+http://host:5000
    …?option=value&…          csv?include=train/*&include=val/*&every=10

Commas separate sinks; a comma inside a URL is written `%2C`.
"""

from __future__ import annotations

import re

import msgspec

from metricbus.errors import ConfigError

_PACE = frozenset(("flush_secs", "batch_size"))
_URL = re.compile(r"(?P<name>[a-z][a-z0-9_-]*)(\+(?P<transport>[a-z0-9]+))?(:(?P<location>.+))?")
_TRANSPORT = re.compile(r"[a-z0-9]+://")
_USERINFO = re.compile(r"(?<=://)[^\s,?]*@")
_LEADING_USERINFO = re.compile(r"^[^/?]*@")
_SECRET_OPTION = re.compile(
    r"(?P<key>[?&][^=&,\s]*(?:password|passwd|token|secret|key|credential)[^=&,\s]*=)[^&,\s'\"]*",
    re.IGNORECASE,
)


class SinkURL(msgspec.Struct, frozen=True, kw_only=True):
    """One sink as the user named it. `location` keeps what stands between name and options."""

    name: str
    location: str = ""
    options: dict[str, list[str]] = {}
    text: str = ""

    @property
    def canonical(self) -> str:
        """The same for two spellings of one sink; free of secrets, so it can be written down.

        How fast it is fed makes no other sink of it.
        """
        from urllib.parse import urlencode

        lasting = sorted(item for item in self.options.items() if item[0] not in _PACE)
        query = urlencode(lasting, doseq=True)
        location = _LEADING_USERINFO.sub("***@", self.location)
        for character in "%?,":
            location = location.replace(character, f"%{ord(character):02X}")
        between = "" if not location else "+" if _TRANSPORT.match(location) else ":"
        return redact(self.name + between + location + (query and f"?{query}"))

    @property
    def key(self) -> str:
        """A file name for this sink's progress."""
        return f"{self.name}-{short_hash(self.canonical)}"

    def __repr__(self) -> str:
        return f"SinkURL({redact(self.text)})"


def parse_sinks(text: str) -> list[SinkURL]:
    """The sinks in a comma-separated list; empty text means none."""
    if not text.strip():
        return []
    parts = text.split(",")
    if not all(part.strip() for part in parts):
        raise ConfigError(f"{redact(text)!r} has a comma too many: there is no sink beside it")
    return [parse_sink(part) for part in parts]


def parse_sink(text: str) -> SinkURL:
    """One sink URL taken apart; `ConfigError` when it has not the form of one."""
    from urllib.parse import parse_qs, unquote

    address, _, query = text.strip().partition("?")
    match = _URL.fullmatch(address)
    if match is None:
        lower = text.strip().lower()
        raise ConfigError(
            f"{redact(text)!r} is no sink URL{'; names are lower case' if lower != text else ''}; "
            f"write name, name:location or "
            'name:location?option=value, such as "csv" or "tensorboard:logs?flush_secs=5"'
        )
    location = unquote(match["location"] or "")
    if match["transport"]:
        if not location.startswith("//"):
            raise ConfigError(
                f"{redact(text)!r} is no sink URL: after {match['name']}+{match['transport']} "
                f"comes an address, such as {match['name']}+{match['transport']}://host:5000"
            )
        location = f"{match['transport']}:{location}"
    else:
        location = location.removeprefix("//")
    try:
        options = parse_qs(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise ConfigError(
            f"{redact(text)!r} is no sink URL: its options must be written ?name=value&name=value"
        ) from None
    return SinkURL(name=match["name"], location=location, options=options, text=text.strip())


def short_hash(text: str) -> str:
    """A short name for a text."""
    import hashlib  # it takes long, and not every process needs it

    return hashlib.sha256(text.encode()).hexdigest()[:8]


def redact(text: str) -> str:
    """The text with user names, passwords and secret options of the URLs in it masked."""
    return _SECRET_OPTION.sub(r"\g<key>***", _USERINFO.sub("***@", text))
