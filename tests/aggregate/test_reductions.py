"""Reductions against numpy and exact fractions, on any split, with any value."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from metricbus._aggregate.exact_sum import ExactSum
from metricbus._aggregate.reductions import EXACT_QUANTILES, Reducer, Reduction, reduction_factory
from metricbus._common.records import Number
from metricbus.errors import ConfigError

finite = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300)
integers = st.integers(-(2**63), 2**63 - 1)
numbers = st.one_of(finite, integers)
weights = st.one_of(st.integers(0, 1000).map(float), st.floats(0, 1e6))


def reduced(reduce: Reducer, values: list[Number], *, weights: list[float] | None = None) -> Number:
    reduction = reduction_factory(reduce)()
    for value, weight in zip(values, weights or [1.0] * len(values), strict=True):
        reduction.add(value, weight)
    return reduction.result()


def merged(name: str, parts: list[list[Number]]) -> Number:
    whole = reduction_factory(name)()
    for values in parts:
        part = reduction_factory(name)()
        for value in values:
            part.add(value)
        whole.merge(part)
    return whole.result()


def same(left: Number, right: Number) -> bool:
    return (math.isnan(left) and math.isnan(right)) or left == right


def as_float(exact: Fraction) -> float:
    try:
        return float(exact)
    except OverflowError:
        return math.inf if exact > 0 else -math.inf


@given(st.lists(finite))
def test_a_sum_is_the_exact_one_rounded_once(values: list[float]) -> None:
    total = ExactSum()
    for value in values:
        total.add(value)
    exact = sum(map(Fraction, values), Fraction(0))
    assume(all(math.isfinite(sum(values[:n])) for n in range(len(values))))
    assert same(total.value(), as_float(exact))


@given(st.lists(numbers, min_size=1))
def test_sum_of_integers_and_floats_is_exact(values: list[Number]) -> None:
    exact = sum(map(Fraction, values), Fraction(0))
    result = reduced("sum", values)
    if all(isinstance(value, int) for value in values) and -(2**63) <= exact < 2**63:
        assert type(result) is int
        assert result == exact
    else:
        assert same(result, as_float(exact))


@given(st.lists(st.tuples(finite.filter(lambda v: abs(v) < 1e290), weights), min_size=1))
def test_a_weighted_mean_is_the_exact_one_to_rounding(pairs: list[tuple[float, float]]) -> None:
    values, given_weights = [v for v, _ in pairs], [w for _, w in pairs]
    total = sum(map(Fraction, given_weights), Fraction(0))
    result = reduced("mean", list(values), weights=given_weights)
    if not total:
        assert math.isnan(result)
        return
    products = [Fraction(w * v) for v, w in pairs]  # each product is rounded once, by us too
    exact = sum(products, Fraction(0)) / total
    assert result == pytest.approx(as_float(exact), rel=1e-15, abs=1e-320)


@pytest.mark.parametrize("name", ["sum", "mean", "min", "max", "count"])
@given(data=st.data())
def test_any_split_gives_the_very_same_result(name: str, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.one_of(finite, st.floats()), min_size=1, max_size=30))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=5)))
    edges = [0, *cuts, len(values)]
    parts = [list[Number](values[a:b]) for a, b in pairwise(edges)]
    finite_values = [v for v in values if math.isfinite(v)]
    assume(math.isfinite(sum(map(abs, finite_values))))
    assert same(merged(name, parts), reduced(name, list(values)))


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30),
    st.floats(-1e9, 1e9),
    st.lists(st.integers(0, 30), max_size=4),
)
def test_std_of_any_split_is_numpys(values: list[float], offset: float, cuts: list[int]) -> None:
    shifted = [value + offset for value in values]
    edges = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    parts = [list[Number](shifted[a:b]) for a, b in pairwise(edges)]
    mean = sum(map(Fraction, shifted)) / len(shifted)
    exact = math.sqrt(sum((Fraction(v) - mean) ** 2 for v in shifted) / len(shifted))
    tolerance = 1e-7 + 1e-14 * abs(offset)
    assert merged("std", parts) == pytest.approx(exact, rel=1e-9, abs=tolerance)
    assert reduced("std", list(shifted)) == pytest.approx(float(np.std(shifted)), abs=1e-5)


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(1, 9)), min_size=1, max_size=20))
def test_weighted_std_counts_a_value_as_often_as_its_weight(
    pairs: list[tuple[float, int]],
) -> None:
    repeated = np.repeat([v for v, _ in pairs], [w for _, w in pairs])
    result = reduced("std", [v for v, _ in pairs], weights=[float(w) for _, w in pairs])
    assert result == pytest.approx(float(np.std(repeated)), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(("name", "q"), [("median", 0.5), ("p95", 0.95), ("p0", 0), ("p100", 1)])
@given(values=st.lists(st.floats(-1e150, 1e150), min_size=1, max_size=50))
def test_quantiles_are_numpys(name: str, q: float, values: list[float]) -> None:
    expected = float(np.quantile(values, q))
    assert reduced(name, list(values)) == pytest.approx(expected, rel=1e-12, abs=1e-300)


def test_beyond_the_exact_number_a_quantile_is_that_of_a_sample() -> None:
    count = 3 * EXACT_QUANTILES
    assert reduced("median", list(range(count))) == pytest.approx(count / 2, rel=0.02)


@given(st.lists(numbers, min_size=1))
def test_first_last_count_min_max_are_what_they_say(values: list[Number]) -> None:
    assert reduced("first", values) == values[0]
    assert reduced("last", values) == values[-1]
    assert reduced("count", values) == len(values)
    assert reduced("min", values) == min(values)
    assert reduced("max", values) == max(values)


@given(st.lists(st.floats(-1e100, 1e100), min_size=1))
def test_ema_follows_its_formula(values: list[float]) -> None:
    average = values[0]
    for value in values[1:]:
        average = 0.9 * average + (1 - 0.9) * value
    assert reduced("ema0.9", list(values)) == average


@pytest.mark.parametrize("name", ["mean", "sum", "min", "max", "std", "median", "p95", "ema"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_nan_is_never_swallowed(name: str, place: int) -> None:
    values: list[Number] = [1.0, 2.0]
    values.insert(place, math.nan)
    assert math.isnan(reduced(name, values))


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("mean", [1.0, math.inf], math.inf),
        ("sum", [math.inf, -math.inf], math.nan),
        ("max", [1.0, math.inf], math.inf),
        ("min", [1.0, math.inf], 1.0),
        ("median", [math.inf, math.inf, 1.0], math.inf),
        ("std", [1.0, math.inf], math.nan),
        ("mean", [5e-324, 5e-324], 5e-324),
        ("sum", [1e308, 1e308], math.inf),
    ],
)
def test_infinities_and_extremes(name: str, values: list[Number], expected: float) -> None:
    assert same(reduced(name, values), expected)


def test_a_function_of_ones_own_sees_all_values_in_order() -> None:
    assert reduced(lambda values: values[0] - values[-1], [5.0, 1.0, 2.0]) == 3.0


def test_a_function_that_returns_text_is_a_type_error() -> None:
    def wrong(values: list[Number]) -> Number:
        return "text"  # type: ignore[return-value]

    with pytest.raises(TypeError, match=r"the result of wrong\(\)"):
        reduced(wrong, [1.0])


@pytest.mark.parametrize("name", ["first", "last", "median", "ema"])
def test_what_does_not_merge_says_so(name: str) -> None:
    factory: Callable[[], Reduction] = reduction_factory(name)
    assert not factory().merges
    with pytest.raises(TypeError, match="put together"):
        factory().merge(factory())


@pytest.mark.parametrize(
    ("reduce", "words"),
    [
        ("meen", "did you mean 'mean'"),
        ("p101", "there is no reduction"),
        ("", "there is no reduction"),
        (3, "a name or a function"),
    ],
)
def test_an_unknown_reduction_is_told_with_near_names(reduce: Reducer, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        reduction_factory(reduce)


def test_a_nan_of_no_weight_is_told_too() -> None:
    for name in ("mean", "std"):
        reduction = reduction_factory(name)()
        reduction.add(1.0)
        reduction.add(math.nan, 0.0)
        assert math.isnan(reduction.result())


def test_the_deviation_of_equal_huge_values_is_nothing() -> None:
    reduction = reduction_factory("std")()
    for _ in range(3):
        reduction.add(1e200)
    assert reduction.result() == 0


@given(
    st.sampled_from(["mean", "sum", "min", "max", "first", "last", "count", "std", "p90", "ema"]),
    st.lists(st.tuples(st.floats() | st.integers(-(2**63), 2**63 - 1), st.floats(0, 10))),
    st.lists(st.tuples(st.floats(), st.floats(0, 10)), min_size=1),
)
def test_one_that_is_saved_and_restored_goes_on_as_if_nothing_had_been(
    name: str, before: list[tuple[float, float]], after: list[tuple[float, float]]
) -> None:
    whole, first, second = (reduction_factory(name)() for _ in range(3))
    for value, weight in before:
        whole.add(value, weight)
        first.add(value, weight)
    second.restore(json.loads(json.dumps(first.state())))
    for value, weight in after:
        whole.add(value, weight)
        second.add(value, weight)
    assert repr(second.result()) == repr(whole.result())
