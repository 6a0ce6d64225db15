"""Tests of `Histogram`: bins and statistics of arrays and tensors, in bounded memory."""

from __future__ import annotations

import math
import resource
import sys
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from metricbus import Histogram
from metricbus._common.media_records import HistogramRecord
from metricbus.media.histogram_bins import HistogramData, bin_on_device, bin_values
from tests.helpers.media_logging import logged

Array = NDArray[Any]
Double = NDArray[np.float64]

LARGEST = sys.float_info.max
TINY = 5e-324

shapes = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=12)
doubles = arrays.arrays(np.float64, shapes)
moderate = arrays.arrays(
    np.float64, st.integers(1, 60), elements=st.floats(-1e12, 1e12, allow_subnormal=False)
)
bin_counts = st.integers(1, 40)


def log(folder: Path, histogram: Histogram) -> HistogramRecord:
    return logged(folder, HistogramRecord, histogram)[0]


def record_of(histogram: HistogramData) -> HistogramRecord:
    return HistogramRecord(name="h", step=0, epoch=0, time=0, **msgspec.structs.asdict(histogram))


def finite_of(values: Array) -> Double:
    flat = np.asarray(values, np.float64).reshape(-1)
    return flat[np.isfinite(flat)]


# Bins and statistics


@given(doubles, bin_counts)
def test_counts_sum_to_the_number_of_finite_values(values: Double, bins: int) -> None:
    histogram = bin_values(values, bins)
    assert sum(histogram.counts) == histogram.count == finite_of(values).size


@given(doubles)
def test_nonfinite_values_are_counted_separately(values: Double) -> None:
    histogram = bin_values(values, 8)
    expected = np.isnan(values).sum(), (values == np.inf).sum(), (values == -np.inf).sum()
    assert (histogram.nan, histogram.infinite, histogram.minus_infinite) == expected


@given(doubles, bin_counts)
def test_edges_increase_and_enclose_all_values(values: Double, bins: int) -> None:
    histogram = bin_values(values, bins)
    finite = finite_of(values)
    if not finite.size:
        assert (histogram.counts, histogram.edges) == ([], [])
        return
    assert len(histogram.edges) == len(histogram.counts) + 1
    assert all(low < high for low, high in pairwise(histogram.edges))
    assert histogram.edges[0] <= finite.min()
    assert finite.max() <= histogram.edges[-1]


@given(doubles)
def test_extremes_are_exact(values: Double) -> None:
    histogram = bin_values(values, 8)
    finite = finite_of(values)
    assert histogram.minimum == (finite.min() if finite.size else None)
    assert histogram.maximum == (finite.max() if finite.size else None)


@given(moderate, bin_counts)
def test_counts_match_numpy(values: Double, bins: int) -> None:
    histogram = bin_values(values, bins)
    assert histogram.counts == np.histogram(values, histogram.edges)[0].tolist()


@given(moderate)
def test_mean_and_sums_match_exact_arithmetic(values: Double) -> None:
    histogram = bin_values(values, 8)
    scale = math.fsum(abs(values))
    assert histogram.sum == pytest.approx(math.fsum(values), rel=0, abs=1e-15 * scale)
    assert histogram.mean == pytest.approx(
        math.fsum(values) / values.size, rel=0, abs=1e-15 * scale / values.size
    )
    assert histogram.sum_squares == pytest.approx(math.fsum(values**2), rel=1e-14)


@given(moderate)
def test_std_matches_exact_arithmetic(values: Double) -> None:
    mean = math.fsum(values) / values.size
    exact = math.sqrt(math.fsum((values - mean) ** 2) / values.size)
    tolerance = 1e-15 * float(abs(values).max())
    assert bin_values(values, 8).std == pytest.approx(exact, rel=1e-12, abs=tolerance)


