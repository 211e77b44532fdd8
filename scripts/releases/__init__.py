"""A matrix of recipes, objectives and seeds, trained and published: `protosphere release`. Start at `release.py`."""
