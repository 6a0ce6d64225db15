"""`Histograms`: how the values of many tensors are spread, for little more than one copy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeAlias

import msgspec
import numpy as np

from metricbus._common.device_values import ACCELERATORS
from metricbus._common.media_base import EncodeContext, EncodeJob, MediaValue
from metricbus._common.media_records import HistogramRecord
from metricbus._common.records import Medium
from metricbus._common.validation import check_name
from metricbus.media.arrays import Array, is_tensor, snapshot, told, view_of
from metricbus.media.histogram_batch import bin_each
from metricbus.media.histogram_batch_device import apart_from, start_counting
from metricbus.media.histogram_bins import ACCEPTED, COPIED_BYTES, Binned, bin_values, check_bins

_IN_NUMPY = frozenset(
    ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
)

Tensor: TypeAlias = Any


class Histograms(MediaValue):
    """A histogram of each of several arrays or tensors, all of them taken and counted together.

    bus.log("gradients", Histograms({"fc1.weight": g1, "fc1.bias": g2}))

    logs `gradients/fc1.weight` and `gradients/fc1.bias`, each as a `Histogram` of its own would be,
    but at the cost of a few operations for all of them. In the journal they stand at once, or, when
    there is no room for them, none of them does; each counts as one medium. A value that lies on an
    edge, to rounding, may be counted on its other side.

    The values are copied at the call of `log()` and counted in the background; beyond 64 MiB in
    all, the call itself counts them, without a copy. Those on an accelerator are counted there, and
    nobody waits for it. `bins` is from 1 to 4,096. An empty mapping logs nothing.
    """

    def __init__(self, tensors: Mapping[str, Any], bins: int = 64) -> None:
        if not isinstance(tensors, Mapping):
            raise TypeError(
                f"Histograms() takes a mapping of names to arrays or tensors, not {told(tensors)}; "
                "of a single one, write Histogram(values)"
            )
        self._tensors = tensors
        self._bins = bins

    def _capture(self, name: str) -> EncodeJob | None:
        """Checks and copies the values."""
        check_bins(name, self._bins)
        names = _names(name, tuple(self._tensors))
        if not names:
            return None
        groups = _alike(self._tensors.values())
        is_large = sum(map(_nbytes, groups)) > COPIED_BYTES
        batches = [_taken(group, names, self._bins, is_large=is_large) for group in groups]
        nbytes = sum(batch.nbytes for batch in batches)
        return EncodeJob(nbytes, partial(_encode, names, batches), media=len(names))


class _Group(NamedTuple):
    """Values that are counted together, with their places in the mapping, and where."""

    places: list[int]
    values: list[Any]
    where: str  # "array", "memory", or the accelerator's type


class _Batch(NamedTuple):
    """What was taken of a group: `wait` counts, or waits for the device that counts."""

    places: list[int]
    nbytes: int
    wait: Callable[[], list[Binned]]


@lru_cache(maxsize=64)  # a loop logs the same names again and again
def _names(name: str, keys: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(check_name(f"{name}/{check_name(key)}") for key in keys)


def _alike(values: Any) -> list[_Group]:
    """The values in groups that one operation can take: tensors of one device and type."""
    groups: dict[Any, _Group] = {}
    for place, value in enumerate(values):
        key = (type(value), value.device, value.dtype, value.layout) if is_tensor(value) else None
        group = groups.get(key)
        if group is None:
            group = groups[key] = _Group([], [], _where(value))
        group.places.append(place)
        group.values.append(value)
    return list(groups.values())


def _where(value: Any) -> str:
    if not is_tensor(value) or value.layout != sys.modules["torch"].strided:
        return "array"
    if value.is_complex() or hasattr(value, "full_tensor"):
        return "array"  # whose check refuses it, with the reason
    kind: str = value.device.type
    if kind in ACCELERATORS:
        return kind
    return "memory" if kind == "cpu" else "array"


def _nbytes(group: _Group) -> int:
    """The bytes of a copy; of lists and the like nothing is known, nor are they large."""
    if not is_tensor(group.values[0]):
        return sum(one.nbytes for one in group.values if isinstance(one, np.ndarray))
    numbers: int = sum(tensor.numel() for tensor in group.values)
    return numbers * int(group.values[0].element_size())


def _taken(group: _Group, names: Sequence[str], bins: int, *, is_large: bool) -> _Batch:
    if group.where == "array":
        return _taken_of_arrays(group, names, bins, is_large=is_large)
    torch = sys.modules["torch"]
    with torch.no_grad():
        tensors = [tensor.reshape(-1) for tensor in group.values]
        if not _can_compute(tensors[0]):
            tensors = [tensor.float() for tensor in tensors]
        if group.where == "memory":
            return _taken_in_memory(torch, group.places, tensors, bins, is_large=is_large)
        return _taken_on_device(torch, group.places, tensors, bins, is_large=is_large)


def _taken_of_arrays(group: _Group, names: Sequence[str], bins: int, *, is_large: bool) -> _Batch:
    views = [
        view_of(names[place], value, ACCEPTED)
        for place, value in zip(group.places, group.values, strict=True)
    ]
    if is_large:
        return _counted(group.places, [_count_one(view, bins) for view in views])
    copies = [snapshot(view) for view in views]
    return _Batch(group.places, sum(c.nbytes for c in copies), partial(_count_arrays, copies, bins))


def _taken_in_memory(
    torch: Any, places: list[int], tensors: list[Tensor], bins: int, *, is_large: bool
) -> _Batch:
    if is_large and tensors[0].dtype == torch.bfloat16:  # numpy would need a wider copy
        return _counted(places, [bin_values(tensor, bins) for tensor in tensors])
    if is_large:
        arrays = [tensor.resolve_neg().numpy() for tensor in tensors]
        return _counted(places, [_count_one(array, bins) for array in arrays])
    flat, sizes = torch.cat(tensors), [tensor.numel() for tensor in tensors]
    return _Batch(places, flat.nbytes, partial(_count_in_memory, flat, sizes, bins))


def _taken_on_device(
    torch: Any, places: list[int], tensors: list[Tensor], bins: int, *, is_large: bool
) -> _Batch:
    device = tensors[0].device
    stream = ACCELERATORS[device.type].stream(device)
    if is_large:
        return _Batch(places, 0, start_counting(tensors, bins).wait)
    flat, sizes = torch.cat(tensors), [tensor.numel() for tensor in tensors]
    return _Batch(places, flat.nbytes, partial(_count_on_device, flat, sizes, bins, stream))


def _counted(places: list[int], found: list[Binned]) -> _Batch:
    return _Batch(places, 0, lambda: found)


def _can_compute(tensor: Tensor) -> bool:
    """Whether it is of a type for which there are operations; of 8-bit floats there are few."""
    kind = str(tensor.dtype).removeprefix("torch.")
    return kind in _IN_NUMPY or kind == "bfloat16" or not tensor.is_floating_point()


def _count_one(array: Array, bins: int) -> Binned:
    """Without a copy of the array."""
    if not array.flags.c_contiguous:
        return bin_values(array, bins)
    return bin_each(array.reshape(-1), [array.size], bins)[0]


def _count_arrays(arrays: list[Array], bins: int) -> list[Binned]:
    """Those of one type together: joined with others, they might be rounded."""
    found: dict[int, Binned] = {}
    for dtype in {array.dtype for array in arrays}:
        places = [place for place, array in enumerate(arrays) if array.dtype == dtype]
        flat = np.concatenate([arrays[place].reshape(-1) for place in places])
        sizes = [arrays[place].size for place in places]
        found |= zip(places, bin_each(flat, sizes, bins), strict=True)
    return [found[place] for place in range(len(arrays))]


def _count_in_memory(flat: Tensor, sizes: list[int], bins: int) -> list[Binned]:
    if str(flat.dtype) == "torch.bfloat16":
        flat = flat.float()
    return bin_each(flat.numpy(), sizes, bins)


def _count_on_device(flat: Tensor, sizes: list[int], bins: int, stream: Any) -> list[Binned]:
    with apart_from(stream, flat.device):
        counting = start_counting(flat.split(sizes), bins)
    return counting.wait()


def _encode(names: Sequence[str], batches: Sequence[_Batch], work: EncodeContext) -> list[Medium]:
    found = {
        place: one
        for batch in batches
        for place, one in zip(batch.places, batch.wait(), strict=True)
    }
    where = work.stamp._asdict()
    return [
        HistogramRecord(**where | {"name": name} | msgspec.structs.asdict(found[place]))
        for place, name in enumerate(names)
    ]
