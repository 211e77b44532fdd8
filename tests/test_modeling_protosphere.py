"""Models: every backbone family reloads to the bit, every objective trains, norms stay 1."""

import json
import math
import os
import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import Subset
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    Trainer,
    TrainingArguments,
)

from hf_protosphere import (
    ProtoSphereConfig,
    ProtoSphereForImageClassification,
    ProtoSphereModel,
)
from hf_protosphere.objectives import OBJECTIVES, EmbeddingQueue, margin_loss, objective_loss
from hf_protosphere.prototypes import simplex_etf
from tests.models import TIMM, TRANSFORMERS, build, images


@pytest.mark.parametrize(
    ("source", "backbone", "kwargs"),
    [("timm", *item) for item in TIMM.items()] + [("transformers", *item) for item in TRANSFORMERS.items()],
)
def test_reload_is_bit_equal(tmp_path, source, backbone, kwargs):
    model = build(
        backbone,
        backbone_source=source,
        backbone_kwargs=kwargs,
        image_size=64,
        projection="mlp",
        projection_dim=16,
    ).eval()
    model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    assert not list(tmp_path.glob("*.bin"))
    again = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    embedder = AutoModel.from_pretrained(tmp_path).eval()
    assert type(again) is ProtoSphereForImageClassification
    assert type(embedder) is ProtoSphereModel
    pixels = images(2, 3, 64, 64)
    with torch.no_grad():
        expected, got, embedded = model(pixels), again(pixels), embedder(pixels)
    assert torch.equal(expected.logits, got.logits)
    assert torch.equal(expected.embeddings, embedded.embeddings)
    for (name, ours), theirs in zip(
        [*model.named_parameters(), *model.named_buffers()],
        [*again.parameters(), *again.buffers()],
    ):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_labels_compute_the_objective_and_reach_every_parameter(objective):
    model = build(objective=objective, projection="linear", projection_dim=16).train()
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    views = OBJECTIVES[objective].contrasts_views
    pixels = images(6, 2, 3, 32, 32) if views else images(6, 3, 32, 32)
    output = model(pixels, labels=labels)
    temperature, loss = model.config.softmax_temperature, OBJECTIVES[objective].loss
    if views:
        expected = loss(output.embeddings, labels, temperature)
    elif objective == "cross_entropy":
        expected = F.cross_entropy(output.logits, labels)
    elif objective == "dot_regression":
        expected = loss(output.embeddings, model.prototypes, labels)
    else:
        expected = loss(output.embeddings, model.prototypes, labels, temperature)
    assert torch.allclose(output.loss, expected, atol=1e-5)
    output.loss.backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_what_training_knows_of_classes_and_earlier_batches_is_not_the_model(tmp_path):
    pixels, labels = images(6, 3, 32, 32), torch.arange(6) % 5
    for objective, term in (("ntce", "queue"), ("normface", "bias"), ("cross_entropy", "bias")):
        model = build(objective=objective).train()
        names, likelihood = set(model.state_dict()), model.eval()(pixels, labels=labels).loss
        if term == "queue":
            model.queue.append(EmbeddingQueue(8, model.protosphere.embedding_dim))
        model.set_class_counts([5, 4, 3, 2, 1], logit_adjustment=2.0 * (term == "bias"))
        first, second = (model.train()(pixels, labels=labels) for _ in range(2))
        weight, bias = model.class_weight, model.class_bias
        if objective == "cross_entropy":
            expected = F.cross_entropy(second.logits + bias, labels, weight)
        else:
            more = {"bias": bias} if term == "bias" else {"queue": (first.embeddings, labels)}
            batch = (second.embeddings, model.prototypes, labels, model.config.softmax_temperature)
            expected = OBJECTIVES[objective].loss(*batch, weight=weight, **more)
        assert torch.allclose(second.loss, expected, atol=1e-5)
        assert set(model.state_dict()) == names
        assert model.eval()(pixels, labels=labels).loss.isclose(likelihood, atol=1)
        model.save_pretrained(tmp_path / objective)
        again = ProtoSphereForImageClassification.from_pretrained(tmp_path / objective).eval()
        assert again.class_weight is None
        assert torch.equal(again(pixels).logits, model(pixels).logits)
    with pytest.raises(ValueError, match="expected 5 counts, but got 2"):
        model.set_class_counts([1, 2])


