"""From `log()` to the journal: the hot path, and the thread behind it.

In: calls of `bus.log()`, on any thread (`recorder`).
On the way: the bounded `queue`; the `collector` thread, which copies device values to the host
(`device_fetch`), applies reductions (`_aggregate`), and builds rows; the `media_worker` thread,
which encodes images, histograms and other media.
Out: records, appended to the journal (`_journal`).
Promises: `log()` does no I/O, takes no lock, and waits for no thread and no device. Every value is
either written or counted as dropped.
May not touch: sinks, delivery.
"""
