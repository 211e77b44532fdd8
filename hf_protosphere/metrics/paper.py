"""The paper that everything here comes from."""

from pathlib import Path

PAPER_URL = "https://arxiv.org/abs/2605.20302"
PAPER_BIBTEX = Path(__file__).with_name("paper.bib").read_text(encoding="utf-8").rstrip()