def test_a_margin_is_in_the_loss_of_training_only():
    plain, model = (build(objective="normface", margin=margin) for margin in (0.0, 0.3))
    pixels, labels = images(6, 3, 32, 32), torch.arange(6) % 5
    output = model.train()(pixels, labels=labels)
    temperature = model.config.softmax_temperature
    batch = (output.embeddings, model.prototypes, labels, temperature)
    expected = margin_loss(*batch, margin=0.3)
    assert torch.allclose(output.loss, expected, atol=1e-5)
    for one in (plain, model):
        one.load_state_dict(model.state_dict())
        one.eval()
    assert torch.equal(plain(pixels, labels=labels).loss, model(pixels, labels=labels).loss)


@pytest.mark.parametrize("prototypes", ["learned", "simplex_etf", "class_means"])
def test_logits_are_cosines_over_temperature(prototypes):
    model = build(prototypes=prototypes, softmax_temperature=0.2).eval()
    output = model(images(3, 3, 32, 32))
    assert torch.allclose(output.embeddings.norm(dim=-1), torch.ones(3), atol=1e-6)
    assert torch.allclose(model.prototypes.norm(dim=-1), torch.ones(5), atol=1e-6)
    assert torch.allclose(output.logits, output.embeddings @ model.prototypes.T / 0.2, atol=1e-5)
    learned = "head.weight" in dict(model.named_parameters())
    assert learned == (prototypes == "learned")
    assert "head.weight" in model.state_dict()


def test_cross_entropy_is_the_classical_linear_head():
    model = build(objective="cross_entropy").eval()
    pixels = images(3, 3, 32, 32)
    features = model.protosphere(pixels).pooler_output
    assert torch.allclose(model(pixels).logits, model.classifier(features), atol=1e-6)
    assert model.classifier.bias is not None
    with pytest.raises(ValueError, match="linear head"):
        model.set_prototypes(torch.ones(5, 96))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_unknown_below_the_threshold(objective):
    model = build(objective=objective).eval()
    pixels, views = images(12, 3, 32, 32), images(12, 2, 3, 32, 32)
    plain, plain_views = model(pixels), model(views)
    assert plain.is_unknown is None
    mean = F.normalize(plain_views.embeddings.mean(1), dim=-1)
    for given, embeddings in ((pixels, plain.embeddings), (views, mean)):
        cosines = (embeddings @ model.prototypes.T).amax(-1)
        model.config.rejection_threshold = cosines.sort().values[4:6].mean().item()
        output = model(given)
        assert output.is_unknown.sum() == 5
        assert torch.equal(output.is_unknown, cosines < model.config.rejection_threshold)
    assert torch.equal(model(pixels).logits, plain.logits)


@pytest.mark.parametrize("score", ["max_softmax", "energy"])
def test_unknown_by_another_score(score):
    model = build(rejection_score=score, calibration_temperature=1.7).eval()
    for pixels in (images(12, 3, 32, 32), images(12, 2, 3, 32, 32)):  # of one view, and of two
        model.config.rejection_threshold = None
        logits = model(pixels).logits
        scores = logits.logsumexp(-1) if score == "energy" else logits.softmax(-1).amax(-1)
        model.config.rejection_threshold = scores.sort().values[4:6].mean().item()
        assert torch.equal(model(pixels).is_unknown, scores < model.config.rejection_threshold)
        assert model(pixels).is_unknown.sum() == 5


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("temperature", [0.05, 1.0, 7.3])
def test_the_calibration_temperature_divides_logits_and_nothing_else(objective, temperature):
    model = build(objective=objective).eval()
    pixels, labels = images(6, 2, 3, 32, 32), torch.arange(6) % 3
    plain = model(pixels, labels=labels)
    model.config.calibration_temperature = temperature
    output = model(pixels, labels=labels)
    assert torch.equal(output.loss, plain.loss)
    assert torch.equal(output.embeddings, plain.embeddings)
    assert torch.equal(output.logits, plain.logits / temperature)
    assert torch.equal(output.logits.argmax(-1), plain.logits.argmax(-1))


