"""What a trained network says of images. Start at `predictions.py`, or `predict.py` for `protosphere predict`."""
