"""The paper that everything here comes from."""

PAPER_URL = "https://arxiv.org/abs/2605.20302"

PAPER_BIBTEX = """\
@inproceedings{koromilas2026neural,
  title     = {Neural Collapse by Design: Learning Class Prototypes on the Hypersphere},
  author    = {Koromilas, Panagiotis and Giannakopoulos, Theodoros and Nicolaou, Mihalis A. and
               Panagakis, Yannis},
  booktitle = {Proceedings of the 43rd International Conference on Machine Learning (ICML)},
  year      = {2026},
}"""
