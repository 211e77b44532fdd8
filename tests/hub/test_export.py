"""An exported model computes what the checkpoint does, or is not kept; its README runs as it is."""

import functools
import json
import re
import shutil
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
from hf_protosphere.cli import main
from hf_protosphere.data.pixels import pixels_of
from hf_protosphere.data.transforms import build_image_processor
from hf_protosphere.errors import ArgumentError, DataError, ExportError
from hf_protosphere.hub import export as export_module
from hf_protosphere.hub.arguments import ExportArguments
from hf_protosphere.hub.export import export, largest_difference
from hf_protosphere.runs.folders import HELD, claim

NAMES = {0: "zero", 1: "one", 2: "two"}
VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
MODELS = {
    "resnet": {"backbone": "test_resnet", "crop_pct": 0.9},
    "vit": {"backbone": "test_vit", "backbone_kwargs": {"patch_size": 8}, "projection": "mlp"},
    "convnext": {"backbone": "test_convnext", "prototypes": "simplex_etf", "objective": "ntce"},
    "transformers vit": {
        "backbone": "vit",
        "backbone_source": "transformers",
        "backbone_kwargs": VIT,
        "objective": "scl",
        "projection": "mlp",
    },
    "gray cross-entropy": {
        "backbone": "test_resnet",
        "num_channels": 1,
        "objective": "cross_entropy",
        "small_images": True,
    },
}
HALF = {"half precision": {"backbone": "test_resnet", "dtype": torch.bfloat16}}


def save(folder, dtype=None, **config):
    torch.manual_seed(0)
    config = ProtoSphereConfig(image_size=32, id2label=NAMES, **config)
    model = ProtoSphereForImageClassification(config).train()
    for _ in range(3):  # so that batch norm has seen something
        model(torch.randn(16, 3, 32, 32))
    model.to(dtype).save_pretrained(folder)
    build_image_processor(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images(digits_folder):
    files = sorted((digits_folder / "test").rglob("*.png"))[::5]
    return files, [Image.open(file) for file in files]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    models = MODELS | HALF
    return functools.cache(lambda name: save(tmp_path_factory.mktemp("model"), **models[name]))


@pytest.fixture(scope="module")
def exported(checkpoint, digits_folder):
    """The file of a model in a format, compared on digits."""

    @functools.cache
    def run(name, format):
        arguments = {"dataset_name": str(digits_folder), "num_images": 6}
        return export(ExportArguments(model=str(checkpoint(name)), format=format, **arguments))

    return run


@pytest.fixture(scope="module")
def resnet(checkpoint):
    return checkpoint("resnet")


def expected(folder, images):
    """Pixels, logits and embeddings, by the checkpoint itself."""
    model = ProtoSphereForImageClassification.from_pretrained(folder, dtype=torch.float32)
    pixels = pixels_of(images, build_image_processor(model.config))
    with torch.no_grad():
        output = model(pixels)
    return pixels.numpy(), output.logits.numpy(), output.embeddings.numpy()


ALSO_AGREES = pytest.mark.slow  # 3 s each; the others have attention and both norms as well
SLOW = [pytest.param(name, marks=ALSO_AGREES) for name in ("vit", "convnext")]


@pytest.mark.parametrize("name", ["resnet", "transformers vit", "gray cross-entropy", *SLOW])
def test_onnxruntime_agrees_for_batches_of_any_size(checkpoint, exported, images, name):
    file = exported(name, "onnx")
    assert file == checkpoint(name) / "onnx" / "model.onnx"
    session = onnxruntime.InferenceSession(file)
    pixels, logits, embeddings = expected(checkpoint(name), images[1])
    assert [i.name for i in session.get_inputs()] == ["pixel_values"]
    assert [o.name for o in session.get_outputs()] == ["logits", "embeddings"]
    assert session.get_inputs()[0].shape == ["batch", 3, 32, 32]
    for size in (1, 2, 5, 9):
        got = session.run(None, {"pixel_values": pixels[:size]})
        np.testing.assert_allclose(got[0], logits[:size], rtol=0, atol=1e-4)
        np.testing.assert_allclose(got[1], embeddings[:size], rtol=0, atol=1e-4)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["labels"]) == ["zero", "one", "two"]
    assert json.loads(metadata["preprocessing"])["center_crop"] == 32


