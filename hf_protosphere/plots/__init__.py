"""How things are drawn: curves, spheres, tables. Finished numbers in, a picture or text out.

Imports `metrics` only. Start at `curves.py`; a slice's own pictures are in the slice, drawn with
`style.py` and `table.py`.
"""
