"""A matrix of recipes, objectives and seeds, trained and published: `protosphere release`.

Imports `training` and `hub`. Start at `release.py`.
"""
