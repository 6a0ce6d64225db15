"""Pictures of series: as an image, in the terminal, or in a notebook.

`lines` makes of histories what is to be drawn; `figures` draws it by matplotlib and `terminal` by
plotext. Neither is imported before something is drawn.
"""
