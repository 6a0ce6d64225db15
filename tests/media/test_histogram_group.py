"""Tests of `HistogramGroup`: many tensors in one job, each like a single `Histogram`."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from metricbus import Histogram, MetricBus
from metricbus._common.device_values import ACCELERATORS, as_64_bits
from metricbus._common.media_base import EncodeContext, EncodeJob, MediaValue
from metricbus._common.media_records import HistogramRecord, Medium
from metricbus._common.settings import Overflow
from metricbus.errors import DeviceError
from metricbus.media import HistogramGroup
from metricbus.media.histogram_batch import bin_arrays
from metricbus.media.histogram_batch_device import count_nonfinite, start_binning
from metricbus.media.histogram_bins import HistogramData, bin_values
from metricbus.testing import MemorySink
from tests.helpers.limits import HANG_SECS

Array = NDArray[Any]

LARGEST = sys.float_info.max
TINY = 5e-324

bin_counts = st.integers(1, 40)
singles = arrays.arrays(np.float32, st.integers(0, 700), elements=st.floats(width=32))
doubles = arrays.arrays(np.float64, st.integers(0, 30))
moderate = arrays.arrays(
    np.float64, st.integers(1, 300), elements=st.floats(-1e9, 1e9, allow_subnormal=False)
)


class FakeAccelerator:
    """A fake accelerator that counts transfers."""

    def __init__(self) -> None:
        self.transfers = 0

    def stream(self, device: Any) -> str:
        return "the current stream"

    def fetch(self, device: Any, parts: Sequence[Any], streams: Any) -> Array:
        self.transfers += 1
        found: Array = torch.cat([as_64_bits(part) for part in parts]).numpy()
        return found


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> FakeAccelerator:
    fake = FakeAccelerator()
    monkeypatch.setitem(ACCELERATORS, "cpu", fake)
    return fake


def logged(tmp_path: Path, *media: MediaValue) -> list[dict[str, HistogramRecord]]:
    """Log each medium; return the records of each call by name."""
    sink = MemorySink()
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        for step, medium in enumerate(media):
            bus.log("g", medium, step=step)
        assert bus.flush(30).complete
    found: list[dict[str, HistogramRecord]] = [{} for _ in media]
    for record in sink.media():
        assert isinstance(record, HistogramRecord)
        found[record.step][record.name] = record
    return found


def on_device(tensors: Sequence[torch.Tensor], bins: int) -> list[HistogramData]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ACCELERATORS, "cpu", FakeAccelerator())
        return start_binning([tensor.reshape(-1) for tensor in tensors], bins).wait()


def assert_matches(histogram: Any, values: Array, bins: int) -> None:
    """Compare with `bin_values`, except for rounding of sums and of values at an edge."""
    with np.errstate(all="ignore"):
        expected = bin_values(values, bins)
        finite = np.sort(values[np.isfinite(values)].astype(np.float64).reshape(-1))
        for field in ("count", "minimum", "maximum", "nan", "infinite", "minus_infinite"):
            assert getattr(histogram, field) == getattr(expected, field), field
        assert len(histogram.counts) == len(expected.counts)
        assert sum(histogram.counts) == histogram.count
        assert histogram.edges == pytest.approx(expected.edges, rel=1e-14, abs=1e-320)
        assert_sums_match(histogram, expected)
    if not finite.size:
        return
    slack = 1e-14 * max(abs(histogram.edges[0]), abs(histogram.edges[-1]))
    below = np.cumsum(histogram.counts)[:-1]
    inner = np.array(histogram.edges[1:-1])
    assert (np.searchsorted(finite, inner - slack) <= below).all()
    assert (below <= np.searchsorted(finite, inner + slack, side="right")).all()


def assert_sums_match(histogram: Any, expected: HistogramData) -> None:
    largest = max(abs(expected.minimum or 0), abs(expected.maximum or 0))
    for field in ("mean", "std", "sum"):
        value, reference = getattr(histogram, field), getattr(expected, field)
        if value is not None and reference is not None:
            slack = 1e-14 * largest * (expected.count if field == "sum" else 1)
            assert value == pytest.approx(reference, rel=1e-9, abs=slack), field
    if histogram.sum_squares is not None and expected.sum_squares is not None:
        assert histogram.sum_squares == pytest.approx(expected.sum_squares, rel=1e-12, abs=1e-300)


# Compared with single histograms


@given(st.lists(singles, max_size=6), bin_counts)
def test_arrays_binned_together_match_single_histograms(parts: list[Array], bins: int) -> None:
    flat = np.concatenate([np.zeros(0, np.float32), *parts])
    found = bin_arrays(flat, [part.size for part in parts], bins)
    assert len(found) == len(parts)
    for histogram, part in zip(found, parts, strict=True):
        assert_matches(histogram, part, bins)


@given(st.lists(doubles | moderate, max_size=6), bin_counts)
def test_float64_arrays_binned_together_match_single_histograms(
    parts: list[Array], bins: int
) -> None:
    flat = np.concatenate([np.zeros(0), *parts])
    for histogram, part in zip(bin_arrays(flat, [p.size for p in parts], bins), parts, strict=True):
        assert_matches(histogram, part, bins)


@settings(max_examples=50)
@given(st.lists(singles | doubles | moderate, min_size=1, max_size=4), bin_counts)
@example([np.array([-LARGEST, LARGEST])], 1)
def test_device_result_matches_host_result(parts: list[Array], bins: int) -> None:
    flat = [torch.from_numpy(part.astype(np.float64)) for part in parts]
    for histogram, part in zip(on_device(flat, bins), parts, strict=True):
        assert_matches(histogram, part.astype(np.float64), bins)


@pytest.mark.parametrize("value", [0.0, -0.0, 0.1, -7.5, 1e300, -LARGEST, LARGEST, TINY, 2**53])
def test_constant_next_to_other_arrays_has_no_deviation(value: float) -> None:
    flat = np.concatenate([np.full(1000, value), np.arange(10.0)])
    for first, second in (
        bin_arrays(flat, [1000, 10], 4),
        on_device([torch.full((1000,), value, dtype=torch.float64), torch.arange(10.0)], 4),
    ):
        assert first.std in (0, None if abs(value) == LARGEST else 0)  # the sum may overflow
        assert first.minimum == first.maximum == value
        assert sorted(first.counts) == [0, 0, 0, 1000]
        assert second.counts == [3, 2, 2, 3]


@pytest.mark.parametrize("bins", [1, 2, 3, 7, 10, 50, 64, 100])
@pytest.mark.parametrize("most", [1.0, 0.1, 3.0, 1e-3, 7e10])
def test_value_on_an_edge_is_in_the_bin_above(most: float, bins: int) -> None:
    values = np.array([-most, most] + [0.0] * 10)
    _, histogram = bin_arrays(np.concatenate([values, values]), [12, 12], bins)
    assert histogram.counts[bins // 2] >= 10


def test_counts_are_the_same_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    flat = np.random.default_rng(0).normal(size=1000)
    expected = bin_arrays(flat, [300, 700], 8)
    monkeypatch.delitem(sys.modules, "torch")
    assert bin_arrays(flat, [300, 700], 8) == expected


def test_bins_arrays_of_many_blocks() -> None:
    values = np.random.default_rng(0).normal(size=3_000_000).astype(np.float32)
    sizes = [10, 2_500_000, 400_000, 99_990]
    bounds = np.cumsum(sizes)[:-1]
    for histogram, part in zip(
        bin_arrays(values, sizes, 64), np.split(values, bounds), strict=True
    ):
        assert_matches(histogram, part, 64)


def test_bins_tensors_of_many_blocks_on_the_device() -> None:
    tensor = torch.randn(5_000_000, generator=torch.Generator().manual_seed(0))
    parts = [tensor[:10], tensor[10:4_500_010], tensor[4_500_010:]]
    for histogram, part in zip(on_device(parts, 64), parts, strict=True):
        assert_matches(histogram, part.numpy(), 64)


def test_bins_many_small_arrays_into_many_bins() -> None:
    found = bin_arrays(np.arange(3000.0), [3] * 1000, 4096)
    assert all(sum(histogram.counts) == 3 for histogram in found)


@given(st.lists(singles, min_size=1, max_size=5))
def test_nonfinite_values_are_counted_per_tensor(parts: list[Array]) -> None:
    expected = [int((~np.isfinite(part)).sum()) for part in parts]
    assert count_nonfinite([torch.from_numpy(part) for part in parts]).tolist() == expected


# Logged with a bus


DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.bool,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
]  # fmt: skip


def tensors_of_all_dtypes() -> dict[str, torch.Tensor]:
    numbers = torch.randn(100, 7, generator=torch.Generator().manual_seed(0)) * 3
    return {str(dtype): numbers.to(dtype) for dtype in DTYPES}


def test_tensors_of_all_dtypes_are_logged_under_their_names(tmp_path: Path) -> None:
    tensors = tensors_of_all_dtypes()
    (records,) = logged(tmp_path, HistogramGroup(tensors, bins=9))
    assert list(records) == [f"g/{name}" for name in tensors]
    for name, tensor in tensors.items():
        assert_matches(records[f"g/{name}"], tensor.double().numpy(), 9)


@pytest.mark.usefixtures("accelerator")
def test_tensors_of_all_dtypes_are_binned_on_an_accelerator(tmp_path: Path) -> None:
    tensors = tensors_of_all_dtypes()
    (records,) = logged(tmp_path, HistogramGroup(tensors, bins=9))
    for name, tensor in tensors.items():
        assert_matches(records[f"g/{name}"], tensor.double().numpy(), 9)


def test_arrays_lists_and_tensors_may_be_mixed(tmp_path: Path) -> None:
    values_by_name = {
        "list": [1, 2, 2, 3],
        "strided": np.arange(100.0)[::3],
        "grown": torch.ones(4, requires_grad=True) * 2,
        "transposed": torch.arange(12.0).reshape(3, 4).T,
        "ints": np.arange(5),
        "empty": torch.zeros(0),
        "none finite": torch.tensor([math.nan, math.inf]),
        "negative": torch.tensor([1 + 2j, 3 + 4j]).conj().imag,
    }
    (records,) = logged(tmp_path, HistogramGroup(values_by_name, 5))
    for name, values in values_by_name.items():
        array = values.detach().resolve_neg().numpy() if torch.is_tensor(values) else values
        assert_matches(records[f"g/{name}"], np.asarray(array), 5)


def test_each_equals_a_single_histogram(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(10.0), "b": torch.tensor([1.0, math.nan, 2.0])}
    together, *alone = logged(
        tmp_path, HistogramGroup(tensors), *(Histogram(tensor) for tensor in tensors.values())
    )
    for name, single in zip(tensors, alone, strict=True):
        expected, got = single["g"], together[f"g/{name}"]
        assert got.counts == expected.counts
        assert got.edges == expected.edges
        assert (got.mean, got.std, got.sum) == (expected.mean, expected.std, expected.sum)


@pytest.mark.parametrize("where", ["here", "accelerator"])
def test_values_are_copied_at_the_call(
    where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if where == "accelerator":
        request.getfixturevalue("accelerator")
    array, tensor = np.zeros(100), torch.zeros(100)
    sink = MemorySink()
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        bus.log("g", HistogramGroup({"array": array, "tensor": tensor}))
        array[:] = 9
        tensor.fill_(9)
    assert [record.maximum for record in sink.media() if isinstance(record, HistogramRecord)] == [
        0,
        0,
    ]


@pytest.fixture
def small_copy_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower the limit for copies from 64 MiB to 1,000 bytes."""
    monkeypatch.setattr("metricbus.media.histogram_group.MAX_COPIED_BYTES", 1000)


