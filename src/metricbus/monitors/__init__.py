"""Monitors of a run: system metrics, early stopping, the best value so far.

In: an open bus, and the values that it returns or that the training loop passes.
Out: metrics such as `system/cpu` on the bus; decisions such as "stop now" for the loop.
Promises: a sensor that fails is reported once, and never raises into the training loop. All ranks
make the same decisions.
May not touch: the journal or any sink. Monitors log through the bus.
"""

from metricbus.monitors.early_stopping import Best, EarlyStopping
from metricbus.monitors.system import SystemMonitor

__all__ = ["Best", "EarlyStopping", "SystemMonitor"]
