"""What the machine and this process are doing: CPU, memory, disk, network and GPUs."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol, TypeAlias

from metricbus._bus.bus import MetricBus
from metricbus._bus.hook_arguments import check_bus
from metricbus._bus.scope import Scope
from metricbus._common.handle import HookHandle
from metricbus._common.wakeup import Event
from metricbus.errors import MissingPackageError

_log = logging.getLogger("metricbus.system")

_LONGEST_SECS = 86_400.0
_PATIENCE = 2.0  # seconds for a sample that is on its way

Sensor: TypeAlias = Callable[[], Mapping[str, float | None]]
"""Gives numbers by their names; None for what is not known now."""


class SystemMonitor(HookHandle):
    """Logs what the machine and this process are doing, every `every_secs` seconds.

    with SystemMonitor(bus):
        train()

    A daemon thread samples, the first time at once, and logs at the bus's current step, which it
    never moves. docs/torch.md has the names and units. What counts from one sample to the next
    (CPU, disk and network) begins with the second. With `gpus`, all of NVIDIA's in the machine are
    told, numbered as by `nvidia-smi`; without any there is nothing to tell. A sensor that fails is
    left out, and told once.

    `remove()`, the end of its `with` block, and the end of the run stop it. A forked child has no
    monitor.

    Raises `MissingPackageError` without psutil or, for `gpus`, nvidia-ml-py; `ValueError` for
    `every_secs` of 0 or less, or beyond a day.
    """

    def __init__(self, bus: MetricBus | Scope, every_secs: float = 10.0, gpus: bool = True) -> None:
        check_bus("SystemMonitor(bus, every_secs=10.0)", bus)
        if not 0.0 < every_secs <= _LONGEST_SECS:
            raise ValueError(f"every_secs= is above 0 and at most a day, not {every_secs!r:.60}")
        _check_package("psutil", "psutil", "")
        if gpus:
            _check_package("pynvml", "nvidia-ml-py", ", or write gpus=False")
        bus.log({})  # has the process-wide bus look at the environment
        self._bus = bus
        self._every_secs = every_secs
        self._gpus = gpus
        self._told: set[str] = set()
        self._stop = Event()
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="metricbus-system", daemon=True)
        self._thread.start()
        bus.before_close(self.remove)

    def _end(self, error: BaseException | None) -> None:
        """Stops it, and waits a moment until a sample that is on its way is logged."""
        if os.getpid() != self._pid:  # a forked child has neither the thread nor its locks
            return
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join(_PATIENCE)  # a sensor may hang

    def _run(self) -> None:
        opened: AbstractContextManager[list[Gpu]]
        opened = opened_gpus() if self._gpus else nullcontext([])
        with opened as gpus:
            sensors = host_sensors() | gpu_sensors(gpus)
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
            except Exception as error:  # whatever a driver or a system may raise
                self._tell(name, error)
        self._bus.log(row, step=self._bus.step)  # said outright, so that it never moves it

    def _tell(self, name: str, error: Exception) -> None:
        if name not in self._told:
            self._told.add(name)
            _log.warning("the sensor %s is left out: %s: %s", name, type(error).__name__, error)


def host_sensors() -> dict[str, Sensor]:
    """The sensors of the machine and of this process, by what warnings call them."""
    psutil = import_module("psutil")
    process = psutil.Process()
    return {
        "system/cpu": _FromSecond(lambda: {"system/cpu": psutil.cpu_percent()}),
        "system/memory": partial(_memory_of, psutil),
        "system/disk": _Rates(partial(_disk_of, psutil)),
        "system/network": _Rates(partial(_network_of, psutil)),
        "process/cpu": _FromSecond(lambda: {"process/cpu": process.cpu_percent()}),
        "process/memory": lambda: {"process/memory": process.memory_info().rss},
        "process/threads": lambda: {"process/threads": process.num_threads()},
    }


def gpu_sensors(gpus: Sequence[Gpu]) -> dict[str, Sensor]:
    """The sensors of each GPU, by what warnings call them."""
    return {
        f"gpu/{index}/{what}": partial(_of_gpu, f"gpu/{index}", read, gpu)
        for index, gpu in enumerate(gpus)
        for what, read in _OF_A_GPU.items()
    }


class Gpu(Protocol):
    """What is asked of a GPU; each method raises where it has no such sensor."""

    def utilisation(self) -> float:
        """The percentage of the last moment in which something ran on it."""

    def memory(self) -> tuple[int, int]:
        """The bytes that are used, and all that there are."""

    def power(self) -> float:
        """In watts."""

    def temperature(self) -> float:
        """In degrees Celsius."""

    def process_memory(self) -> int | None:
        """The bytes that this process uses; None where the driver does not say."""


class NvmlGpu:
    """A GPU by NVIDIA's management library, as nvidia-ml-py gives it."""

    def __init__(self, nvml: Any, index: int) -> None:
        self._nvml = nvml
        self._handle = nvml.nvmlDeviceGetHandleByIndex(index)

    def utilisation(self) -> float:
        """By the driver, over the last second at most."""
        return float(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu)

    def memory(self) -> tuple[int, int]:
        """Of all processes, in bytes."""
        memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
        return memory.used, memory.total

    def power(self) -> float:
        """NVML counts in milliwatts."""
        return float(self._nvml.nvmlDeviceGetPowerUsage(self._handle)) / 1000

    def temperature(self) -> float:
        """Of the chip."""
        chip = self._nvml.NVML_TEMPERATURE_GPU
        return float(self._nvml.nvmlDeviceGetTemperature(self._handle, chip))

    def process_memory(self) -> int | None:
        """None where it is not listed: it uses nothing, or has another number in a container."""
        listed = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        own = [one.usedGpuMemory for one in listed if one.pid == os.getpid()]
        return sum(own) if own and None not in own else None


