"""Helper that runs a training script in a subprocess."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from tests.helpers.limits import HANG_SECS

# close() waits for the sinks of a busy machine.
PATIENT = {"METRICBUS_CLOSE_TIMEOUT": str(HANG_SECS)}


def run_script(folder: Path, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Write the code to `train.py` in `folder`, and run it there."""
    (folder / "train.py").write_text(textwrap.dedent(code))
    return subprocess.run(
        [sys.executable, "train.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=HANG_SECS,
        check=False,
        env=os.environ | PATIENT | environment,
    )
