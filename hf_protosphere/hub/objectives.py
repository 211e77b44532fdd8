"""What each objective is, in words: for cards and tables. `losses.py` computes them."""

from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Objective:
    """Embeddings u_i and prototypes w_c have unit norm; y_i is the class of image i, t the
    temperature. Of a linear layer a_c is the weight and b_c the bias, h_i its input."""

    title: str
    formula: str
    meaning: str  # a predicate: what the loss does
    reference: str
    bibtex: str | None = None  # where it is from, if not from the paper or a textbook


_FILE = Path(__file__).with_name("objectives.yaml")
WORDS = {name: Objective(**words) for name, words in yaml.safe_load(_FILE.read_text(encoding="utf-8")).items()}
