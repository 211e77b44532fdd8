"""What the losses are good for, in stages of measured rows: `python -m scripts.study`. Start at `__main__.py`."""
