"""What others get of a finished run: card, commit, export, demo page.

Imports what it publishes, never the training loop. Start at `publish.py`."""
