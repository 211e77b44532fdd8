"""Tables of classes and comparisons, beside slow counts and other libraries."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torchmetrics.functional.classification import (
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from hf_protosphere.evaluation.outcomes import (
    by_class,
    calibration,
    compare,
    confusions,
    interval,
    outcome_table,
)
from hf_protosphere.open_set.confidence import reliability

NAMES = [f"class {i}" for i in range(6)]


def outcomes(labels, predictions, confidences=None):
    """In batches of 7."""
    columns = [torch.as_tensor(x) for x in (labels, predictions, confidences or [0.9] * len(labels))]
    return outcome_table(zip(*(column.split(7) for column in columns)), NAMES)


def names(classes):
    return [NAMES[c] for c in classes]


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (200,), generator=generator)  # none of class 5
    right = torch.rand(200, generator=generator) < 0.6
    return labels, torch.where(right, labels, torch.randint(6, (200,), generator=generator))


def test_each_class_is_measured_as_torchmetrics_does(drawn):
    labels, predictions = drawn
    rows = by_class(outcomes(labels, predictions), NAMES)
    options = {"num_classes": 6, "average": "none"}
    for name, of in {
        "precision": multiclass_precision, "recall": multiclass_recall, "f1": multiclass_f1_score,
    }.items():  # fmt: skip
        expected = of(predictions, labels, **options)[:5].tolist()
        assert [row[name] for row in rows[:5]] == pytest.approx(expected)
    assert [row["images"] for row in rows] == labels.bincount(minlength=6).tolist()
    matrix = multiclass_confusion_matrix(predictions, labels, 6).fill_diagonal_(0)
    assert [row["confused_images"] for row in rows[:5]] == matrix.max(1).values.tolist()[:5]
    assert {key: value for key, value in rows[5].items() if value is not None} == {"class": "class 5", "images": 0}


def test_a_class_that_is_never_predicted_has_no_precision():
    row = by_class(outcomes([0, 0, 1], [1, 1, 1]), NAMES)[0]
    assert (row["precision"], row["recall"], row["f1"]) == (None, 0, 0)
    assert (row["confused_with"], row["confused_images"]) == ("class 1", 2)


def test_confusions_are_the_entries_of_the_matrix(drawn):
    labels, predictions = drawn
    found = confusions(outcomes(labels, predictions)).to_dict("records")
    matrix = multiclass_confusion_matrix(predictions, labels, 6)
    entries = {(f"class {g}", f"class {p}"): int(matrix[g, p]) for g, p in matrix.nonzero().tolist()}
    assert {(row["given"], row["predicted"]): row["images"] for row in found} == entries
    assert all(a["images"] >= b["images"] for a, b in pairwise(found))


def test_the_surest_images_come_first():
    found = outcomes([0, 0, 1, 2] * 2, [0, 1, 1, 0] * 2, [0.9, 0.5, 0.8, 0.7] * 2)
    assert found.index.tolist() == [0, 4, 2, 6, 3, 7, 1, 5]
    assert found.loc[3].tolist() == ["class 2", "class 0", 0.7]


def test_calibration_is_that_of_the_logits(drawn):
    labels, logits = drawn[0], torch.randn(200, 6, generator=torch.Generator().manual_seed(1))
    table = outcome_table([(labels, logits.argmax(-1), logits.double().softmax(-1).amax(-1))], NAMES)
    expected = reliability(logits, labels)
    for name in ("counts", "accuracy", "confidence"):
        assert torch.allclose(getattr(calibration(table), name), getattr(expected, name))


def test_the_interval_is_wilsons():
    low, high = interval(40, 50)
    z, p, n = 1.959963984540054, 0.8, 50
    middle, half = (p + z**2 / (2 * n)), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    assert (low, high) == (
        pytest.approx((middle - half) / (1 + z**2 / n)),
        pytest.approx((middle + half) / (1 + z**2 / n)),
    )
    assert interval(50, 50)[0] < 0.95


def test_two_models_are_compared_by_the_images_that_one_has_right():
    n, ahead, behind = 300, 12, 4
    labels = torch.zeros(n, dtype=torch.int64)
    ours, theirs = labels.clone(), labels.clone()
    theirs[:ahead], ours[ahead : ahead + behind] = 1, 1
    found = compare(outcomes(labels, ours).assign(other_predicted=names(theirs)))
    assert (found["only_ours_right"], found["only_theirs_right"]) == (12, 4)
    assert found["difference"] == pytest.approx(8 / 300)
    assert found["p_value"] == pytest.approx(2 * binom.cdf(4, 16, 0.5))
    # Images drawn anew, a thousand times, and both models on them.
    rng = np.random.default_rng(1)
    gain = (ours == 0).double().numpy() - (theirs == 0).double().numpy()
    draws = [gain[rng.integers(n, size=n)].mean() for _ in range(1000)]
    assert found["difference_interval"] == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.005)
    same = compare(outcomes(labels, ours).assign(other_predicted=names(ours)))
    assert (same["difference"], same["p_value"]) == (0, 1)
