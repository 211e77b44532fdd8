"""Every image of a split is counted, once."""

import pytest
from accelerate import Accelerator
from torch.utils.data import DataLoader

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
from hf_protosphere.data.dataset import load_image_dataset
from hf_protosphere.data.loaders import evaluation_loader
from hf_protosphere.data.transforms import build_image_processor
from hf_protosphere.evaluation.classifier_metrics import evaluate_model


def test_a_lost_image_is_noticed(digits_folder):
    config = ProtoSphereConfig(backbone="test_resnet", image_size=32, num_labels=3)
    model = ProtoSphereForImageClassification(config)
    data = load_image_dataset(str(digits_folder))
    processor = build_image_processor(model.config)
    accelerator = Accelerator()
    loader = evaluation_loader(data.splits["test"], processor, 8, 0, accelerator)

    class Lossy:
        dataset = loader.dataset

        def __iter__(self):
            return iter(list(loader)[:-1])

    with pytest.raises(RuntimeError, match="40 images were counted, but there are 45"):
        evaluate_model(model, Lossy(), accelerator)
    assert isinstance(loader, DataLoader)
