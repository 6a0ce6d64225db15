"""Monitors of a run: system metrics, early stopping, the best value so far.

Input: an open bus, and the values that it returns or that the training loop passes.
Output: metrics such as `system/cpu` on the bus; decisions such as "stop now" for the loop.
Guarantees: a sensor that fails is reported once, and never raises into the training loop. All ranks
make the same decisions.
Must not access: the journal or any sink. Monitors log through the bus.
"""

from metricbus.monitors.early_stopping import Best, EarlyStopping
from metricbus.monitors.system import SystemMonitor

__all__ = ["Best", "EarlyStopping", "SystemMonitor"]
