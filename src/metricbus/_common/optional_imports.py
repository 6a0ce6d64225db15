"""Packages that only some of the library's functions need."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from metricbus.errors import MissingPackageError


def import_optional(module: str, what: str, install: str) -> Any:
    """The module; `MissingPackageError` says that `what` needs it, and how to `install` it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingPackageError(f"{what} needs {module}: pip install {install}") from error
