"""NeuralCollapseCallback in the stock Trainer, with classifiers that are not ours."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import IterableDataset
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
from hf_protosphere.errors import ArgumentError
from hf_protosphere.evaluation import callbacks
from hf_protosphere.evaluation.callbacks import NeuralCollapseCallback
from hf_protosphere.metrics.neural_collapse import METRICS, NeuralCollapse
from hf_protosphere.runs.metrics_log import read_metrics


class Digits(torch.utils.data.Dataset):
    """8×8 digits, as any torch data set of dicts; augmented ones differ at every look."""

    def __init__(self, start, stop, augment=False):
        digits = load_digits()
        self.images = torch.tensor(digits.images[start:stop], dtype=torch.float32) / 16
        self.labels = torch.tensor(digits.target[start:stop])
        self.augment = augment

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = self.images[index][None]
        if self.augment:
            image = image + 0.1 * torch.randn(image.shape)
        return {"pixel_values": image, "labels": self.labels[index]}


class Stream(IterableDataset):
    def __iter__(self):
        digits = Digits(0, 320)
        return (digits[i] for i in range(len(digits)))


def resnet():
    torch.manual_seed(0)
    config = ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=10,
        layer_type="basic", downsample_in_first_stage=False,
    )  # fmt: skip
    return ResNetForImageClassification(config)


@pytest.fixture
def make_trainer(tmp_path):
    def make(model, train=None, **options):
        defaults = {
            "output_dir": str(tmp_path / "trainer"), "num_train_epochs": 2, "report_to": "none",
            "per_device_train_batch_size": 32, "learning_rate": 1e-2, "logging_strategy": "no",
            "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "eval_strategy": "no",
        }  # fmt: skip
        arguments = TrainingArguments(**defaults | options)
        train = Digits(0, 320, augment=True) if train is None else train
        return Trainer(model, arguments, train_dataset=train, eval_dataset=Digits(320, 520))

    return make


@pytest.fixture
def no_pictures(monkeypatch):
    """They take most of the time of a short training."""
    monkeypatch.setattr(callbacks, "draw_run", lambda *_, **__: [])


def test_a_plain_resnet_is_measured_every_epoch(make_trainer, tmp_path):
    model = resnet()
    trainer = make_trainer(model)
    callback = NeuralCollapseCallback(trainer, train_samples=150, target=30)
    trainer.add_callback(callback)
    trainer.train()
    folder = tmp_path / "trainer"
    assert [r["step"] for r in callback.records] == [0, 10, 20]
    assert [r["epoch"] for r in callback.records] == [0.0, 1.0, 2.0]
    assert read_metrics(folder / "neural_collapse.jsonl") == callback.records

    test = Digits(320, 520)
    with torch.no_grad():
        pooled = model.eval().resnet(test.images[:, None]).pooler_output.flatten(1)
    metric = NeuralCollapse(10, 16)
    metric.update(F.normalize(pooled, dim=1), test.labels)
    expected = metric.compute(F.normalize(model.classifier[1].weight, dim=1))
    last = callback.records[-1]["eval_neural_collapse"]
    for info in METRICS:
        assert last[info.name] == pytest.approx(expected[info.name], rel=1e-4), info.name
    assert last["attained"]["overall"] == pytest.approx(expected["attained"]["overall"], rel=1e-4)

    logged = [log for log in trainer.state.log_history if "eval_neural_collapse/nc1_cdnv" in log]
    assert [log["step"] for log in logged] == [0, 10, 20]
    assert logged[-1]["eval_neural_collapse/nc1_cdnv"] == last["nc1_cdnv"]
    assert "train_neural_collapse/attained/overall" in logged[-1]
    assert 0 < logged[-1]["neural_collapse_share_of_time"] < 1
    assert callback.first_reached["eval"]["prototype_effective_rank"]["step"] == 0
    pictures = {"neural_collapse.png", "cosines.png", "margins.png", "sphere.png"}
    assert pictures == {path.name for path in folder.glob("*.png")}


@pytest.mark.usefixtures("no_pictures")
def test_training_is_not_disturbed(make_trainer):
    def trained(with_callback):
        trainer = make_trainer(resnet(), num_train_epochs=1)
        if with_callback:
            trainer.add_callback(NeuralCollapseCallback(trainer, every=3))
        trainer.train()
        return trainer.model.state_dict()

    without, measured = trained(False), trained(True)
    assert all(torch.equal(value, measured[name]) for name, value in without.items())


@pytest.mark.usefixtures("no_pictures")
def test_the_training_sample_stays_the_same(make_trainer):
    trainer = make_trainer(resnet(), learning_rate=0.0)
    callback = NeuralCollapseCallback(trainer, train_samples=100)
    trainer.add_callback(callback)
    for module in trainer.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    trainer.train()
    first, *later = [record["train_neural_collapse"] for record in callback.records]
    assert later == [first, first]  # also its noise


@pytest.mark.usefixtures("no_pictures")
def test_resuming_goes_on_with_the_log(make_trainer, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 4, "num_train_epochs": 1}
    trainer = make_trainer(resnet(), **options)
    trainer.add_callback(NeuralCollapseCallback(trainer, every=2))
    trainer.train()
    whole = read_metrics(tmp_path / "trainer" / "neural_collapse.jsonl")
    assert [record["step"] for record in whole] == [0, 2, 4, 6, 8, 10]

    trainer = make_trainer(resnet(), **options)
    callback = NeuralCollapseCallback(trainer, every=2)
    trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=str(tmp_path / "trainer" / "checkpoint-4"))
    assert [record["step"] for record in callback.records] == [0, 2, 4, 6, 8, 10]
    assert callback.records[:3] == whole[:3]


@pytest.mark.usefixtures("no_pictures")
def test_steps_that_do_not_divide_the_training_end_with_the_last_one(make_trainer):
    trainer = make_trainer(resnet(), max_steps=5)
    callback = NeuralCollapseCallback(trainer, every=3, train_samples=0)
    trainer.add_callback(callback)
    trainer.train()
    assert [record["step"] for record in callback.records] == [0, 3, 5]
    callback.stopwatch.seconds += 1e6
    trainer.train()  # another training, with records and times of its own
    assert [record["step"] for record in callback.records] == [0, 3, 5]
    assert trainer.state.log_history[-2]["neural_collapse_share_of_time"] < 1
    assert not any("train_neural_collapse" in record for record in callback.records)


@pytest.mark.usefixtures("no_pictures")
def test_a_protosphere_says_itself_what_to_measure(make_trainer):
    torch.manual_seed(0)
    config = ProtoSphereConfig(
        backbone="test_resnet", image_size=32, num_channels=1, image_mean=[0.5], image_std=[0.5], num_labels=10
    )
    model = ProtoSphereForImageClassification(config)
    trainer = make_trainer(model, num_train_epochs=1)
    callback = NeuralCollapseCallback(trainer)
    trainer.add_callback(callback)
    trainer.train()
    with torch.no_grad():
        test = Digits(320, 520)
        embeddings = model.eval()(test.images[:, None]).embeddings
    metric = NeuralCollapse(10, embeddings.shape[1])
    metric.update(embeddings, test.labels)
    expected = metric.compute(model.prototypes)["nc3_self_duality"]
    assert callback.records[-1]["eval_neural_collapse"]["nc3_self_duality"] == pytest.approx(expected, rel=1e-4)


def test_what_cannot_work_is_said_before_the_first_step(make_trainer):
    def refused(model, match, train=None, **options):
        trainer = make_trainer(model, train, max_steps=5)
        trainer.add_callback(NeuralCollapseCallback(trainer, **options))
        with pytest.raises(ArgumentError, match=match):
            trainer.train()
        assert trainer.state.global_step == 0

    vit = ViTForImageClassification(
        ViTConfig(image_size=8, patch_size=4, num_channels=1, hidden_size=10, num_hidden_layers=1,
                  num_attention_heads=2, intermediate_size=20, num_labels=10)
    )  # fmt: skip
    refused(vit, r"ViTForImageClassification has \d linear layers with 10 outputs.*classifier")
    refused(vit, r"'head' is not a linear layer.*classifier", classification_layer="head")
    refused(vit, r"one vector per image.*\(8, 5, 10\)", classification_layer=_attention_layer(vit))
    refused(resnet(), "Stream has no length.*train_samples=0", train=Stream())
    with pytest.raises(ArgumentError, match="every must be 'epoch' or a number"):
        NeuralCollapseCallback(None, every="step")
    with pytest.raises(ArgumentError, match="train_samples must be at least 0, but got -1"):
        NeuralCollapseCallback(None, train_samples=-1)


def test_pictures_that_fail_cost_no_training(make_trainer, monkeypatch, caplog):
    def fails(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(callbacks, "draw_run", fails)
    trainer = make_trainer(PlainNetwork(), max_steps=1)
    trainer.add_callback(NeuralCollapseCallback(trainer, train_samples=0))
    trainer.train()
    assert trainer.state.global_step == 1
    assert "draws again) failed; the results are kept" in caplog.text


@pytest.mark.usefixtures("no_pictures")
def test_classes_that_a_sample_misses_are_warned_of(make_trainer):
    trainer = make_trainer(resnet(), max_steps=1)
    callback = NeuralCollapseCallback(trainer, train_samples=3)
    trainer.add_callback(callback)
    with pytest.warns(UserWarning, match=r"no train image of \d classes .* that of the others"):
        trainer.train()
    metrics = callback.records[-1]["train_neural_collapse"]
    assert len(metrics["absent_classes"]) >= 7
    assert "overall" not in metrics["attained"]
    assert "overall" in callback.records[-1]["eval_neural_collapse"]["attained"]


def _attention_layer(model):
    return next(name for name, m in model.named_modules() if isinstance(m, nn.Linear) and "0" in name)


@pytest.mark.usefixtures("no_pictures")
def test_a_named_layer_is_used(make_trainer):
    config = ViTConfig(
        image_size=8, patch_size=4, num_channels=1, hidden_size=10, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=20, num_labels=10,
    )  # fmt: skip
    trainer = make_trainer(ViTForImageClassification(config), train=Stream(), max_steps=2)
    callback = NeuralCollapseCallback(trainer, train_dataset=Digits(0, 100), classification_layer="classifier")
    trainer.add_callback(callback)
    trainer.train()
    assert callback.records[0]["train_neural_collapse"]["attained"]["overall"] >= 0


class PlainNetwork(nn.Module):
    """A classifier without a configuration, as people wrap their own for the Trainer."""

    def __init__(self, hidden=False):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 64) if hidden else nn.Identity())
        self.head = nn.Linear(64, 10)

    def forward(self, pixel_values, labels=None):
        logits = self.head(self.body(pixel_values))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


@pytest.mark.usefixtures("no_pictures")
def test_a_network_without_a_configuration(make_trainer):
    trainer = make_trainer(PlainNetwork(), num_train_epochs=1)
    callback = NeuralCollapseCallback(trainer)
    trainer.add_callback(callback)
    trainer.train()
    assert [record["step"] for record in callback.records] == [0, 10]

    trainer = make_trainer(PlainNetwork(hidden=True), num_train_epochs=1)
    trainer.add_callback(NeuralCollapseCallback(trainer))
    with pytest.raises(ArgumentError, match=r"has 2 linear layers: name the.*body.1, head"):
        trainer.train()
