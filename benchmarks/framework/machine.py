"""Conditions of a measurement: hardware, package versions, and system load.

The description does not identify the machine: it contains no host name and no paths.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import msgspec
import psutil

ROOT = Path(__file__).parents[2]
PACKAGES = [
    "metricbus",
    "numpy",
    "msgspec",
    "torch",
    "tensorboard",
    "tensorboardX",
    "google-crc32c",
    "protobuf",
    "wandb",
    "mlflow",
    "lightning",
    "clu",
    "tensorflow",
    "trackio",
    "pyperf",
]


class Machine(msgspec.Struct, frozen=True):
    """Hardware and software, which are the same for all measurements on one machine."""

    processor: str
    cores: int
    memory: str
    kernel: str
    python: str
    versions: dict[str, str]


class LoadSample(msgspec.Struct, frozen=True):
    """Load of the machine: the load average, and the fraction of its cores that is busy.

    The busy fraction is sampled while nothing is measured, so it shows the load of other
    processes. The load average includes the preceding measurements.
    """

    load: float
    busy: float


def current_machine() -> Machine:
    """Describe this machine, as far as this process may use it."""
    return Machine(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        memory=f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        kernel=f"{platform.system()} {platform.release().partition('-')[0]}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        versions=_versions(),
    )


def sample_load(seconds: float = 1.0) -> LoadSample:
    """Measure the current load over this many seconds."""
    busy = psutil.cpu_percent(interval=seconds) / 100
    return LoadSample(load=round(os.getloadavg()[0], 2), busy=round(busy, 2))


def commit(root: Path = ROOT) -> str:
    """Return the current commit, as `1a2b3c4` or `1a2b3c4+changes`; empty outside a checkout."""
    if not (root / ".git").exists():
        return ""
    try:
        name = _git(root, "rev-parse", "--short", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", "src", "benchmarks", "pyproject.toml")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{name}+changes" if changed else name


def _git(root: Path, *arguments: str) -> str:
    """Run git without taking a lock, so that it does not interfere with other git processes."""
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, check=True, text=True, timeout=30)
    return done.stdout.strip()


def _processor() -> str:
    """Return the name of the CPU model, which `platform` does not report portably."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    """Return the versions of the installed packages, including those of the peers' environment."""
    separate = [str(path) for path in (ROOT / ".venv" / "peers").glob("lib/python*/site-packages")]
    return {
        package: found.version
        for package in PACKAGES
        for found in [*metadata.distributions(name=package, path=[*sys.path, *separate])][:1]
    }
