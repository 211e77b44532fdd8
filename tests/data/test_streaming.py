"""Training images that are read as they come."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Array3D, ClassLabel, Dataset, Features, Image, IterableDataset, Value, load_dataset

from hf_protosphere import ProtoSphereConfig
from hf_protosphere.data.arguments import BatchOptions
from hf_protosphere.data.dataset import load_image_dataset
from hf_protosphere.data.pixels import read
from hf_protosphere.data.streaming import StreamedBatches, decoded
from hf_protosphere.errors import ArgumentError, DataError
from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.training.setup import training_images
from hf_protosphere.training.train import train
from tests.data import NAMES, image

CONFIG = ProtoSphereConfig(image_size=32, num_labels=3)


@pytest.fixture(scope="module")
def shards(digits_folder, tmp_path_factory):
    """The digits as Parquet files with several row groups, the training split with its length."""
    folder = tmp_path_factory.mktemp("shards")
    digits = load_dataset(str(digits_folder))
    for name, split in digits.items():
        split.to_parquet(folder / f"{name}.parquet", batch_size=10)
    return folder


@pytest.fixture(autouse=True)
def _no_rest_for_threads(monkeypatch):
    # datasets sleeps for seconds whenever a stream of Parquet is left before its end.
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


def arguments(folder, **options):
    defaults = {
        "dataset_name": str(folder), "streaming": True, "validation_split": "test",
        "num_train_images": 120, "batch_size": 8, "num_workers": 0, "augmentation": "none",
        "horizontal_flip": False, "shuffle_buffer": 50, "report_to": "none", "pictures": False,
    }  # fmt: skip
    return TrainArguments(**defaults | options)


def batches(folder, processes=1, process=0, per_epoch=15, **options):
    chosen = arguments(folder, **options)
    accelerator = SimpleNamespace(
        num_processes=processes, process_index=process, device=torch.device("cpu"), print=print
    )
    stream = training_images(chosen).splits["train"]
    return StreamedBatches(stream, CONFIG, BatchOptions.of(chosen), accelerator, per_epoch)


def images_of(epoch):
    """(N, pixels) of everything in the batches, in their order."""
    return torch.cat([batch["pixel_values"].flatten(1) for batch in epoch])


def test_an_epoch_holds_every_image_once_in_an_order_of_its_own(shards, capsys):
    stream = batches(shards)
    assert (
        "streaming 1 shard(s), 1 for each of 1 process(es), 1 or more for each of 1 reader(s)"
        in capsys.readouterr().out
    )
    first, again, second = (images_of(stream.epoch(epoch)) for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert len(first.unique(dim=0)) == len(second.unique(dim=0)) == 120
    assert not torch.equal(first, images_of(batches(shards, seed=1).epoch(0)))
    labels = torch.cat([batch["labels"] for batch in stream.epoch(0)])
    assert labels.bincount().tolist() == [40, 40, 40]


def restored(stream):
    """Its position, as a checkpoint keeps it."""
    return json.loads(json.dumps(stream.position))


@pytest.mark.parametrize(
    ("skip", "views", "num_workers", "knows"),
    [(3, 2, 0, True), (11, 1, 0, False), (11, 1, 2, True), (14, 1, 2, True), (17, 1, 2, True), (17, 1, 2, False)],
)  # also where workers end, and in the next pass
def test_an_epoch_goes_on_from_its_middle(shards, skip, views, num_workers, knows):
    options = {"augmentation": "contrastive", "views": views, "num_workers": num_workers, "shuffle_buffer": 13}
    whole = batches(shards, per_epoch=20, **options)
    first = [*itertools.islice(whole.epoch(3), skip)]
    resumed = batches(shards, per_epoch=20, **options)
    resumed.position = restored(whole) if knows else {}
    found = [*first, *resumed.epoch(3, skip=skip)]
    for expected, batch in zip(batches(shards, per_epoch=20, **options).epoch(3), found, strict=True):
        assert torch.equal(expected["pixel_values"], batch["pixel_values"])
        assert torch.equal(expected["labels"], batch["labels"])


def numbered(shard, seen):
    """Rows of a stream, that write down when they are read."""
    for number in shard:
        for i in range(3 * number, 3 * number + 3):
            with open(seen, "a") as file:
                file.write(f"{i}\n")
            yield {"image": Image().encode_example(np.full((32, 32, 3), i, np.uint8)), "label": i % 3}


def test_what_was_consumed_is_not_read_again(tmp_path, monkeypatch):
    seen, label = tmp_path / "seen", ClassLabel(names=["a", "b", "c"])
    features = Features({"image": Image(decode=False), "label": label})
    given = {"shard": [*range(60)], "seen": str(seen)}
    stream = IterableDataset.from_generator(numbered, features=features, gen_kwargs=given)
    options = BatchOptions.of(arguments("x", batch_size=6, shuffle_buffer=20))
    accelerator = SimpleNamespace(num_processes=1, process_index=0, device=torch.device("cpu"))

    def streamed():
        return StreamedBatches(stream, CONFIG, options, accelerator, batches_per_epoch=30)

    opened, decode = [], "hf_protosphere.data.streaming.read"
    monkeypatch.setattr(decode, lambda value, side: opened.append(value) or read(value, side))
    first, again = streamed(), streamed()
    consumed = images_of(itertools.islice(first.epoch(0), 22))
    assert len(opened) == 132
    again.position = restored(first)
    seen.unlink()
    opened.clear()
    rest = images_of(again.epoch(0, skip=22))
    assert len(torch.cat([consumed, rest]).unique(dim=0)) == 180
    assert len(opened) == 48  # nothing else is decoded
    rows = [int(line) for line in seen.read_text().split()]
    assert len(rows) <= 48 + 12 + 3 * 10  # of the buffer, and of the ten shards of three that were open


@pytest.mark.parametrize("shard_size", [15, 5])
def test_four_processes_with_two_workers_see_each_image_once(shards, tmp_path, shard_size):
    rows = load_dataset("parquet", data_files=str(shards / "train.parquet"), split="train")
    for i in range(0, 120, shard_size):  # 2 shards for each process, or 6
        rows.select(range(i, i + shard_size)).to_parquet(tmp_path / f"train-{i:03}.parquet")
    options = {"processes": 4, "per_epoch": 5, "batch_size": 6, "num_workers": 2, "shuffle_buffer": 7}
    for epoch in range(2):
        parts = [
            images_of(batches(tmp_path, process=process, **options, validation_split="train").epoch(epoch))
            for process in range(4)
        ]
        assert [len(part) for part in parts] == [30] * 4
        assert len(torch.cat(parts).unique(dim=0)) == 120


@pytest.mark.parametrize("last", [{"blur": 1.0}, {"rand_augment": 9}, {"random_erasing": 1.0}])
def test_the_last_augmentations_reach_streams(shards, last):
    plain, changed = (images_of(batches(shards, **more).epoch(0)) for more in ({}, last))
    assert plain.shape == changed.shape
    assert (plain != changed).any(1).float().mean() > 0.6


def test_processes_and_workers_share_the_images(shards, capsys):
    parts = [
        images_of(batches(shards, 2, process, per_epoch=7, num_workers=workers).epoch(0))
        for process in range(2)
        for workers in (0, 2)
    ]
    assert "streaming 12 shard(s), 6 for each of 2 process(es)" in capsys.readouterr().out
    alone = torch.cat([parts[0], parts[2]])
    assert len(alone.unique(dim=0)) == len(alone) == 112
    with_workers = torch.cat([parts[1], parts[3]])
    assert len(with_workers.unique(dim=0)) == 112  # a worker's last 6 of 30 fill a batch with the other's


def test_a_part_that_is_too_short_begins_anew(shards):
    seen = images_of(batches(shards, per_epoch=20, augmentation="crop").epoch(0))
    assert len(seen) == 160
    assert len(seen[:120].unique(dim=0)) == 120
    assert len(seen.unique(dim=0)) > 140  # augmented anew


def test_a_process_without_a_whole_batch(shards):
    with pytest.raises(DataError, match=r"with 3 processes: less than 64 images, a whole batch.*smaller --batch_size"):
        list(batches(shards, 3, per_epoch=1, batch_size=64).epoch(0))


def test_images_that_cannot_be_decoded(digits_folder, tmp_path):
    for split in ("train", "test"):
        for file in sorted((digits_folder / split).rglob("*.png")):
            copy = tmp_path / file.relative_to(digits_folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    (tmp_path / "train" / "digit_1" / "007.png").write_bytes(b"\x89PNG no picture")
    options = {"check_images": False, "per_epoch": 15}
    for workers in (0, 1):  # in one line, also from a worker process
        found = batches(tmp_path, num_workers=workers, **options)
        with pytest.raises(DataError, match=r"^[^\n]*007\.png cannot be .*--on_bad_image skip\.$"):
            list(found.epoch(0))
    skipping = batches(tmp_path, **options, on_bad_image="skip")
    seen = images_of(skipping.epoch(0))
    assert len(seen) == 120
    assert len(seen[:112].unique(dim=0)) == 112  # then a second pass: 7 of 119 fill no batch


@pytest.mark.parametrize("objective", ["nonl", "scl"])
def test_a_run_on_a_stream(shards, tmp_path, objective):
    options = {"output_dir": str(tmp_path / "run"), "backbone": "test_resnet", "epochs": 2}
    results = train(arguments(shards, **options, objective=objective, optimizer="adamw"))
    assert results["test"]["num_images"] == 45
    assert "train_counts" not in results
    assert results["images_per_second"] > 0
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["starts"][0]["data"]["train"] == {"streamed": True}
    assert environment["starts"][0]["data"]["test"]["num_images"] == 45


def test_only_the_splits_that_will_be_read_are_streamed_or_downloaded(shards):
    options = {"streaming": True, "num_train_images": 120}
    alone = load_image_dataset(str(shards), roles=["train"], **options)
    assert list(alone.splits) == ["train"]
    assert (alone.is_streamed, alone.num_train) == (True, 120)
    test = load_image_dataset(str(shards), roles=["test"], **options)
    assert {role: len(split) for role, split in test.splits.items()} == {"test": 45}
    assert not test.is_streamed


def test_labels_of_a_stream_are_those_of_the_checkpoint(shards):
    names = ["digit_2", "digit_0", "digit_1"]
    data = training_images(arguments(shards), names)
    assert data.label_names == names
    for split in data.splits.values():
        numbers = [row["label"] for row in split]
        assert numbers == sorted(numbers, key=[1, 2, 0].index)  # the files have 0, then 1, then 2
        assert split.features["label"].names == names
    with pytest.raises(DataError, match=r"the train split .* not among .*: digit_0, digit_1"):
        training_images(arguments(shards), ["digit_2", "digit_3"])


@pytest.mark.parametrize(
    ("feature", "of_pixels"),
    [
        (Array3D((8, 8, 3), "uint8"), np.asarray),
        (Value("binary"), lambda pixels: Image().encode_example(pixels)["bytes"]),
        (Image(decode=False), lambda pixels: Image().encode_example(pixels)),
    ],
    ids=["pixels", "bytes", "not decoded"],
)
def test_images_in_any_form_are_streamed(tmp_path, feature, of_pixels):
    images = [np.asarray(image(i)) for i in range(3)]
    rows = {"image": [*map(of_pixels, images)], "label": [0, 1, 1]}
    features = Features(image=feature, label=NAMES)
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    data = load_image_dataset(str(tmp_path), streaming=True, num_train_images=3, roles=["train"])
    pairs = [*decoded(data.splits["train"], skip_bad=False)]
    assert [label for _, label in pairs] == [0, 1, 1]
    assert all(np.array_equal(seen, own) for (seen, _), own in zip(pairs, images, strict=True))


def test_downloaded_splits_are_found_again(shards):
    first, second = (training_images(arguments(shards)) for _ in range(2))
    assert first.splits["test"]._fingerprint == second.splits["test"]._fingerprint
    assert first.splits["test"].features["image"] == Image()


def test_what_a_stream_needs_to_say(shards, tmp_path):
    with pytest.raises(DataError, match=r"how long 'train' is.*--num_train_images"):
        training_images(arguments(shards, num_train_images=None))
    with pytest.raises(DataError, match=r"cannot hold out.*--validation_split, one of"):
        training_images(arguments(shards, validation_split=None))
    rows = load_dataset("parquet", data_files=str(shards / "train.parquet"), split="train")
    rows.cast_column("label", Value("string")).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"label column of ClassLabel, but it is"):
        training_images(arguments(tmp_path, validation_split="train"))
    rows.cast_column("label", ClassLabel(names=["a", "b", "c"])).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=r"of save_to_disk: leave it out"):
        training_images(arguments(tmp_path / "saved", validation_split="train"))


@pytest.mark.parametrize(
    "options",
    [{"cache_images": True}, {"imbalance": "exp"}, {"classes_per_batch": 2},
     {"max_train_samples": 10}, {"nc_train_samples": 5}],
)  # fmt: skip
def test_what_needs_to_know_all_images_is_refused(options):
    (name,) = options
    with pytest.raises(ArgumentError, match=rf"--streaming .* which --{name} needs"):
        arguments("x", **options)
