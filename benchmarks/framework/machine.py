"""Where something was measured: the machine, the versions, what else it had to do.

There is nothing in it that tells whose machine it is: no host's name, no paths.
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
    """What is the same for all that is measured here."""

    processor: str
    cores: int
    memory: str
    kernel: str
    python: str
    versions: dict[str, str]


class Moment(msgspec.Struct, frozen=True):
    """How busy the machine was: the load average, and the share of its cores that was at work.

    The share is taken over a second in which nothing is measured, so it is the others' work, and
    the load average also has what was measured before.
    """

    load: float
    busy: float


def machine() -> Machine:
    """The one at hand, as far as this process may use it."""
    return Machine(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        memory=f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        kernel=f"{platform.system()} {platform.release().partition('-')[0]}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        versions=_versions(),
    )


def moment(seconds: float = 1.0) -> Moment:
    """How busy it is now; looking takes these seconds."""
    busy = psutil.cpu_percent(interval=seconds) / 100
    return Moment(load=round(os.getloadavg()[0], 2), busy=round(busy, 2))


def commit(root: Path = ROOT) -> str:
    """The code that is measured, as `1a2b3c4` or `1a2b3c4+changes`; empty outside of a checkout."""
    if not (root / ".git").exists():
        return ""
    try:
        name = _git(root, "rev-parse", "--short", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", "src", "benchmarks", "pyproject.toml")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{name}+changes" if changed else name


def _git(root: Path, *arguments: str) -> str:
    """What git answers; it takes no lock, so nobody who works here is disturbed."""
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, check=True, text=True, timeout=30)
    return done.stdout.strip()


def _processor() -> str:
    """The model's name, for which `platform` has no portable answer."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    """Of what is installed; some peers have an environment of their own."""
    apart = [str(path) for path in (ROOT / ".venv" / "peers").glob("lib/python*/site-packages")]
    return {
        package: found.version
        for package in PACKAGES
        for found in [*metadata.distributions(name=package, path=[*sys.path, *apart])][:1]
    }