@contextmanager
def opened_gpus() -> Iterator[list[Gpu]]:
    """NVIDIA's GPUs in the machine, for the length of a `with` block; none without its driver."""
    nvml = import_module("pynvml")
    try:
        nvml.nvmlInit()
        gpus: list[Gpu] = [NvmlGpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError as error:
        _log.info("no GPU is monitored: %s", error)
        yield []
        return
    try:
        yield gpus
    finally:
        nvml.nvmlShutdown()


def _gpu_memory(gpu: Gpu) -> dict[str, float | None]:
    used, total = gpu.memory()
    return {"memory": used, "memory_share": used / total}


_OF_A_GPU: dict[str, Callable[[Gpu], Mapping[str, float | None]]] = {
    "utilisation": lambda gpu: {"utilisation": gpu.utilisation()},
    "memory": _gpu_memory,
    "power": lambda gpu: {"power": gpu.power()},
    "temperature": lambda gpu: {"temperature": gpu.temperature()},
    "process_memory": lambda gpu: {"process_memory": gpu.process_memory()},
}


def _of_gpu(
    prefix: str, read: Callable[[Gpu], Mapping[str, float | None]], gpu: Gpu
) -> dict[str, float | None]:
    return {f"{prefix}/{name}": value for name, value in read(gpu).items()}


class _FromSecond:
    """Of a sensor that tells what was since it was last asked, all but the first answer."""

    def __init__(self, sensor: Sensor) -> None:
        self._sensor = sensor
        self._has_begun = False

    def __call__(self) -> Mapping[str, float | None]:
        found = self._sensor()
        begun, self._has_begun = self._has_begun, True
        return found if begun else {}


class _Rates:
    """Makes growing counters into what is added a second, from the second answer on."""

    def __init__(self, read: Callable[[], Mapping[str, int]]) -> None:
        self._read = read
        self._counts: Mapping[str, int] = {}
        self._time = 0.0

    def __call__(self) -> dict[str, float | None]:
        counts, now = self._read(), time.monotonic()
        secs = now - self._time
        rates: dict[str, float | None] = {
            name: max(0, count - self._counts[name]) / secs  # a device may have been taken away
            for name, count in counts.items()
            if name in self._counts and secs > 0.0
        }
        self._counts, self._time = counts, now
        return rates


def _memory_of(psutil: Any) -> dict[str, float | None]:
    memory = psutil.virtual_memory()
    return {"system/memory": memory.percent, "system/memory_used": memory.used}


def _disk_of(psutil: Any) -> dict[str, int]:
    disks = psutil.disk_io_counters()
    if disks is None:  # there are none
        return {}
    return {"system/disk/read": disks.read_bytes, "system/disk/write": disks.write_bytes}


def _network_of(psutil: Any) -> dict[str, int]:
    """All that left and came, but for what the machine tells itself."""
    every = psutil.net_io_counters(pernic=True).items()
    outside = [counters for name, counters in every if name not in ("lo", "lo0")]
    return {
        "system/network/sent": sum(counters.bytes_sent for counters in outside),
        "system/network/received": sum(counters.bytes_recv for counters in outside),
    }


def _check_package(module: str, package: str, instead: str) -> None:
    if find_spec(module) is None:
        raise MissingPackageError(
            f"SystemMonitor() needs {package}, which is not installed: "
            f"pip install 'metricbus[system]'{instead}"
        )