@pytest.mark.usefixtures("small_copy_limit")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_values_are_binned_at_the_call(tmp_path: Path, dtype: torch.dtype) -> None:
    parts: dict[str, Any] = {
        "many": torch.arange(2000).to(dtype),
        "few": torch.arange(5.0),
        "list": [1.0, 2.0],
        "strided": np.arange(100.0)[::2],
    }
    job = HistogramGroup(parts)._capture("g")
    assert job is not None
    assert (job.nbytes, job.media) == (0, 4)
    (records,) = logged(tmp_path, HistogramGroup(parts))
    for name, values in parts.items():
        array = values.double().numpy() if torch.is_tensor(values) else np.asarray(values)
        assert_matches(records[f"g/{name}"], array, 64)


@pytest.mark.usefixtures("small_copy_limit")
def test_large_values_on_an_accelerator_are_binned_without_a_transfer(
    tmp_path: Path, accelerator: FakeAccelerator
) -> None:
    parts = {"many": torch.arange(2000.0)}
    job = HistogramGroup(parts)._capture("g")
    assert job is not None
    assert (job.nbytes, accelerator.transfers) == (0, 0)
    (records,) = logged(tmp_path, HistogramGroup(parts))
    assert_matches(records["g/many"], parts["many"].numpy(), 64)


