"""Hooks that feed a bus from PyTorch; each is one line, and costs next to nothing.

Everything else in metricbus knows a tensor when it sees one, and never imports torch.
"""

from metricbus.monitors.early_stopping import Best, EarlyStopping
from metricbus.monitors.system import SystemMonitor
from metricbus.torch._clip_grad_norm import clip_grad_norm_
from metricbus.torch._step_timer import StepTimer
from metricbus.torch._watch import watch
from metricbus.torch._watch_activations import watch_activations
from metricbus.torch._watch_optimizer import watch_optimizer

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
