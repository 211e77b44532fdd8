"""The science: how close embeddings are to neural collapse. Tensors in, numbers out.

Knows tensors and process groups: no models, no files, no network. Start at `neural_collapse.py`,
the metric; its formulas are in `geometry.py`. `evaluate_modules/` holds the same for 🤗 evaluate."""

from .neural_collapse import METRICS, MetricInfo, NeuralCollapse

__all__ = ["METRICS", "MetricInfo", "NeuralCollapse"]