def test_results_of_an_accelerator_need_one_transfer(
    tmp_path: Path, accelerator: FakeAccelerator
) -> None:
    logged(tmp_path, HistogramGroup({str(i): torch.arange(10.0) for i in range(20)}))
    assert accelerator.transfers == 1


def test_failing_accelerator_drops_histograms_with_the_reason(
    tmp_path: Path, accelerator: FakeAccelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(device: Any, parts: Any, streams: Any) -> Array:
        raise RuntimeError("the device is lost")

    monkeypatch.setattr(accelerator, "fetch", fail)
    with MetricBus(sinks=[MemorySink()], dir=tmp_path) as bus:
        bus.log("g", HistogramGroup({"a": torch.zeros(1), "b": torch.zeros(1)}))
        bus.flush(10)
        report = bus.stats()
    assert (report.dropped, report.journalled) == (2, 0)
    assert "the device is lost" in (report.error or "")
    assert DeviceError.__name__ in (report.error or "")


def test_empty_mapping_logs_nothing(tmp_path: Path) -> None:
    assert HistogramGroup({})._capture("g") is None
    assert logged(tmp_path, HistogramGroup({})) == [{}]


# One job with several media


def test_records_are_adjacent_in_the_journal(tmp_path: Path) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus:
        bus.log("g", HistogramGroup({name: [1.0] for name in "abc"}))
        bus.flush(10)
        assert bus.dir is not None
        (segment,) = (bus.dir / "journal").iterdir()
        lines = segment.read_text().splitlines()
    assert [f'"name":"g/{name}"' in line for name, line in zip("abc", lines[1:4], strict=True)] == [
        True
    ] * 3


def test_each_histogram_counts_as_one_medium(tmp_path: Path) -> None:
    sink = MemorySink()
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        bus.log({"loss": 0.5, "g": HistogramGroup({"a": [1.0], "b": [2.0], "c": [3.0]})})
        report = bus.flush(10)
    assert (report.logged, report.journalled, report.dropped, report.waiting) == (4, 4, 0, 0)
    assert next(iter(report.sinks.values())).delivered == 4


def test_definitions_apply_to_each_name(tmp_path: Path) -> None:
    sink, other = MemorySink(), MemorySink()
    with MetricBus(sinks=[sink, other], dir=tmp_path) as bus:
        bus.define("g/a", axis="epoch")
        bus.log("g", HistogramGroup({"a": [1.0], "b": [1.0]}), step=7)
    assert [(record.name, record.axis) for record in sink.media()] == [
        ("g/a", "epoch"),
        ("g/b", ""),
    ]


class BlockedMedium(MediaValue):
    """A job of two media whose encoding waits for an event."""

    def __init__(self, gate: threading.Event) -> None:
        self._gate = gate
        self.started = threading.Event()

    def _capture(self, name: str) -> EncodeJob:
        return EncodeJob(400_000, self._encode, media=2)

    def _encode(self, context: EncodeContext) -> list[Medium]:
        self.started.set()
        assert self._gate.wait(HANG_SECS)
        counts: dict[str, Any] = {"counts": [1], "edges": [0.0, 1.0], "count": 1}
        return [context.record(HistogramRecord, name=f"h/{i}", **counts) for i in range(2)]


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    opened = threading.Event()
    yield opened
    opened.set()


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest", "block"])
def test_jobs_beyond_the_queue_limit_are_dropped_as_a_whole(
    overflow: Overflow, tmp_path: Path, gate: threading.Event
) -> None:
    settings: Any = {"queue_bytes": 1 << 20, "overflow": overflow, "block_secs": 0.05}
    with MetricBus(sinks=[MemorySink()], dir=tmp_path, **settings) as bus:
        first = BlockedMedium(gate)
        bus.log("slow", first)
        assert first.started.wait(10)
        for _ in range(9):
            bus.log("slow", BlockedMedium(gate))
        report = bus.stats()
        assert (report.logged, report.waiting, report.dropped) == (20, 4, 16)
        gate.set()
    assert (bus.stats().journalled, bus.stats().dropped) == (4, 16)


def test_media_not_encoded_before_close_are_counted(tmp_path: Path, gate: threading.Event) -> None:
    bus = MetricBus(sinks=[MemorySink()], dir=tmp_path)
    for _ in range(3):
        bus.log("slow", BlockedMedium(gate))
    bus.close(timeout=0.5)
    report = bus.stats()
    assert report.logged == report.dropped + report.waiting == 6


def test_media_logged_after_close_are_counted_as_dropped(tmp_path: Path) -> None:
    bus = MetricBus(sinks=[MemorySink()], dir=tmp_path)
    bus.close()
    bus.log("g", HistogramGroup({"a": [1.0], "b": [2.0]}))
    assert bus.stats().dropped == 2


# Bad input


@pytest.mark.parametrize("bins", [0, -1, 4097, 2.0, True, "8", None])
@pytest.mark.parametrize("medium", [Histogram, HistogramGroup])
def test_rejects_invalid_bins(medium: Any, bins: Any) -> None:
    with pytest.raises(ValueError, match=r"metric 'g': bins= must be .* 1 to 4,096, not "):
        medium({"a": [1.0]}, bins)._capture("g")


def test_rejects_non_mapping() -> None:
    with pytest.raises(TypeError, match=r"a mapping of names .*, not Tensor .*Histogram\(values\)"):
        HistogramGroup(torch.zeros(3))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "message"),
    [(1, "must be a string, not int"), ("", "not be empty"), ("x" * 1023, "1,024")],
)
def test_rejects_invalid_names(key: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        HistogramGroup({key: [1.0]})._capture("g")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            torch.zeros(2, dtype=torch.complex64),
            r"Tensor of shape \(2,\) and dtype torch.complex64",
        ),
        (torch.eye(2).to_sparse(), r"Tensor of shape \(2, 2\)"),
        (torch.zeros(2, device="meta"), r"Tensor of shape \(2,\)"),
        ("abc", "str"),
    ],
    ids=["complex", "sparse", "meta", "text"],
)
def test_rejects_values_that_are_not_real_numbers(values: Any, message: str) -> None:
    with pytest.raises(TypeError, match=f"metric 'g/bad' was given {message}"):
        HistogramGroup({"good": [1.0], "bad": values})._capture("g")


# On CUDA


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_call_does_not_synchronize_with_cuda(tmp_path: Path) -> None:
    tensors = {name: values.cuda() for name, values in tensors_of_all_dtypes().items()}
    large = {"large": torch.randn(20_000_000, device="cuda")}
    logged(tmp_path, HistogramGroup(tensors), HistogramGroup(large))  # loads the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        first, second = logged(tmp_path, HistogramGroup(tensors, 9), HistogramGroup(large))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for name, tensor in tensors.items():
        assert_matches(first[f"g/{name}"], tensor.double().cpu().numpy(), 9)
    assert_matches(second["g/large"], large["large"].cpu().numpy(), 64)
