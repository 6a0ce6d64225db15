"""Access to what other packages do not promise to keep: one module per package.

Each use checks that the internal is what this room expects. If not, the function degrades to the
weaker behavior that docs/compatibility.md lists, with one warning, and raises nothing.
Must not access: any other room. Nothing here imports another package before it is needed.
"""
