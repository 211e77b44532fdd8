"""The pipeline that can answer "unknown", with the package and without it."""

import base64
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import softmax
from transformers import AutoImageProcessor, pipeline
from transformers.utils import IMAGE_PROCESSOR_NAME

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
from hf_protosphere import pipeline_protosphere as module
from hf_protosphere.configuration_protosphere import SET_SCORES
from hf_protosphere.data.pixels import pixels_of
from hf_protosphere.data.transforms import build_image_processor
from hf_protosphere.pipeline_protosphere import FREE, PENALTY, nonconformity, prediction_sets

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


@pytest.mark.parametrize("score", ["max_softmax", "energy", "mahalanobis"])
def test_by_other_scores_too_unknown_is_first_where_the_model_says_so(saved, tmp_path, score):
    folder, model = saved
    images, config = [*map(noise, range(6))], model.config
    logits = model(pixels_of(images, build_image_processor(config))).logits
    again = ProtoSphereForImageClassification.from_pretrained(folder)
    tensors, scores = (), {"energy": logits.logsumexp(-1), "max_softmax": logits.softmax(-1).amax(-1)}.get(score)
    if scores is None:
        embeddings = model(pixels_of(images, build_image_processor(config))).embeddings
        tensors = (torch.randn(96, 5), embeddings[:2].detach())
        scores = -torch.cdist(embeddings @ tensors[0], tensors[1] @ tensors[0]).amin(1).square()
    again.hold_score(score, *tensors)
    threshold = scores.sort().values[2:4].mean()  # between two: one image alone rounds otherwise
    again.config.rejection_threshold = threshold.item()
    again.save_pretrained(tmp_path)
    answers = pipeline(TASK, model=str(tmp_path))(images)
    unknown = [answer[0]["label"] == "unknown" for answer in answers]
    assert unknown == (scores < threshold).tolist()
    assert sum(unknown) == 3
    again.config.rejection_threshold = scores.min().item() - 1e-3
    again.save_pretrained(tmp_path)
    assert all(answer[0]["label"] != "unknown" for answer in pipeline(TASK, model=str(tmp_path))(images))


def test_answers_tell_which_classes_are_in_the_set(saved, tmp_path):
    folder, model = saved
    again = ProtoSphereForImageClassification.from_pretrained(folder)
    again.config.set_score, again.config.set_coverage, again.config.set_thresholds = "lac", 0.9, [0.75]
    again.save_pretrained(tmp_path)
    images = [*map(noise, range(6))]
    sets = prediction_sets(model(pixels_of(images, build_image_processor(model.config))).logits, again.config)
    assert 0 < sets.sum() < sets.numel()
    for answer, held in zip(pipeline(TASK, model=str(tmp_path))(images, top_k=10), sets.tolist()):
        in_set = {entry["label"]: entry["in_set"] for entry in answer}
        assert not in_set.pop("unknown")
        assert in_set == dict(zip(["cat", "dog", "cow", "hen"], held))


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
        assert caplog.text.count("than the configuration describes") == warnings
    (tmp_path / IMAGE_PROCESSOR_NAME).write_text("[}")
    model.save_pretrained(tmp_path)
    assert caplog.text.count("than the configuration describes") == 2


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


def by_definition(row, kind):
    """Scores of the classes of one image, as the papers write them with u = 0, class by class."""
    p = softmax(row)
    scores = []
    for c in range(len(p)):
        mass = sum(other for other in p if other > p[c])
        rank = 1 + sum(other > p[c] for other in p)
        scores.append({"lac": 1 - p[c], "aps": mass, "raps": mass + PENALTY * max(rank - FREE, 0)}[kind])
    return scores


@pytest.mark.parametrize("kind", SET_SCORES)
def test_scores_are_those_of_the_definitions(kind):
    logits = 2 * torch.randn(40, 9, generator=torch.Generator().manual_seed(0)).double()
    expected = [by_definition(row, kind) for row in logits.numpy()]
    assert nonconformity(logits, kind).numpy() == pytest.approx(np.array(expected), abs=1e-12)


def test_aps_takes_the_most_likely_classes_until_their_mass_is_enough():
    """Romano et al. 2020, equation (4): the fewest classes, from the most likely on, of mass τ or more."""
    logits, threshold = 2 * torch.randn(300, 6, generator=torch.Generator().manual_seed(0)).double(), 0.8
    config = SimpleNamespace(set_score="aps", set_thresholds=[threshold])
    for row, held in zip(softmax(logits.numpy(), axis=1), prediction_sets(logits, config).numpy()):
        order = np.argsort(-row)
        count = 1 + np.flatnonzero(np.append(row[order].cumsum()[:-1], 1.0) > threshold)[0]
        assert {*order[:count]} == {*np.flatnonzero(held)}


def test_sets_of_a_configuration():
    logits = torch.tensor([[0.6, 0.3, 0.1], [0.4, 0.35, 0.25]]).log()
    assert prediction_sets(logits, SimpleNamespace(set_thresholds=None)) is None
    config = SimpleNamespace(set_score="lac", set_thresholds=[0.65])
    assert prediction_sets(logits, config).tolist() == [[True, False, False], [True, True, False]]
    config.set_thresholds = [0.65, 0.5, 0.8]  # one of each class
    assert prediction_sets(logits, config).tolist() == [[True, False, False], [True, False, True]]
    config.set_thresholds = [0.5, 0.5]
    with pytest.raises(ValueError, match="set_thresholds must be 1 or 3, not 2: calibrate again"):
        prediction_sets(logits, config)
