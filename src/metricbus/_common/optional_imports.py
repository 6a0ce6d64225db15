"""Imports of packages that only some functions need."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from metricbus.errors import MissingPackageError


def check_installed(module: str, feature: str, install: str, package: str = "") -> None:
    """Raise `MissingPackageError` if a module is not installed, without importing it.

    The message says that `feature` needs `package` (default: the name of the module), and to
    `pip install {install}`.
    """
    if find_spec(module) is None:
        raise MissingPackageError(f"{feature} needs {package or module}: pip install {install}")


def import_optional(module: str, feature: str, install: str) -> Any:
    """Import and return a module; raise the same error as `check_installed` if that fails."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingPackageError(f"{feature} needs {module}: pip install {install}") from error
