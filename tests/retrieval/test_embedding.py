"""An embedder says of an image what the model says, of many as of one, and names broken ones."""

import pytest
import timm
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from timm.models import save_for_hf
from transformers import AutoImageProcessor, ViTConfig, ViTModel

from hf_protosphere import ProtoSphereForImageClassification
from hf_protosphere.errors import ArgumentError, DataError
from hf_protosphere.retrieval.embedding import Embedder
from tests.open_set.test_threshold import save_checkpoint


@pytest.fixture(scope="module")
def embedder(model):
    return Embedder.load(model)


@pytest.fixture
def files(photos):
    return sorted(path for path in photos.rglob("*") if path.suffix.lower() in (".png", ".jpg"))


def test_embeddings_are_the_classifiers(model, embedder, files):
    classifier = ProtoSphereForImageClassification.from_pretrained(model).eval()
    processor = AutoImageProcessor.from_pretrained(model)
    images = [Image.open(path).convert("RGB") for path in files]
    found = embedder(images)
    assert (found.shape, found.dtype) == ((4, embedder.dim), torch.float32)
    for image, embedding in zip(images, found):
        with torch.no_grad():
            alone = classifier(**processor(image, return_tensors="pt")).embeddings[0]
        assert torch.allclose(embedding, alone, atol=1e-5)


@pytest.mark.parametrize(("batch_size", "num_workers"), [(1, 0), (3, 0), (2, 1), (256, 2)])
def test_batches_and_workers_change_nothing(embedder, files, batch_size, num_workers):
    options = {"batch_size": batch_size, "num_workers": num_workers}
    embeddings, rows = embedder.embed_all(files, **options)
    assert rows == [0, 1, 2, 3]
    assert torch.allclose(embeddings, embedder([Image.open(path) for path in files]), atol=1e-5)


def test_a_data_set_and_its_files_are_embedded_alike(embedder, files):
    features = Features({"image": ImageFeature(), "name": Value("string")})
    table = Dataset.from_dict({"image": [*map(str, files)], "name": ["x"] * 4}, features)
    for format in (None, "numpy", "torch"):  # one may be stored with it
        formatted = table.with_format(format)
        assert torch.equal(embedder.embed_all(formatted)[0], embedder.embed_all(files)[0])


def test_of_no_images_there_are_no_embeddings(embedder):
    embeddings, rows = embedder.embed_all([])
    assert (embeddings.shape, rows) == ((0, embedder.dim), [])


def test_all_broken_images_are_named_or_left_out(embedder, files, caplog):
    content = files[0].read_bytes()
    for path in files[1:3]:
        path.write_bytes(content[:100])
    with pytest.raises(DataError, match=r"2 of the images cannot be decoded: ") as caught:
        embedder.embed_all(files, batch_size=2, num_workers=0)
    assert all(str(path) in str(caught.value) for path in files[1:3])
    embeddings, rows = embedder.embed_all(files, on_bad_image="skip", batch_size=2, num_workers=0)
    assert rows == [0, 3]
    assert torch.allclose(embeddings[1], embedder([Image.open(files[3])])[0], atol=1e-5)
    assert "Left out 2 images" in caplog.text


def test_the_fingerprint_is_that_of_weights_and_processor(model, embedder, tmp_path):
    assert Embedder.load(model).fingerprint == embedder.fingerprint
    checkpoint = save_checkpoint(tmp_path / "weights", with_snapshot=False)
    assert Embedder.load(str(tmp_path / "weights")).fingerprint == embedder.fingerprint
    next(checkpoint.protosphere.parameters()).data.mul_(1.001)
    checkpoint.save_pretrained(tmp_path / "weights")
    assert Embedder.load(str(tmp_path / "weights")).fingerprint != embedder.fingerprint
    save_checkpoint(tmp_path / "processor", with_snapshot=False, image_mean=[0.4, 0.5, 0.5])
    assert Embedder.load(str(tmp_path / "processor")).fingerprint != embedder.fingerprint


def test_a_backbone_of_timm_or_transformers(files, tmp_path):
    torch.manual_seed(0)
    network = timm.create_model("test_resnet.r160_in1k", num_classes=7)
    save_for_hf(network, tmp_path / "timm", model_config={"num_classes": 7}, safe_serialization=True)
    found = Embedder.load(str(tmp_path / "timm"))
    images = [Image.open(path) for path in files]
    pixels = torch.stack(
        [found.processor(image.convert("RGB"), return_tensors="pt")["pixel_values"][0] for image in images]
    )
    with torch.no_grad():
        expected = network.eval().forward_head(network.forward_features(pixels), pre_logits=True)
    assert torch.allclose(found(images), torch.nn.functional.normalize(expected, dim=1), atol=1e-5)
    assert Embedder.load(str(tmp_path / "timm"), "features").fingerprint == found.fingerprint
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=32)
    ViTModel(config).save_pretrained(tmp_path / "vit")
    embedder = Embedder.load(str(tmp_path / "vit"))
    assert embedder(images).shape == (4, embedder.dim) == (4, 8)
    (tmp_path / "vit" / "model.safetensors").unlink()
    with pytest.raises(ArgumentError, match=r"^--model .*vit cannot be loaded: [^\n]+$"):
        Embedder.load(str(tmp_path / "vit"))


def test_no_checkpoint(tmp_path):
    with pytest.raises(ArgumentError, match=r"there is no such folder"):
        Embedder.load(str(tmp_path / "nothing"))
