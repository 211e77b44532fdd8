"""What a trained network says of images: predictions, class means, probes on frozen features.

Imports `data` and below; used by everything that measures. Start at `predictions.py`.
"""
