"""What the training loop uses: `MetricBus`, scopes, loops, and the life cycle of a run.

Input: calls from the training script.
Output: an open run (`open_run`, `session`), whose recorder, collector and delivery do the work.
Guarantees: only incorrect calls raise into the training loop, and those errors that `strict=True`
and merging across ranks ask for. A run is closed at the end of the script (`shutdown`). Copies of a
bus in other processes join its run (`process_copies`).
Must not access: the files of a sink.

`MetricBus` (`bus`) is assembled from layers, each of which knows only those before it: `Recorder`
(`log()`), `ProcessCopies`, `Lifecycle` (flush and close), `EpochSync`, `MetricBus`.
"""
