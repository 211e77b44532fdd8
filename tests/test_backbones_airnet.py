"""airnet: how it begins, that it is a backbone like others, and that it travels with its checkpoints."""

import numpy as np
import pytest
import timm
import torch
from datasets import load_dataset

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
from hf_protosphere.backbones import _whitening as whitening


@pytest.mark.parametrize("channels", [1, 3])
def test_the_first_layer_turns_windows_to_an_orthonormal_basis(channels):
    weight, negative = whitening(channels)[0].weight.flatten(1).chunk(2)
    torch.testing.assert_close(weight @ weight.T, torch.eye(4 * channels))
    assert torch.equal(negative, -weight)


def test_neighbouring_pixels_are_decorrelated(digits_folder):
    """Of digits, whose pixels and their neighbours are alike, and of unit variance."""
    images = load_dataset(str(digits_folder), split="train")["image"]
    pixels = np.stack([np.asarray(image.convert("L").resize((16, 16))) for image in images])
    pixels = torch.tensor(pixels, dtype=torch.float32)[:, None] / 255

    def correlations(x):  # (N, C, H, W) → of channels
        return torch.corrcoef(x.transpose(0, 1).flatten(1)).fill_diagonal_(0).abs().max()

    windows = torch.cat([pixels[..., y : y + 15, x : x + 15] for y in (0, 1) for x in (0, 1)], 1)
    white = whitening(1).train()(pixels)
    torch.testing.assert_close(white[:, 4:], -white[:, :4])
    torch.testing.assert_close(white.var((0, 2, 3), unbiased=False), torch.ones(8), rtol=5e-3, atol=0)
    assert correlations(windows) > 0.6
    assert correlations(white[:, :4]) < 0.2


@pytest.mark.parametrize(("size", "channels"), [(32, 3), (64, 3), (32, 1)])
def test_it_is_a_backbone_like_others(size, channels, tmp_path):
    config = ProtoSphereConfig(
        backbone="airnet", backbone_kwargs={"widths": [8, 16, 24]}, image_size=size,
        num_channels=channels, num_labels=4,
    )  # fmt: skip
    model = ProtoSphereForImageClassification(config)
    assert (model.config.projection, model.protosphere.embedding_dim) == ("linear", 24)
    images = torch.randn(8, channels, size, size)
    model(images, labels=torch.arange(8) % 4).loss.backward()
    fixed = {name for name, weight in model.named_parameters() if weight.grad is None}
    assert fixed == {name for name, weight in model.named_parameters() if not weight.requires_grad}
    assert any("layers.0.0" in name for name in fixed)
    model.eval().save_pretrained(tmp_path)
    again = ProtoSphereForImageClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(again(images).logits, model(images).logits)


def test_a_new_convolution_passes_its_input_on():
    """The first channels; so that gradients reach the first layer at the first step."""
    network = timm.create_model("airnet", widths=(32, 40, 48))
    convolution = network.layers[2]
    x = torch.randn(2, 24, 9, 9)
    torch.testing.assert_close(convolution(x)[:, :24], x)
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 48)


def test_there_are_no_weights_to_be_had():
    with pytest.raises(ValueError, match="airnet has no pretrained weights"):
        timm.create_model("airnet", pretrained=True)


def test_it_travels_with_a_checkpoint_and_is_registered_once(tmp_path, python):
    config = ProtoSphereConfig(backbone="airnet", backbone_kwargs={"widths": [8, 16]}, image_size=32, num_labels=3)
    model = ProtoSphereForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    images = torch.rand(2, 3, 32, 32)
    torch.save((images, model(images).logits.detach()), tmp_path / "expected.pt")
    for first in ("sys.modules['hf_protosphere'] = None", "import hf_protosphere.backbones"):
        code = f"""
import sys, warnings
{first}
import torch
from transformers import AutoModelForImageClassification
warnings.filterwarnings("error", "Overwriting")  # timm's, of a name that is registered anew
model = AutoModelForImageClassification.from_pretrained({str(tmp_path)!r}, trust_remote_code=True).eval()
assert type(model.protosphere.backbone).__name__ == "AirNet"
images, logits = torch.load({str(tmp_path / "expected.pt")!r})
torch.testing.assert_close(model(images).logits, logits)
"""
        result = python("-c", code, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
