"""Reductions that users declare with `bus.define()`: means over windows, epochs and ranks.

In: calls (name, value, weight, step, epoch, time) in the order in which they were logged.
Out: emissions (name, value, place), which `row_builder` joins into `Scalars` records; and partial
aggregates, for checkpoints and for merging across ranks.
Promises: sums are exact, so a result does not depend on how calls were split over chunks, ranks or
restarts.
May not touch: threads, files, the bus. Everything here runs on the collector's thread.
"""
