"""The command line: `metricbus demo | deliver | doctor | sinks`.

The entry point works with the core package alone: where typer or rich is missing, it says which
extra has them.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec


def main() -> None:
    """Runs the command line; exit status 2 when it is not installed or misused."""
    missing = [name for name in ("typer", "rich") if find_spec(name) is None]
    if missing:
        print(
            f"the command line needs {' and '.join(missing)}: pip install 'metricbus[cli]'",
            file=sys.stderr,
        )
        raise SystemExit(2)
    from metricbus.cli.app import app

    app()
