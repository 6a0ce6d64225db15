"""From `log()` to the journal: the hot path, and the threads behind it.

Input: calls of `bus.log()`, on any thread (`recorder`), and commands of the session (`commands`).
On the way: the bounded `queue`; the `collector` thread, which copies device values to the host
(`device_fetch`), applies reductions (`_aggregate`), and builds rows; the `media_worker` thread,
which encodes images, histograms and other media. `torchmetrics_values` holds metric objects until
the epoch ends.
Output: records, appended to the journal (`_journal`).
Guarantees: `log()` does no I/O, holds no lock while it queues numbers, and waits for no thread and
no device, unless the queue is full under `overflow="block"`. Every value is either written or
counted as dropped.
Must not access: sinks, delivery.
"""
