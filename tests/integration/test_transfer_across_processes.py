"""Two processes transfer as one does: trained modes and frozen ones, one after the other."""

import json
import os
import subprocess
import sys

import pytest
import torch

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
from hf_protosphere.data.transforms import build_image_processor
from hf_protosphere.transfer.arguments import FinetuneArguments
from hf_protosphere.transfer.finetune import finetune
from tests import SCRIPTS

SCRIPT = SCRIPTS / "finetune.py"
LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


@pytest.mark.slow
def test_two_processes_transfer_as_one_does(digits_folder, tmp_path):
    torch.manual_seed(0)
    config = ProtoSphereConfig(backbone="test_resnet", image_size=32, num_labels=2)
    ProtoSphereForImageClassification(config).save_pretrained(tmp_path / "source")
    build_image_processor(config).save_pretrained(tmp_path / "source")
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true",
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
    }  # fmt: skip
    options = {
        "model": str(tmp_path / "source"), "dataset_name": str(digits_folder), "epochs": 1,
        "compare": "head,full,prototypes", "shots": "4", "trials": 1, "min_steps": 2,
        "num_workers": 0, "pictures": False,
    }  # fmt: skip
    flags = [part for name, value in options.items() if value for part in (f"--{name}", str(value))]
    flags += ["--num_workers", "0", "--no_pictures", "--report_to", "none"]
    command = [sys.executable, *LAUNCHER, SCRIPT, *flags]
    result = subprocess.run(
        [*command, "--output_dir", tmp_path / "two"], capture_output=True, text=True,
        env=environment, timeout=300,
    )  # fmt: skip
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
