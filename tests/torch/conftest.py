"""Fixtures for the tests of the PyTorch hooks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    """A process group with a single rank."""
    init_method = f"file://{tmp_path}/rendezvous"
    dist.init_process_group("gloo", init_method=init_method, rank=0, world_size=1)
    yield
    dist.destroy_process_group()
