"""What the training loop uses: `MetricBus`, scopes, loops, and the life cycle of a run.

Input: calls from the training script.
Output: an open run (`open_run`, `session`), whose recorder, collector and delivery do the work.
Guarantees: only incorrect calls raise into the training loop, and those errors that `strict=True`
and merging across ranks ask for. A run is closed at the end of the script (`shutdown`). Copies of a
bus in other processes join its run (`process_copies`, `lazy_queue`).
Must not access: the files of a sink.

`MetricBus` (`bus`) has the public methods. Its core (`core`) has the state, a `Recorder` (`log()`),
a `Session` or none, and an `EpochSync` (ends of epochs, several ranks). The process-wide bus
(`default_bus`) replaces its core each time it is configured.
"""
