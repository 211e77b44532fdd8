"""What others get of a finished run: card, commit, export, demo page.

Imports what it publishes, never the training loop. Start at `publish.py`.
"""

from ..moved import names_of

__getattr__ = names_of(__name__)  # of version 0.1.0