@given(doubles, bin_counts, st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_quantiles_are_within_the_extremes(values: Double, bins: int, at: list[float]) -> None:
    record = record_of(bin_values(values, bins))
    for q in at:
        quantile = record.quantile(q)
        if record.minimum is None or record.maximum is None:
            assert quantile is None
        else:
            assert quantile is not None
            assert record.minimum <= quantile <= record.maximum


@given(moderate, bin_counts, st.lists(st.integers(0, 1000), min_size=2, max_size=8))
def test_quantiles_increase(values: Double, bins: int, at: list[int]) -> None:
    record = record_of(bin_values(values, bins))
    quantiles = [record.quantile(q / 1000) or 0.0 for q in sorted(at)]
    slack = 1e-15 * float(abs(values).max())
    assert all(low <= high + slack for low, high in pairwise(quantiles))


def test_quantiles_of_evenly_distributed_values() -> None:
    record = record_of(bin_values(np.linspace(0, 1, 10_001), 100))
    assert [record.quantile(q) for q in (0, 0.25, 0.5, 1)] == pytest.approx(
        [0, 0.25, 0.5, 1], abs=1e-3
    )


def test_statistics_over_many_blocks() -> None:
    values = np.random.default_rng(0).normal(1e6, 1e-3, 1_000_003)
    histogram = bin_values(values, 64)
    assert histogram.mean == pytest.approx(math.fsum(values) / values.size, rel=1e-15)
    assert histogram.std == pytest.approx(float(values.std()), rel=1e-9)
    assert histogram.counts == np.histogram(values, histogram.edges)[0].tolist()


# Extreme values


@pytest.mark.parametrize("value", [0.0, -0.0, 0.1, -7.5, 1e300, -LARGEST, LARGEST, TINY, 2**53])
def test_constant_is_inside_one_bin(value: float) -> None:
    histogram = bin_values(np.full(1000, value), 4)
    assert sorted(histogram.counts) == [0, 0, 0, 1000]
    assert histogram.minimum == histogram.maximum == histogram.mean == value
    assert histogram.std == 0
    assert histogram.edges[0] <= value <= histogram.edges[-1]


@pytest.mark.parametrize("values", [[], [[]], [math.nan], [math.inf, -math.inf]])
def test_no_bins_without_finite_values(tmp_path: Path, values: list[float]) -> None:
    record = log(tmp_path, Histogram(values))
    assert (record.counts, record.edges, record.count) == ([], [], 0)
    assert record.minimum is record.mean is record.std is record.sum is record.quantile(0.5) is None


@pytest.mark.parametrize("most", [1.7e308, LARGEST])
def test_bins_values_that_span_float64(most: float) -> None:
    histogram = bin_values(np.array([-most, 0.0, most]), 4)
    assert histogram.counts == [1, 0, 1, 1]
    assert (histogram.edges[0], histogram.edges[-1]) == (-most, most)
    assert histogram.mean == 0


def test_mean_of_huge_values_over_many_blocks() -> None:
    values = np.repeat([-1.7e308, 1.7e308], 1 << 17)
    assert bin_values(values, 2).mean == pytest.approx(0, abs=1e295)


def test_statistics_beyond_float64_are_none() -> None:
    histogram = bin_values(np.full(10, 1e308), 4)
    assert histogram.sum is histogram.sum_squares is None
    assert histogram.mean == pytest.approx(1e308)


def test_values_too_close_for_many_bins_share_one() -> None:
    histogram = bin_values(np.array([TINY, 2 * TINY]), 64)
    assert (histogram.counts, histogram.edges) == ([2], [TINY, 2 * TINY])


DTYPES = "bool int8 uint8 int16 uint16 int32 uint32 int64 uint64 float16 float32 float64 longdouble"


@pytest.mark.parametrize("dtype", DTYPES.split())
def test_accepts_arrays_of_every_real_dtype(tmp_path: Path, dtype: str) -> None:
    values = np.array([[0, 1], [1, 1]]).astype(dtype)
    record = log(tmp_path, Histogram(values, bins=2))
    assert (record.counts, record.edges) == ([1, 3], [0.0, 0.5, 1.0])
    assert (record.count, record.mean, record.sum) == (4, 0.75, 3.0)


@pytest.mark.parametrize(
    "dtype",
    [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float8_e4m3fn],
    ids=str,
)
def test_accepts_tensors_of_every_real_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.tensor([0, 1, 1, 1]).to(dtype)
    assert log(tmp_path, Histogram(values, bins=2)).counts == [1, 3]


@pytest.mark.parametrize(
    "values",
    [
        3.0,
        np.float32(3),
        np.array(3),
        torch.tensor(3.0, requires_grad=True),
        [[3.0]],
        (3,),
        torch.tensor([3.0]).expand(1, 1),
        torch.nn.Parameter(torch.full((1,), 3.0)),
    ],
    ids=repr,
)
def test_accepts_scalars_lists_and_parameters(tmp_path: Path, values: object) -> None:
    record = log(tmp_path, Histogram(values))
    assert (record.count, record.mean) == (1, 3.0)


@pytest.mark.parametrize(
    "view",
    [
        lambda array: array[::-3, 1::2],
        np.transpose,
        lambda array: np.broadcast_to(array[:1], (7, 50)),
        lambda array: np.asfortranarray(array).astype(">f4"),
    ],
    ids=["strided", "transposed", "broadcast", "big-endian"],
)
def test_bins_noncontiguous_arrays(view: Any) -> None:
    array = view(np.random.default_rng(0).normal(size=(40, 50)))
    assert bin_values(array, 16).counts == bin_values(np.ascontiguousarray(array), 16).counts


@pytest.mark.parametrize("make", [np.zeros, torch.zeros], ids=["array", "tensor"])
def test_values_are_copied_at_the_call(tmp_path: Path, make: Any) -> None:
    values = make(100)
    record, _ = logged(tmp_path, HistogramRecord, Histogram(values), lambda: values.__iadd__(9))
    assert record.maximum == 0


def test_default_is_64_bins(tmp_path: Path) -> None:
    assert len(log(tmp_path, Histogram(np.arange(1000))).counts) == 64


# Memory


@pytest.mark.parametrize(
    "values",
    [
        np.broadcast_to(np.arange(7, dtype=np.int8), (10_000_000, 7)),
        np.zeros(20_000_000, np.float32),
        np.zeros((6_000, 3_000))[:, ::2],
    ],
    ids=["int8", "float32", "strided"],
)
def test_large_array_is_binned_at_the_call_without_a_copy(values: Array) -> None:
    tracemalloc.start()
    try:
        job = Histogram(values)._capture("h")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert job.nbytes == 0
    assert peak < 16 << 20


def test_small_array_is_copied() -> None:
    assert Histogram(np.zeros(1000, np.float32))._capture("h").nbytes == 4000


# On an accelerator (the same code runs on the CPU)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
@pytest.mark.parametrize("bins", [1, 2, 64])
def test_device_result_equals_host_result(dtype: torch.dtype, bins: int) -> None:
    tensor = torch.randn(100, 70, generator=torch.Generator().manual_seed(0)).to(dtype)
    tensor[0, :4] = torch.tensor([math.nan, math.inf, -math.inf, math.inf])
    assert_same(bin_on_device(tensor, bins), bin_values(tensor.double().numpy(), bins))


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64], ids=str
)
def test_device_result_equals_host_result_for_integers(dtype: torch.dtype) -> None:
    tensor = torch.arange(200).reshape(20, 10).to(dtype)
    assert_same(bin_on_device(tensor, 7), bin_values(tensor.numpy(), 7))


