"""The one pass over images: every image once and in order, and the model as it was before."""

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch.utils.data import DataLoader

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
from hf_protosphere.errors import DataError
from hf_protosphere.inference import predictions as module
from hf_protosphere.inference.predictions import inferred, predictions, training_class_means

ACCELERATOR = Accelerator()
LABELS = [0, 2, 1, 1, 0, 2, 2, 1, 0, 1, 1]


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = ProtoSphereConfig(backbone="test_resnet", image_size=32, num_labels=3)
    return ProtoSphereForImageClassification(config)


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(len(LABELS), 3, 32, 32, generator=generator)
    return [{"pixel_values": x, "labels": label} for x, label in zip(pixels, LABELS)]


def batches(images):
    return ACCELERATOR.prepare_data_loader(DataLoader(images, batch_size=4))


def singly(model, images):
    """Embeddings (N, D) and logits (N, K), one image at a time."""
    model.eval()
    with torch.no_grad():
        outputs = [model(image["pixel_values"][None]) for image in images]
    return torch.cat([o.embeddings for o in outputs]), torch.cat([o.logits for o in outputs])


def test_every_image_once_in_order_in_evaluation_mode(model, images):
    model.train()
    found = list(predictions(model, batches(images), ACCELERATOR, "test"))
    assert [len(labels) for _, _, labels in found] == [4, 4, 3]
    assert model.training
    embeddings, logits, labels = (torch.cat(parts) for parts in zip(*found))
    assert labels.tolist() == LABELS
    assert not embeddings.requires_grad
    assert not logits.requires_grad
    for got, expected in zip((embeddings, logits), singly(model, images)):
        assert torch.allclose(got, expected, atol=1e-5)


def test_a_model_in_evaluation_mode_stays_there(model, images):
    list(predictions(model.eval(), batches(images), ACCELERATOR, "test"))
    assert not model.training


def test_the_mode_comes_back_when_the_pass_is_left_or_fails(model, images):
    other = torch.nn.BatchNorm2d(3).eval()
    model.train()

    def compute(batch):
        modes.append((model.training, other.training))
        if len(modes) == 2:
            raise KeyError("broken")
        return (other(batch["pixel_values"]),)

    def passed():
        return inferred([model, other, model], batches(images), ACCELERATOR, "test", compute)

    modes = []
    with pytest.raises(KeyError, match="broken"):
        list(passed())
    assert modes == [(False, False)] * 2
    assert (model.training, other.training) == (True, False)

    modes = []
    left = passed()
    next(left)
    assert not model.training
    left.close()
    assert (model.training, other.training) == (True, False)


def test_large_batches_go_through_the_network_in_parts(model, images, monkeypatch):
    loader = ACCELERATOR.prepare_data_loader(DataLoader(images, batch_size=11))
    whole = [torch.cat(parts) for parts in zip(*predictions(model, loader, ACCELERATOR, "whole"))]
    sizes = []
    model.protosphere.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    monkeypatch.setattr(module, "CPU_PART", 4 * 3 * 32**2)
    (parts,) = predictions(model, loader, ACCELERATOR, "parts")
    assert sizes == [4, 4, 3]
    for part, expected in zip(parts, whole, strict=True):
        torch.testing.assert_close(part, expected, atol=1e-5, rtol=1e-5)
    big = {"pixel_values": torch.zeros(2, 3, 1000, 1000), "labels": torch.tensor([3, 4])}
    assert [part["labels"].tolist() for part in module.parts_of(big)] == [[3], [4]]


class Lossy:
    """Batches without the last."""

    def __init__(self, loader):
        self.loader, self.dataset = loader, loader.dataset

    def __iter__(self):
        yield from list(self.loader)[:-1]


def test_a_lost_image_is_noticed(model, images):
    with pytest.raises(RuntimeError, match=r"^test: 8 images were counted, but there are 11\.$"):
        list(predictions(model.train(), Lossy(batches(images)), ACCELERATOR, "test"))
    assert model.training


def test_of_a_stream_any_number_is_right(model, images):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from images

    loader = DataLoader(Stream(), batch_size=4)
    found = list(predictions(model, loader, ACCELERATOR, "stream"))
    assert sum(len(labels) for _, _, labels in found) == len(LABELS)


def test_a_class_without_images_has_no_mean(model, images):
    loader = DataLoader([image | {"labels": 0} for image in images], batch_size=4)
    with pytest.raises(DataError, match="training images: no samples of"):
        training_class_means(model, loader, ACCELERATOR)


def test_class_means_are_those_of_a_loop(model, images):
    means = training_class_means(model, batches(images), ACCELERATOR)
    embeddings, _ = singly(model, images)
    for c in range(3):
        own = [e.double() for e, label in zip(embeddings, LABELS) if label == c]
        assert torch.allclose(means[c].double(), F.normalize(sum(own), dim=0), atol=1e-6)
