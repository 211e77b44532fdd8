"""From any source to batches: one reader of data sets, one of labels, one of pixels.

Imports `runs` (whole files) and what is below it. Start at `dataset.py`; batches are made in `loaders.py`."""
