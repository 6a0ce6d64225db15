"""The `Histogram` medium."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import msgspec
import numpy as np

from metricbus._common.device_values import ACCELERATORS
from metricbus._common.media_base import EncodeContext, EncodeJob, MediaValue
from metricbus._common.media_records import HistogramRecord
from metricbus.media.arrays import Array, as_array, describe_array, is_tensor, snapshot
from metricbus.media.histogram_batch_device import side_stream
from metricbus.media.histogram_bins import (
    ACCEPTED,
    MAX_BINS,
    MAX_COPIED_BYTES,
    HistogramData,
    bin_on_device,
    bin_values,
    check_bins,
    histogram_from_counts,
)

_MAX_COUNT = 2.0**63


class Histogram(MediaValue):
    """The distribution of the values of an array or tensor.

    `values` is an array, a tensor, a number or nested lists, of any shape and any real dtype,
    bfloat16 and 8-bit floats included. `bins`, from 1 to 4,096, is the number of equally wide bins
    between the smallest and the largest finite value. The record also has the count, minimum,
    maximum, mean, population standard deviation, sum and sum of squares of all finite values, and
    the numbers of NaN, infinite and negative infinite values.

    If the values take up at most 64 MiB, `log()` copies them and a background thread bins them.
    Above that, they are binned within the call, in blocks and without a copy. CUDA tensors of any
    size are copied and binned on their device.

    `Histogram(counts=, edges=)` logs existing bins instead: `counts` are non-negative whole
    numbers, and `edges` are finite and increasing numbers, one more than there are counts. The
    statistics are then estimated from the centers of the bins.

    Raises `TypeError` unless either `values` or both `counts` and `edges` are given. `log()` raises
    `TypeError` or `ValueError`, naming the metric, for values that are not real numbers, and for
    invalid bins, counts or edges.
    """

    def __init__(
        self, values: Any = None, bins: int = 64, *, counts: Any = None, edges: Any = None
    ) -> None:
        if (values is None) == (counts is None) or (counts is None) != (edges is None):
            raise TypeError("Histogram() requires either values, or both counts= and edges=")
        self._values = values
        self._bins = bins
        self._counts = counts
        self._edges = edges

    def _capture(self, name: str) -> EncodeJob:
        if self._values is None:
            return EncodeJob(0, partial(_record, self._from_counts(name)))
        hint = "; to log existing counts, call Histogram(counts=, edges=)"
        check_bins(name, self._bins, hint)
        values = self._values
        if is_tensor(values) and _can_bin_on_device(values):
            copied = values.detach().clone()
            nbytes = copied.numel() * copied.element_size()
            accelerator = ACCELERATORS.get(values.device.type)
            stream = accelerator.stream(values.device) if accelerator else None
            return EncodeJob(nbytes, partial(_bin_on_device, copied, self._bins, stream))
        if is_tensor(values) and _is_large_on_cpu(values):
            return EncodeJob(0, partial(_record, bin_values(values.detach(), self._bins)))
        view = as_array(name, values, ACCEPTED)
        if view.nbytes > MAX_COPIED_BYTES:
            return EncodeJob(0, partial(_record, bin_values(view, self._bins)))
        copy = snapshot(view)
        return EncodeJob(copy.nbytes, partial(_bin_array, copy, self._bins))

    def _from_counts(self, name: str) -> HistogramData:
        counts = as_array(name, self._counts, "counts= as a list of whole numbers")
        edges = as_array(name, self._edges, "edges= as a list of numbers").astype(np.float64)
        if counts.ndim != 1 or edges.ndim != 1 or edges.size != counts.size + 1 or not counts.size:
            raise ValueError(
                f"metric {name!r} was given counts= {describe_array(counts)} and "
                f"edges= {describe_array(edges)}; expected one edge more than counts"
            )
        if counts.size > MAX_BINS:
            raise ValueError(
                f"metric {name!r} was given {counts.size:,} counts; the maximum is {MAX_BINS:,}"
            )
        whole = np.rint(counts.astype(np.float64))
        wrong = counts[~((whole == counts) & (whole >= 0))]
        if wrong.size or whole.sum() >= _MAX_COUNT:
            raise ValueError(
                f"metric {name!r}: counts= must be non-negative whole numbers with a sum below "
                f"2**63, not {wrong[0] if wrong.size else whole.sum()}"
            )
        with np.errstate(over="ignore"):  # the edges may span all of float64
            widths = np.diff(edges)
        if not np.isfinite(edges).all() or not (widths > 0).all():
            raise ValueError(
                f"metric {name!r}: edges= must be finite and increasing; they begin with "
                f"{edges[:4].tolist()}"
            )
        return histogram_from_counts(counts.astype(np.int64), edges)


def _can_bin_on_device(tensor: Any) -> bool:
    """Check whether the tensor is dense and real and its device supports float64."""
    if tensor.is_complex() or tensor.layout != sys.modules["torch"].strided:
        return False
    return tensor.device.type not in ("cpu", "meta", "mps")


def _is_large_on_cpu(tensor: Any) -> bool:
    """Check whether a CPU tensor is too large to copy.

    Such a tensor is binned without a conversion to numpy, which would widen a bfloat16.
    """
    is_dense = tensor.device.type == "cpu" and tensor.layout == sys.modules["torch"].strided
    is_large: bool = tensor.numel() * tensor.element_size() > MAX_COPIED_BYTES
    return is_dense and not tensor.is_complex() and is_large


def _bin_array(values: Array, bins: int, context: EncodeContext) -> HistogramRecord:
    return _record(bin_values(values, bins), context)


def _bin_on_device(tensor: Any, bins: int, stream: Any, context: EncodeContext) -> HistogramRecord:
    with side_stream(stream, tensor.device):
        return _record(bin_on_device(tensor, bins), context)


def _record(data: HistogramData, context: EncodeContext) -> HistogramRecord:
    return context.record(HistogramRecord, **msgspec.structs.asdict(data))
