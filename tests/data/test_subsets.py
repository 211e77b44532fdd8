"""Parts of a split are drawn by the seed; long tails are as published, and shown."""

import json
import re
from collections import Counter

import numpy as np
import pytest
from datasets import Dataset, load_dataset
from hypothesis import given
from hypothesis import strategies as st

from hf_protosphere.data.dataset import load_image_dataset
from hf_protosphere.data.labels import labels_of
from hf_protosphere.data.pixels import content_of, undecoded
from hf_protosphere.data.subsets import (
    balanced_sample,
    corrected,
    drawn,
    few_shot,
    long_tailed,
    long_tailed_counts,
    training_sample,
    with_held_out,
)
from hf_protosphere.errors import ArgumentError, DataError
from hf_protosphere.evaluation.classifier_metrics import accuracy_by_frequency
from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.training.train import train
from tests.data import NAMES, write


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
    kept = []
    for seed in (0, 0, 1):
        split = long_tailed(images([0, 1, 2] * 50), 3, "exp", 0.1, seed)
        assert np.bincount(labels_of(split)).tolist() == [50, 15, 5]
        kept.append(split["image"][:])
        assert kept[-1] == sorted(kept[-1])
    assert kept[0] == kept[1] != kept[2]


def one_by_one(labels, limit, seed):
    """What `balanced_sample` keeps: in a shuffled order, the first image of every class, then the
    second of every class, and so on."""
    order = np.random.default_rng(seed).permutation(len(labels))
    seen, turns = Counter(), {}
    for i in order:
        turns[i] = seen[labels[i]]
        seen[labels[i]] += 1
    return sorted(sorted(order, key=lambda i: turns[i])[:limit])


@given(
    labels=st.lists(st.sampled_from([0, 1, 2, 5]), min_size=1, max_size=40),
    limit=st.integers(1, 45),
    seed=st.integers(0, 5),
)
def test_a_balanced_sample_is_drawn_class_by_class_in_turns(labels, limit, seed):
    sample = balanced_sample(images(labels), limit, seed)
    assert sample["image"][:] == one_by_one(labels, limit, seed)
    counts, there = Counter(sample["label"][:]), Counter(labels)
    assert counts.total() == min(limit, len(labels))
    most = max(counts.values())
    assert all(counts[label] >= min(most - 1, there[label]) for label in there)


def test_a_sample_of_all_is_the_split_itself():
    split = images([0, 1, 1])
    assert balanced_sample(split, 3, seed=1) is balanced_sample(split, 9, seed=1) is split


def test_few_shots_are_so_many_of_each_class_as_there_are():
    split = few_shot(images([0] * 5 + [1] * 2 + [2] * 9), 4, 3, seed=0)
    assert np.bincount(labels_of(split), minlength=4).tolist() == [3, 2, 3, 0]
    assert split["image"][:] == sorted(split["image"][:])
    assert drawn(np.array([1, 0, 1]), [0, 2], seed=0).tolist() == [0, 2]


@given(counts=st.lists(st.integers(1, 30), min_size=1, max_size=5), fraction=st.floats(0.01, 0.9))
def test_a_share_of_each_class_is_held_out_and_never_all_of_one(counts, fraction):
    split = images(np.repeat(np.arange(len(counts)), counts).tolist())
    parts = with_held_out(split, fraction, seed=2)
    kept, held_out = (
        np.bincount(labels_of(parts[role]), minlength=len(counts)).tolist() for role in ("train", "validation")
    )
    for count, here, there in zip(counts, kept, held_out):
        assert here + there == count
        assert here >= 1
        assert there == min(max(round(fraction * count), 1), count - 1)
    assert not {*parts["train"]["image"]} & {*parts["validation"]["image"]}


@pytest.mark.parametrize(
    ("num_images", "num_classes", "size", "expected"),
    [
        (5000, 2, None, 50), (500, 2, None, 20), (15, 2, None, 15), (500, 2, 7, 7),
        (500, 2, 900, 500), (12_500, 1100, None, 11_000),  # ten of each class
    ],
)  # fmt: skip
def test_training_is_measured_on_a_fixed_sample(num_images, num_classes, size, expected):
    split = images([i % num_classes for i in range(num_images)])
    sample = training_sample(split, num_classes, size, seed=0)
    assert len(sample) == expected
    assert sample["image"][:] == training_sample(split, num_classes, size, seed=0)["image"][:]
    assert training_sample(split, num_classes, 0, seed=0) is None


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


