"""Imports of packages that only some functions need."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from metricbus.errors import MissingPackageError


def import_optional(module: str, feature: str, install: str) -> Any:
    """Import and return a module.

    Raises `MissingPackageError`, which says that `feature` needs it and to `pip install {install}`.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingPackageError(f"{feature} needs {module}: pip install {install}") from error
