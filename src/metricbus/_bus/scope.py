"""A view of a bus that adds a prefix to every name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex, TypedDict, TypeVar, Unpack

from metricbus._bus.loops import Steps
from metricbus._common.settings import Unloggable
from metricbus._common.validation import check_name
from metricbus._ingest.recorder import MISSING

if TYPE_CHECKING:
    from metricbus._aggregate.reductions import AcrossRanks, Reducer
    from metricbus._bus.bus import MetricBus
    from metricbus._common.records import Best

T = TypeVar("T")


class DefineArguments(TypedDict, total=False):
    """The keyword arguments of `MetricBus.define`."""

    every: int | None
    reduce: Reducer | None
    on_step: bool | None
    on_epoch: bool | None
    sinks: Sequence[str] | None
    axis: str | None
    across_ranks: AcrossRanks | None
    progress: bool | None
    best: Best | None


if TYPE_CHECKING:

    class _BusMembers(MetricBus):
        """The members that a scope shares with its bus, as type checkers see them."""

        __enter__: None  # type: ignore[assignment]  # a scope is no context manager

else:

    class _BusMembers:
        """The members that a scope shares with its bus, looked up there."""

        def __getattr__(self, attribute: str) -> Any:
            if attribute.startswith("_"):
                raise AttributeError(attribute)
            return getattr(self._bus, attribute)


class Scope(_BusMembers):
    """A view of a bus that adds a prefix to every name and shares all other state.

    `bus.scope("val").log("loss", x)` logs `val/loss`. All methods and properties of the bus are
    available. Raises `ValueError` for an empty prefix.
    """

    def __init__(self, bus: MetricBus, prefix: str) -> None:
        self._bus = bus
        if not prefix:
            raise ValueError('a scope needs a prefix, such as bus.scope("val")')
        self._prefix = check_name(prefix).rstrip("/") + "/"

    def log(
        self,
        name: str | Mapping[str, Any],
        value: Any = MISSING,
        *,
        step: SupportsIndex | None = None,
        epoch: SupportsIndex | None = None,
        weight: float | None = None,
        unloggable: Unloggable | None = None,
    ) -> None:
        """Log like `MetricBus.log`, with the prefix before each name."""
        full_name: Any = name
        if isinstance(name, str):
            full_name = self._prefix + check_name(name)
        elif isinstance(name, Mapping):
            full_name = {self._prefix + check_name(key): inner for key, inner in name.items()}
        options: Any = {"step": step, "epoch": epoch, "weight": weight, "unloggable": unloggable}
        self._bus.log(full_name, value, **options)

    def scope(self, prefix: str) -> Scope:
        """Return a scope of this scope: its names have both prefixes."""
        return Scope(self._bus, self._prefix + check_name(prefix))

    def define(self, pattern: str, **options: Unpack[DefineArguments]) -> None:
        """Define names below the prefix. Accepts the arguments of `MetricBus.define`."""
        self._bus.define(self._prefix + check_name(pattern), **options)

    def summarize(self, name: str, value: Any) -> None:
        """Set a final value of the run, with the prefix before its name."""
        self._bus.summarize(self._prefix + check_name(name), value)

    def steps(
        self, iterable: Iterable[T], advance: bool = True, *, progress: bool | None = None
    ) -> Steps[T]:
        """Iterate like `MetricBus.steps`, with the prefix as the label of the progress bar."""
        steps = self._bus.steps(iterable, advance, progress=progress)
        steps.phase = self._prefix.rstrip("/")
        return steps

    def last(self, name: str) -> int | float | None:
        """Return the newest value of a name below the prefix. See `MetricBus.last`."""
        return self._bus.last(self._prefix + name)
