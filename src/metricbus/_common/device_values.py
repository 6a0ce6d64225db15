"""Values on an accelerator, which come over later: nobody waits for the device at the call.

`log()` takes a copy of such values in the order of the current stream, so what changes in place
afterwards does not show. The collector brings everything that is outstanding over at once: gathered
on the device in a stream of its own, one transfer into pinned memory, one event to wait for. Only
that stream waits for the training's, never the other way round.

CUDA (and ROCm, which calls itself that) is done so. Other devices are waited for at the call.

torch is found in `sys.modules`: who never imported it has no such values.
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
    """What is asked of a kind of device, so that its values need not be waited for."""

    def stream(self, device: Any) -> Any:
        """The stream that the caller's work goes to now."""

    def bring(self, device: Any, parts: Sequence[Tensor], streams: Iterable[Any]) -> NDArray[Any]:
        """The parts, which were written in these streams, one behind the other in main memory.

        Each number comes as 64 bits: a float64 for floats, an int64 for the others. Only the
        collector calls this, or who wants a value back; it may wait.
        """


class Cuda:
    """CUDA devices, by torch."""

    def __init__(self) -> None:
        self._streams: dict[Any, Any] = {}
        self._pinned: Tensor = None

    def stream(self, device: Any) -> Any:
        """The current stream; `RuntimeError` while a graph is captured."""
        cuda = sys.modules["torch"].cuda
        if cuda.is_current_stream_capturing():
            raise RuntimeError(
                "log() was called while a CUDA graph is captured, so that its replays would log "
                "nothing; call it after the replay"
            )
        return cuda.current_stream(device)

    def bring(self, device: Any, parts: Sequence[Tensor], streams: Iterable[Any]) -> NDArray[Any]:
        """One gathering, one transfer, one event."""
        torch = sys.modules["torch"]
        with torch.no_grad(), torch.cuda.device(device):
            own = self._streams.get(device)
            if own is None:
                own = self._streams[device] = torch.cuda.Stream(device)
            for stream in streams:
                own.wait_event(stream.record_event())
            with torch.cuda.stream(own):
                gathered = torch.cat([as_64_bits(part) for part in parts])
                pinned = self._room(torch, gathered.numel())
                pinned.copy_(gathered, non_blocking=True)
                done = torch.cuda.Event(blocking=True)  # a thread that spins would take a core
                done.record(own)
            done.synchronize()
        found: NDArray[Any] = pinned.numpy().copy()
        return found

    def _room(self, torch: Any, numbers: int) -> Tensor:
        """Pinned memory is costly to get, so it is used again."""
        if self._pinned is None or self._pinned.numel() < numbers:
            room = max(1024, 1 << (numbers - 1).bit_length())
            with torch.inference_mode(False):  # whoever asks first may be in it
                self._pinned = torch.empty(room, dtype=torch.int64, device="cpu", pin_memory=True)
        return self._pinned[:numbers]


ACCELERATORS: dict[str, Accelerator] = {"cuda": Cuda()}
"""By torch's name for the type of device."""

_bringing = threading.RLock()  # also who asks for a value back may bring some over


def _renew_in_child() -> None:
    global _bringing
    _bringing = threading.RLock()


os.register_at_fork(after_in_child=_renew_in_child)  # a thread that is not there may hold it


class DeviceCopy:
    """Some values of one device as they were at the call; `numbers` once they have come over."""

    __slots__ = ("error", "numbers", "part", "stream")

    def __init__(self, part: Tensor) -> None:
        self.stream = ACCELERATORS[part.device.type].stream(part.device)
        self.part: Tensor = part
        self.numbers: list[Number] | None = None
        self.error: Exception | None = None


class Pending(NamedTuple):
    """One value of a snapshot, in a row that was logged."""

    snapshot: DeviceCopy
    place: int

    def number(self) -> Number:
        """The value, if it has come over; waits for it otherwise. `DeviceError` if it cannot."""
        snapshot = self.snapshot
        if snapshot.numbers is None:
            bring([snapshot])
        if snapshot.numbers is None:
            raise DeviceError(f"the device gave no value: {snapshot.error}") from snapshot.error
        return snapshot.numbers[self.place]


