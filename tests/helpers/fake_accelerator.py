"""A fake accelerator in host memory, for tests on machines without an accelerator."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray

from metricbus._common.device_values import as_64_bits
from tests.helpers.limits import HANG_SECS


class FakeAccelerator:
    """An accelerator whose copies to the host complete once `released` is set.

    If `blocked` is false, `released` is set from the start.
    """

    def __init__(self, *, blocked: bool = False) -> None:
        self.released = threading.Event()
        if not blocked:
            self.released.set()

    def stream(self, device: Any) -> str:
        return "the only stream"

    def fetch(
        self, device: Any, parts: Sequence[torch.Tensor], streams: Iterable[Any]
    ) -> NDArray[Any]:
        assert self.released.wait(HANG_SECS)
        values: NDArray[Any] = torch.cat([as_64_bits(part) for part in parts]).numpy().copy()
        return values
