"""What a trained network says of images: predictions, class means, probes on frozen features.

Imports `data` and below. Start at `predictions.py`, or `predict.py` for `protosphere predict`."""