@given(doubles, bin_counts)
def test_device_result_equals_host_result_for_any_float64(values: Double, bins: int) -> None:
    assert_same(bin_on_device(torch.from_numpy(values.copy()), bins), bin_values(values, bins))


def assert_same(histogram: HistogramData, expected: HistogramData) -> None:
    inexact = ("mean", "std", "sum", "sum_squares")
    for field in HistogramData.__struct_fields__:
        value, reference = getattr(histogram, field), getattr(expected, field)
        if field not in inexact:
            assert value == reference, field
        elif value is not None and reference is not None:
            slack = 1e-14 * max(abs(expected.minimum or 0), abs(expected.maximum or 0))
            slack *= expected.count or 1
            assert value == pytest.approx(reference, rel=1e-9, abs=slack), field


# Existing counts and edges


def test_given_counts_and_edges_are_kept(tmp_path: Path) -> None:
    record = log(tmp_path, Histogram(counts=[0, 3, 1, 0], edges=[0, 1, 2, 4, 8]))
    assert (record.counts, record.edges) == ([0, 3, 1, 0], [0.0, 1.0, 2.0, 4.0, 8.0])
    assert (record.count, record.minimum, record.maximum) == (4, 1.0, 4.0)
    assert (record.mean, record.sum) == (1.875, 7.5)


