"""Plots of series: as an image, in the terminal, or in a notebook.

`panels` turns histories into the lines of each panel; `matplotlib_figure` and `plotext_plot` draw
them. matplotlib and plotext are imported when something is drawn, not before.
"""
