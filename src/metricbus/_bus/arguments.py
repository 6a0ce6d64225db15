"""The arguments of `MetricBus()` and `configure()`, and the settings that they give."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict, TypeVar

from metricbus._common.settings import (
    Fsync,
    Hosting,
    Overflow,
    ProgressMode,
    Settings,
    Unloggable,
    resolve_settings,
)
from metricbus.sinks import Sink

F = TypeVar("F", bound=Callable[..., Any])

_RESUME: dict[object, str] = {True: "allow", False: "never"}


class BusArguments(TypedDict, total=False):
    """The arguments of `MetricBus()` and `configure()` after `name`, of which `run` is an alias."""

    run: str | None
    id: str | None
    project: str | None
    config: object
    sinks: str | Sequence[str | Sink] | None
    dir: str | os.PathLike[str] | None
    tags: Sequence[str] | None
    group: str | None
    notes: str | None
    resume: bool | Literal["must"] | None
    flush_secs: float | None
    batch_size: int | None
    flush_bytes: int | None
    flush_steps: int | None
    queue_size: int | None
    queue_bytes: int | None
    overflow: Overflow | None
    unloggable: Unloggable | None
    block_secs: float | None
    close_timeout: float | None
    delivery: Hosting | None
    linger_secs: float | None
    fsync: Fsync | None
    sigterm: Literal["default", "flush"] | None
    ranks: int | Literal["all", "local0"] | None
    sync_secs: float | None
    progress: ProgressMode | None
    strict: bool | None
    disabled: bool | None


def list_arguments(function: F) -> F:
    """Decorate a function that accepts `BusArguments`: `help()` lists each of them."""
    signature = inspect.signature(function)
    *parameters, _ = signature.parameters.values()
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters += [
        inspect.Parameter(name, kind, default=None, annotation=annotation.__forward_arg__)
        for name, annotation in BusArguments.__annotations__.items()
    ]
    function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return function


def resolve_arguments(name: str | None, arguments: Mapping[str, Any]) -> Settings:
    """Return the settings that the arguments, the environment and the defaults give.

    Raises `TypeError` for an unknown argument, for `tags` in one string, and for two names.
    """
    if unknown := arguments.keys() - BusArguments.__annotations__.keys():
        raise TypeError(f"MetricBus() got an unexpected keyword argument {min(unknown)!r}")
    if isinstance(tags := arguments.get("tags"), str):
        raise TypeError(f"tags= must be a list of strings, not a string; write tags=[{tags!r}]")
    given = {setting: arguments.get(setting) for setting in Settings.__struct_fields__}
    if None not in (name, given["run"]):
        raise TypeError(
            f"MetricBus() got both name={name!r} and run={given['run']!r}; run= is an alias of "
            "name=, so pass only name="
        )
    sinks, folder, ranks, resume = (given[key] for key in ("sinks", "dir", "ranks", "resume"))
    given |= {
        "run": name if name is not None else given["run"],
        "sinks": sinks if isinstance(sinks, str) else None,  # a list may contain objects
        "dir": None if folder is None else os.fspath(folder),
        "ranks": None if ranks is None else str(ranks),
        "resume": _RESUME.get(resume, resume),
    }
    return resolve_settings(given)[0]