def test_a_calibrated_model_compiles_and_exports():
    model = build(rejection_threshold=0.0, calibration_temperature=2.0, class_margins=[0.0, 0.1, 0.0, 0.2, 0.0]).eval()
    pixels = images(4, 3, 32, 32)
    with torch.no_grad():
        expected = model(pixels)
        compiled = torch.compile(model, backend="eager", fullgraph=True)(pixels)
        exported = torch.export.export(model, (pixels,)).module()(pixels)
    for output in (compiled, exported):
        assert torch.equal(output.is_unknown, expected.is_unknown)
        assert torch.allclose(output.logits, expected.logits, atol=1e-5)


def test_views_are_embedded_together_and_their_logits_averaged():
    model = build().eval()
    pixels = images(4, 2, 3, 32, 32)
    output = model(pixels, labels=torch.tensor([0, 1, 2, 3]))
    assert output.embeddings.shape == (4, 2, 96)
    single = model(pixels.flatten(0, 1))
    assert torch.allclose(output.logits, single.logits.unflatten(0, (4, 2)).mean(1), atol=1e-5)
    each = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    assert torch.allclose(output.loss, F.cross_entropy(single.logits, each), atol=1e-5)
    expected = OBJECTIVES["ntce"].loss(single.embeddings, model.prototypes, each, model.config.softmax_temperature)
    trained = model.train().objective(output.embeddings, output.logits, torch.arange(4))
    assert torch.allclose(trained, expected, atol=1e-5)
    model.eval()
    with pytest.raises(ValueError, match="expected pixel_values"):
        model(images(3, 32, 32))


def test_set_prototypes(tmp_path):
    model = build(prototypes="class_means")
    given = images(5, 96) * 7
    model.set_prototypes(given)
    assert torch.allclose(model.prototypes, F.normalize(given, dim=-1), atol=1e-6)
    model.save_pretrained(tmp_path)
    again = ProtoSphereForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(again.prototypes, model.prototypes)
    with pytest.raises(ValueError, match=r"\(5, 96\).*\(4, 96\)"):
        model.set_prototypes(given[:4])
    given[3] = 0
    with pytest.raises(ValueError, match=r"rows \[3\]"):
        model.set_prototypes(given)


@pytest.fixture
def mesh():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@pytest.mark.parametrize("objective", ["nonl", "cross_entropy"])
def test_prototypes_of_a_sharded_model_are_whole(mesh, objective):
    model = build(objective=objective)
    before = model.prototypes.detach().clone()
    fully_shard(model, mesh=mesh)
    (weight,) = (w for name, w in model.named_parameters() if name in ("head.weight", "classifier.weight"))
    assert isinstance(weight, DTensor)  # a shard in each process
    assert not isinstance(model.prototypes, DTensor)
    assert torch.equal(model.prototypes, before)


def test_simplex_etf_prototypes_need_enough_dimensions():
    model = build(prototypes="simplex_etf", num_labels=17, projection="linear", projection_dim=16)
    cosines = model.prototypes @ model.prototypes.T
    assert torch.allclose(cosines[0, 1:], torch.full((16,), -1 / 16), atol=1e-6)
    with pytest.raises(ValueError, match="projection_dim=17"):
        build(prototypes="simplex_etf", num_labels=18, projection="linear", projection_dim=16)
    with pytest.raises(ValueError, match=r"of 18 classes needs at least 17 .* have 16.*fewer reserved classes"):
        build(num_labels=5, reserved_classes=13, projection="linear", projection_dim=16)


