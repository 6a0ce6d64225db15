"""metricbus: a logging facade for machine-learning metrics.

    from metricbus import MetricBus

    with MetricBus(run="digits", sinks="logging,csv,tensorboard") as bus:
        for step in bus.steps(range(100)):
            bus.log("train/loss", 1 / (step + 1))

The path of a record:

1. `bus.log()` checks name and value and appends one tuple to a bounded queue
   (`_bus/bus.py`, `_ingest/recorder.py`, `_ingest/queue.py`).
2. The collector thread takes calls from the queue, copies device values to the host, applies the
   reductions of `bus.define()`, and joins adjacent calls into rows (`_ingest/collector.py`,
   `_ingest/device_fetch.py`, `_aggregate/aggregator.py`, `_aggregate/row_builder.py`).
3. It appends the rows to the journal: JSON lines in a segment that no other process writes
   (`_journal/segment_writer.py`). Another thread first encodes images and other media into files
   (`media/`, `_ingest/media_worker.py`, `_journal/media_files.py`).
4. For each sink, a consumer reads the journal in batches from its stored cursor, in a thread or in
   a delivery process (`_delivery/manager.py`, `_delivery/consumer.py`,
   `_delivery/batch_reader.py`, `_delivery/cursor.py`).
5. The sink writes the batch to its backend. After a flush the consumer stores the new cursor
   (`sinks/base.py`, `sinks/csv/`, `sinks/tensorboard/`, ...).

`metricbus.read` (`_history/`) and the command line (`_cli/`) read the journal, too.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metricbus._bus.bus import MetricBus
    from metricbus._bus.default_bus import bus, configure
    from metricbus._common.distributed import agree
    from metricbus._common.records import Scalars
    from metricbus._delivery.deliver import deliver
    from metricbus._delivery.report import DeliveryError, Report, SinkCounts
    from metricbus._history.history import History, Series, read
    from metricbus._journal.run import Run
    from metricbus.errors import (
        ClosedError,
        ConfigError,
        DeviceError,
        JournalError,
        Lost,
        MediaError,
        MetricBusError,
        MissingPackageError,
        RankError,
        Rejected,
        RunExistsError,
        Unavailable,
    )
    from metricbus.media import (
        Audio,
        Box,
        Chart,
        File,
        Histogram,
        Histograms,
        Image,
        Table,
        Text,
        Video,
    )
    from metricbus.monitors.early_stopping import Best, EarlyStopping
    from metricbus.monitors.system import SystemMonitor
    from metricbus.sinks import Sink

__version__ = "0.1.0"

__all__ = [
    "Audio",
    "Best",
    "Box",
    "Chart",
    "ClosedError",
    "ConfigError",
    "DeliveryError",
    "DeviceError",
    "EarlyStopping",
    "File",
    "Histogram",
    "Histograms",
    "History",
    "Image",
    "JournalError",
    "Lost",
    "MediaError",
    "MetricBus",
    "MetricBusError",
    "MissingPackageError",
    "RankError",
    "Rejected",
    "Report",
    "Run",
    "RunExistsError",
    "Scalars",
    "Series",
    "Sink",
    "SinkCounts",
    "SystemMonitor",
    "Table",
    "Text",
    "Unavailable",
    "Video",
    "agree",
    "bus",
    "configure",
    "deliver",
    "read",
]

# Imported on first use, so that logging numbers does not import what only media need.
_FROM = {
    "metricbus.monitors.early_stopping": "Best EarlyStopping",
    "metricbus.errors": (
        "ClosedError ConfigError DeviceError JournalError Lost MediaError MetricBusError "
        "MissingPackageError RankError Rejected RunExistsError Unavailable"
    ),
    "metricbus._history.history": "History Series read",
    "metricbus.media": "Audio Box Chart File Histogram Histograms Image Table Text Video",
    "metricbus._delivery.deliver": "deliver",
    "metricbus._bus.bus": "MetricBus",
    "metricbus._bus.default_bus": "bus configure",
    "metricbus._common.distributed": "agree",
    "metricbus._common.records": "Scalars",
    "metricbus._delivery.report": "DeliveryError Report SinkCounts",
    "metricbus._journal.run": "Run",
    "metricbus.sinks": "Sink",
    "metricbus.monitors.system": "SystemMonitor",
}
_MODULE_OF = {name: module for module, names in _FROM.items() for name in names.split()}


if not TYPE_CHECKING:  # with this function in view, a type checker would accept any name

    def __getattr__(name: str) -> Any:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
