"""The CSV sink: one file for scalars and more for media, in the run folder or at a location."""
