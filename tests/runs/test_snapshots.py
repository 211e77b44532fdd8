"""A snapshot comes back from its file to the bit, and is refused when it is damaged."""

import pytest
import torch
import torch.nn.functional as F

from hf_protosphere.errors import ArgumentError
from hf_protosphere.metrics.snapshot import SnapshotCollector
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
