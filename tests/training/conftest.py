"""A small training on three digits, for the tests of this room."""

import pytest

from hf_protosphere.training.arguments import TrainArguments


@pytest.fixture
def arguments(digits_folder, tmp_path):
    def make(**kwargs):
        defaults = {
            "dataset_name": str(digits_folder),
            "output_dir": str(tmp_path / "run"),
            "backbone": "test_resnet",
            "epochs": 2,
            "batch_size": 32,
            "optimizer": "adamw",
            "augmentation": "crop",
            "horizontal_flip": False,
            "num_workers": 0,
            "report_to": ["none"],
            "pictures": False,
        }
        return TrainArguments(**{**defaults, **kwargs})

    return make
