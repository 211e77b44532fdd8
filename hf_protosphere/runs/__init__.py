"""What is on disk and how it gets there: whole files, checkpoints, logs, finished runs; processes.

May be imported by everything that reads or writes files. Start at `files.py`.
"""

from ..moved import names_of

__getattr__ = names_of(__name__)  # of version 0.1.0
