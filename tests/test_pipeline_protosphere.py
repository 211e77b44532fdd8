"""The pipeline that can answer "unknown", with the package and without it."""

import base64
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, pipeline
from transformers.utils import IMAGE_PROCESSOR_NAME

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
from hf_protosphere import pipeline_protosphere as module
from hf_protosphere.data.pixels import pixels_of
from hf_protosphere.data.transforms import build_image_processor

TASK = "open-set-image-classification"


def noise(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    return Image.fromarray(pixels // (1 + seed))


@pytest.fixture(scope="module", params=["nonl", "cross_entropy"])
def saved(request, tmp_path_factory):
    """A folder, and its model: half of the images of `noise` are unknown to it."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    config = ProtoSphereConfig(
        backbone="test_resnet", image_size=32, id2label={0: "cat", 1: "dog", 2: "cow", 3: "hen"},
        objective=request.param, calibration_temperature=1.7,
    )  # fmt: skip
    model, processor = (
        ProtoSphereForImageClassification(config).eval(),
        build_image_processor(config),
    )
    model.requires_grad_(False)
    cosines = model(pixels_of([*map(noise, range(6))], processor)).embeddings @ model.prototypes.T
    config.rejection_threshold = cosines.amax(-1).sort().values[2:4].mean().item()
    model.save_pretrained(folder)
    return folder, model


def test_unknown_is_first_exactly_where_the_model_says_so(saved):
    folder, model = saved
    classify = pipeline(TASK, model=str(folder))
    images = [*map(noise, range(6))]
    output = model(pixels_of(images, classify.image_processor))
    assert output.is_unknown.tolist().count(True) == 3
    for batch_size in (1, 4):
        answers = classify(images, top_k=10, batch_size=batch_size)
        for answer, logits, is_unknown in zip(answers, output.logits, output.is_unknown):
            scores = {entry["label"]: entry["score"] for entry in answer}
            assert [*scores.values()] == sorted(scores.values(), reverse=True)
            assert sum(scores.values()) == pytest.approx(1)
            assert (answer[0]["label"] == "unknown") == is_unknown
            # Among the classes the scores are those of the stock pipeline.
            known = logits.softmax(-1) * (1 - scores.pop("unknown"))
            for i, name in model.config.id2label.items():
                assert scores[name] == pytest.approx(known[i].item(), abs=1e-6)
    assert len(classify(images[0])) == 5
    assert len(classify(images[0], top_k=2)) == 2


def test_unknown_is_one_more_class_at_the_threshold(saved):
    folder, model = saved
    (answer,) = pipeline(TASK, model=str(folder))([noise(0)])
    output = model(pixels_of([noise(0)], build_image_processor(model.config)))
    scale = model.config.softmax_temperature * 1.7
    threshold = model.config.rejection_threshold / scale
    if model.config.objective == "cross_entropy":  # whose logits are no cosines
        nearest = (output.embeddings @ model.prototypes.T).max().item() / scale
        threshold += output.logits.max().item() - nearest
    logits = torch.cat([output.logits[0], torch.tensor([threshold])])
    expected = logits.softmax(-1)[-1].item()
    scores = {entry["label"]: entry["score"] for entry in answer}
    assert scores["unknown"] == pytest.approx(expected, abs=1e-6)


def test_images_of_16_bits_are_gray_wherever_they_come_from(saved, tmp_path, monkeypatch):
    gray = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    wide, plain = Image.fromarray(gray.astype(np.uint16) * 257), Image.fromarray(gray)
    wide.save(tmp_path / "wide.png")
    content = (tmp_path / "wide.png").read_bytes()
    monkeypatch.setattr(module.httpx, "get", lambda *_, **__: SimpleNamespace(content=content))
    classify = pipeline(TASK, model=str(saved[0]))
    encoded = base64.b64encode(content).decode()
    given = [str(tmp_path / "wide.png"), wide, "https://localhost/wide.png", encoded]
    given.append(f"data:image/png;base64,{encoded}")
    assert classify(given) == [classify(plain)] * len(given)
    with pytest.raises(ValueError, match=r"'mistyped.png' is no image, and no file, URL or base64"):
        classify("mistyped.png")


def test_the_stock_pipeline_stays_as_it_is(saved):
    folder, model = saved
    answer = pipeline("image-classification", model=str(folder))(noise(0), top_k=10)
    assert sorted(entry["label"] for entry in answer) == ["cat", "cow", "dog", "hen"]
    logits = model(pixels_of([noise(0)], build_image_processor(model.config))).logits[0]
    assert answer[0]["score"] == pytest.approx(logits.softmax(-1).max().item(), abs=1e-6)


def test_a_saved_pipeline_loads_again_without_trust(saved, tmp_path):
    classify = pipeline(TASK, model=str(saved[0]))
    classify.save_pretrained(tmp_path)
    assert pipeline(TASK, model=str(tmp_path))(noise(0)) == classify(noise(0))


def test_where_the_package_is_missing(saved, python, tmp_path):
    folder, _ = saved
    noise(0).save(tmp_path / "image.png")
    code = f"""
import json, sys
sys.modules["hf_protosphere"] = None
from transformers import pipeline
options = {{"model": {str(folder)!r}, "trust_remote_code": True}}
answers = [pipeline(task, **options)("image.png", top_k=10) for task in
           ({TASK!r}, "image-classification")]
print(json.dumps(answers))
"""
    result = python("-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    got = json.loads(result.stdout.splitlines()[-1])
    for task, answer in zip((TASK, "image-classification"), got):
        expected = pipeline(task, model=str(folder))(noise(0), top_k=10)
        assert [entry["label"] for entry in answer] == [entry["label"] for entry in expected]
        for ours, theirs in zip(answer, expected):
            assert ours["score"] == pytest.approx(theirs["score"], abs=1e-6)


def test_a_model_made_in_python_saves_the_processor_that_its_configuration_describes(tmp_path):
    config = ProtoSphereConfig(
        backbone="test_resnet", image_size=32, num_labels=3, crop_pct=0.8, interpolation="bilinear",
        num_channels=1, image_mean=[0.3],
    )  # fmt: skip
    model = ProtoSphereForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    classify = pipeline("image-classification", model=str(tmp_path))
    pixels = pixels_of([noise(0)], build_image_processor(config))
    expected = model(pixels).logits[0].softmax(-1).tolist()
    scores = {answer["label"]: answer["score"] for answer in classify(noise(0))}
    assert [scores[f"LABEL_{i}"] for i in range(3)] == pytest.approx(expected, abs=1e-6)
    (embeddings,) = pipeline("image-feature-extraction", model=str(tmp_path))(noise(0))
    assert embeddings == pytest.approx(model(pixels).embeddings[0].tolist(), abs=1e-6)
    model.save_pretrained(tmp_path / "worker", is_main_process=False)
    assert not (tmp_path / "worker" / IMAGE_PROCESSOR_NAME).exists()


def test_a_processor_that_is_there_stays_and_another_one_is_warned_about(tmp_path, caplog):
    config = ProtoSphereConfig(backbone="test_resnet", image_size=32, num_labels=3)
    model, theirs = ProtoSphereForImageClassification(config), build_image_processor(config)
    for mean, warnings in ((theirs.image_mean, 0), ([0.1, 0.2, 0.3], 1)):
        theirs.image_mean = mean
        theirs.save_pretrained(tmp_path)
        model.save_pretrained(tmp_path)
        assert list(AutoImageProcessor.from_pretrained(tmp_path).image_mean) == list(mean)
        assert caplog.text.count("than the model's configuration describes") == warnings
    (tmp_path / IMAGE_PROCESSOR_NAME).write_text("[}")
    model.save_pretrained(tmp_path)
    assert caplog.text.count("than the model's configuration describes") == 2


def test_errors(tmp_path):
    config = ProtoSphereConfig(backbone="test_resnet", image_size=32, num_labels=3)
    ProtoSphereForImageClassification(config).save_pretrained(tmp_path)
    build_image_processor(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"is None: choose it by `protosphere calibrate {tmp_path}"):
        pipeline(TASK, model=str(tmp_path))
    config.rejection_threshold = 0.3
    config.id2label = {0: "cat", 1: "dog", 2: "unknown"}
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a class called 'unknown'"):
        pipeline(TASK, model=str(tmp_path))
    config.id2label = {0: "cat", 1: "dog", 2: "cow"}
    config.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="function_to_apply"):
        pipeline(TASK, model=str(tmp_path))(noise(0), function_to_apply="sigmoid")
