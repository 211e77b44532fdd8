"""How things are drawn: curves, spheres, tables. Finished numbers in, a picture or text out.

Imports `metrics` only. Start at `curves.py`; a room's own pictures are in that room, drawn with `style.py`."""
