"""`protosphere plot`: from finished files, of whatever is there."""

import json

import pytest
import torch

from hf_protosphere.errors import ArgumentError
from hf_protosphere.metrics.snapshot import SnapshotCollector
from hf_protosphere.runs.plot import PlotArguments, plot
from hf_protosphere.runs.snapshots import SNAPSHOT, save_snapshot
from tests.plots.test_curves import record


@pytest.fixture
def run(tmp_path):
    def make(name, records, with_snapshot=False):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        if with_snapshot:
            collector = SnapshotCollector(torch.eye(3))
            collector.update(torch.eye(3), torch.arange(3))
            save_snapshot(collector.snapshot(["a", "b", "c"], "test"), folder / SNAPSHOT)
        return str(folder)

    return make


def drawn(*runs, **options):
    return [path.name for path in plot(PlotArguments(runs=list(runs), **options))]


def test_one_run_draws_what_its_files_allow(run, tmp_path, capsys):
    whole = run("whole", [record(1), record(2)], with_snapshot=True)
    five = ["curves", "neural_collapse", "cosines", "margins", "sphere"]
    assert drawn(whole) == [f"{name}.png" for name in five]
    assert capsys.readouterr().out.count(whole) == 5
    svg = drawn(whole, format="svg", output_dir=str(tmp_path / "new" / "folder"), classes=["a", "b"])
    assert svg == [f"{name}.svg" for name in five]
    assert all((tmp_path / "new" / "folder" / name).exists() for name in svg)
    assert drawn(run("going on", [record(1)])) == ["curves.png", "neural_collapse.png"]
    assert drawn(run("without", [record(1, measured=False)])) == ["curves.png"]


def test_several_runs_are_compared(run):
    first, second = run("a/nonl", [record(1), record(2)]), run("b/nonl", [record(1)])
    assert drawn(first, second) == ["neural_collapse_compared.png"]


def test_what_cannot_be_drawn_is_said(run, tmp_path):
    with pytest.raises(ArgumentError, match=r"nowhere: there is no such folder"):
        drawn(str(tmp_path / "nowhere"))
    with pytest.raises(ArgumentError, match=r"holds nothing to draw.*metrics.jsonl"):
        drawn(run("empty", []))
    whole = run("whole", [record(1)], with_snapshot=True)
    with pytest.raises(ArgumentError, match=r"class names, got fly"):
        drawn(whole, classes=["a", "fly"])
    with pytest.raises(ArgumentError, match=r"never measured.*--nc_every 1"):
        drawn(whole, run("unmeasured", [record(1, measured=False)]))
    with pytest.raises(ArgumentError, match=r"--output_dir .* cannot be written"):
        drawn(whole, output_dir=whole + "/metrics.jsonl")
    with pytest.raises(ArgumentError, match=r"--format must be one of png, svg, pdf"):
        drawn(whole, format="bmp")
