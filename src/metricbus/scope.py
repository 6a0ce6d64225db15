"""A view of a bus that puts a prefix before every name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from metricbus.values import check_name

_MISSING: Any = object()


class Logs(Protocol):
    """What a scope asks of its bus."""

    def log(self, name: Any, *value: Any, **where: Any) -> None:
        """Logs a value or a mapping."""

    def last(self, name: str) -> int | float | None:
        """The newest value of a name."""


class Scope:
    """`bus.scope("val/seen")`: names get `val/seen/` in front; all else is the bus's own."""

    def __init__(self, bus: Logs, prefix: str) -> None:
        self._bus = bus
        if not prefix:
            raise ValueError('a scope needs a prefix, such as bus.scope("val")')
        self._prefix = check_name(prefix).rstrip("/") + "/"

    def log(
        self,
        name: str | Mapping[str, Any],
        value: Any = _MISSING,
        *,
        step: int | None = None,
        epoch: int | None = None,
    ) -> None:
        """Logs like the bus, below the prefix."""
        if isinstance(name, str) and value is not _MISSING:
            self._bus.log(self._prefix + check_name(name), value, step=step, epoch=epoch)
        elif isinstance(name, Mapping) and value is _MISSING:
            row = {self._prefix + check_name(key): inner for key, inner in name.items()}
            self._bus.log(row, step=step, epoch=epoch)
        else:
            self._bus.log(name, *() if value is _MISSING else (value,))  # raises what is wrong

    def scope(self, prefix: str) -> Scope:
        """A view further down."""
        return Scope(self._bus, self._prefix + check_name(prefix))

    def last(self, name: str) -> int | float | None:
        """The newest value of a name below the prefix."""
        return self._bus.last(self._prefix + name)

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_"):
            raise AttributeError(attribute)
        return getattr(self._bus, attribute)
