"""Parts that several rooms share and that know nothing of runs in progress.

Records (the vocabulary of the journal), settings, sink URLs, validation of names and values, the
step clock, file helpers, wake-ups without locks, values on accelerators, the rank of this process.
May not touch: anything above it. A module here imports only other modules of this package and
`metricbus.errors`.
"""
