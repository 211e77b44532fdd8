"""Several models on several data sets, in one table: `protosphere transfer-suite`. Start at `transfer_suite.py`."""
