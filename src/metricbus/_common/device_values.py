"""Values on an accelerator, which are copied to the host later so that `log()` need not wait.

`log()` copies such values on the device, in the order of the current stream, so later in-place
changes have no effect on what was logged. The collector fetches all outstanding copies at once: it
gathers them on the device in a separate stream, transfers them to pinned memory, and waits for one
event. Only that stream waits for the training's streams, never the reverse.

This works for CUDA devices, which in torch include ROCm. Values on other devices are fetched during
the call, which waits for the device.

torch is looked up in `sys.modules`: without an import by the user there are no such values.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

from metricbus._common.records import Number
from metricbus.errors import DeviceError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Tensor: TypeAlias = Any


class Accelerator(Protocol):
    """The operations that a type of device needs so that its values can be fetched later."""

    def stream(self, device: Any) -> Any:
        """Return the current stream of the calling thread."""

    def fetch(self, device: Any, parts: Sequence[Tensor], streams: Iterable[Any]) -> NDArray[Any]:
        """Return the one-dimensional `parts`, written in `streams`, concatenated on the host.

        Each number has 64 bits: a float64 for floats, an int64 for others. May block; it is only
        called by the collector or by a caller that needs a value.
        """


class Cuda:
    """CUDA devices, accessed through torch."""

    def __init__(self) -> None:
        self._streams: dict[Any, Any] = {}
        self._pinned: Tensor = None

    def stream(self, device: Any) -> Any:
        """Return the current stream; raise `RuntimeError` during CUDA graph capture."""
        cuda = sys.modules["torch"].cuda
        if cuda.is_current_stream_capturing():
            raise RuntimeError(
                "log() was called during CUDA graph capture, so replays would log nothing; "
                "call it after the replay"
            )
        return cuda.current_stream(device)

    def fetch(self, device: Any, parts: Sequence[Tensor], streams: Iterable[Any]) -> NDArray[Any]:
        """Fetch all parts with one concatenation, one transfer and one event."""
        torch = sys.modules["torch"]
        with torch.no_grad(), torch.cuda.device(device):
            own_stream = self._streams.get(device)
            if own_stream is None:
                own_stream = self._streams[device] = torch.cuda.Stream(device)
            for stream in streams:
                own_stream.wait_event(stream.record_event())
            with torch.cuda.stream(own_stream):
                gathered = torch.cat([as_64_bits(part) for part in parts])
                pinned = self._pinned_buffer(torch, gathered.numel())
                pinned.copy_(gathered, non_blocking=True)
                # A blocking event: a thread that spins would occupy a core.
                finished = torch.cuda.Event(blocking=True)
                finished.record(own_stream)
            finished.synchronize()
        numbers: NDArray[Any] = pinned.numpy().copy()
        return numbers

    def _pinned_buffer(self, torch: Any, size: int) -> Tensor:
        """Return a buffer of `size` numbers, reused because pinning memory is expensive."""
        if self._pinned is None or self._pinned.numel() < size:
            capacity = max(1024, 1 << (size - 1).bit_length())
            with torch.inference_mode(False):  # the first caller may be in inference mode
                self._pinned = torch.empty(
                    capacity, dtype=torch.int64, device="cpu", pin_memory=True
                )
        return self._pinned[:size]


ACCELERATORS: dict[str, Accelerator] = {"cuda": Cuda()}
"""The supported accelerators, by torch's name of the device type."""

# Both the collector and callers that read a value back fetch, on their own threads.
_fetch_lock = threading.RLock()


def _renew_lock_in_child() -> None:
    global _fetch_lock
    _fetch_lock = threading.RLock()


# A thread that does not exist in the child may have held the lock.
os.register_at_fork(after_in_child=_renew_lock_in_child)


class DeviceCopy:
    """A copy of some values on one device; `numbers` has them once they have been fetched."""

    __slots__ = ("error", "numbers", "part", "stream")

    def __init__(self, part: Tensor) -> None:
        self.stream = ACCELERATORS[part.device.type].stream(part.device)
        self.part: Tensor = part
        self.numbers: list[Number] | None = None
        self.error: Exception | None = None


