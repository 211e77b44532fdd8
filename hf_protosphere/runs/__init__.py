"""What is on disk and how it gets there: whole files, checkpoints, logs, finished runs; processes.

May be imported by everything that reads or writes files. Start at `files.py`."""
