"""System metrics: CPU, memory, disk, network and GPUs, of the machine and of this process."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

from metricbus._bus.bus import MetricBus
from metricbus._bus.hook_arguments import check_bus
from metricbus._bus.scope import Scope
from metricbus._common.handle import HookHandle
from metricbus._common.optional_imports import check_installed
from metricbus._common.wakeup import Event

_log = logging.getLogger("metricbus.system")

_MAX_INTERVAL_SECS = 86_400.0
_STOP_SECS = 2.0
_NVIDIA_DRIVER = Path("/proc/driver/nvidia")

Sensor: TypeAlias = Callable[[], Mapping[str, float | None]]
"""Reads values by metric name. None stands for a value that is not available at the moment."""


class SystemMonitor(HookHandle):
    """A background thread that logs system metrics every `every_secs` seconds.

    with SystemMonitor(bus):
        train()

    The first sample is taken at once. Samples are logged at the current step, without advancing it.
    docs/torch.md lists the names and units. CPU load and the rates of disk and network are logged
    from the second sample on, because they need two. All NVIDIA GPUs of the machine are included,
    numbered as in `nvidia-smi`, if there are any; `gpus=False` leaves them out, and `gpus=True`
    requires nvidia-ml-py. A sensor that fails is skipped, with a warning the first time.

    The monitor stops at `remove()`, at the end of its `with` block, and when the run is closed. A
    forked child process has no monitor.

    Raises `MissingPackageError` without psutil or, for `gpus=True`, nvidia-ml-py, and `ValueError`
    unless `every_secs` is above 0 and at most 86,400, a day.
    """

    def __init__(
        self, bus: MetricBus | Scope, every_secs: float = 10.0, gpus: bool | None = None
    ) -> None:
        check_bus("SystemMonitor(bus, every_secs=10.0)", bus)
        if not 0.0 < every_secs <= _MAX_INTERVAL_SECS:
            raise ValueError(
                f"every_secs= must be above 0 and at most a day (86,400 s), not {every_secs!r:.60}"
            )
        install = "'metricbus[system]'"
        check_installed("psutil", "SystemMonitor()", install)
        if gpus:
            install += ", or leave out gpus="
            check_installed("pynvml", "SystemMonitor()", install, package="nvidia-ml-py")
        elif gpus is None:
            gpus = find_spec("pynvml") is not None
            if not gpus and _NVIDIA_DRIVER.exists():
                _log.warning("GPUs are not monitored without nvidia-ml-py: pip install %s", install)
        bus.log({})  # opens the process-wide bus if the environment configures it
        self._bus = bus
        self._every_secs = every_secs
        self._has_gpus = gpus
        self._failed_sensors: set[str] = set()
        self._stop = Event()
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="metricbus-system", daemon=True)
        self._thread.start()
        bus.before_close(self.remove)

    def _end(self, error: BaseException | None) -> None:
        """Stop the thread, and wait for the sample that is being taken."""
        if os.getpid() != self._pid:  # a forked child has neither the thread nor its locks
            return
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join(_STOP_SECS)  # not for ever, because a sensor may hang

    def _run(self) -> None:
        opened: AbstractContextManager[dict[str, Sensor]]
        opened = gpu_sensors() if self._has_gpus else nullcontext({})
        with opened as of_gpus:
            sensors = host_sensors() | of_gpus
            due = time.monotonic()
            while not self._stop.wait(max(0.0, due - time.monotonic())):
                self._log_sample(sensors)
                due = time.monotonic() + self._every_secs

    def _log_sample(self, sensors: Mapping[str, Sensor]) -> None:
        if self._bus.run is None:
            return
        row: dict[str, float] = {}
        for name, sensor in sensors.items():
            try:
                row |= {key: value for key, value in sensor().items() if value is not None}
            except Exception as error:  # a driver may raise anything
                self._warn_of_failure(name, error)
        self._bus.log(row, step=self._bus.step)  # with an explicit step, it is never advanced

    def _warn_of_failure(self, name: str, error: Exception) -> None:
        if name not in self._failed_sensors:
            self._failed_sensors.add(name)
            _log.warning("Sensor %s is skipped: %s: %s", name, type(error).__name__, error)


def host_sensors() -> dict[str, Sensor]:
    """Return the sensors of the machine and of this process, by the name used in warnings."""
    psutil = import_module("psutil")
    process = psutil.Process()
    return {
        "system/cpu": _SkipFirst(lambda: {"system/cpu": psutil.cpu_percent()}),
        "system/memory": partial(_memory, psutil),
        "system/disk": _Rates(partial(_disk_bytes, psutil)),
        "system/network": _Rates(partial(_network_bytes, psutil)),
        "process/cpu": _SkipFirst(lambda: {"process/cpu": process.cpu_percent()}),
        "process/memory": lambda: {"process/memory": process.memory_info().rss},
        "process/threads": lambda: {"process/threads": process.num_threads()},
    }


@contextmanager
def gpu_sensors() -> Iterator[dict[str, Sensor]]:
    """Provide the sensors of all NVIDIA GPUs; none if the driver is not available."""
    nvml = import_module("pynvml")
    sensors: dict[str, Sensor] = {}
    try:
        nvml.nvmlInit()
        for index in range(nvml.nvmlDeviceGetCount()):
            sensors |= _sensors_of_gpu(nvml, index)
    except nvml.NVMLError as error:
        _log.info("GPUs are not monitored: %s", error)
        yield {}
        return
    try:
        yield sensors
    finally:
        nvml.nvmlShutdown()


def _sensors_of_gpu(nvml: Any, index: int) -> dict[str, Sensor]:
    """Return the sensors of one GPU. A sensor raises `NVMLError` if the GPU does not have it."""
    gpu, chip = nvml.nvmlDeviceGetHandleByIndex(index), nvml.NVML_TEMPERATURE_GPU

    def memory() -> dict[str, float | None]:
        info = nvml.nvmlDeviceGetMemoryInfo(gpu)
        return {"memory": info.used, "memory_share": info.used / info.total}

    def process_memory() -> dict[str, float | None]:
        # The driver does not list a process that uses no memory, or that runs in a container, where
        # it has another process id.
        listed = nvml.nvmlDeviceGetComputeRunningProcesses(gpu)
        own = [process.usedGpuMemory for process in listed if process.pid == os.getpid()]
        return {"process_memory": sum(own) if own and None not in own else None}

    sensors: dict[str, Sensor] = {
        "utilisation": lambda: {"utilisation": float(nvml.nvmlDeviceGetUtilizationRates(gpu).gpu)},
        "memory": memory,
        "power": lambda: {"power": nvml.nvmlDeviceGetPowerUsage(gpu) / 1000},  # from mW to W
        "temperature": lambda: {"temperature": float(nvml.nvmlDeviceGetTemperature(gpu, chip))},
        "process_memory": process_memory,
    }
    prefix = f"gpu/{index}"
    return {f"{prefix}/{name}": partial(_prefixed, prefix, read) for name, read in sensors.items()}


def _prefixed(prefix: str, sensor: Sensor) -> dict[str, float | None]:
    return {f"{prefix}/{name}": value for name, value in sensor().items()}


class _SkipFirst:
    """A sensor that measures since its last reading, without its meaningless first reading."""

    def __init__(self, sensor: Sensor) -> None:
        self._sensor = sensor
        self._has_read = False

    def __call__(self) -> Mapping[str, float | None]:
        values = self._sensor()
        is_first, self._has_read = not self._has_read, True
        return {} if is_first else values


class _Rates:
    """A sensor that turns growing counters into increments per second, from the second reading."""

    def __init__(self, read: Callable[[], Mapping[str, int]]) -> None:
        self._read = read
        self._counts: Mapping[str, int] = {}
        self._time = 0.0

    def __call__(self) -> dict[str, float | None]:
        counts, now = self._read(), time.monotonic()
        secs = now - self._time
        # A counter shrinks if a device has been removed.
        rates: dict[str, float | None] = {
            name: max(0, count - self._counts[name]) / secs
            for name, count in counts.items()
            if name in self._counts and secs > 0.0
        }
        self._counts, self._time = counts, now
        return rates


def _memory(psutil: Any) -> dict[str, float | None]:
    memory = psutil.virtual_memory()
    return {"system/memory": memory.percent, "system/memory_used": memory.used}


def _disk_bytes(psutil: Any) -> dict[str, int]:
    disks = psutil.disk_io_counters()
    if disks is None:  # the machine has no disks
        return {}
    return {"system/disk/read": disks.read_bytes, "system/disk/write": disks.write_bytes}


def _network_bytes(psutil: Any) -> dict[str, int]:
    """Return the bytes sent and received, without those of the loopback interface."""
    interfaces = psutil.net_io_counters(pernic=True).items()
    external = [counters for name, counters in interfaces if name not in ("lo", "lo0")]
    return {
        "system/network/sent": sum(counters.bytes_sent for counters in external),
        "system/network/received": sum(counters.bytes_recv for counters in external),
    }
