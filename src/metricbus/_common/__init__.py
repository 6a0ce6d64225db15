"""Modules that several rooms share; none of them knows about runs in progress.

Records and their encoding, the base of media values, settings, sink URLs, validation of names and
values, the step clock, ranks, values on accelerators, processes, files, wake-ups of threads,
rate-limited logging, and logging above progress bars.
Must not access: any other room but `_compat`. Modules here import only each other, that room and
`metricbus.errors`.
"""