@pytest.mark.parametrize("objective", ["normface", "decoupled_normface", "ntce", "dot_regression"])
def test_spare_vertices_are_rivals_in_training_where_images_choose_among_prototypes(objective):
    model = build(objective=objective, num_labels=5, reserved_classes=7, projection="linear", projection_dim=16)
    assert model.config.prototypes == "simplex_etf"
    vertices = torch.cat([model.head.weight, model.head.spare])
    expected = torch.full((12, 12), -1 / 11).fill_diagonal_(1)
    torch.testing.assert_close(vertices @ vertices.T, expected, atol=1e-6, rtol=0)
    pixels, labels = images(6, 3, 32, 32), torch.arange(6) % 5
    output = model.train()(pixels, labels=labels)
    used = vertices if "normface" in objective else vertices[:5]
    batch = (output.embeddings, output.logits, labels, used, model.temperature)
    torch.testing.assert_close(output.loss, objective_loss(objective, *batch))
    assert output.logits.shape == (6, 5)
    model.set_class_counts([1, 2, 3, 4, 5], logit_adjustment=0.5 if "normface" in objective else 0.0)
    assert model(pixels, labels=labels).loss.isfinite()  # a class without images has no share: it is left out


def test_images_at_the_vertices_are_the_optimum_of_normface_with_spare_ones():
    vertices = simplex_etf(9, 8).double()
    labels = torch.arange(3)
    points = vertices[:3].clone().requires_grad_()
    for used, at_rest in ((vertices, True), (vertices[:3], False)):
        slope = torch.autograd.grad(objective_loss("normface", points, None, labels, used, 0.2), points)[0]
        along = (slope * points).sum(1, keepdim=True) * points  # what is left is along the sphere
        assert ((slope - along).norm() < 1e-6) == at_rest  # the frame is in float32


def test_margins_of_classes_are_in_logits_and_what_is_made_of_them(tmp_path):
    model = build(prototypes="simplex_etf").eval()
    pixels = images(3, 3, 32, 32)
    before, margins = model(pixels).logits, [0.0, 0.25, 0.0, -0.5, 0.0]
    model.config.class_margins = margins
    expected = before - torch.tensor(margins) / model.config.softmax_temperature
    torch.testing.assert_close(model(pixels).logits, expected)
    assert torch.equal(model(pixels).logits[:, [0, 2, 4]], before[:, [0, 2, 4]])


def test_grayscale_model_takes_the_luminance_of_rgb():
    model = build(num_channels=1).eval()
    gray = images(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.allclose(model(gray).logits, model(gray.expand(-1, 3, -1, -1)).logits, atol=1e-5)
        rgb = images(2, 3, 32, 32)
        luminance = 0.299 * rgb[:, :1] + 0.587 * rgb[:, 1:2] + 0.114 * rgb[:, 2:]
        assert torch.allclose(model(rgb).logits, model(luminance).logits, atol=1e-5)


def test_new_number_of_classes_gives_unit_prototypes(tmp_path):
    build().save_pretrained(tmp_path)
    model = ProtoSphereForImageClassification.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert torch.allclose(model.head.weight.norm(dim=-1), torch.ones(7), atol=1e-6)


def test_a_backbone_that_was_not_loaded_is_an_error(tmp_path):
    build().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    renamed = {name.replace("backbone.", "encoder."): value for name, value in weights.items()}
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="does not fit its configuration"):
        ProtoSphereForImageClassification.from_pretrained(tmp_path)


def test_half_precision_and_autocast_give_finite_unit_embeddings():
    model = build()
    labels = torch.tensor([0, 1, 2, 3])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(images(4, 3, 32, 32), labels=labels)
    assert output.embeddings.dtype == output.logits.dtype == output.loss.dtype == torch.float32
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    half = build().to(torch.bfloat16)(images(4, 3, 32, 32), labels=labels)
    assert torch.allclose(half.embeddings.norm(dim=-1), torch.ones(4), atol=1e-6)


