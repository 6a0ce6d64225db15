"""Validation of metric names and values, and conversion of values to numbers.

=============================================  ===============================================
logged                                         recorded as
=============================================  ===============================================
`float`, `np.floating`, `decimal.Decimal`      float64 (wider floats are rounded once, to nearest)
`int`, `np.integer` in -2**63 .. 2**63-1       the same integer
integers outside of that range                 the nearest float64; `ValueError` if out of range
`bool`, `np.bool_`                             0 or 1
arrays and tensors with one element            that element, by the rows above, detached
tensors on CUDA devices with one element       the same, once it has been copied to the host
anything else with `item()` or `__float__()`   its result (jax arrays, fractions, other frameworks)
=============================================  ===============================================

Everything else raises `TypeError`. Values are captured during the call, so later in-place changes
have no effect. A tensor on a CUDA device does not block the call (see `device_values`); one on
another accelerator is copied to the host during the call, which waits for the device.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from metricbus._common.device_values import is_device_value
from metricbus._common.media_base import MediaValue
from metricbus._common.records import Number

INT_MIN, INT_MAX = -(2**63), 2**63 - 1
MAX_NAME_LENGTH = 1024
_MAX_DEPTH = 100

_EXPECTED = "a real number: bool, int, float, Decimal, or an array or tensor with one real element"


def to_number(name: str, value: object) -> Number:
    """Return `value` as a plain `int` or `float`.

    Raises `TypeError`, or `ValueError` for an integer out of the range of float64; both name the
    metric.
    """
    kind = type(value)
    if kind is float:
        return value  # type: ignore[return-value]  # mypy does not narrow by `type() is`
    if isinstance(value, int):  # includes bool and enums
        return _fit(name, int(value))
    if isinstance(value, float):  # includes np.float64
        return float(value)
    if _is_refused_numpy(value):
        raise _not_a_number(name, value)
    item = getattr(value, "item", None)
    if callable(item):
        return _from_item(name, value, item)
    if hasattr(kind, "__float__"):
        try:
            return float(value)  # type: ignore[arg-type]
        except Exception as error:
            raise _not_a_number(name, value) from error
    raise _not_a_number(name, value)


def is_metric_object(value: object) -> bool:
    """Check whether `value` is a metric object of torchmetrics, or a collection of them."""
    library = sys.modules.get("torchmetrics")
    kinds = getattr(library, "Metric", None), getattr(library, "MetricCollection", None)
    return any(kind is not None and isinstance(value, kind) for kind in kinds)


def check_name(name: object) -> str:
    """Return `name` as a plain `str`.

    Any characters are allowed, because each sink escapes names as it needs. Raises `TypeError` if
    it is not a string, and `ValueError` if it is empty, longer than 1,024 characters (usually a
    value passed by mistake), or cannot be encoded as UTF-8.
    """
    if not isinstance(name, str):
        raise TypeError(f"metric name must be a string, not {type(name).__name__}: {name!r:.80}")
    if not name:
        raise ValueError('metric name must not be empty; expected a name such as "train/loss"')
    if len(name) > MAX_NAME_LENGTH:
        raise ValueError(
            f"metric name has {len(name):,} characters, more than {MAX_NAME_LENGTH:,}: "
            f"{name[:40]!r}…; log what varies as the value or the step"
        )
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"metric name {name!r:.80} is not valid UTF-8: {error}") from error
    return str.__str__(name)  # str(name) would return the member's name for a str-based enum


def check_weight(weight: object) -> float:
    """Return `weight` as a float; raise `TypeError` or `ValueError` unless it is at least 0."""
    number = float(to_number("weight=", weight))
    if not 0 <= number < math.inf:
        raise ValueError(f"weight= must be a finite number, 0 or more, not {number}")
    return number


def flatten(
    mapping: Mapping[Any, Any],
    prefix: str = "",
    skip: Callable[[str, Exception], object] | None = None,
) -> dict[str, Any]:
    """Return the mapping as one flat row; keys of nested mappings are joined with `/`.

    Numbers are converted. Media, device values and metric objects are returned as they are. Raises
    `TypeError` or `ValueError` for the first invalid name or value. If `skip` is given, it is
    called for each invalid value instead, which is left out.
    """
    row: dict[str, Any] = {}
    if prefix.count("/") > _MAX_DEPTH:
        raise ValueError(f"the mapping is nested more than {_MAX_DEPTH} levels deep: {prefix:.40}…")
    for key, value in mapping.items():
        name = prefix + check_name(key)
        inner: dict[str, Any]
        if isinstance(value, Mapping):
            inner = flatten(value, f"{name}/", skip)
        elif isinstance(value, MediaValue) or is_device_value(value) or is_metric_object(value):
            inner = {check_name(name): value}
        else:
            check_name(name)
            try:
                inner = {name: to_number(name, value)}
            except (TypeError, ValueError) as error:
                if skip is None:
                    raise
                skip(name, error)
                continue
        if duplicates := row.keys() & inner.keys():
            raise ValueError(f"the flattened mapping contains {min(duplicates)!r} twice")
        row |= inner
    return row


def _fit(name: str, value: int) -> Number:
    if INT_MIN <= value <= INT_MAX:
        return value
    try:
        return float(value)
    except OverflowError:
        raise ValueError(
            f"metric {name!r}: an integer of {value.bit_length():,} bits is out of the range of "
            "float64"
        ) from None


def _is_refused_numpy(value: object) -> bool:
    """Check for dates, times and masked values, whose `item()` may return an ordinary number."""
    numpy: Any = sys.modules.get("numpy")
    kinds = getattr(numpy, "generic", ()), getattr(numpy, "ndarray", ())
    if not isinstance(value, kinds):
        return False
    dtype: Any = getattr(value, "dtype", None)
    return dtype.kind in "mMcSU" or bool(numpy.ma.is_masked(value))


def _from_item(name: str, value: object, item: Callable[[], object]) -> Number:
    if hasattr(type(value), "full_tensor"):  # item() of a DTensor may wait for other ranks
        raise TypeError(
            f"metric {name!r} was given a {type(value).__name__}, which is sharded across ranks; "
            "log value.full_tensor() or value.to_local()"
        )
    try:
        inner = item()
    except Exception as error:  # arrays with several elements; the type depends on the framework
        raise _not_a_number(name, value) from error
    if type(inner) is float:
        return inner
    if isinstance(inner, getattr(sys.modules.get("numpy"), "longdouble", ())):
        return float(inner)  # type: ignore[arg-type]
    if type(inner) is type(value):
        raise _not_a_number(name, value)
    try:
        return to_number(name, inner)
    except TypeError:
        raise _not_a_number(name, value) from None


def _not_a_number(name: str, value: object) -> TypeError:
    kind = type(value)
    given = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    shape = getattr(value, "shape", None)
    if shape is not None:
        given += f" of shape {tuple(shape)}"
        dtype = getattr(value, "dtype", None)
        given += f" and dtype {dtype}" if dtype is not None else ""
    hint = f"; to nest metrics, call log({{{name!r}: …}})" if isinstance(value, Mapping) else ""
    media = _suggest_media(value)
    hint = f"; or wrap it: {media}" if media else hint
    return TypeError(f"metric {name!r} was given {given}; expected {_EXPECTED}{hint}")


def _suggest_media(value: object) -> str:
    """Return the calls that would accept the value; empty if there are none."""
    kind = type(value)
    if isinstance(value, str):
        return "Text(…)"
    if kind.__module__.partition(".")[0] in ("PIL", "matplotlib"):
        return "Image(…)"
    if hasattr(value, "columns"):
        return "Table(…)"
    if isinstance(value, list | tuple) or getattr(value, "shape", None):
        return (
            "Histogram(…), Image(…), Table(…), Chart(…) or Audio(…); to log each element, call "
            "log({f'{name}/{i}': value for i, value in enumerate(values)})"
        )
    return ""


def suggestion(name: str, names: Iterable[str]) -> str:
    """Return `; did you mean 'csv'?` if one of the names is similar, else a period."""
    import difflib  # imported here because only errors need it

    matches = difflib.get_close_matches(name, sorted(names), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else "."
