"""An accelerator in host memory, so that code for accelerators can be tested without one."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray

from metricbus._common.device_values import as_64_bits
from tests.helpers.limits import HANG_SECS


class FakeAccelerator:
    """Copies values to the host once `released` is set; it is from the start unless `is_late`."""

    def __init__(self, *, is_late: bool = False) -> None:
        self.released = threading.Event()
        if not is_late:
            self.released.set()

    def stream(self, device: Any) -> str:
        return "the only stream"

    def fetch(
        self, device: Any, parts: Sequence[torch.Tensor], streams: Iterable[Any]
    ) -> NDArray[Any]:
        assert self.released.wait(HANG_SECS)
        values: NDArray[Any] = torch.cat([as_64_bits(part) for part in parts]).numpy().copy()
        return values