@pytest.mark.parametrize("name", ["resnet", "transformers vit", "half precision"])
def test_torch_export_agrees_for_batches_of_any_size(checkpoint, exported, images, name):
    program = torch.export.load(exported(name, "torch_export")).module()
    pixels, logits, embeddings = expected(checkpoint(name), images[1])
    for size in (1, 2, 5, 9):
        got = program(torch.from_numpy(pixels[:size]))
        assert got[0].dtype == got[1].dtype == torch.float32
        np.testing.assert_allclose(got[0].detach(), logits[:size], rtol=0, atol=1e-5)
        np.testing.assert_allclose(got[1].detach(), embeddings[:size], rtol=0, atol=1e-5)


@pytest.mark.parametrize("format", ["onnx", "torch_export"])
def test_the_readme_runs_without_transformers(resnet, exported, images, format, tmp_path, capsys, monkeypatch):
    file = exported("resnet", format)
    readme = file.with_name("README.md").read_text()
    shutil.copytree(file.parent, tmp_path, dirs_exist_ok=True)
    shutil.copy(images[0][4], tmp_path / "image.png")
    monkeypatch.syspath_prepend(tmp_path)  # as where Python is started there
    monkeypatch.delitem(sys.modules, "rgb", raising=False)
    capsys.readouterr()
    scores = expected(resnet, [images[1][4]])[1][0]
    monkeypatch.chdir(tmp_path)
    for name in ("transformers", "hf_protosphere"):
        monkeypatch.setitem(sys.modules, name, None)
    names = {}
    exec(re.search(r"```python\n(.*?)```", readme, re.DOTALL)[1], names)
    assert capsys.readouterr().out == f"{NAMES[int(scores.argmax())]}\n"
    assert names["logits"][0].tolist() == pytest.approx(scores.tolist(), abs=0.05)


def test_the_command_says_what_it_compared(resnet, digits_folder, tmp_path, capsys):
    command = ["export", str(resnet), "--format", "torch_export", "--output_dir", str(tmp_path)]
    main([*command, "--dataset_name", str(digits_folder), "--num_images", "6"])
    verdict = rf"differs from the model by at most \S+ on 6 images of {digits_folder}, test"
    assert re.search(f"{tmp_path}/model.pt2: {verdict}", capsys.readouterr().out)
    assert re.search(f"\nIt {verdict}\\.\n", (tmp_path / "README.md").read_text())


def test_the_largest_difference():
    network = export_module.PlainOutputs(
        ProtoSphereForImageClassification(ProtoSphereConfig(backbone="test_resnet", image_size=32, id2label=NAMES))
    ).eval()
    images, sizes = torch.randn(20, 3, 32, 32), []

    def wrong(last):
        def run(batch):
            sizes.append(len(batch))
            logits, embeddings = network(batch)
            return logits, torch.cat([embeddings[:-1], embeddings[-1:] + last])

        return run

    assert largest_difference(network, wrong(0), images) < 1e-6
    assert sizes == [1, 16, 3]
    assert largest_difference(network, wrong(0.25), images) == pytest.approx(0.25)
    assert np.isnan(largest_difference(network, wrong(float("nan")), images))


def test_what_does_not_agree_is_not_kept(resnet, tmp_path, monkeypatch):
    claim(tmp_path, "--output_dir", ("model.pt2*",))
    (tmp_path / "model.pt2").write_text("an earlier one")
    monkeypatch.setattr(export_module, "TOLERANCE", -1.0)  # the two are equal here
    with pytest.raises(ExportError, match=r"--format torch_export: .* by 0 on 8 images of noise"):
        export(ExportArguments(model=str(resnet), format="torch_export", output_dir=str(tmp_path)))
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt2", HELD}
    assert (tmp_path / "model.pt2").read_text() == "an earlier one"


def test_errors(resnet, digits_folder, tmp_path):
    with pytest.raises(ArgumentError, match="is not a ProtoSphere checkpoint"):
        export(ExportArguments(model=str(tmp_path)))
    options = {"output_dir": str(tmp_path), "dataset_name": str(digits_folder), "split": "dev"}
    with pytest.raises(DataError, match=r"--split dev: .* train, test"):
        export(ExportArguments(model=str(resnet), **options))
