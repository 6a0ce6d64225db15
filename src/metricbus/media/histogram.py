"""`Histogram`: how values are spread."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import msgspec
import numpy as np

from metricbus._common.device_values import ACCELERATORS
from metricbus._common.media_base import EncodeContext, EncodeJob, MediaValue
from metricbus._common.media_records import HistogramRecord
from metricbus.media.arrays import Array, is_tensor, snapshot, told, view_of
from metricbus.media.histogram_batch_device import apart_from
from metricbus.media.histogram_bins import (
    ACCEPTED,
    COPIED_BYTES,
    MOST_BINS,
    Binned,
    bin_on_device,
    bin_values,
    binned,
    check_bins,
)

_MOST_VALUES = 2.0**63


class Histogram(MediaValue):
    """How the values of an array or a tensor, of any shape and real type, are spread.

    `bins` bins of equal width from the smallest to the largest finite value, with count, extremes,
    mean, standard deviation (of the population), sum and sum of squares; NaN and the infinities are
    counted apart. The values are copied at the call of `log()` and counted in the background;
    beyond 64 MiB the call itself counts them, without a copy. Those on an accelerator are counted
    there.

    `Histogram(counts=, edges=)` takes one that was counted already: whole numbers, and one edge
    more than there are counts, growing. Its mean and the like are by the middles of the bins.
    """

    def __init__(
        self, values: Any = None, bins: int = 64, *, counts: Any = None, edges: Any = None
    ) -> None:
        if (values is None) == (counts is None) or (counts is None) != (edges is None):
            raise TypeError("Histogram() takes values, or both counts= and edges=")
        self._values = values
        self._bins = bins
        self._counts = counts
        self._edges = edges

    def _capture(self, name: str) -> EncodeJob:
        """Checks and copies the values."""
        if self._values is None:
            return EncodeJob(0, partial(_record, self._check_counted(name)))
        check_bins(name, self._bins, "; of counts and edges, write Histogram(counts=, edges=)")
        values = self._values
        if is_tensor(values) and _can_bin(values):
            copied = values.detach().clone()
            nbytes = copied.numel() * copied.element_size()
            accelerator = ACCELERATORS.get(values.device.type)
            stream = accelerator.stream(values.device) if accelerator else None
            return EncodeJob(nbytes, partial(_from_device, copied, self._bins, stream))
        if is_tensor(values) and _is_to_be_counted_here(values):
            return EncodeJob(0, partial(_record, bin_values(values.detach(), self._bins)))
        view = view_of(name, values, ACCEPTED)
        if view.nbytes > COPIED_BYTES:
            return EncodeJob(0, partial(_record, bin_values(view, self._bins)))
        copy = snapshot(view)
        return EncodeJob(copy.nbytes, partial(_from_values, copy, self._bins))

    def _check_counted(self, name: str) -> Binned:
        counts = view_of(name, self._counts, "counts= as a list of whole numbers")
        edges = view_of(name, self._edges, "edges= as a list of numbers").astype(np.float64)
        if counts.ndim != 1 or edges.ndim != 1 or edges.size != counts.size + 1 or not counts.size:
            raise ValueError(
                f"metric {name!r} was given counts as {told(counts)} and edges as {told(edges)}; "
                "there is one edge more than there are counts"
            )
        if counts.size > MOST_BINS:
            raise ValueError(
                f"metric {name!r} was given {counts.size:,} counts; up to {MOST_BINS:,} are taken"
            )
        whole = np.rint(counts.astype(np.float64))
        wrong = counts[~((whole == counts) & (whole >= 0))]
        if wrong.size or whole.sum() >= _MOST_VALUES:
            raise ValueError(
                f"metric {name!r}: counts= are whole numbers from 0 on, in all below 2**63, "
                f"not {wrong[0] if wrong.size else whole.sum()}"
            )
        with np.errstate(over="ignore"):  # from one end of float64 to the other
            steps = np.diff(edges)
        if not np.isfinite(edges).all() or not (steps > 0).all():
            raise ValueError(
                f"metric {name!r}: edges= are finite numbers that grow, not "
                f"{edges[:4].tolist()} and so on"
            )
        return binned(counts.astype(np.int64), edges)


def _can_bin(tensor: Any) -> bool:
    """Whether it can be counted where it is: on an accelerator that knows float64."""
    if tensor.is_complex() or tensor.layout != sys.modules["torch"].strided:
        return False
    return tensor.device.type not in ("cpu", "meta", "mps")


def _is_to_be_counted_here(tensor: Any) -> bool:
    """Whether it is too large for a copy, or for what numpy would make of a bfloat16."""
    is_plain = tensor.device.type == "cpu" and tensor.layout == sys.modules["torch"].strided
    is_large: bool = tensor.numel() * tensor.element_size() > COPIED_BYTES
    return is_plain and not tensor.is_complex() and is_large


def _from_values(values: Array, bins: int, work: EncodeContext) -> HistogramRecord:
    return _record(bin_values(values, bins), work)


def _from_device(tensor: Any, bins: int, stream: Any, work: EncodeContext) -> HistogramRecord:
    with apart_from(stream, tensor.device):
        return _record(bin_on_device(tensor, bins), work)


def _record(found: Binned, work: EncodeContext) -> HistogramRecord:
    return work.record(HistogramRecord, **msgspec.structs.asdict(found))