class _Digits(torch.utils.data.Dataset):
    def __init__(self):
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels = torch.tensor(digits.images[:256] / 16, dtype=torch.float32)
        self.pixels = F.interpolate(pixels[:, None], 32) * 2 - 1
        self.labels = torch.tensor(digits.target[:256])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return {"pixel_values": self.pixels[i], "labels": self.labels[i]}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_loss_of_an_evaluation_knows_no_batches(objective, tmp_path):
    digits = _Digits()
    by_class = sorted(range(60), key=lambda i: digits[i]["labels"].item())
    model = build(objective=objective, num_labels=10, num_channels=1)
    model.config.calibration_temperature = 2.0  # of another time: not what is trained

    def loss(indices, batch_size):
        options = {"report_to": [], "use_cpu": True, "disable_tqdm": True}
        given = TrainingArguments(str(tmp_path), per_device_eval_batch_size=batch_size, **options)
        return Trainer(model, given, eval_dataset=Subset(digits, indices)).evaluate()["eval_loss"]

    pixels, labels = (torch.stack([digits[i][key] for i in by_class]) for key in ("pixel_values", "labels"))
    with torch.no_grad():
        expected = F.cross_entropy(2 * model.eval()(pixels).logits, labels).item()
    for order, batch_size in ((by_class, 7), (range(60), 7), (range(60), 25)):
        assert loss(order, batch_size) == pytest.approx(expected, rel=1e-5)


def test_the_stock_trainer_trains_it(tmp_path):
    digits = _Digits()
    # With a threshold the output has one field more: predictions must stay the logits.
    model = build(num_labels=10, num_channels=1, rejection_threshold=0.5)

    def accuracy(prediction):
        return {"accuracy": (prediction.predictions.argmax(-1) == prediction.label_ids).mean()}

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path),
            num_train_epochs=6,
            per_device_train_batch_size=32,
            learning_rate=3e-3,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
        ),
        train_dataset=digits,
        eval_dataset=digits,
        compute_metrics=accuracy,
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < before["eval_loss"]
    assert after["eval_accuracy"] > 0.8
    trainer.save_model(str(tmp_path / "final"))
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "final")
    assert torch.equal(again.prototypes, model.prototypes)


def test_files_that_travel_import_only_each_other_torch_timm_and_transformers(tmp_path):
    import ast

    build().save_pretrained(tmp_path)
    files = {path.stem for path in tmp_path.glob("*.py")}
    assert {"configuration_protosphere", "modeling_protosphere", "losses"} <= files
    allowed = {"torch", "timm", "transformers", "safetensors", "huggingface_hub", "PIL", "numpy"}  # which these need
    allowed |= set(sys.stdlib_module_names)
    for path in tmp_path.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, path
            elif isinstance(node, ast.ImportFrom):
                names = files if node.level else allowed
                assert node.module.split(".")[0] in names, (path, node.module)


