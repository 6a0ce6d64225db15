"""The TensorBoard sink.

In: rows, rewinds and media records of one run.
Out: event files that TensorBoard, its data server and its readers accept, and the lengths of these
files as the sink's state.
Promises: each record becomes one event. After a crash, records that are already in a file are
recognized by their position and not written again.
May not touch: the journal; other files in the output folder.
"""
