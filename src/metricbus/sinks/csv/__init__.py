"""The CSV sink: one file for scalars, more for media, in the run folder or elsewhere."""
