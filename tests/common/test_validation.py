"""Validation of metric names, and conversion of values to numbers."""

from __future__ import annotations

import datetime
import enum
import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metricbus._common.validation import MAX_NAME_LENGTH, check_name, flatten, to_number
from tests.helpers.param_ids import repr_without_address


class Level(enum.IntEnum):
    HIGH = 3


class Boxed:
    """Another framework's scalar."""

    def item(self) -> float:
        return 2.5


@given(st.integers(-(2**63), 2**63 - 1))
def test_64_bit_integers_stay_exact(value: int) -> None:
    for given_value in (value, np.int64(value), np.array([[value]]), torch.tensor(value)):
        number = to_number("n", given_value)
        assert type(number) is int
        assert number == value


@given(st.floats(allow_nan=False))
def test_float64_stays_exact(value: float) -> None:
    tensor = torch.tensor(value, dtype=torch.float64)
    for given_value in (value, np.float64(value), np.array(value), tensor):
        number = to_number("n", given_value)
        assert type(number) is float
        assert number == value
        assert math.copysign(1, number) == math.copysign(1, value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, 1),
        (np.bool_(False), 0),
        (Level.HIGH, 3),
        (2**63, float(2**63)),
        (-(2**63) - 1, float(-(2**63) - 1)),
        (np.uint64(2**64 - 1), float(2**64 - 1)),
        (np.float16(0.5), 0.5),
        (np.float32(0.1), 0.10000000149011612),
        (np.longdouble(0.25), 0.25),
        (np.array(0.25, dtype=np.longdouble), 0.25),
        (Decimal("0.1"), 0.1),
        (Fraction(1, 4), 0.25),
        (Boxed(), 2.5),
        (np.array([Decimal("1.5")], dtype=object), 1.5),
        (np.ma.array([1.5], mask=[False]), 1.5),
    ],
)
def test_accepted_values_are_converted(value: object, expected: float) -> None:
    number = to_number("n", value)
    assert number == expected
    assert type(number) is type(expected)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.float8_e4m3fnuz,
        torch.float8_e5m2fnuz,
        torch.float8_e8m0fnu,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.uint16,
        torch.uint32,
        torch.uint64,
        torch.bool,
    ],
)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)])
def test_every_real_torch_dtype_is_accepted(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    assert to_number("n", torch.ones(shape).to(dtype)) == 1


def test_a_tensor_that_requires_grad_is_detached() -> None:
    assert to_number("n", (torch.tensor(3.0, requires_grad=True) * 2)) == 6.0


def test_nan_and_infinities_are_accepted() -> None:
    assert math.isnan(to_number("n", torch.tensor(math.nan)))
    assert to_number("n", np.float32(-np.inf)) == -math.inf


@pytest.mark.parametrize(
    "value",
    [
        "0.5",
        b"0.5",
        None,
        1j,
        np.complex64(1),
        torch.tensor(1j),
        datetime.datetime(2026, 1, 1),
        datetime.timedelta(seconds=1),
        np.datetime64("2026-01-01", "ns"),
        np.timedelta64(5, "ns"),
        np.str_("1"),
        np.array(["1"]),
        np.zeros(2),
        np.zeros(0),
        np.ma.masked,
        np.ma.array([1.0], mask=[True]),
        torch.zeros(2),
        torch.zeros(0),
        [1.0],
        (1.0,),
        object(),
        Decimal("sNaN"),
    ],
    ids=repr_without_address,
)
def test_other_values_raise_an_error_with_metric_and_type(value: Any) -> None:
    with pytest.raises(TypeError, match="'train/loss'") as caught:
        to_number("train/loss", value)
    assert type(value).__name__ in str(caught.value)
    assert "expected a real number" in str(caught.value)


def test_the_error_for_a_longer_array_contains_its_shape() -> None:
    with pytest.raises(TypeError, match=r"torch\.Tensor of shape \(2, 3\) and dtype torch.float32"):
        to_number("x", torch.zeros(2, 3))


def test_an_integer_out_of_the_range_of_float64_raises() -> None:
    with pytest.raises(ValueError, match=r"'n'.*out of the range of float64"):
        to_number("n", 10**400)


@given(st.text(min_size=1, max_size=MAX_NAME_LENGTH).filter(lambda text: text.isprintable()))
def test_any_utf8_text_can_be_a_name(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["a\nb", "a\0b", "../../etc/passwd", "\"quoted'", "a,b", "🦆", "=cmd()", " ", "a\r"]
)
def test_unusual_names_are_accepted(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", [None, 3, b"loss", 1.5, ("a",)])
def test_a_name_that_is_not_a_string_raises(name: object) -> None:
    with pytest.raises(TypeError, match="must be a string"):
        check_name(name)


def test_an_empty_name_raises() -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        check_name("")


def test_the_error_for_a_long_name_contains_its_length() -> None:
    with pytest.raises(ValueError, match="10,000"):
        check_name("x" * 10_000)


def test_a_lone_surrogate_in_a_name_raises() -> None:
    with pytest.raises(ValueError, match="UTF-8"):
        check_name("loss\ud800")


def test_nested_mappings_are_flattened_with_slashes() -> None:
    row = flatten({"a": {"b": 1, "c": {"d": np.float32(2)}}, "e": True})
    assert row == {"a/b": 1, "a/c/d": 2.0, "e": 1}


def test_a_duplicate_name_after_flattening_raises() -> None:
    with pytest.raises(ValueError, match="contains 'a/b' twice"):
        flatten({"a/b": 1, "a": {"b": 2}})


def test_a_mapping_that_contains_itself_raises() -> None:
    endless: dict[str, Any] = {}
    endless["a"] = endless
    with pytest.raises(ValueError, match="levels deep"):
        flatten(endless)


def test_the_error_for_a_mapping_as_a_value_suggests_nesting() -> None:
    with pytest.raises(TypeError, match=r"log\(\{'v': …\}\)"):
        to_number("v", {"a": 1})


def test_the_error_for_a_nested_value_contains_the_full_name() -> None:
    with pytest.raises(TypeError, match="'a/b'"):
        flatten({"a": {"b": "text"}})
