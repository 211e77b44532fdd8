"""Several models on several data sets, in one table: `protosphere transfer-suite`.

Imports `transfer`. Start at `transfer_suite.py`.
"""