@given(moderate, bin_counts)
def test_accepts_bins_from_numpy(values: Double, bins: int) -> None:
    counts, edges = np.histogram(values, bins)
    histogram = Histogram(counts=counts, edges=edges)._from_counts("h")
    assert histogram.counts == counts.tolist()
    assert histogram.count == values.size
    assert histogram.mean is not None
    assert edges[0] <= histogram.mean <= edges[-1]


@pytest.mark.parametrize(
    ("counts", "edges"),
    [
        ([0, 0], [0, 1, 2]),
        (torch.tensor([1.0, 2.0]), torch.tensor([0, 1, 2])),
        ([1], [-1.7e308, 1.7e308]),
    ],
    ids=["empty", "tensors", "huge"],
)
def test_accepts_unusual_counts(tmp_path: Path, counts: Any, edges: Any) -> None:
    record = log(tmp_path, Histogram(counts=counts, edges=edges))
    assert record.counts == [int(count) for count in counts]


@pytest.mark.parametrize(
    ("counts", "edges", "message"),
    [
        ([1, 2], [0, 1], r"counts= ndarray of shape \(2,\).* one edge more"),
        ([], [0], "one edge more"),
        ([[1]], [0, 1], "one edge more"),
        ([-1], [0, 1], "non-negative whole numbers .*not -1"),
        ([0.5], [0, 1], "non-negative whole numbers .*not 0.5"),
        ([math.nan], [0, 1], "non-negative whole numbers .*not nan"),
        ([math.inf], [0, 1], "non-negative whole numbers"),
        ([1e300], [0, 1], "below 2"),
        (np.array([2**63, 2**63], np.uint64), [0, 1, 2], "below 2"),
        ([1, 1], [0, 1, 1], r"increasing; they begin with \[0.0, 1.0, 1.0\]"),
        ([1, 1], [0, 2, 1], "increasing"),
        ([1], [0, math.nan], "finite"),
        ([1], [0, math.inf], "finite"),
        ([0] * 5000, range(5001), "given 5,000 counts; the maximum is 4,096"),
    ],
)
def test_rejects_invalid_counts(counts: Any, edges: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"metric 'a/b'.*{message}"):
        Histogram(counts=counts, edges=edges)._capture("a/b")


@pytest.mark.parametrize(
    "given_values",
    [{}, {"counts": [1]}, {"edges": [0, 1]}, {"values": [1], "counts": [1], "edges": [0, 1]}],
)
def test_values_and_counts_are_mutually_exclusive(given_values: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="either values, or both counts= and edges="):
        Histogram(**given_values)


# Bad input


class Raises:
    """An object that fails to convert itself to an array."""

    def __array__(self, dtype: object = None, copy: object = None) -> Array:
        raise RuntimeError("no memory")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(2, complex), r"ndarray of shape \(2,\) and dtype complex128"),
        (torch.zeros(2, dtype=torch.complex64), "Tensor .* dtype torch.complex64"),
        (np.array([1, None]), "ndarray .* dtype object"),
        (np.array(["2020-01-01"], "M8[D]"), "ndarray .* dtype datetime64"),
        (["a", "b"], r"list of shape \(2,\) and dtype <U1"),
        ("abc", "str"),
        ({"a": 1}, "dict"),
        ([[1, 2], [3]], "list, which cannot be converted to an array"),
        ((x for x in [1]), "generator; expected"),
        (torch.eye(2).to_sparse(), r"Tensor of shape \(2, 2\)"),
        (torch.zeros(2, device="meta"), r"Tensor of shape \(2,\)"),
        (np.ma.masked_array([1, 2], [True, False]), r"a masked array; replace"),
        ([torch.zeros(2, requires_grad=True)], "list, which cannot be converted to an array"),
        (Raises(), "Raises, which cannot be converted to an array .no memory"),
    ],
)
def test_rejects_values_that_are_not_real_numbers(values: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"metric 'h' was given {message}"):
        Histogram(values)._capture("h")


def test_large_bfloat16_tensor_is_binned_without_a_wider_copy(tmp_path: Path) -> None:
    values = torch.zeros(40_000_000, dtype=torch.bfloat16)
    values[:10] = 1
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    histogram = log(tmp_path, Histogram(values))
    assert (histogram.count, histogram.counts[0], histogram.counts[-1]) == (
        40_000_000,
        39_999_990,
        10,
    )
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 80_000  # KiB
