"""Foreign logs become runs: event files of TensorBoard, and CSV files.

What comes out is a run like any other: `metricbus.read` reads it, `metricbus.deliver` brings it to
any sink. A source is read once, piece by piece, so it may be larger than memory. What a run has no
word for is left out, counted and told; an import that fails leaves no run behind.
"""

from __future__ import annotations

from metricbus._importers.csv import import_csv
from metricbus._importers.run_writer import Destination, Imported
from metricbus._importers.tensorboard import import_tensorboard

__all__ = ["Destination", "Imported", "import_csv", "import_tensorboard"]
