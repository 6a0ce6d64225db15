"""The exact sum: its value is that of the terms, summed as fractions and rounded once."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricbus._common.exact_sum import ExactSum

finite = st.floats(-1e300, 1e300)
integers = st.integers(-(10**40), 10**40)


def total(values: list[float]) -> ExactSum:
    result = ExactSum()
    for value in values:
        result.add(value)
    return result


def test_sum_of_nothing_is_zero() -> None:
    assert ExactSum().value() == 0.0


@given(st.lists(finite, max_size=20))
def test_floats_are_summed_exactly(values: list[float]) -> None:
    assert total(values).value() == float(sum(map(Fraction, values)))


@given(st.lists(integers, max_size=10))
def test_integers_are_summed_exactly(values: list[int]) -> None:
    result = ExactSum()
    for value in values:
        result.add_integer(value)
    assert result.value() == float(sum(values))


@pytest.mark.parametrize("sign", [1, -1])
def test_integer_beyond_all_floats_is_infinite(sign: int) -> None:
    result = ExactSum()
    result.add_integer(sign * 10**400)
    result.add_integer(5)
    assert result.value() == sign * math.inf


def test_terms_that_cancel_leave_the_small_ones() -> None:
    values = [1e100, 1.0, 3e-100, -1e100, -1.0]
    assert total(values).value() == total(values[::-1]).value() == 3e-100


@given(st.lists(finite, max_size=20))
def test_parts_do_not_grow_with_the_number_of_terms(values: list[float]) -> None:
    """They do not overlap: each is smaller than the lowest bit of the next one."""
    parts = sorted(abs(Fraction(part)) for part in total(values).state()[1:] if part)
    assert len(parts) <= 40
    for small, large in pairwise(parts):
        assert small * large.denominator < large.numerator & -large.numerator


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, math.inf], math.inf),
        ([-math.inf, 1.0], -math.inf),
        ([1.7e308, 1.7e308], math.inf),
        ([1.7e308, 1.7e308, -1.7e308], math.inf),
        ([-1.7e308, -1.7e308], -math.inf),
    ],
)
def test_infinity_remains(values: list[float], expected: float) -> None:
    assert total(values).value() == expected


@pytest.mark.parametrize("values", [[math.nan, 1.0], [math.inf, -math.inf], [1.0, math.nan]])
def test_nan_remains(values: list[float]) -> None:
    assert math.isnan(total([*values, 2.0]).value())


@given(st.lists(st.lists(finite, max_size=10), max_size=5))
def test_merged_sums_are_the_sum_of_all_terms(groups: list[list[float]]) -> None:
    merged = ExactSum()
    for group in groups:
        merged.merge(total(group))
    assert merged.value() == float(sum(Fraction(value) for group in groups for value in group))


def test_sum_can_be_merged_with_itself() -> None:
    result = total([1e100, 1.0])
    result.merge(result)
    assert result.value() == total([2e100, 2.0]).value()
    assert total([*result.state()[1:], -2e100]).value() == 2.0


def test_infinity_of_a_merged_sum_remains() -> None:
    merged = total([1.0])
    merged.merge(total([math.inf]))
    merged.merge(total([math.inf]))
    assert merged.value() == math.inf


@given(st.lists(finite | st.just(math.inf), max_size=10), st.lists(finite, max_size=10))
def test_restored_sum_continues_identically(before: list[float], after: list[float]) -> None:
    whole = total([*before, *after])
    restored = ExactSum.restored(total(before).state())
    for value in after:
        restored.add(value)
    assert restored.state() == whole.state()
    assert restored.value() == whole.value()
