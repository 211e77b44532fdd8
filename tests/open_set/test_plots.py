"""Reliability diagrams and histograms of scores show what was measured."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_curve

from hf_protosphere import ProtoSphereConfig
from hf_protosphere.open_set.confidence import reliability
from hf_protosphere.open_set.detection import Detection
from hf_protosphere.open_set.plots import plot_reliability, plot_unknown
from hf_protosphere.open_set.scores import FITTED, SCORES


def test_a_diagram_has_the_accuracy_and_the_number_of_every_bin(tmp_path, figures):
    logits = torch.tensor([[0.72, 0.28], [0.72, 0.28], [0.45, 0.55], [0.07, 0.93]]).log()
    bins = reliability(logits, torch.tensor([0, 1, 1, 1]), num_bins=10)
    plot_reliability({"Before": bins, "After": bins}, tmp_path / "reliability.png")
    assert Image.open(tmp_path / "reliability.png").size == (1320, 720)
    diagram, other, histogram, _ = figures[0].axes
    error = bins.expected_calibration_error
    assert diagram.get_title() == f"Before: ECE {error:.2%}"
    assert other.get_title().startswith("After: ECE")
    accuracy, gap = diagram.containers
    shown = {round(bar.get_x() + bar.get_width() / 2, 2): bar.get_height() for bar in accuracy}
    assert shown == pytest.approx({0.55: 1, 0.75: 0.5, 0.95: 1})  # bins that hold images
    ends = [bar.get_y() + bar.get_height() for bar in gap]
    assert ends == pytest.approx([0.55, 0.72, 0.93])  # the mean confidence
    heights = [bar.get_height() for bar in histogram.containers[0]]
    assert heights == [0, 0, 0, 0, 0, 1, 0, 2, 0, 1]
    assert [text.get_text() for text in histogram.texts] == [*[""] * 5, "1", "", "2", "", "1"]


@pytest.fixture
def detection():
    generator = torch.Generator().manual_seed(0)
    known = {name: torch.randn(80, generator=generator) + 1 for name in SCORES}
    unknown = {name: torch.randn(50, generator=generator) for name in SCORES}
    return Detection(known, unknown, {})


def test_histograms_hold_all_images_and_the_roc_is_sklearns(tmp_path, figures, detection):
    config = ProtoSphereConfig(rejection_threshold=0.25, rejection_score="energy")
    plot_unknown(detection, tmp_path / "unknown.png", config)
    assert Image.open(tmp_path / "unknown.png").size == (1980, 990)
    *histograms, roc = figures[0].axes
    assert [axes.get_title() for axes in histograms] == [*SCORES.values()]
    for axes in histograms:
        filled = [c for c in axes.containers if len(c) == 60 and hasattr(c, "patches")]
        assert [sum(bar.get_height() for bar in bars) for bars in filled] == pytest.approx(
            [100, 100]  # per cent, those beyond the outermost bins included
        )
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        assert labels[:2] == ["80 known", "50 unknown"]
        assert ("threshold 0.250" in labels) == (axes.get_title() == SCORES["energy"])
    truth = np.repeat([1, 0], [80, 50])
    for name, line in zip(SCORES, roc.lines):
        scores = torch.cat([detection.known[name], detection.unknown[name]]).double()
        false, true, _ = roc_curve(truth, scores)
        assert line.get_label() == SCORES[name]
        assert line.get_xdata() == pytest.approx(false)
        assert line.get_ydata() == pytest.approx(true)


def test_without_those_that_were_not_fitted_there_is_one_row(tmp_path, figures, detection):
    for name in FITTED:
        del detection.known[name], detection.unknown[name]
    plot_unknown(detection, tmp_path / "unknown.pdf", ProtoSphereConfig())
    *histograms, roc = figures[0].axes
    assert len(histograms) == 3
    assert roc.get_subplotspec().get_gridspec().get_geometry() == (1, 4)
    legends = [text.get_text() for axes in histograms for text in axes.get_legend().get_texts()]
    assert not any("threshold" in text for text in legends)
    assert (tmp_path / "unknown.pdf").read_bytes().startswith(b"%PDF")
