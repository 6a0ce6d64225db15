# ruff: noqa: N802 - the fake has the names of NVIDIA's library
"""`SystemMonitor`, with a fake of NVIDIA's library.

The other values are real, and compared with those in /proc.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from metricbus import MetricBus, MissingPackageError
from metricbus._common.records import Number
from metricbus.monitors import system
from metricbus.monitors.system import SystemMonitor
from metricbus.testing import MemorySink
from tests.helpers.limits import HANG_SECS

WaitFor = Callable[[Callable[[], bool]], None]

THREAD = "metricbus-system"


class FakeNvml:
    """A fake `pynvml`, for a machine with two GPUs or one without the driver."""

    __spec__ = ModuleSpec("pynvml", None)
    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        self.has_driver = True
        self.has_power = True
        self.is_open = False
        self.listed = [SimpleNamespace(pid=os.getpid(), usedGpuMemory=100)]
        self.listed.append(SimpleNamespace(pid=1, usedGpuMemory=1000))

    def nvmlInit(self) -> None:
        if not self.has_driver:
            raise self.NVMLError("Driver Not Loaded")
        self.is_open = True

    def nvmlShutdown(self) -> None:
        self.is_open = False

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(gpu=70 + handle, memory=1)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(used=2 << 30, total=8 << 30)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        if not self.has_power:
            raise self.NVMLError("Not Supported")
        return 250_500

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        return 60

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[SimpleNamespace]:
        return self.listed


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    return nvml


def first_row(
    bus: MetricBus, sink: MemorySink, wait_for: WaitFor, **options: Any
) -> dict[str, Number]:
    """Return the first sample, without waiting for a second one."""
    with SystemMonitor(bus, every_secs=60.0, **options):
        wait_for(lambda: bus.stats().logged > 0)
    bus.flush()
    (record,) = sink.records
    return dict(record.values)


def later_rows(bus: MetricBus, sink: MemorySink, wait_for: WaitFor) -> list[dict[str, Number]]:
    """Return the samples from the second on."""
    with SystemMonitor(bus, every_secs=0.01, gpus=False):
        wait_for(lambda: bus.last("system/cpu") is not None)
    bus.flush()
    return [dict(record.values) for record in sink.records[1:]]


def proc_kilobytes(file: str, field: str) -> int:
    lines = Path(file).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def is_running() -> bool:
    return any(thread.name == THREAD for thread in threading.enumerate())


def test_takes_the_first_sample_at_once(
    bus: MetricBus, sink: MemorySink, wait_for: WaitFor
) -> None:
    row = first_row(bus, sink, wait_for, gpus=False)
    assert list(row) == ["system/memory", "system/memory_used", "process/memory", "process/threads"]


def test_logs_rates_from_the_second_sample_on(
    bus: MetricBus, sink: MemorySink, wait_for: WaitFor
) -> None:
    rates = (
        {f"system/disk/{rate}" for rate in ("read", "write")} if psutil.disk_io_counters() else ()
    )
    for row in later_rows(bus, sink, wait_for):
        assert {"system/network/sent", "system/network/received", *rates} <= row.keys()
        assert all(value >= 0 for value in row.values())
        assert row["system/cpu"] <= 100


def test_system_memory_matches_proc(bus: MetricBus, sink: MemorySink, wait_for: WaitFor) -> None:
    row = first_row(bus, sink, wait_for, gpus=False)
    total = proc_kilobytes("/proc/meminfo", "MemTotal:") * 1024
    available = proc_kilobytes("/proc/meminfo", "MemAvailable:") * 1024
    assert row["system/memory"] == pytest.approx(100 * (1 - available / total), abs=20)
    assert 0 < row["system/memory_used"] < total


def test_process_values_match_proc(bus: MetricBus, sink: MemorySink, wait_for: WaitFor) -> None:
    row = first_row(bus, sink, wait_for, gpus=False)
    resident = proc_kilobytes("/proc/self/status", "VmRSS:") * 1024
    assert row["process/memory"] == pytest.approx(resident, rel=0.2)
    assert abs(row["process/threads"] - proc_kilobytes("/proc/self/status", "Threads:")) <= 5


def test_busy_process_has_cpu_load(bus: MetricBus, sink: MemorySink, wait_for: WaitFor) -> None:
    with SystemMonitor(bus, every_secs=0.05, gpus=False):
        wait_for(lambda: sum(range(100_000)) > 0 and (bus.last("process/cpu") or 0) > 5)


def test_samples_have_the_current_step_and_never_advance_it(
    bus: MetricBus, sink: MemorySink, wait_for: WaitFor
) -> None:
    bus.log("loss", 1.0, step=7)
    with SystemMonitor(bus, every_secs=0.01, gpus=False):
        wait_for(lambda: bus.stats().logged > 20)
    bus.flush()
    assert {record.step for record in sink.records} == {7}
    assert bus.step == 7


def test_scope_prefixes_the_names(bus: MetricBus, sink: MemorySink, wait_for: WaitFor) -> None:
    with SystemMonitor(bus.scope("node0"), gpus=False):
        wait_for(lambda: bus.last("node0/process/threads") is not None)


def test_logs_values_of_each_gpu(
    bus: MetricBus, sink: MemorySink, wait_for: WaitFor, nvml: FakeNvml
) -> None:
    row = first_row(bus, sink, wait_for)
    assert {name: value for name, value in row.items() if name.startswith("gpu/1/")} == {
        "gpu/1/utilisation": 71.0,
        "gpu/1/memory": 2 << 30,
        "gpu/1/memory_share": 0.25,
        "gpu/1/power": 250.5,
        "gpu/1/temperature": 60.0,
        "gpu/1/process_memory": 100,
    }
    assert row["gpu/0/utilisation"] == 70.0
    assert not nvml.is_open


@pytest.mark.parametrize("listed", [[], [None]], ids=["process not listed", "memory unknown"])
def test_omits_process_memory_that_the_driver_does_not_know(
    bus: MetricBus, sink: MemorySink, wait_for: WaitFor, nvml: FakeNvml, listed: list[None]
) -> None:
    nvml.listed = [SimpleNamespace(pid=os.getpid(), usedGpuMemory=used) for used in listed]
    assert "gpu/0/process_memory" not in first_row(bus, sink, wait_for)


def test_failing_sensor_is_skipped_with_one_warning(
    bus: MetricBus,
    sink: MemorySink,
    wait_for: WaitFor,
    nvml: FakeNvml,
    caplog: pytest.LogCaptureFixture,
) -> None:
    nvml.has_power = False
    with (
        caplog.at_level(logging.WARNING, logger="metricbus.system"),
        SystemMonitor(bus, every_secs=0.01),
    ):
        wait_for(lambda: bus.last("system/cpu") is not None)
    assert sorted(record.getMessage() for record in caplog.records) == [
        f"Sensor gpu/{index}/power is skipped: NVMLError: Not Supported" for index in (0, 1)
    ]
    bus.flush()
    assert "gpu/0/temperature" in sink.names()
    assert "gpu/0/power" not in sink.names()


def test_without_a_driver_no_gpu_is_logged(
    bus: MetricBus, sink: MemorySink, wait_for: WaitFor, nvml: FakeNvml
) -> None:
    nvml.has_driver = False
    assert not [name for name in first_row(bus, sink, wait_for) if name.startswith("gpu/")]


@pytest.mark.parametrize(
    ("package", "message"),
    [
        ("psutil", r"needs psutil.*pip install 'metricbus\[system\]'$"),
        ("pynvml", r"needs nvidia-ml-py.*pip install 'metricbus\[system\]', or leave out gpus="),
    ],
)
def test_error_for_a_missing_package_shows_the_pip_command(
    bus: MetricBus, monkeypatch: pytest.MonkeyPatch, package: str, message: str
) -> None:
    find_spec = "metricbus._common.optional_imports.find_spec"
    monkeypatch.setattr(find_spec, lambda name: name != package or None)
    with pytest.raises(MissingPackageError, match=message):
        SystemMonitor(bus, gpus=True)
    assert not is_running()


@pytest.mark.parametrize("has_driver", [True, False])
def test_without_nvidia_ml_py_the_rest_is_monitored(
    bus: MetricBus,
    sink: MemorySink,
    wait_for: WaitFor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    has_driver: bool,
) -> None:
    monkeypatch.setattr(system, "find_spec", lambda name: None)
    monkeypatch.setattr(system, "_NVIDIA_DRIVER", tmp_path if has_driver else tmp_path / "none")
    assert "process/memory" in first_row(bus, sink, wait_for)
    assert [r.getMessage() for r in caplog.records if r.name == "metricbus.system"] == [
        "GPUs are not monitored without nvidia-ml-py: pip install 'metricbus[system]'"
    ] * has_driver


@pytest.mark.parametrize("every_secs", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_interval_raises(bus: MetricBus, every_secs: float) -> None:
    with pytest.raises(ValueError, match="every_secs= must be above 0"):
        SystemMonitor(bus, every_secs=every_secs)


def test_error_without_a_bus_shows_the_correct_call() -> None:
    not_a_bus: Any = 5
    with pytest.raises(
        TypeError, match=r"must be a MetricBus.*not int.*SystemMonitor\(bus, every_secs="
    ):
        SystemMonitor(not_a_bus)
    assert not is_running()


def test_remove_ends_the_thread(bus: MetricBus) -> None:
    monitor = SystemMonitor(bus, gpus=False)
    assert is_running()
    monitor.remove()
    monitor.remove()
    assert not is_running()


def test_stops_when_the_run_is_closed(tmp_path: Path, wait_for: WaitFor) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus:
        SystemMonitor(bus, every_secs=0.01, gpus=False)
        wait_for(lambda: bus.stats().logged > 0)
    wait_for(lambda: not is_running())
    assert bus.stats().dropped == 0


def test_logs_nothing_if_the_bus_is_off() -> None:
    bus = MetricBus(disabled=True)
    with SystemMonitor(bus, gpus=False):
        pass
    assert bus.stats().logged == 0


def test_forked_child_has_no_monitor(bus: MetricBus, wait_for: WaitFor) -> None:
    monitor = SystemMonitor(bus, every_secs=60.0, gpus=False)
    wait_for(lambda: bus.stats().logged > 0)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        has_thread = is_running()
        monitor.remove()
        os._exit(int(has_thread))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    monitor.remove()


def test_does_not_keep_the_process_alive(tmp_path: Path) -> None:
    script = (
        "from metricbus import MetricBus\n"
        "from metricbus.monitors.system import SystemMonitor\n"
        "bus = MetricBus(sinks='')\n"
        "SystemMonitor(bus, every_secs=3600, gpus=False)\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, timeout=HANG_SECS, check=True)


def test_import_loads_neither_torch_nor_psutil() -> None:
    script = (
        "import sys, metricbus.monitors.system\n"
        "sys.exit(bool({'torch', 'psutil', 'pynvml'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", script], timeout=HANG_SECS, check=True)