def is_deferred(value: object) -> bool:
    """Whether it is a number on an accelerator, for which `log()` need not wait."""
    if type(value) is Pending:
        return True
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        return False
    return (
        type(value) in (torch.Tensor, torch.nn.Parameter)  # others may not be what they seem
        and value.device.type in ACCELERATORS
        and value.numel() == 1
        and not value.is_complex()
        and not value.is_quantized
        and not value.is_nested
        and value.layout == torch.strided
        and value.dtype != torch.uint64
        and not torch._C._functorch.is_functorch_wrapped_tensor(value)
    )


def defer(values: Mapping[str, Any]) -> dict[str, Pending]:
    """What stands in a row for values of which each `is_deferred`: copies in stream order."""
    found = {name: value for name, value in values.items() if type(value) is Pending}
    alike: dict[tuple[Any, Any], dict[str, Tensor]] = {}
    for name, value in values.items():
        if name not in found:
            alike.setdefault((value.device, value.dtype), {})[name] = value.detach()
    for together in alike.values():
        found |= _named(together, _copy_of(list(together.values())))
    return found


def spread(names: Sequence[str], values: Tensor) -> dict[str, Any]:
    """What `log()` takes so that each name gets one value of a tensor; waits for no accelerator.

    `values` is a tensor with one dimension, on any device.
    """
    values = values.detach()
    if values.device.type not in ACCELERATORS:
        return dict(zip(names, values.tolist(), strict=True))
    return dict(_named(names, values.clone()))


def bring(snapshots: Iterable[DeviceCopy]) -> None:
    """Brings over all of them that have not come yet, by one transfer for each device.

    What cannot come has an `error` afterwards.
    """
    with _bringing:
        by_device: dict[Any, list[DeviceCopy]] = {}
        for snapshot in dict.fromkeys(snapshots):
            if snapshot.numbers is None and snapshot.error is None:
                by_device.setdefault(snapshot.part.device, []).append(snapshot)
        for device, waiting in by_device.items():
            if not _try_to_bring(device, waiting) and len(waiting) > 1:
                for snapshot in waiting:  # for the sake of those that are all right
                    _try_to_bring(device, [snapshot])
            for snapshot in waiting:
                snapshot.part = snapshot.stream = None


def _try_to_bring(device: Any, waiting: Sequence[DeviceCopy]) -> bool:
    try:
        _bring(device, waiting)
    except Exception as error:  # whatever a device may raise; the collector lives on
        for snapshot in waiting:
            snapshot.error = error
        return False
    for snapshot in waiting:
        snapshot.error = None
    return True


def _bring(device: Any, waiting: Sequence[DeviceCopy]) -> None:
    parts = [snapshot.part for snapshot in waiting]
    streams = dict.fromkeys(snapshot.stream for snapshot in waiting)
    numbers = ACCELERATORS[device.type].bring(device, parts, streams)
    at = 0
    for snapshot, part in zip(waiting, parts, strict=True):
        bits = numbers[at : at + part.numel()]
        at += part.numel()
        snapshot.numbers = (bits.view("float64") if part.is_floating_point() else bits).tolist()


def as_64_bits(part: Tensor) -> Tensor:
    """The numbers of a tensor with one dimension as int64: integers, or the bits of float64."""
    torch = sys.modules["torch"]
    if part.is_floating_point():
        return part.to(torch.float64).view(torch.int64)
    return part.to(torch.int64)


def _copy_of(values: list[Tensor]) -> Tensor:
    """The values, alike in type, as a tensor of its own with one dimension; one launch."""
    if len(values) == 1:
        return values[0].reshape(1).clone()
    if values[0].is_floating_point() and values[0].element_size() == 1:
        values = [value.float() for value in values]  # there is little that 8 bits can do
    return sys.modules["torch"].stack([value.reshape(()) for value in values])


def _named(names: Iterable[str], values: Tensor) -> dict[str, Pending]:
    snapshot = DeviceCopy(values)
    return {name: Pending(snapshot, place) for place, name in enumerate(names)}
