"""Reductions compared with numpy and exact fractions, for any split and any value."""

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

from metricbus._aggregate.reduction_base import Reduction
from metricbus._aggregate.reductions import EXACT_QUANTILES, Reducer, reduction_factory
from metricbus._common.exact_sum import ExactSum
from metricbus._common.records import Number
from metricbus.errors import ConfigError

finite = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300)
integers = st.integers(-(2**63), 2**63 - 1)
numbers = st.one_of(finite, integers)
weights = st.one_of(st.integers(0, 1000).map(float), st.floats(0, 1e6))


def reduce_values(
    reduce: Reducer, values: list[Number], *, weights: list[float] | None = None
) -> Number:
    reduction = reduction_factory(reduce)()
    for value, weight in zip(values, weights or [1.0] * len(values), strict=True):
        reduction.add(value, weight)
    return reduction.result()


def reduce_parts(name: str, parts: list[list[Number]]) -> Number:
    whole = reduction_factory(name)()
    for values in parts:
        part = reduction_factory(name)()
        for value in values:
            part.add(value)
        whole.merge(part)
    return whole.result()


def is_same(left: Number, right: Number) -> bool:
    return (math.isnan(left) and math.isnan(right)) or left == right


def as_float(exact: Fraction) -> float:
    try:
        return float(exact)
    except OverflowError:
        return math.inf if exact > 0 else -math.inf


@given(st.lists(finite))
def test_exact_sum_is_rounded_once(values: list[float]) -> None:
    total = ExactSum()
    for value in values:
        total.add(value)
    exact = sum(map(Fraction, values), Fraction(0))
    assume(all(math.isfinite(sum(values[:n])) for n in range(len(values))))
    assert is_same(total.value(), as_float(exact))


@given(st.lists(numbers, min_size=1))
def test_sum_of_integers_and_floats_is_exact(values: list[Number]) -> None:
    exact = sum(map(Fraction, values), Fraction(0))
    result = reduce_values("sum", values)
    if all(isinstance(value, int) for value in values) and -(2**63) <= exact < 2**63:
        assert type(result) is int
        assert result == exact
    else:
        assert is_same(result, as_float(exact))


@given(st.lists(st.tuples(finite.filter(lambda v: abs(v) < 1e290), weights), min_size=1))
def test_weighted_mean_matches_the_exact_mean(pairs: list[tuple[float, float]]) -> None:
    values, given_weights = [v for v, _ in pairs], [w for _, w in pairs]
    total = sum(map(Fraction, given_weights), Fraction(0))
    result = reduce_values("mean", list(values), weights=given_weights)
    if not total:
        assert math.isnan(result)
        return
    products = [Fraction(w * v) for v, w in pairs]  # Mean rounds each product once, too
    exact = sum(products, Fraction(0)) / total
    assert result == pytest.approx(as_float(exact), rel=1e-15, abs=1e-320)


