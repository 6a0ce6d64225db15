"""A view of a bus that puts a prefix before every name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, TypeVar, Unpack

from metricbus._bus.loops import Epochs, Steps
from metricbus._common.validation import check_name

if TYPE_CHECKING:
    from pathlib import Path

    from metricbus._aggregate.reductions import AcrossRanks, Reducer
    from metricbus._common.records import Number, Status
    from metricbus._delivery.report import Report
    from metricbus._journal.run import Run

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


class DefineArguments(TypedDict, total=False):
    """What `define` takes beside the pattern."""

    every: int | None
    reduce: Reducer | None
    on_step: bool | None
    on_epoch: bool | None
    sinks: Sequence[str] | None
    axis: str | None
    across_ranks: AcrossRanks | None
    progress: bool | None


if TYPE_CHECKING:

    class _BusBehind:
        """What a scope has of its bus, for those who check types."""

        @property
        def run(self) -> Run | None: ...

        @property
        def folder(self) -> Path | None: ...

        @property
        def is_on(self) -> bool: ...

        @property
        def config(self) -> Mapping[str, Any]: ...

        @property
        def step(self) -> int: ...

        @property
        def epoch(self) -> int: ...

        def phase(self, name: str) -> Scope: ...

        def epochs(self, n: int, *, progress: bool | None = None) -> Epochs: ...

        def advance(self, n: int = 1) -> None: ...

        def end_epoch(self) -> dict[str, Number]: ...

        def sync(self, *, group: Any = None, timeout: float | None = None) -> dict[str, Number]: ...

        def state_dict(self) -> dict[str, Any]: ...

        def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

        def rewind(self, step: int, epoch: int | None = None) -> None: ...

        def stats(self) -> Report: ...

        def flush(self, timeout: float | None = None) -> Report: ...

        def close(self, status: Status = "finished", timeout: float | None = None) -> Report: ...

        def before_close(self, end: Callable[[], object]) -> None: ...

else:

    class _BusBehind:
        """Gives what a scope has not itself, as its bus has it."""

        def __getattr__(self, attribute: str) -> Any:
            if attribute.startswith("_"):
                raise AttributeError(attribute)
            return getattr(self._bus, attribute)


class Scope(_BusBehind):
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

    def define(self, pattern: str, **rule: Unpack[DefineArguments]) -> None:
        """Defines names below the prefix; takes what the bus takes."""
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
