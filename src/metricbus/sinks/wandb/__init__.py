"""W&B sink: one W&B run for each metricbus run, with a history row for each row and medium.

`sink` numbers and logs the rows; `start` begins the W&B run, and `service` detects when W&B's own
process dies. `names` maps names, `media` and `tables` convert media to columns. `_compat/wandb.py`
reads from W&B's files which rows are safe there.
"""
