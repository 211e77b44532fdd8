"""Runs and checkpoints that version 0.1.0 left still load, resume, plot and publish.

tests/fixtures/version_0_1_0 was made at commit 985af96 by `protosphere train --dataset_name blobs --backbone resnet
--backbone_source transformers --image_size 32 --batch_size 8 --num_workers 0 --report_to none --warmup_epochs 0 --seed
3 --no_pictures --epochs 2 --keep_checkpoints 2 --output_dir finished`, with a small ResNet as --backbone_kwargs;
`stopped` is the same run as it was after its first epoch.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from hf_protosphere import ProtoSphereForImageClassification
from hf_protosphere.arguments.parsing import read_yaml
from hf_protosphere.errors import ArgumentError
from hf_protosphere.hub.arguments import PublishArguments
from hf_protosphere.hub.publish import publish
from hf_protosphere.runs.plot import draw_run
from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.training.train import train
from tests import FIXTURES


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A copy of the runs and their data, as the working directory that they were made in."""
    shutil.copytree(FIXTURES / "version_0_1_0", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_stopped_run_ends_as_it_would_have(old):
    values = read_yaml("stopped/arguments.yaml", TrainArguments)
    values |= {"output_dir": "stopped", "resume": True, "pictures": False}
    with pytest.raises(ArgumentError, match=r"--learning_rate is no longer .* give 0\.1 \* "):
        train(TrainArguments(**values))
    values |= {"learning_rate": 0.1 * 8 / 256, "weight_decay": 1e-4}
    train(TrainArguments(**values))
    before, after = (load_file(f"{run}/model.safetensors") for run in ("finished", "stopped"))
    for name, tensor in before.items():
        # Not to the bit: another machine's kernels round otherwise than that of the fixture.
        torch.testing.assert_close(tensor, after[name], rtol=1e-4, atol=1e-6)
    before, after = (json.loads((old / run / "results.json").read_text())["test"] for run in ("finished", "stopped"))
    assert after["accuracy"] == before["accuracy"]
    attained = after["neural_collapse"]["attained"]
    assert attained == pytest.approx(before["neural_collapse"]["attained"], abs=0.1)


def test_a_checkpoint_loads_and_classifies(old):
    model = ProtoSphereForImageClassification.from_pretrained("finished")
    assert model.config.class_names == ["class_0", "class_1", "class_2"]
    assert (model.config.projection, model.protosphere.embedding_dim) == ("none", 16)
    assert model.config.softmax_temperature == 0.1
    stored = load_file("finished/model.safetensors")
    assert torch.allclose(model.prototypes, torch.nn.functional.normalize(stored["head.weight"]))


def test_a_finished_run_is_drawn_and_published(old, hub):
    names = {path.name for path in draw_run(old / "finished")}
    assert names == {"curves.png", "neural_collapse.png", "cosines.png", "margins.png", "sphere.png"}
    publish(PublishArguments(folder="finished", repo_id="user/old"))
    card = (old / "finished" / "README.md").read_text()
    assert "class_0, class_1, class_2" in card
