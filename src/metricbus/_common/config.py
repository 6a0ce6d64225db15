"""The config of a run, as read-only mappings."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any

import msgspec


def read_only_config(config: object, argument: str = "config=") -> Mapping[str, Any]:
    """Return a read-only copy of a mapping or config object, at every level.

    Config objects are instances of a dataclass, of an attrs, pydantic or msgspec class, and
    `argparse.Namespace`. Numbers, arrays and other leaves are not copied. Raises `TypeError` for
    anything else; its message names the `argument`.
    """
    copy = _copy(config)
    if isinstance(copy, MappingProxyType):
        return copy
    raise TypeError(
        f"{argument} must be a mapping of names to values, an argparse.Namespace, or an instance "
        f"of a dataclass, attrs or pydantic class, not {type(config).__name__}"
    )


def _copy(value: Any) -> Any:
    if (fields := _fields(value)) is not None:
        return MappingProxyType({key: _copy(inner) for key, inner in fields.items()})
    if isinstance(value, list):
        return [_copy(inner) for inner in value]
    if isinstance(value, tuple):
        return tuple(_copy(inner) for inner in value)
    return value


def _fields(value: Any) -> Mapping[Any, Any] | None:
    """Return the fields of a mapping or config object, or None for any other value."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, type):
        return None
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, msgspec.Struct):
        return msgspec.structs.asdict(value)
    kind = type(value)
    if hasattr(kind, "__attrs_attrs__"):  # https://www.attrs.org/en/stable/extending.html
        return {field.name: getattr(value, field.name) for field in kind.__attrs_attrs__}
    if hasattr(kind, "model_fields"):  # pydantic: iterating gives pairs of name and value
        return dict(value)
    argparse = sys.modules.get("argparse")
    if isinstance(value, SimpleNamespace) or (argparse and isinstance(value, argparse.Namespace)):
        return vars(value)
    return None
