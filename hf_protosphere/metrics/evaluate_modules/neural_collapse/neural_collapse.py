"""How close embeddings are to neural collapse, as a module of 🤗 evaluate."""

import datasets
import evaluate
import torch

from hf_protosphere.metrics.neural_collapse import NeuralCollapse as NeuralCollapseMetric
from hf_protosphere.metrics.paper import PAPER_BIBTEX, PAPER_URL

_DESCRIPTION = """\
Neural collapse is the optimum of supervised classification: the embeddings of a class contract to
their mean, the class means form a simplex equiangular tight frame (unit vectors with all cosines
-1/(K-1)), and the classifier's weights equal the means. This module tells how far embeddings are
from it, in up to 13 published metrics, and which percentage of each optimum they attain.
"""

_KWARGS_DESCRIPTION = """
Args:
    embeddings: list of vectors of one length D, best of unit norm: what enters the classifier.
    references: list of integer labels from 0 to K-1.
    prototypes: optional (K, D), one row per class: the classifier's weights, best of unit norm.
        Without them the metrics that compare with the classifier are left out.
    num_classes: optional K; by default the largest reference plus one.

Returns:
    One number for each metric, and "attained": the percentage of each optimum, with "overall", the least of them.
    Where classes do not occur, "absent_classes" lists them, and what needs all of them is left out, "overall" too.

Example:
    >>> collapse = evaluate.load("neural_collapse")
    >>> results = collapse.compute(
    ...     embeddings=[[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]], references=[0, 0, 1, 1]
    ... )
    >>> results["nc1_cdnv"]
    0.0
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class NeuralCollapse(evaluate.Metric):
    def _info(self):
        info = evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=PAPER_BIBTEX,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                embeddings=datasets.Sequence(datasets.Value("float64")), references=datasets.Value("int64")
            ),
            reference_urls=[PAPER_URL, "https://arxiv.org/abs/2008.08186"],
        )
        # Not in the constructor, which allows formats for single numbers only. Without one evaluate
        # would hand over Python lists, 32 bytes a number; "numpy" would round to float32.
        info.format = "arrow"
        return info

    def _compute(self, embeddings, references, prototypes=None, num_classes=None):
        embeddings = embeddings.combine_chunks()
        lengths = embeddings.value_lengths().unique().to_pylist()
        if len(lengths) != 1:
            raise ValueError(f"embeddings must be vectors of one length, but have lengths {sorted(lengths)}.")
        numbers = embeddings.flatten().to_numpy(zero_copy_only=False)
        labels = torch.tensor(references.to_numpy())
        if num_classes is None:
            num_classes = int(labels.max()) + 1
        metric = NeuralCollapseMetric(num_classes, lengths[0])
        metric.update(torch.tensor(numbers).view(len(labels), -1), labels)
        return metric.compute(None if prototypes is None else torch.as_tensor(prototypes))
