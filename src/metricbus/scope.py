"""A view of a bus that puts a prefix before every name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar

from metricbus.loops import Steps
from metricbus.values import check_name

T = TypeVar("T")

_MISSING: Any = object()


class Logs(Protocol):
    """What a scope asks of its bus."""

    def log(self, name: Any, *value: Any, **where: Any) -> None:
        """Logs a value or a mapping."""

    @property
    def define(self) -> Callable[..., None]:
        """Says what becomes of names."""
        ...

    @property
    def steps(self) -> Callable[..., Steps[Any]]:
        """Iterates, and moves the step."""
        ...

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
        weight: float | None = None,
    ) -> None:
        """Logs like the bus, below the prefix."""
        where: dict[str, Any] = {"step": step, "epoch": epoch, "weight": weight}
        if isinstance(name, str) and value is not _MISSING:
            self._bus.log(self._prefix + check_name(name), value, **where)
        elif isinstance(name, Mapping) and value is _MISSING:
            row = {self._prefix + check_name(key): inner for key, inner in name.items()}
            self._bus.log(row, **where)
        else:
            self._bus.log(name, *() if value is _MISSING else (value,))  # raises what is wrong

    def scope(self, prefix: str) -> Scope:
        """A view further down."""
        return Scope(self._bus, self._prefix + check_name(prefix))

    def define(self, pattern: str, **rule: Any) -> None:
        """Defines names below the prefix."""
        self._bus.define(self._prefix + check_name(pattern), **rule)

    def steps(
        self, iterable: Iterable[T], advance: bool = True, *, progress: bool | None = None
    ) -> Steps[T]:
        """Iterates like the bus; the progress bar has the prefix before it."""
        steps = self._bus.steps(iterable, advance, progress=progress)
        steps.phase = self._prefix.rstrip("/")
        return steps

    def last(self, name: str) -> int | float | None:
        """The newest value of a name below the prefix."""
        return self._bus.last(self._prefix + name)

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_"):
            raise AttributeError(attribute)
        return getattr(self._bus, attribute)