class DeviceValue(NamedTuple):
    """One value of a device copy, in a row that was logged."""

    source: DeviceCopy
    position: int

    def number(self) -> Number:
        """Return the value, fetching it if necessary; raise `DeviceError` if that fails."""
        source = self.source
        if source.numbers is None:
            fetch([source])
        if source.numbers is None:
            raise DeviceError(f"cannot copy a value to the host: {source.error}") from source.error
        return source.numbers[self.position]


def is_device_value(value: object) -> bool:
    """Check whether `value` is a single number on an accelerator that can be fetched later."""
    if type(value) is DeviceValue:
        return True
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        return False
    return (
        type(value) in (torch.Tensor, torch.nn.Parameter)  # subclasses may override anything
        and value.device.type in ACCELERATORS
        and value.numel() == 1
        and not value.is_complex()
        and not value.is_quantized
        and not value.is_nested
        and value.layout == torch.strided
        and value.dtype != torch.uint64
        and _has_memory(value)
    )


def _has_memory(value: Tensor) -> bool:
    """Check that a tensor is not a placeholder inside a transformation such as torch.func.vmap."""
    try:
        return bool(value.data_ptr())
    except RuntimeError:
        return False


def copy_device_values(values: Mapping[str, Any]) -> dict[str, DeviceValue]:
    """Copy values for which `is_device_value` holds, in stream order; return them by name."""
    row = {name: value for name, value in values.items() if type(value) is DeviceValue}
    groups: dict[tuple[Any, Any], dict[str, Tensor]] = {}
    for name, value in values.items():
        if name not in row:
            groups.setdefault((value.device, value.dtype), {})[name] = value.detach()
    for group in groups.values():
        row |= _device_values(group, _stack(list(group.values())))
    return row


def named_values(names: Sequence[str], values: Tensor) -> dict[str, Any]:
    """Return a row for `log()` that gives each name one element of a one-dimensional tensor.

    Never waits for an accelerator; a tensor on any other device is read at once.
    """
    values = values.detach()
    if values.device.type not in ACCELERATORS:
        return dict(zip(names, values.tolist(), strict=True))
    return dict(_device_values(names, values.clone()))


def fetch(copies: Iterable[DeviceCopy]) -> None:
    """Fetch all copies that are still on a device, with one transfer per device.

    A copy that cannot be fetched has its `error` set.
    """
    with _fetch_lock:
        by_device: dict[Any, list[DeviceCopy]] = {}
        for copy in dict.fromkeys(copies):
            if copy.numbers is None and copy.error is None:
                by_device.setdefault(copy.part.device, []).append(copy)
        for device, outstanding in by_device.items():
            if not _fetch_from(device, outstanding) and len(outstanding) > 1:
                for copy in outstanding:  # one at a time, to isolate the copies that fail
                    _fetch_from(device, [copy])
            for copy in outstanding:
                copy.part = copy.stream = None


def _fetch_from(device: Any, copies: Sequence[DeviceCopy]) -> bool:
    try:
        parts = [copy.part for copy in copies]
        streams = dict.fromkeys(copy.stream for copy in copies)
        numbers = ACCELERATORS[device.type].fetch(device, parts, streams)
        start = 0
        for copy, part in zip(copies, parts, strict=True):
            bits = numbers[start : start + part.numel()]
            start += part.numel()
            copy.numbers = (bits.view("float64") if part.is_floating_point() else bits).tolist()
            copy.error = None
    except Exception as error:  # a device may raise anything, and the collector must survive it
        for copy in copies:
            copy.error = error
        return False
    return True


def as_64_bits(part: Tensor) -> Tensor:
    """Return a one-dimensional tensor as int64: integers, or the bits of float64."""
    torch = sys.modules["torch"]
    if part.is_floating_point():
        return part.to(torch.float64).view(torch.int64)
    return part.to(torch.int64)


def _stack(values: list[Tensor]) -> Tensor:
    """Copy single-element tensors of one dtype into a new one-dimensional tensor, in one launch."""
    if len(values) == 1:
        return values[0].reshape(1).clone()
    if values[0].is_floating_point() and values[0].element_size() == 1:
        values = [value.float() for value in values]  # few operations support 8-bit floats
    return sys.modules["torch"].stack([value.reshape(()) for value in values])


def _device_values(names: Iterable[str], values: Tensor) -> dict[str, DeviceValue]:
    source = DeviceCopy(values)
    return {name: DeviceValue(source, position) for position, name in enumerate(names)}
