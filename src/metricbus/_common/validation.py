"""The one table of what a value and a name may be.

=============================================  ===============================================
logged                                         becomes
=============================================  ===============================================
`float`, `np.floating`, `decimal.Decimal`      float64 (wider floats are rounded once, to nearest)
`int`, `np.integer` in -2**63 .. 2**63-1       the same integer
integers beyond that                           the nearest float64; `ValueError` past its range
`bool`, `np.bool_`                             0 or 1
arrays and tensors with one element            that element, by the rows above, detached
tensors on CUDA devices with one element       the same, when it has come over
anything else with `item()` or `__float__()`   the same (jax arrays, fractions, other frameworks)
=============================================  ===============================================

Everything else raises `TypeError`. The value is taken at the call: what changes in place afterwards
does not change what was logged. Nobody waits for a tensor on a CUDA device (`device_values`).
One on another accelerator is fetched at the call, which waits for the device; one on the CPU costs
a fraction of a microsecond.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

from metricbus._common.device_values import is_device_value
from metricbus._common.media_base import MediaValue
from metricbus._common.records import Number

INT_MIN, INT_MAX = -(2**63), 2**63 - 1
MAX_NAME_LENGTH = 1024
_DEEPEST = 100

_ACCEPTED = "a real number: bool, int, float, Decimal, or an array or tensor with one real element"


def to_number(name: str, value: object) -> Number:
    """The plain `int` or `float` that `value` stands for now.

    Raises `TypeError` or, for an integer too large for a float, `ValueError`; both name the metric.
    """
    kind = type(value)
    if kind is float:
        return value  # type: ignore[return-value]  # mypy does not narrow by `type() is`
    if isinstance(value, int):  # also bool and enums
        return _fit(name, int(value))
    if isinstance(value, float):  # also np.float64
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
    """Whether it is a metric object of torchmetrics, or a collection of them."""
    library = sys.modules.get("torchmetrics")
    kinds = getattr(library, "Metric", None), getattr(library, "MetricCollection", None)
    return any(kind is not None and isinstance(value, kind) for kind in kinds)


def check_name(name: object) -> str:
    """`name` itself if it can name a metric; else `TypeError` or `ValueError` saying why not.

    Any text is taken, odd characters too: each sink makes it safe in its own way. Refused are
    empty names, names beyond 1,024 characters (a value in the wrong place, as a rule) and text
    that UTF-8 cannot express.
    """
    if not isinstance(name, str):
        raise TypeError(f"a metric's name must be text, not {type(name).__name__}: {name!r:.80}")
    if not name:
        raise ValueError('a metric\'s name must not be empty; give it one, such as "train/loss"')
    if len(name) > MAX_NAME_LENGTH:
        raise ValueError(
            f"a metric's name may have {MAX_NAME_LENGTH:,} characters, this one has {len(name):,}: "
            f"{name[:40]!r}…; put what varies into the value or the step"
        )
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the name {name!r:.80} cannot be written as UTF-8: {error}") from error
    return str.__str__(name)  # of an enum the text, not the member's name


def check_weight(weight: object) -> float:
    """`weight` as a float from 0 up; `TypeError` or `ValueError` if it cannot be one."""
    number = float(to_number("weight=", weight))
    if not 0 <= number < math.inf:
        raise ValueError(f"weight= must be a finite number from 0 on, not {number}")
    return number


def flatten(mapping: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """The mapping as one flat row; keys of nested mappings are joined with `/`.

    Values are numbers, kinds of media, what `is_device_value`, or metric objects. Raises for the first
    bad name or value, before anything of the mapping has been logged.
    """
    row: dict[str, Any] = {}
    if prefix.count("/") > _DEEPEST:
        raise ValueError(f"the mapping is nested more than {_DEEPEST} levels deep: {prefix:.40}…")
    for key, value in mapping.items():
        name = prefix + check_name(key)
        inner: dict[str, Any]
        if isinstance(value, Mapping):
            inner = flatten(value, f"{name}/")
        elif isinstance(value, MediaValue) or is_device_value(value) or is_metric_object(value):
            inner = {check_name(name): value}
        else:
            inner = {check_name(name): to_number(name, value)}
        twice = row.keys() & inner.keys()
        if twice:
            raise ValueError(f"the mapping has {sorted(twice)[0]!r} twice once it is flattened")
        row |= inner
    return row


def _fit(name: str, value: int) -> Number:
    if INT_MIN <= value <= INT_MAX:
        return value
    try:
        return float(value)
    except OverflowError:
        digits = f"{value.bit_length():,} bits"
        raise ValueError(f"metric {name!r}: an integer of {digits} is beyond float64") from None


def _is_refused_numpy(value: object) -> bool:
    """Dates and times have an `item()` that may give a bare integer, masked values one of 0.0."""
    numpy: Any = sys.modules.get("numpy")  # not imported for that
    kinds = getattr(numpy, "generic", ()), getattr(numpy, "ndarray", ())
    if not isinstance(value, kinds):
        return False
    dtype: Any = getattr(value, "dtype", None)
    return dtype.kind in "mMcSU" or bool(numpy.ma.is_masked(value))


def _from_item(name: str, value: object, item: Callable[[], object]) -> Number:
    if hasattr(type(value), "full_tensor"):  # a DTensor's item() may have to meet other ranks
        raise TypeError(
            f"metric {name!r} was given a {type(value).__name__}, which is spread over ranks; "
            "log value.full_tensor() or value.to_local()"
        )
    try:
        inner = item()
    except Exception as error:  # numpy, torch and jax each raise their own for longer arrays
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
    told = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    shape = getattr(value, "shape", None)
    if shape is not None:
        told += f" of shape {tuple(shape)}"
        dtype = getattr(value, "dtype", None)
        told += f" and dtype {dtype}" if dtype is not None else ""
    hint = f"; to nest, write log({{{name!r}: …}})" if isinstance(value, Mapping) else ""
    wrapped = _wrapped(value)
    hint = f"; or wrap it: {wrapped}" if wrapped else hint
    return TypeError(f"metric {name!r} was given {told}; what is accepted is {_ACCEPTED}{hint}")


def _wrapped(value: object) -> str:
    """What takes the value, if it is no number; empty where nothing does."""
    kind = type(value)
    if isinstance(value, str):
        return "Text(…)"
    if kind.__module__.partition(".")[0] in ("PIL", "matplotlib"):
        return "Image(…)"
    if hasattr(value, "columns"):
        return "Table(…)"
    if isinstance(value, list | tuple) or getattr(value, "shape", None):
        return (
            "Histogram(…), Image(…), Table(…), Chart(…) or Audio(…); each of its values has a name "
            "in log({f'name/{i}': value for i, value in enumerate(values)})"
        )
    return ""
