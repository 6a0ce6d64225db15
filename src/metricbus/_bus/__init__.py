"""What the training loop holds: `MetricBus`, scopes, loops, and the life cycle of a run.

In: calls from the training script.
Out: an open run (`open_run`, `session`), whose recorder, collector and delivery do the work.
Promises: apart from misuse of the API, nothing here raises into the training loop; every way a
process can end is handled (`shutdown`); copies in other processes join the run (`process_copies`).
May not touch: the files of a sink.
"""
