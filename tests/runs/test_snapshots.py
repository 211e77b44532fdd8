"""A snapshot comes back from its file to the bit, and is refused when it is damaged."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from hf_protosphere.errors import ArgumentError
from hf_protosphere.metrics.snapshot import Snapshot, SnapshotCollector
from hf_protosphere.runs.snapshots import load_snapshot, save_snapshot


def test_it_comes_back_from_the_file(tmp_path):
    rows = F.normalize(torch.randn(54, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    collector = SnapshotCollector(rows[:4])
    collector.update(rows[4:], torch.arange(50) % 4)
    snapshot = collector.snapshot([f"class {c}" for c in range(4)], "test")
    path = tmp_path / "snapshot.safetensors"
    save_snapshot(snapshot, path)
    loaded = load_snapshot(path)
    assert loaded.class_names == [f"class {c}" for c in range(4)]
    assert loaded.split == "test"
    for name, value in vars(snapshot).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, getattr(loaded, name)), name
    assert [p.name for p in tmp_path.iterdir()] == [path.name]

    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ArgumentError, match="not a whole snapshot"):
        load_snapshot(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"prototypes": torch.eye(5, 6)},
            r"class_means': \(4, 6\).*should hold .*s': \(5, 6\)",
        ),
        ({"class_names": ["a"] * 5}, "must name 4 classes"),
        ({"class_names": [1, 2, 3, 4]}, "must name 4 classes"),
        ({"class_means": torch.eye(4, 6) * torch.nan}, "class_means are no finite numbers"),
        ({"embeddings": torch.eye(2, 6).long()}, "embeddings are no finite numbers in float32"),
        ({"labels": torch.tensor([0, 4])}, "labels are none of 4 classes"),
        ({"labels": torch.tensor([0.0, 1.0])}, "labels are none of 4 classes"),
        ({"own_cosines": torch.zeros(3)}, "and should hold .*nearest_other_cosines"),
        ({"prototypes": torch.tensor(1.0)}, "not enough values"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, changes, message):
    means, labels = torch.eye(4, 6), torch.tensor([0, 3])
    vectors = (means[:2].clone(), labels, means, means.clone(), torch.zeros(2), torch.ones(2))
    whole = Snapshot(*vectors, ["a", "b", "c", "d"], "test")
    path = tmp_path / "snapshot.safetensors"
    save_snapshot(whole, path)
    load_snapshot(path)
    save_snapshot(dataclasses.replace(whole, **changes), path)
    with pytest.raises(ArgumentError, match=rf"^{path} is not a whole snapshot: .*{message}"):
        load_snapshot(path)
