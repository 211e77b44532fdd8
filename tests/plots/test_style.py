"""Colours and lines can be told apart; a figure needs no display and leaves nothing behind."""

import itertools
import sys
from io import BytesIO

from matplotlib.colors import to_rgb
from PIL import Image

from hf_protosphere.plots.style import COLORS, STYLES, new_figure


def luminance(color):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_and_line_styles_are_as_many_and_all_different():
    assert len(set(COLORS)) == len(COLORS) == len(set(STYLES)) == len(STYLES)
    for first, second in itertools.combinations(COLORS, 2):
        assert sum((a - b) ** 2 for a, b in zip(to_rgb(first), to_rgb(second))) > 0.05
    assert all(luminance(color) < 0.5 for color in COLORS)  # seen on white


def test_a_figure_is_drawn_without_pyplot():
    before = "matplotlib.pyplot" in sys.modules
    figure = new_figure(3, 2)
    figure.subplots().plot([0, 1], [0, 1], linestyle=STYLES[4])
    file = BytesIO()
    figure.savefig(file, dpi=50)
    assert Image.open(file).size == (150, 100)
    assert ("matplotlib.pyplot" in sys.modules) == before
