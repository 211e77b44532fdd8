"""The picture of neighbours: queries first, right and wrong told apart without colours too."""

import pytest
from matplotlib.colors import to_rgba
from PIL import Image

from hf_protosphere.retrieval import plots
from hf_protosphere.retrieval.plots import (
    RIGHT,
    SHOWN_NEIGHBOURS,
    SHOWN_QUERIES,
    WRONG,
    PicturedImage,
    plot_neighbours,
)
from tests.open_set.test_threshold import noise


@pytest.fixture
def drawn(tmp_path, figures):
    """Draws rows of images, and gives the figure."""

    def draw(rows):
        plot_neighbours(rows, tmp_path / "neighbours.png")
        assert Image.open(tmp_path / "neighbours.png").size[0] > 300
        return figures[-1]

    return draw


def pictured(caption, is_right=None, mode="RGB"):
    return PicturedImage(noise(mode=mode), caption, is_right)


def test_every_query_leads_its_neighbours(drawn):
    near = [pictured("a  0.9", True), pictured("b  0.8", False), pictured("0.7", None, "P")]
    figure = drawn([(pictured("one"), near), (pictured("two", mode="RGBA"), near[:1])])
    assert "dashed red: of another" in figure.get_suptitle()
    panels = figure.axes
    captions = [axes.get_title() for axes in panels]
    assert captions == ["one", "a 0.9", "b 0.8", "0.7", "two", "a 0.9", "", ""]
    assert [axes.axison for axes in panels] == [True] * 6 + [False] * 2
    spines = [axes.spines["left"] for axes in panels[:4]]
    colors = [spine.get_edgecolor() for spine in spines]
    assert colors == [to_rgba(color) for color in ("black", RIGHT, WRONG, "0.7")]
    assert [spine.get_linestyle() for spine in spines] == ["-", "-", "--", "-"]


def test_without_labels_nothing_is_said_of_them(drawn):
    figure = drawn([(pictured("one"), [pictured("0.9")])])
    assert figure.get_suptitle() == "Queries (left) and the nearest images, with their cosines"


def test_a_picture_stays_of_a_size_to_look_at(drawn, monkeypatch):
    assert SHOWN_QUERIES * (1 + SHOWN_NEIGHBOURS) == 260  # drawing so many takes seconds
    monkeypatch.setattr(plots, "SHOWN_QUERIES", 2)
    monkeypatch.setattr(plots, "SHOWN_NEIGHBOURS", 3)
    figure = drawn([(pictured("q"), [pictured("n")] * 4)] * 3)
    assert len(figure.axes) == 2 * (1 + 3)


def test_large_images_are_made_small_and_stay_as_they_are(drawn):
    large = Image.new("RGB", (900, 300), "red")
    figure = drawn([(PicturedImage(large, "large"), [pictured("0.9")])])
    assert large.size == (900, 300)
    assert figure.axes[0].images[0].get_array().shape[:2] == (75, 224)