def test_loads_where_the_package_is_missing(python, tmp_path):
    model = build(projection="linear", projection_dim=8, reserved_classes=2).eval()
    model.config.class_margins = [0.0, 0.1, 0.0, 0.0, 0.2]
    model.save_pretrained(tmp_path / "model")
    code = f"""
import os, sys
sys.modules["hf_protosphere"] = None
import torch
from transformers import AutoModel, AutoModelForImageClassification
folder = {str(tmp_path / "model")!r}
model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True).eval()
embedder = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
with torch.no_grad():
    output = model(pixels)
    assert torch.equal(output.embeddings, embedder(pixels).embeddings)
    assert len(model(pixels, output_hidden_states=True).hidden_states) > 1
model.activation_checkpointing_enable()
model.train()(pixels, labels=torch.tensor([0, 1])).loss.backward()
model.add_classes({{"new": pixels}}, known=(output.embeddings, torch.tensor([0, 1])))
model.save_pretrained("again")
assert os.path.exists("again/losses.py") and os.path.exists("again/preprocessor_config.json")
print(output.logits.tolist())
"""
    result = python("-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    got = torch.tensor(json.loads(result.stdout.strip().splitlines()[-1]))
    expected = model(images(2, 3, 32, 32)).logits
    assert torch.allclose(got, expected, atol=1e-5)


def test_import_registers(python):
    code = """
import hf_protosphere
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification
config = AutoConfig.for_model("protosphere", backbone="test_resnet", image_size=32)
assert type(AutoModel.from_config(config)) is hf_protosphere.ProtoSphereModel
model = AutoModelForImageClassification.from_config(config)
assert type(model) is hf_protosphere.ProtoSphereForImageClassification
"""
    result = python("-c", code)
    assert result.returncode == 0, result.stderr


def test_softmax_of_the_logits_is_a_distribution_that_follows_the_angle():
    model = build(prototypes="simplex_etf", softmax_temperature=0.1).eval()
    embedding = model.prototypes[2]
    scores = (embedding @ model.prototypes.T / model.config.softmax_temperature).softmax(-1)
    expected = math.exp(10) / (math.exp(10) + 4 * math.exp(-10 / 4))
    assert scores[2].item() == pytest.approx(expected, rel=1e-4)


def test_a_learned_temperature_is_saved_and_said(tmp_path):
    model = build(objective="ntce", learned_temperature=True, softmax_temperature=0.3)
    assert model.temperature.item() == pytest.approx(0.3)
    model.train()(images(4, 3, 32, 32), labels=torch.arange(4)).loss.backward()
    assert model.head.log_temperature.grad.abs() > 0
    with torch.no_grad():
        model.head.log_temperature += 0.5
    expected = model.eval()(images(4, 3, 32, 32)).logits
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(again(images(4, 3, 32, 32)).logits, expected)
    assert again.config.softmax_temperature == again.temperature.item()
    assert again.config.softmax_temperature == pytest.approx(0.3 * math.exp(0.5))
    again.remove_classes(["LABEL_0"])
    assert torch.equal(again(images(4, 3, 32, 32)).logits, expected[:, 1:])


@pytest.mark.parametrize(("log", "bound"), [(-9.0, 0.01), (3.0, 1.0)])
def test_a_learned_temperature_comes_back_from_beyond_its_bounds(log, bound):
    model = build(objective="ntce", learned_temperature=True)
    torch.nn.init.constant_(model.head.log_temperature, log)
    assert model.temperature.item() == pytest.approx(bound)
    model.temperature.backward()
    assert model.head.log_temperature.grad.item() == pytest.approx(bound)


@pytest.mark.parametrize(
    "options",
    [
        {"objective": name} for name in ("nonl", "decoupled_normface", "decoupled_scl",
                                         "dot_regression", "cross_entropy")
    ] + [{"objective": "normface", "margin": 0.2}],
)  # fmt: skip
def test_a_temperature_without_an_optimum_is_not_learned(options):
    with pytest.raises(ValueError, match=r"learned_temperature does not go with .*falls for ever"):
        build(learned_temperature=True, **options)


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_saved_weights_have_the_permissions_that_the_user_gives(tmp_path):
    before = os.umask(0o027)
    try:
        build().save_pretrained(tmp_path, max_shard_size="500KB")
    finally:
        os.umask(before)
    weights = list(tmp_path.glob("*.safetensors"))
    assert len(weights) > 1
    assert {path.stat().st_mode & 0o777 for path in weights} == {0o640}


@pytest.mark.parametrize("projection", ["linear", "mlp"])
def test_a_projection_with_dropout_and_batch_norm(projection, tmp_path):
    more = {"projection_batch_norm": True} if projection == "mlp" else {}
    config = ProtoSphereConfig(
        backbone="test_resnet", image_size=32, num_labels=3, projection=projection,
        projection_dim=8, projection_hidden_dim=16, projection_dropout=0.5, **more,
    )  # fmt: skip
    model = ProtoSphereForImageClassification(config)
    kinds = [type(layer).__name__ for layer in model.protosphere.projection]
    mlp = ["Dropout", "Linear", "BatchNorm1d", "ReLU", "Dropout", "Linear"]
    assert kinds == (mlp if projection == "mlp" else ["Dropout", "Linear"])
    pixels = torch.randn(4, 3, 32, 32)
    assert not torch.equal(model.train()(pixels).logits, model(pixels).logits)
    expected = model.eval()(pixels).logits
    model.save_pretrained(tmp_path)
    again = ProtoSphereForImageClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(again(pixels).logits, expected)
