"""The documentation page on PyTorch shows the signature of each hook."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metricbus import torch as hooks

PAGE = Path(__file__).parents[2] / "docs" / "torch.md"


@pytest.mark.parametrize(
    "hook",
    [
        hooks.SystemMonitor,
        hooks.StepTimer,
        hooks.clip_grad_norm_,
        hooks.watch,
        hooks.watch_activations,
        hooks.watch_optimizer,
    ],
)
def test_the_page_has_the_signature(hook: Callable[..., Any]) -> None:
    annotated = inspect.signature(hook)
    plain = [param.replace(annotation=param.empty) for param in annotated.parameters.values()]
    signature = annotated.replace(parameters=plain, return_annotation=annotated.empty)
    assert f"`{hook.__name__}{signature}`" in PAGE.read_text()
