"""Hooks that feed a bus from PyTorch; each is one line, and costs next to nothing.

Everything else in metricbus knows a tensor when it sees one, and never imports torch.
"""

from metricbus.monitors.early_stopping import Best, EarlyStopping
from metricbus.monitors.system import SystemMonitor
from metricbus.torch.activations import watch_activations
from metricbus.torch.clipping import clip_grad_norm_
from metricbus.torch.optimizers import watch_optimizer
from metricbus.torch.step_timer import StepTimer
from metricbus.torch.watching import watch

__all__ = [
    "Best",
    "EarlyStopping",
    "StepTimer",
    "SystemMonitor",
    "clip_grad_norm_",
    "watch",
    "watch_activations",
    "watch_optimizer",
]
