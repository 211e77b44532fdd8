"""Two processes calibrate as one does, and tell unknown images as one does."""

import json
import shutil

import pytest
import torch

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
from hf_protosphere.data.transforms import build_image_processor
from hf_protosphere.evaluation.arguments import EvaluateArguments
from hf_protosphere.evaluation.evaluate import evaluate
from hf_protosphere.open_set.arguments import CalibrateArguments
from hf_protosphere.open_set.calibrate import calibrate
from tests import SCRIPTS
from tests.forked import TORCHRUN


def test_two_processes_find_what_one_does(digits_folder, python, tmp_path):
    torch.manual_seed(0)
    names = {i: f"digit_{i}" for i in range(3)}
    config = ProtoSphereConfig(backbone="test_resnet", image_size=32, id2label=names)
    ProtoSphereForImageClassification(config).save_pretrained(tmp_path / "one")
    build_image_processor(config).save_pretrained(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    data = ("--dataset_name", digits_folder, "--num_workers", "0", "--batch_size", "7")
    ood = ("--ood_dataset", digits_folder, "--ood_split", "train", "--output", tmp_path / "report")
    for script, *more in (("calibrate.py", "--split", "test"), ("evaluate.py", *ood)):
        command = (*TORCHRUN, 2, SCRIPTS / script, "--model", tmp_path / "two")
        result = python(*command, *data, *more, env={"ACCELERATE_USE_CPU": "true"})
        assert result.returncode == 0, result.stderr[-3000:]

    one = {"model": str(tmp_path / "one"), "dataset_name": str(digits_folder), "num_workers": 0}
    expected = calibrate(CalibrateArguments(**one, split="test"))
    found = json.loads((tmp_path / "two" / "calibration.json").read_text())
    assert found["num_images"] == expected["num_images"] == 45
    assert found["rejection_threshold"] == pytest.approx(expected["rejection_threshold"], abs=2e-6)
    assert found["negative_log_likelihood"] == pytest.approx(
        expected["negative_log_likelihood"], rel=1e-5
    )
    expected = evaluate(EvaluateArguments(**one, ood_dataset=str(digits_folder), ood_split="train"))
    found = json.loads((tmp_path / "report").read_text())["ood"]
    assert found["num_images"] == expected["ood"]["num_images"] == 120
    for name, metrics in expected["ood"]["scores"].items():
        assert found["scores"][name] == pytest.approx(metrics, abs=0.02)