@pytest.fixture
def four(tmp_path):
    """A split of four images, cat, cat, dog, dog, and the rows of its table."""
    split = load_dataset("parquet", data_files=f"{write(tmp_path / 'data', [0, 0, 1, 1], NAMES)}/*.parquet")["train"]
    contents = [content_of(value) for value in undecoded(split)["image"]]
    return split, [f"train[{row}],{NAMES.names[row // 2]},{content}" for row, content in enumerate(contents)]


def table(path, rows, header="image,label,content", **options):
    path.write_text("\n".join([header, *rows]) + "\n", **options)
    return str(path)


SIZES = {"train": 4, "test": 2}


def test_corrected_labels_and_images_left_out(four, tmp_path):
    split, rows = four
    assert corrected(split, "train", SIZES) == (split, [f"train[{i}]" for i in range(4)])
    edited = [*rows[:3], rows[3].replace("dog", " cat "), "test[1],dog,of another split"]
    labels = table(tmp_path / "labels.csv", edited, encoding="utf-8-sig")  # as spreadsheets save it
    exclude = table(tmp_path / "exclude.csv", rows[1:3])
    found, left = corrected(split, "train", SIZES, labels=labels, exclude=exclude)
    assert (labels_of(found).tolist(), left) == ([0, 0], ["train[0]", "train[3]"])
    assert found.features == split.features
    assert np.array_equal(found[1]["image"], split[3]["image"])
    nothing = table(tmp_path / "nothing.csv", [])  # of data without a fault
    assert corrected(split, "train", SIZES, exclude=nothing) == (split, [f"train[{i}]" for i in range(4)])
    moved = [rows[0].replace("train[0],cat", "test[0],dog"), rows[2].replace("train[2],dog", "train[0],cat")]
    moved = table(tmp_path / "moved.csv", moved)
    joined, left = corrected(split, "test+train", {"test": 2, "train": 2}, labels=moved)
    assert (labels_of(joined).tolist(), left) == ([1, 0, 0, 1], ["test[0]", "test[1]", "train[0]", "train[1]"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("train[0],dgo,x", r"train\[0\] is labelled 'dgo', which is no class\. Did you mean 'dog'\?"),
        ("train[0],NA,x", r"train\[0\] is labelled 'NA', which is no class\."),
        ("train[0],dog,x", r"train\[0\] is another image, or gone: run"),
        ("train[4],dog,x", r"train\[4\] is another image, or gone: run"),
        ("train[-1],dog,x", r"train\[-1\] is another image, or gone: run"),
    ],
)
def test_a_table_of_other_images_is_refused(four, tmp_path, row, message):
    path = table(tmp_path / "labels.csv", [row])
    with pytest.raises(DataError, match=rf"^--labels {re.escape(path)}: {message}[^\n]*$"):
        corrected(four[0], "train", SIZES, labels=path)


def test_files_that_cannot_be_read_and_splits_that_are_left_out_whole(four, tmp_path):
    split, rows = four
    no_table = r"^--exclude .*csv is no images\.csv of `protosphere inspect`: [^\n]+$"
    for path in (tmp_path / "nothing.csv", table(tmp_path / "file.csv", ["a.png,cat"], header="file,label")):
        with pytest.raises(ArgumentError, match=no_table):
            corrected(split, "train", SIZES, exclude=str(path))
    with pytest.raises(DataError, match=r"leaves no image of the split 'train'"):
        corrected(split, "train", SIZES, exclude=table(tmp_path / "all.csv", rows))
    moved = table(tmp_path / "moved.csv", [rows[0].replace("train[0]", "train[1]")])
    with pytest.raises(DataError, match=r"train\[1\] is another image"):
        corrected(split, "train", SIZES, exclude=moved)
