"""Delivers the journal to the sinks.

Input: the segments of a run's journal.
On the way: the `manager` starts consumers in threads (`thread_host`) or in a separate process
(`process_host`, `worker_process`). A `consumer` calls its sink and retries after failures
(`backoff`). Its `cursor` is the state machine of the delivery: it reads batches (`batch_reader`,
`row_filter`), saves the progress (`offsets_file`), and holds the `lease`, by which only one process
at a time delivers to a sink. `deliver` does all this for an existing run.
Output: calls of `Sink.write` and `Sink.flush`; counts per sink (`report`).
Guarantees: every record is delivered at least once, and exactly once to sinks that recognize
repeated records; a slow or failing sink delays neither the other sinks nor the training.
Must not access: the bus, the queue; it never writes to a segment.
"""
