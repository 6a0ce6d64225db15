"""The warning about a package whose internals have changed."""

from __future__ import annotations

import logging
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_log = logging.getLogger("metricbus.compat")

_reported: set[tuple[str, str]] = set()


@contextmanager
def degrading(package: str, internal: str, loss: str) -> Iterator[None]:
    """Report any error in the block, except for an `OSError`, as a change of an internal.

    The block contains nothing but the access. Execution continues after it, so what follows it is
    the weaker behavior. `loss` describes that in the warning.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        report_change(package, internal, loss, error)


def report_change(package: str, internal: str, loss: str, error: Exception) -> None:
    """Log, once per internal, that an installed package differs from what is expected."""
    if (package, internal) in _reported:
        return
    _reported.add((package, internal))
    version = getattr(sys.modules.get(package), "__version__", "")
    if package == "Python":
        version = platform.python_version()
    _log.warning(
        "%s %s: %s differs from what metricbus expects (%s: %s), so %s. Update metricbus, or "
        "install a version of %s that docs/compatibility.md lists",
        package,
        version,
        internal,
        type(error).__name__,
        error,
        loss,
        package,
    )
