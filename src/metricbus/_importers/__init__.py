"""Converts the logs of other tools to runs: TensorBoard event files and CSV files.

Input: a file or folder of another tool, and an `ImportTarget` (root folder and name of the new
run).
Output: a finished run folder like any other, which `metricbus.read` reads and `metricbus.deliver`
sends to any sink; and an `ImportResult` with counts of what was imported and what was left out.
Guarantees: a source is read once, in pieces, so it can be larger than memory. Data without an
equivalent in a run are skipped and counted by reason. A failed import leaves no run folder.
Must not access: the bus, existing runs, sinks (except the cell format of the CSV sink).

`csv` and `tensorboard` read the sources. `cells` parses CSV cells, and `tensorboard_values` decodes
the values in summaries. Both readers write through `run_writer`.
"""

from __future__ import annotations

from metricbus._importers.csv import import_csv
from metricbus._importers.run_writer import ImportResult, ImportTarget
from metricbus._importers.tensorboard import import_tensorboard

__all__ = ["ImportResult", "ImportTarget", "import_csv", "import_tensorboard"]