@pytest.mark.parametrize("name", ["sum", "mean", "min", "max", "count"])
@given(data=st.data())
def test_every_split_gives_an_identical_result(name: str, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.one_of(finite, st.floats()), min_size=1, max_size=30))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=5)))
    edges = [0, *cuts, len(values)]
    parts = [list[Number](values[a:b]) for a, b in pairwise(edges)]
    finite_values = [v for v in values if math.isfinite(v)]
    assume(math.isfinite(sum(map(abs, finite_values))))
    assert is_same(reduce_parts(name, parts), reduce_values(name, list(values)))


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30),
    st.floats(-1e9, 1e9),
    st.lists(st.integers(0, 30), max_size=4),
)
def test_std_of_every_split_matches_numpy(
    values: list[float], offset: float, cuts: list[int]
) -> None:
    shifted = [value + offset for value in values]
    edges = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    parts = [list[Number](shifted[a:b]) for a, b in pairwise(edges)]
    mean = sum(map(Fraction, shifted)) / len(shifted)
    exact = math.sqrt(sum((Fraction(v) - mean) ** 2 for v in shifted) / len(shifted))
    tolerance = 1e-7 + 1e-14 * abs(offset)
    assert reduce_parts("std", parts) == pytest.approx(exact, rel=1e-9, abs=tolerance)
    assert reduce_values("std", list(shifted)) == pytest.approx(float(np.std(shifted)), abs=1e-5)


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(1, 9)), min_size=1, max_size=20))
def test_weighted_std_treats_weights_as_repetitions(
    pairs: list[tuple[float, int]],
) -> None:
    repeated = np.repeat([v for v, _ in pairs], [w for _, w in pairs])
    result = reduce_values("std", [v for v, _ in pairs], weights=[float(w) for _, w in pairs])
    assert result == pytest.approx(float(np.std(repeated)), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(("name", "q"), [("median", 0.5), ("p95", 0.95), ("p0", 0), ("p100", 1)])
@given(values=st.lists(st.floats(-1e150, 1e150), min_size=1, max_size=50))
def test_quantiles_match_numpy(name: str, q: float, values: list[float]) -> None:
    expected = float(np.quantile(values, q))
    assert reduce_values(name, list(values)) == pytest.approx(expected, rel=1e-12, abs=1e-300)


def test_quantile_of_many_values_is_estimated_from_a_sample() -> None:
    count = 3 * EXACT_QUANTILES
    assert reduce_values("median", list(range(count))) == pytest.approx(count / 2, rel=0.02)


@given(st.lists(numbers, min_size=1))
def test_first_last_count_min_max(values: list[Number]) -> None:
    assert reduce_values("first", values) == values[0]
    assert reduce_values("last", values) == values[-1]
    assert reduce_values("count", values) == len(values)
    assert reduce_values("min", values) == min(values)
    assert reduce_values("max", values) == max(values)


@given(st.lists(st.floats(-1e100, 1e100), min_size=1))
def test_ema_matches_its_formula(values: list[float]) -> None:
    average = values[0]
    for value in values[1:]:
        average = 0.9 * average + (1 - 0.9) * value
    assert reduce_values("ema0.9", list(values)) == average


@pytest.mark.parametrize("name", ["mean", "sum", "min", "max", "std", "median", "p95", "ema"])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_nan_propagates(name: str, position: int) -> None:
    values: list[Number] = [1.0, 2.0]
    values.insert(position, math.nan)
    assert math.isnan(reduce_values(name, values))


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
def test_infinities_and_extreme_values(name: str, values: list[Number], expected: float) -> None:
    assert is_same(reduce_values(name, values), expected)


def test_custom_function_receives_all_values_in_order() -> None:
    assert reduce_values(lambda values: values[0] - values[-1], [5.0, 1.0, 2.0]) == 3.0


def test_custom_function_that_returns_a_string_raises_type_error() -> None:
    def wrong(values: list[Number]) -> Number:
        return "text"  # type: ignore[return-value]

    with pytest.raises(TypeError, match=r"the result of wrong\(\)"):
        reduce_values(wrong, [1.0])


@pytest.mark.parametrize("name", ["first", "last", "median", "ema"])
def test_merging_an_unmergeable_reduction_raises(name: str) -> None:
    factory: Callable[[], Reduction] = reduction_factory(name)
    assert not factory().can_merge
    with pytest.raises(TypeError, match="cannot be merged"):
        factory().merge(factory())


@pytest.mark.parametrize(
    ("reduce", "message"),
    [
        ("meen", "did you mean 'mean'"),
        ("p101", "unknown reduction"),
        ("", "unknown reduction"),
        (3, "a name or a function"),
    ],
)
def test_unknown_reduction_raises_with_a_suggestion(reduce: Reducer, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        reduction_factory(reduce)


def test_nan_with_zero_weight_propagates() -> None:
    for name in ("mean", "std"):
        reduction = reduction_factory(name)()
        reduction.add(1.0)
        reduction.add(math.nan, 0.0)
        assert math.isnan(reduction.result())


def test_std_of_equal_huge_values_is_zero() -> None:
    reduction = reduction_factory("std")()
    for _ in range(3):
        reduction.add(1e200)
    assert reduction.result() == 0


@given(
    st.sampled_from(["mean", "sum", "min", "max", "first", "last", "count", "std", "p90", "ema"]),
    st.lists(st.tuples(st.floats() | st.integers(-(2**63), 2**63 - 1), st.floats(0, 10))),
    st.lists(st.tuples(st.floats(), st.floats(0, 10)), min_size=1),
)
def test_restored_reduction_continues_identically(
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
