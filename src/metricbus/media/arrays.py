"""Conversion of arrays, tensors and nested lists to numpy arrays, and the axes of images."""

from __future__ import annotations

import sys
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Layout: TypeAlias = Literal["HW", "HWC", "CHW"]

MAX_PIXELS = 1 << 26
"""The largest number of pixels of an image; more are almost certainly a mistake."""

_CHANNELS = (1, 3, 4)


def is_tensor(value: object) -> bool:
    """Check whether `value` is a torch tensor, without importing torch."""
    return isinstance(value, getattr(sys.modules.get("torch"), "Tensor", ()))


def as_array(name: str, value: Any, accepted: str) -> Array:
    """Return an array, a tensor or nested lists as a numpy array, without a copy if possible.

    Raises `TypeError` or `ValueError`, naming the metric and what is `accepted`, unless the
    elements are real numbers.
    """
    if is_tensor(value):
        value = _tensor_to_numpy(name, value, accepted)
    if np.ma.isMaskedArray(value):
        raise TypeError(
            f"metric {name!r} was given a masked array; replace its masked elements with "
            "array.filled(...)"
        )
    try:
        array = np.asarray(value)
    except Exception as error:  # a foreign __array__() may raise anything
        raise ValueError(
            f"metric {name!r} was given {type(value).__name__}, which cannot be converted to an "
            f"array ({error}); expected {accepted}"
        ) from None
    if array.dtype.kind not in "biuf":
        if array.dtype.kind == "V" and _is_ml_dtypes_float(array):
            return array.astype(np.float32)
        raise TypeError(unexpected(name, value, accepted, array))
    return array


def snapshot(view: Array) -> Array:
    """Return a contiguous copy, which later changes in place do not affect."""
    return np.array(view, copy=True, order="C")


def describe_array(value: Any, array: Array | None = None) -> str:
    """Describe a value by its class, shape and dtype; `array` is its conversion, for lists."""
    kind = type(value).__name__
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None and array is not None and array.ndim:
        shape, dtype = array.shape, array.dtype
    return kind if shape is None else f"{kind} of shape {tuple(shape)} and dtype {dtype}"


def unexpected(name: str, value: Any, expected: str, array: Array | None = None) -> str:
    """Return the message of an error about a value that is not what was expected."""
    return f"metric {name!r} was given {describe_array(value, array)}; expected {expected}"


def check_layout(name: str, value: object, shape: tuple[int, ...], layout: str | None) -> Layout:
    """Return the layout of an image of this shape; raise `ValueError` if it has none.

    Two axes are height and width. Of three axes, the channel axis is the one of length 1, 3 or 4.
    If both the first and the last axis qualify, it is the first of a tensor and the last of
    anything else. A given `layout` overrides this.
    """
    accepted = "height and width, with 1, 3 or 4 channels first or last"
    if layout not in (None, "HW", "HWC", "CHW"):
        raise ValueError(f'metric {name!r}: layout= must be "HW", "HWC" or "CHW", not {layout!r}')
    if 0 in shape:
        raise ValueError(
            f"metric {name!r} was given an empty image of shape {shape}; expected {accepted}"
        )
    if len(shape) == 2 and layout in (None, "HW"):
        found: Layout = "HW"
    elif len(shape) == 3 and layout != "HW":
        first, last = shape[0] in _CHANNELS, shape[2] in _CHANNELS
        if layout is None and not (first or last):
            raise ValueError(unexpected(name, value, accepted))
        if layout is None:
            layout = "CHW" if first and (is_tensor(value) or not last) else "HWC"
        found = "CHW" if layout == "CHW" else "HWC"
        if not (first if found == "CHW" else last):
            raise ValueError(unexpected(name, value, f"1, 3 or 4 channels for layout={found!r}"))
    else:
        raise ValueError(
            unexpected(name, value, accepted + (f" for layout={layout!r}" if layout else ""))
        )
    height, width = shape[-2:] if found in ("CHW", "HW") else shape[:2]
    check_size(name, (width, height))
    return found


def check_size(name: str, size: tuple[int, int]) -> None:
    """Raise `ValueError` for an image that has no pixels, or too many."""
    width, height = size
    if not 0 < width * height <= MAX_PIXELS:
        raise ValueError(
            f"metric {name!r} was given an image of {width:,} x {height:,}; images may have from 1 "
            f"to {MAX_PIXELS:,} pixels"
        )


def check_pixels(name: str, value: object, array: Array) -> None:
    """Raise `TypeError` unless the dtype is uint8, bool or a float."""
    if array.dtype != np.uint8 and array.dtype.kind not in "bf":
        raise TypeError(
            unexpected(name, value, "pixels as uint8, or as floats from 0 to 1")
            + ": call .astype(np.uint8) or divide by the largest value"
        )


def channels_last(array: Array, layout: Layout) -> Array:
    """Return the image in shape (H, W, C), or (H, W) if it has a single channel."""
    if layout == "CHW":
        array = array.transpose(1, 2, 0)
    return array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array


def to_uint8(array: Array) -> tuple[NDArray[np.uint8], str]:
    """Return the pixels as uint8, and a description of repairs, which is empty if there are none.

    Floats from 0 to 1 are scaled to 255; values outside are clipped, and NaN becomes 0.
    """
    if array.dtype == np.uint8:
        return array, ""
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255), ""
    repairs = []
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite and is clipped
        pixels = array.astype(np.float32)
    if np.isnan(pixels).any():
        repairs.append("NaN pixels are shown as 0")
        pixels = np.nan_to_num(pixels, nan=0.0, posinf=np.inf, neginf=-np.inf)
    if pixels.min() < 0 or pixels.max() > 1:
        repairs.append("pixels outside 0 to 1 are clipped (if yours are 0 to 255, divide by 255)")
        pixels = pixels.clip(0, 1)
    return np.rint(pixels * 255).astype(np.uint8), " and ".join(repairs)


def _tensor_to_numpy(name: str, tensor: Any, accepted: str) -> Any:
    """Return a torch tensor as a numpy array; convert floats that numpy lacks to float32."""
    tensor = tensor.detach()
    if tensor.is_complex() or tensor.is_meta or tensor.layout != sys.modules["torch"].strided:
        raise TypeError(unexpected(name, tensor, accepted))
    tensor = tensor.cpu()
    numpy_floats = ("torch.float16", "torch.float32", "torch.float64")
    if tensor.is_floating_point() and str(tensor.dtype) not in numpy_floats:
        tensor = tensor.float()
    return tensor.resolve_neg().numpy()


def _is_ml_dtypes_float(array: Array) -> bool:
    """Check whether the dtype is one of the `ml_dtypes` package, such as bfloat16."""
    return array.dtype.names is None and "float" in array.dtype.name
