"""Plots of series: as an image file, in the terminal, or in a notebook.

`panels` turns histories into the lines of each panel; `matplotlib_figure` and `plotext_plot` draw
them. matplotlib and plotext are imported only when something is drawn.
"""
