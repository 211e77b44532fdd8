"""Long tails are deterministic, as published, and shown."""

import json

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from hf_protosphere.data.dataset import load_image_dataset
from hf_protosphere.data.labels import labels_of
from hf_protosphere.data.subsets import long_tailed, long_tailed_counts
from hf_protosphere.errors import ArgumentError
from hf_protosphere.evaluation.classifier_metrics import accuracy_by_frequency
from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.training.train import train


def test_the_usual_long_tail_of_cifar():
    # As in every paper on CIFAR-10-LT with a factor of 0.01.
    counts = long_tailed_counts([5000] * 10, "exp", 0.01)
    assert counts == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert sum(counts) == 12_406
    assert long_tailed_counts([5000] * 10, "step", 0.1) == [5000] * 5 + [500] * 5


@given(
    available=st.lists(st.integers(1, 1000), min_size=2, max_size=30),
    kind=st.sampled_from(["exp", "step"]),
    factor=st.floats(0.001, 1),
)
def test_counts_fall_and_never_exceed_what_there_is(available, kind, factor):
    counts = long_tailed_counts(available, kind, factor)
    assert all(1 <= count <= there for count, there in zip(counts, available))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == min(available)
    if kind == "exp" and factor < 1:
        assert counts[-1] == max(1, int(min(available) * factor + 1e-9))


def images(labels):
    return Dataset.from_dict({"image": list(range(len(labels))), "label": labels})


def test_images_are_drawn_by_the_seed():
    drawn = []
    for seed in (0, 0, 1):
        split = long_tailed(images([0, 1, 2] * 50), 3, "exp", 0.1, seed)
        assert np.bincount(labels_of(split)).tolist() == [50, 15, 5]
        drawn.append(split["image"][:])
        assert drawn[-1] == sorted(drawn[-1])
    assert drawn[0] == drawn[1] != drawn[2]


def test_groups_by_frequency():
    counts, accuracies = [500, 101, 100, 20, 19, 1], [1.0, 0.5, 0.4, 0.2, None, 0.1]
    by_frequency = accuracy_by_frequency(accuracies, counts)
    assert by_frequency == pytest.approx({"many": 0.75, "medium": 0.3, "few": 0.1})
    assert accuracy_by_frequency([None], [500]) == {}


def test_a_long_tailed_training_shows_and_saves_its_counts(digits_folder, tmp_path, capsys):
    arguments = TrainArguments(
        dataset_name=str(digits_folder), output_dir=str(tmp_path / "run"), epochs=1,
        backbone="test_resnet", batch_size=8, num_workers=0, report_to=["none"],
        imbalance="exp", imbalance_factor=0.1, pictures=False,
    )  # fmt: skip
    results = train(arguments)
    assert results["train_counts"] == {"digit_0": 36, "digit_1": 11, "digit_2": 3}
    printed = capsys.readouterr().out
    assert "long-tailed (exp): 36, 11, 3 images a class" in printed
    assert "accuracy, classes with 20 to 100" in printed
    test = json.loads((tmp_path / "run" / "results.json").read_text())["test"]
    first, *tail = test["class_accuracies"]
    assert test["accuracy_by_frequency"] == pytest.approx({"medium": first, "few": sum(tail) / 2})
    assert test["mean_class_accuracy"] == pytest.approx(test["accuracy"])  # 15 of each class
    balanced = load_image_dataset(str(digits_folder))
    assert results["validation"]["num_images"] == len(balanced.splits["validation"])


def test_factors_out_of_range_are_refused():
    for factor in (0, 1.5):
        with pytest.raises(ArgumentError, match="--imbalance_factor must be in"):
            TrainArguments(dataset_name="x", imbalance="exp", imbalance_factor=factor)
