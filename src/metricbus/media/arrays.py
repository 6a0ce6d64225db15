"""Snapshots of arrays and tensors as numpy arrays, and what their axes mean."""

from __future__ import annotations

import sys
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Layout: TypeAlias = Literal["HW", "HWC", "CHW"]

CHANNELS = (1, 3, 4)
MOST_PIXELS = 1 << 26  # a picture beyond that is a mistake, as a rule


def is_tensor(value: object) -> bool:
    """Whether it is a torch tensor; torch is not imported to find that out."""
    return isinstance(value, getattr(sys.modules.get("torch"), "Tensor", ()))


def view_of(name: str, value: Any, accepted: str) -> Array:
    """The numbers of an array, a tensor or nested lists, without a copy where that can be had.

    Raises `TypeError` or `ValueError`, which name the metric, for what has no real numbers.
    """
    if is_tensor(value):
        value = _numpy_of(name, value, accepted)
    if np.ma.isMaskedArray(value):
        raise TypeError(f"metric {name!r} was given a masked array; fill it: array.filled(…)")
    try:
        array = np.asarray(value)
    except Exception as error:  # what offers itself as an array may raise anything
        raise ValueError(
            f"metric {name!r} was given {type(value).__name__}, which is no array ({error}); "
            f"what is accepted is {accepted}"
        ) from None
    if array.dtype.kind not in "biuf":
        if array.dtype.kind == "V" and _is_small_float(array):
            return array.astype(np.float32)
        raise TypeError(
            f"metric {name!r} was given {told(value, array)}; what is accepted is {accepted}"
        )
    return array


def snapshot(view: Array) -> Array:
    """A copy of the numbers, which no later change in place can reach."""
    return np.array(view, copy=True, order="C")


def told(value: Any, array: Array | None = None) -> str:
    """What was given, in a few words; of lists and the like, the `array` that they make."""
    kind = type(value).__name__
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None and array is not None and array.ndim:
        shape, dtype = array.shape, array.dtype
    return kind if shape is None else f"{kind} of shape {tuple(shape)} and dtype {dtype}"


def check_layout(name: str, value: object, shape: tuple[int, ...], layout: str | None) -> Layout:
    """Which axis of a picture is which; `ValueError` where that makes no picture.

    Two axes are height and width. Of three, the one for the channels has a length of 1, 3 or 4;
    where both the first and the last could be it, it is the first of a tensor and the last of
    anything else.
    """
    accepted = "height and width, with 1, 3 or 4 channels first or last"
    if layout not in (None, "HW", "HWC", "CHW"):
        raise ValueError(f'metric {name!r}: layout= is "HW", "HWC" or "CHW", not {layout!r}')
    if 0 in shape:
        raise ValueError(
            f"metric {name!r} was given an empty picture of shape {shape}; a picture has {accepted}"
        )
    if len(shape) == 2 and layout in (None, "HW"):
        found: Layout = "HW"
    elif len(shape) == 3 and layout != "HW":
        first, last = shape[0] in CHANNELS, shape[2] in CHANNELS
        if layout is None and not (first or last):
            raise ValueError(f"metric {name!r} was given {told(value)}; a picture has {accepted}")
        if layout is None:
            layout = "CHW" if first and (is_tensor(value) or not last) else "HWC"
        found = "CHW" if layout == "CHW" else "HWC"
        if shape[0 if found == "CHW" else 2] not in CHANNELS:
            raise ValueError(
                f"metric {name!r} was given {told(value)}, which has no 1, 3 or 4 channels by "
                f"layout={found!r}"
            )
    else:
        wanted = f" by layout={layout!r}" if layout else ""
        raise ValueError(
            f"metric {name!r} was given {told(value)}; a picture has {accepted}{wanted}"
        )
    height, width = shape[-2:] if found in ("CHW", "HW") else shape[:2]
    if height * width > MOST_PIXELS:
        raise ValueError(
            f"metric {name!r} was given a picture of {width:,} x {height:,}; up to "
            f"{MOST_PIXELS:,} pixels are taken: make it smaller"
        )
    return found


def check_pixels(name: str, value: object, array: Array) -> None:
    """`TypeError` for pixels of a type that means no brightness."""
    if array.dtype != np.uint8 and array.dtype.kind not in "bf":
        raise TypeError(
            f"metric {name!r} was given {told(value)}; pixels are uint8, or floats from 0 to 1: "
            "write .astype(np.uint8) or divide by the largest value"
        )


def channels_last(array: Array, layout: Layout) -> Array:
    """The picture as (H, W) or (H, W, C); one channel has no axis of its own."""
    if layout == "CHW":
        array = array.transpose(1, 2, 0)
    return array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array


def as_bytes(array: Array) -> tuple[NDArray[np.uint8], str]:
    """The pixels as uint8, and what had to be mended for that."""
    if array.dtype == np.uint8:
        return array, ""
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255), ""
    mended = []
    with np.errstate(over="ignore"):  # infinities are clipped like what is too large
        exact = array.astype(np.float32)
    if np.isnan(exact).any():
        mended.append("NaN pixels are shown as 0")
        exact = np.nan_to_num(exact, nan=0.0, posinf=np.inf, neginf=-np.inf)
    if exact.min() < 0 or exact.max() > 1:
        mended.append("pixels outside of 0 to 1 are clipped (floats to 255 want / 255)")
        exact = exact.clip(0, 1)
    return np.rint(exact * 255).astype(np.uint8), " and ".join(mended)


def _numpy_of(name: str, tensor: Any, accepted: str) -> Any:
    """A torch tensor as an array; numpy has no word for some of its types."""
    tensor = tensor.detach()
    if tensor.is_complex() or tensor.is_meta or tensor.layout != sys.modules["torch"].strided:
        raise TypeError(f"metric {name!r} was given {told(tensor)}; what is accepted is {accepted}")
    tensor = tensor.cpu()
    if tensor.is_floating_point() and str(tensor.dtype) not in (
        "torch.float16",
        "torch.float32",
        "torch.float64",
    ):
        tensor = tensor.float()
    return tensor.resolve_neg().numpy()


def _is_small_float(array: Array) -> bool:
    """Whether it is a bfloat16 or the like, of the ml_dtypes package."""
    return array.dtype.names is None and "float" in array.dtype.name
