"""Reductions declared with `bus.define()`: over windows, over epochs and across ranks.

Input: calls (name, value, weight, step, epoch, time), in the order in which they were logged.
Output: emissions (name, value, time, routing), which `row_builder` groups into `ScalarRow` records;
and partial aggregates, which are saved in checkpoints and merged across ranks.
Guarantees: sums are exact, so a mean or a sum does not depend on how its calls were split over
chunks, ranks or restarts.
Must not access: threads, files, the bus. The collector's thread runs `aggregator`.
"""
