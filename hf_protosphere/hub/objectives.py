"""What each objective is, in words: for cards and tables. `losses.py` computes them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Objective:
    """Embeddings u_i and prototypes w_c have unit norm; y_i is the class of image i, t the
    temperature. Of a linear layer a_c is the weight and b_c the bias, h_i its input."""

    title: str
    formula: str
    meaning: str  # a predicate: what the loss does
    reference: str
    bibtex: str | None = None  # where it is from, if not from the paper or a textbook
    trains_prototypes: bool = False


_PAPER = "Koromilas et al., ICML 2026"
OBJECTIVES = {
    "nonl": Objective(
        "NONL",
        "mean_i [ logsumexp_{j: yj ≠ yi} w_yi·u_j / t − w_yi·u_i / t ]",
        "pulls every image to the prototype of its class, and pushes that prototype away from the "
        "images of the other classes in the batch",
        _PAPER,
        trains_prototypes=True,
    ),
    "ntce": Objective(
        "NTCE",
        "mean_i [ logsumexp_j w_yi·u_j / t − w_yi·u_i / t ]",
        "pulls every image to the prototype of its class, against all images of the batch",
        _PAPER,
        trains_prototypes=True,
    ),
    "scl": Objective(
        "Supervised contrastive loss",
        "mean_i [ logsumexp_{j ≠ i} u_i·u_j / t − mean_{p: yp = yi, p ≠ i} u_i·u_p / t ]",
        "pulls augmented views of images of one class together, against all other views of the "
        "batch",
        "Khosla et al., NeurIPS 2020",
        """\
@inproceedings{khosla2020supervised,
  title     = {Supervised Contrastive Learning},
  author    = {Khosla, Prannay and Teterwak, Piotr and Wang, Chen and Sarna, Aaron and
               Tian, Yonglong and Isola, Phillip and Maschinot, Aaron and Liu, Ce and
               Krishnan, Dilip},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {33},
  year      = {2020},
}""",
    ),
    "normface": Objective(
        "NormFace",
        "mean_i [ logsumexp_c w_c·u_i / t − w_yi·u_i / t ]",
        "pulls every image to the prototype of its class, against all prototypes",
        "Wang et al., ACM Multimedia 2017",
        """\
@inproceedings{wang2017normface,
  title     = {NormFace: L2 Hypersphere Embedding for Face Verification},
  author    = {Wang, Feng and Xiang, Xiang and Cheng, Jian and Yuille, Alan L.},
  booktitle = {Proceedings of the 25th ACM International Conference on Multimedia},
  year      = {2017},
}""",
        trains_prototypes=True,
    ),
    "cross_entropy": Objective(
        "Softmax cross-entropy",
        "mean_i [ logsumexp_c (a_c·h_i + b_c) − (a_yi·h_i + b_yi) ]",
        "raises the score of an image's class above the scores of the others",
        "the classical loss",
    ),
}
