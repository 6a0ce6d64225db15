"""The command line: `metricbus ls | show | tail | plot | …`.

Input: arguments, settings from the environment, and run folders, which may be damaged or come from
other programs.
Output: text for people, or JSON with `--json` (JSON lines for `tail`); files for `plot`, `export`
and `import`; deliveries for `deliver`. Exit status 0 on success, 1 if there is a problem to report,
such as undelivered values, 2 for misuse and unreadable input, 130 after Ctrl-C.
Guarantees: errors are messages, not tracebacks; text from a run cannot control the terminal; tables
fit the terminal's width; commands that only read leave runs unchanged.
Must not access: the journal, except through `_journal`; the bus.

`app` has the typer application, with one module per command. The entry point below needs only the
core package: without typer or rich it names the extra to install.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command line."""
    missing = [name for name in ("typer", "rich") if find_spec(name) is None]
    if missing:
        print(
            f"The command line needs {' and '.join(missing)}: pip install 'metricbus[cli]'",
            file=sys.stderr,
        )
        raise SystemExit(2)
    try:
        from metricbus._cli.app import app

        app()
    except KeyboardInterrupt:
        # During the import; later, typer handles Ctrl-C itself.
        raise SystemExit(130) from None
    finally:
        _flush_output()


def _flush_output() -> None:
    """Write buffered output. If the reader of a pipe has closed it, discard the output silently.

    Without this, Python would report the closed pipe while it ends.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
