"""The `HistogramGroup` medium: histograms of many tensors for little more than one copy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeAlias

import msgspec
import numpy as np

from metricbus._common.device_values import ACCELERATORS
from metricbus._common.media_base import EncodeContext, EncodeJob, MediaValue
from metricbus._common.media_records import HistogramRecord, Medium
from metricbus._common.validation import check_name
from metricbus.media.arrays import Array, as_array, describe_array, is_tensor, snapshot
from metricbus.media.histogram_batch import bin_arrays
from metricbus.media.histogram_batch_device import side_stream, start_binning
from metricbus.media.histogram_bins import (
    ACCEPTED,
    MAX_COPIED_BYTES,
    HistogramData,
    bin_values,
    check_bins,
)

Tensor: TypeAlias = Any


class HistogramGroup(MediaValue):
    """One histogram for each of several arrays or tensors, computed together.

    bus.log("gradients", HistogramGroup({"fc1.weight": g1, "fc1.bias": g2}))

    logs `gradients/fc1.weight` and `gradients/fc1.bias`. Each equals what `Histogram` would log,
    but all are computed together in a few operations. A value within rounding error of an edge may
    be counted in the neighboring bin.

    `tensors` maps names to arrays, tensors or nested lists of real numbers. `bins`, from 1 to
    4,096, is the number of bins of each histogram. An empty mapping logs nothing.

    `log()` copies the values, and a background thread bins them. If they exceed 64 MiB in total,
    they are binned within the call, without a copy. Values on a CUDA device are binned there; the
    call never synchronizes with the device.

    Each histogram counts as one value. Either all of them are written to the journal or, if the
    queue is full, all are dropped.

    Raises `TypeError` unless `tensors` is a mapping. `log()` raises `TypeError` or `ValueError`,
    naming the metric, for invalid names, values or bins.
    """

    def __init__(self, tensors: Mapping[str, Any], bins: int = 64) -> None:
        if not isinstance(tensors, Mapping):
            raise TypeError(
                "HistogramGroup() requires a mapping of names to arrays or tensors, not "
                f"{describe_array(tensors)}; for a single one, call Histogram(values)"
            )
        self._tensors = tensors
        self._bins = bins

    def _capture(self, name: str) -> EncodeJob | None:
        check_bins(name, self._bins)
        names = _names(name, tuple(self._tensors))
        if not names:
            return None
        groups = _group_values(self._tensors.values())
        is_large = sum(map(_nbytes, groups)) > MAX_COPIED_BYTES
        captured = [_capture_group(group, names, self._bins, is_large) for group in groups]
        nbytes = sum(group.nbytes for group in captured)
        return EncodeJob(nbytes, partial(_encode, names, captured), media=len(names))


class _Group(NamedTuple):
    """Values that one operation can process, and their indices in the mapping.

    `location` is "array" (numpy or convertible to it), "cpu" (tensors), or an accelerator's type.
    """

    indices: list[int]
    values: list[Any]
    location: str


class _CapturedGroup(NamedTuple):
    """The captured values of a group; `wait` returns their histograms, computing them if needed."""

    indices: list[int]
    nbytes: int
    wait: Callable[[], list[HistogramData]]


@lru_cache(maxsize=64)  # a training loop logs the same names repeatedly
def _names(name: str, keys: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(check_name(f"{name}/{check_name(key)}") for key in keys)


def _group_values(values: Iterable[Any]) -> list[_Group]:
    """Group the values: tensors by device, dtype and layout, all others together."""
    groups: dict[Any, _Group] = {}
    for index, value in enumerate(values):
        key = (type(value), value.device, value.dtype, value.layout) if is_tensor(value) else None
        group = groups.get(key)
        if group is None:
            group = groups[key] = _Group([], [], _location(value))
        group.indices.append(index)
        group.values.append(value)
    return list(groups.values())


def _location(value: Any) -> str:
    if not is_tensor(value) or value.layout != sys.modules["torch"].strided:
        return "array"
    if value.is_complex() or hasattr(value, "full_tensor"):
        return "array"  # as_array() raises the error
    kind: str = value.device.type
    return kind if kind == "cpu" or kind in ACCELERATORS else "array"


def _nbytes(group: _Group) -> int:
    """Return the bytes of a copy; lists, which are small, do not count."""
    if not is_tensor(group.values[0]):
        return sum(value.nbytes for value in group.values if isinstance(value, np.ndarray))
    numbers: int = sum(tensor.numel() for tensor in group.values)
    return numbers * int(group.values[0].element_size())


def _capture_group(
    group: _Group, names: Sequence[str], bins: int, is_large: bool
) -> _CapturedGroup:
    if group.location == "array":
        return _capture_arrays(group, names, bins, is_large)
    torch = sys.modules["torch"]
    with torch.no_grad():
        tensors = [tensor.reshape(-1) for tensor in group.values]
        # torch has no arithmetic for 8-bit floats.
        if tensors[0].is_floating_point() and tensors[0].element_size() == 1:
            tensors = [tensor.float() for tensor in tensors]
        capture = _capture_on_device if group.location in ACCELERATORS else _capture_on_cpu
        return capture(torch, group.indices, tensors, bins, is_large)


def _capture_arrays(
    group: _Group, names: Sequence[str], bins: int, is_large: bool
) -> _CapturedGroup:
    views = [
        as_array(names[index], value, ACCEPTED)
        for index, value in zip(group.indices, group.values, strict=True)
    ]
    if is_large:
        histograms = [_bin_without_copy(view, bins) for view in views]
        return _CapturedGroup(group.indices, 0, lambda: histograms)
    copies = [snapshot(view) for view in views]
    nbytes = sum(copy.nbytes for copy in copies)
    return _CapturedGroup(group.indices, nbytes, partial(_bin_copies, copies, bins))


def _capture_on_cpu(
    torch: Any, indices: list[int], tensors: list[Tensor], bins: int, is_large: bool
) -> _CapturedGroup:
    if is_large:
        if tensors[0].dtype == torch.bfloat16:  # numpy would need a wider copy
            histograms = [bin_values(tensor, bins) for tensor in tensors]
        else:
            arrays = [tensor.resolve_neg().numpy() for tensor in tensors]
            histograms = [_bin_without_copy(array, bins) for array in arrays]
        return _CapturedGroup(indices, 0, lambda: histograms)
    flat, sizes = torch.cat(tensors), [tensor.numel() for tensor in tensors]
    return _CapturedGroup(indices, flat.nbytes, partial(_bin_on_cpu, flat, sizes, bins))


def _capture_on_device(
    torch: Any, indices: list[int], tensors: list[Tensor], bins: int, is_large: bool
) -> _CapturedGroup:
    device = tensors[0].device
    stream = ACCELERATORS[device.type].stream(device)
    if is_large:
        return _CapturedGroup(indices, 0, start_binning(tensors, bins).wait)
    flat, sizes = torch.cat(tensors), [tensor.numel() for tensor in tensors]
    return _CapturedGroup(indices, flat.nbytes, partial(_bin_on_device, flat, sizes, bins, stream))


def _bin_without_copy(array: Array, bins: int) -> HistogramData:
    if not array.flags.c_contiguous:
        return bin_values(array, bins)
    return bin_arrays(array.reshape(-1), [array.size], bins)[0]


def _bin_copies(arrays: list[Array], bins: int) -> list[HistogramData]:
    """Bin the arrays by dtype, because concatenating different dtypes might round values."""
    histograms: dict[int, HistogramData] = {}
    for dtype in {array.dtype for array in arrays}:
        indices = [index for index, array in enumerate(arrays) if array.dtype == dtype]
        flat = np.concatenate([arrays[index].reshape(-1) for index in indices])
        sizes = [arrays[index].size for index in indices]
        histograms |= zip(indices, bin_arrays(flat, sizes, bins), strict=True)
    return [histograms[index] for index in range(len(arrays))]


def _bin_on_cpu(flat: Tensor, sizes: list[int], bins: int) -> list[HistogramData]:
    if str(flat.dtype) == "torch.bfloat16":
        flat = flat.float()
    return bin_arrays(flat.numpy(), sizes, bins)


def _bin_on_device(flat: Tensor, sizes: list[int], bins: int, stream: Any) -> list[HistogramData]:
    with side_stream(stream, flat.device):
        pending = start_binning(flat.split(sizes), bins)
    return pending.wait()


def _encode(
    names: Sequence[str], groups: Sequence[_CapturedGroup], context: EncodeContext
) -> list[Medium]:
    histograms: dict[int, HistogramData] = {}
    for group in groups:
        histograms |= zip(group.indices, group.wait(), strict=True)
    return [
        context.record(HistogramRecord, name=name, **msgspec.structs.asdict(histograms[index]))
        for index, name in enumerate(names)
    ]
