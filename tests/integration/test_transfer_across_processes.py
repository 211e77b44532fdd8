"""Two processes transfer as one does: trained modes and frozen ones, one after the other."""

import json

import pytest
import torch

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
from hf_protosphere.data.transforms import build_image_processor
from hf_protosphere.transfer.arguments import FinetuneArguments
from hf_protosphere.transfer.finetune import finetune
from tests import SCRIPTS
from tests.forked import TORCHRUN


def test_two_processes_transfer_as_one_does(digits_folder, python, tmp_path):
    torch.manual_seed(0)
    config = ProtoSphereConfig(backbone="test_resnet", image_size=32, num_labels=2)
    ProtoSphereForImageClassification(config).save_pretrained(tmp_path / "source")
    build_image_processor(config).save_pretrained(tmp_path / "source")
    options = {
        "model": str(tmp_path / "source"), "dataset_name": str(digits_folder), "epochs": 1,
        "compare": "head,full,prototypes", "shots": "4", "trials": 1, "min_steps": 2,
        "num_workers": 0, "pictures": False,
    }  # fmt: skip
    flags = [part for name, value in options.items() if value for part in (f"--{name}", str(value))]
    flags += ["--num_workers", "0", "--no_pictures", "--report_to", "none"]
    command = (*TORCHRUN, 2, SCRIPTS / "finetune.py", *flags, "--output_dir", tmp_path / "two")
    result = python(*command, env={"ACCELERATE_USE_CPU": "true"})
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads((tmp_path / "two" / "comparison.json").read_text())["rows"]
    assert [row["mode"] for row in found] == ["head", "full", "prototypes"]
    assert all(row["num_images"] == 45 for row in found)
    options |= {"compare": "prototypes", "report_to": ["none"]}
    (expected,) = finetune(FinetuneArguments(**options, output_dir=str(tmp_path / "one")))["rows"]
    assert found[-1]["accuracy"] == pytest.approx(expected["accuracy"])
    assert found[-1]["neural_collapse"]["nc1_cdnv"] == pytest.approx(
        expected["neural_collapse"]["nc1_cdnv"], rel=1e-4
    )
