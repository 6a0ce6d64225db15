"""The command line: `metricbus ls | show | tail | plot | …`.

The entry point works with the core package alone: where typer or rich is missing, it says which
extra has them.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec


def main() -> None:
    """Runs the command line; exit status 2 if it is not installed or misused, 130 after Ctrl-C."""
    missing = [name for name in ("typer", "rich") if find_spec(name) is None]
    if missing:
        print(
            f"the command line needs {' and '.join(missing)}: pip install 'metricbus[cli]'",
            file=sys.stderr,
        )
        raise SystemExit(2)
    try:
        from metricbus._cli.app import app

        app()
    except KeyboardInterrupt:  # while it imports; after that, typer sees to it
        raise SystemExit(130) from None
