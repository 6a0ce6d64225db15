"""From the journal to the sinks.

In: the segments of a run's journal.
On the way: the `manager` starts consumers in threads (`thread_host`) or in a separate process
(`process_host`, `worker`). A `consumer` reads batches (`batch_reader`), filters them
(`row_filter`), writes them to its sink, retries after failures (`backoff`), and stores how far it
is (`cursor`). A `lease` ensures that one process at a time delivers to a sink.
Out: calls of `Sink.write` and `Sink.flush`; counts per sink (`report`).
Promises: at least once for every record, exactly once for sinks that recognize repeated records; a
slow or failing sink never delays another one or the training.
May not touch: the bus, the queue; it never writes to a segment.
"""
