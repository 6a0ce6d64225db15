"""The TensorBoard sink.

Input: rows, rewinds and media records of one run.
Output: event files that TensorBoard, its data server and its readers accept, and the lengths of
these files as the sink's state.
Guarantees: each record becomes one event. After a crash, records that are already in a file are
recognized by their position and not written again.
Must not access: the journal; other files in the output folder.
"""
