"""Objects that watch a run: system metrics, early stopping, the best value so far.

In: an open bus, and the values that the training loop reports.
Out: metrics such as `system/cpu` on the bus; decisions such as "stop now" for the loop.
Promises: a monitor that fails warns once and never raises into the training loop.
May not touch: the journal or any sink; it only calls `bus.log()` and the public API.
"""

from metricbus.monitors.early_stopping import Best, EarlyStopping
from metricbus.monitors.system import SystemMonitor

__all__ = ["Best", "EarlyStopping", "SystemMonitor"]
