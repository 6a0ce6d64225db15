"""Hooks that log metrics from PyTorch training code; each takes one line to install.

Input: a bus or a scope, and a model, an optimizer, a loop or parameters.
Output: `bus.log()` calls at the bus's current step. The step itself only changes if the user asks
for it with `watch_optimizer(advance=True)`.
Guarantees: no hook waits for an accelerator, except `StepTimer` at the end of a loop and
`clip_grad_norm_` where torch itself does; a failure inside a hook is logged and does not stop
training; `remove()` restores the model and the optimizer.
Must not access: the queue, the journal, sinks. Hooks read gradients and weights; only clipping
changes them.

Other packages find tensors through `sys.modules`; they do not import torch.
`SystemMonitor`, `EarlyStopping` and `Best` belong to `metricbus.monitors` and are re-exported here.
"""

from metricbus.monitors.early_stopping import Best, EarlyStopping
from metricbus.monitors.system import SystemMonitor
from metricbus.torch._clip_grad_norm import clip_grad_norm_
from metricbus.torch._step_timer import StepTimer
from metricbus.torch._watch_activations import watch_activations
from metricbus.torch._watch_gradients import watch
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
