"""metricbus: a logging facade for machine-learning metrics.

    from metricbus import MetricBus

    with MetricBus(name="digits", sinks="logging,csv,tensorboard") as bus:
        for step in bus.steps(range(100)):
            bus.log("train/loss", 1 / (step + 1))

The path of a record:

1. `bus.log()` checks name and value and appends one tuple to a bounded queue
   (`_bus/bus.py`, `_ingest/recorder.py`, `_ingest/queue.py`).
2. The collector thread takes these calls from the queue, copies device values to the host, applies
   the reductions of `bus.define()`, and joins adjacent calls into rows (`_ingest/collector.py`,
   `_ingest/device_fetch.py`, `_aggregate/aggregator.py`, `_aggregate/row_builder.py`).
3. It appends the rows to the journal as JSON lines. Each process writes a file of its own, called a
   segment (`_journal/segment_writer.py`). Another thread encodes images and other media into files
   before their records are appended (`media/`, `_ingest/media_worker.py`,
   `_journal/media_files.py`).
4. For each sink, a consumer reads the journal in batches from its stored cursor, in a thread or in
   a delivery process (`_delivery/manager.py`, `_delivery/consumer.py`,
   `_delivery/cursor.py`, `_delivery/batch_reader.py`).
5. The sink writes the batch to its backend. After a flush the consumer stores the new cursor
   (`sinks/base.py`, `sinks/csv/`, `sinks/tensorboard/`, ...).

`metricbus.read` (`_history/`) and the command line (`_cli/`) read the journal, too.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metricbus._bus.bus import MetricBus as MetricBus
    from metricbus._bus.default_bus import bus as bus
    from metricbus._bus.default_bus import configure as configure
    from metricbus._common.distributed import agree as agree
    from metricbus._common.records import ScalarRow as ScalarRow
    from metricbus._delivery.deliver import deliver as deliver
    from metricbus._delivery.report import DeliveryError as DeliveryError
    from metricbus._delivery.report import Report as Report
    from metricbus._delivery.report import SinkCounts as SinkCounts
    from metricbus._history.history import History as History
    from metricbus._history.history import Series as Series
    from metricbus._history.history import read as read
    from metricbus._journal.run import Run as Run
    from metricbus.errors import BackendUnavailableError as BackendUnavailableError
    from metricbus.errors import ClosedError as ClosedError
    from metricbus.errors import ConfigError as ConfigError
    from metricbus.errors import DeviceError as DeviceError
    from metricbus.errors import JournalError as JournalError
    from metricbus.errors import MediaError as MediaError
    from metricbus.errors import MetricBusError as MetricBusError
    from metricbus.errors import MissingPackageError as MissingPackageError
    from metricbus.errors import RankError as RankError
    from metricbus.errors import RecordsLostError as RecordsLostError
    from metricbus.errors import RecordsRejectedError as RecordsRejectedError
    from metricbus.errors import RunExistsError as RunExistsError
    from metricbus.media import Audio as Audio
    from metricbus.media import Box as Box
    from metricbus.media import Chart as Chart
    from metricbus.media import File as File
    from metricbus.media import Histogram as Histogram
    from metricbus.media import HistogramGroup as HistogramGroup
    from metricbus.media import Image as Image
    from metricbus.media import Table as Table
    from metricbus.media import Text as Text
    from metricbus.media import Video as Video
    from metricbus.monitors.early_stopping import Best as Best
    from metricbus.monitors.early_stopping import EarlyStopping as EarlyStopping
    from metricbus.monitors.system import SystemMonitor as SystemMonitor
    from metricbus.sinks import Sink as Sink

__version__ = "0.1.0"

if sys.platform == "win32":
    raise ImportError("metricbus runs on Linux and macOS; on Windows, install it in WSL")

# Imported on first use, so that logging numbers does not import what only media need.
_FROM = {
    "metricbus.monitors.early_stopping": "Best EarlyStopping",
    "metricbus.errors": (
        "BackendUnavailableError ClosedError ConfigError DeviceError JournalError MediaError "
        "MetricBusError MissingPackageError RankError RecordsLostError RecordsRejectedError "
        "RunExistsError"
    ),
    "metricbus._history.history": "History Series read",
    "metricbus.media": "Audio Box Chart File Histogram HistogramGroup Image Table Text Video",
    "metricbus._delivery.deliver": "deliver",
    "metricbus._bus.bus": "MetricBus",
    "metricbus._bus.default_bus": "bus configure",
    "metricbus._common.distributed": "agree",
    "metricbus._common.records": "ScalarRow",
    "metricbus._delivery.report": "DeliveryError Report SinkCounts",
    "metricbus._journal.run": "Run",
    "metricbus.sinks": "Sink",
    "metricbus.monitors.system": "SystemMonitor",
}
_MODULE_OF = {name: module for module, names in _FROM.items() for name in names.split()}
__all__ = list(_MODULE_OF)

if not TYPE_CHECKING:  # with this function in view, a type checker would accept any name

    def __getattr__(name: str) -> Any:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
