"""The paper is cited alike everywhere."""

from hf_protosphere import losses
from hf_protosphere.metrics.paper import PAPER_BIBTEX, PAPER_URL
from tests import ROOT


def test_the_readme_cites_it_in_the_same_words():
    assert f"```bibtex\n{PAPER_BIBTEX}\n```" in (ROOT / "README.md").read_text()


def test_the_url_is_that_of_the_number_in_the_losses():
    assert PAPER_URL == "https://arxiv.org/abs/2605.20302"
    assert f"arXiv {PAPER_URL.rpartition('/')[2]}" in losses.__doc__
