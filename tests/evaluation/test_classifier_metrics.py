"""The published accuracies, against loops, NumPy and scikit-learn."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score
from torch.utils.data import DataLoader

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
from hf_protosphere.errors import ArgumentError
from hf_protosphere.evaluation.classifier_metrics import (
    accuracy_by_frequency,
    collapse_by_layer,
    evaluate_model,
    evaluate_predictions,
    layers_of,
)
from hf_protosphere.metrics.neural_collapse import NeuralCollapse
from hf_protosphere.metrics.snapshot import SnapshotCollector
from hf_protosphere.pipeline_protosphere import prediction_sets
from tests.models import TRANSFORMERS, build, images

DIM = 6
ONE_PROCESS = SimpleNamespace(device="cpu", process_index=0, num_processes=1)


def predicted(num_classes, num_images=173, seed=0, classes=None):
    """Embeddings, logits and labels of a classifier that is right now and then."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (num_images,), generator=generator)
    if classes is not None:  # that have images
        labels = torch.tensor(classes)[labels % len(classes)]
    centres = torch.randn(num_classes, DIM, generator=generator)
    embeddings = centres[labels] + torch.randn(num_images, DIM, generator=generator)
    logits = torch.randn(num_images, num_classes, generator=generator)
    logits[torch.arange(num_images), labels] += 1
    return F.normalize(embeddings, dim=1), logits, labels


def measured(embeddings, logits, labels, accelerator=ONE_PROCESS, sizes=50, **options):
    parts = zip(embeddings.split(sizes), logits.split(sizes), labels.split(sizes))
    options = {"neural_collapse": False} | options
    return evaluate_predictions(parts, accelerator, num_classes=logits.shape[1], embedding_dim=DIM, **options)


def test_sets_are_counted_as_a_loop_does():
    embeddings, logits, labels = predicted(5, classes=[0, 1, 3])
    config = ProtoSphereConfig(
        num_labels=5, set_score="aps", set_coverage=0.6, set_thresholds=[0.3, 0.4, 0.5, 0.1, 0.2]
    )  # fmt: skip
    found = measured(embeddings, logits, labels, sets_of=config)["prediction_sets"]
    held = prediction_sets(logits, config)
    right = np.array([held[i, label].item() for i, label in enumerate(labels.tolist())])
    assert found["coverage"] == pytest.approx(right.mean())
    assert found["mean_size"] == pytest.approx(held.sum().item() / len(labels))
    of_classes = [right[labels.numpy() == c].mean() if c in (0, 1, 3) else None for c in range(5)]
    assert found["class_coverages"] == pytest.approx(of_classes)
    assert (found["set_score"], found["promised"]) == ("aps", 0.6)
    assert 0.3 < found["coverage"] < 1
    assert "prediction_sets" not in measured(embeddings, logits, labels, sets_of=ProtoSphereConfig(num_labels=5))


@pytest.mark.parametrize("num_classes", [2, 5, 6, 40])
def test_accuracies_are_those_of_a_loop_and_of_sklearn(num_classes):
    embeddings, logits, labels = predicted(num_classes)
    report = measured(embeddings, logits, labels)
    first = top5 = 0
    of_class = [[0, 0] for _ in range(num_classes)]
    for row, label in zip(logits.tolist(), labels.tolist()):
        ranking = sorted(range(num_classes), key=lambda c: -row[c])
        first += ranking[0] == label
        top5 += label in ranking[:5]
        of_class[label][0] += ranking[0] == label
        of_class[label][1] += 1
    n = len(labels)
    assert report["num_images"] == n
    assert 0 < first < top5 <= n
    # To the last digit: these are published.
    assert report["accuracy"] == np.float32(first / n)
    assert report["class_accuracies"] == [right / count for right, count in of_class]

    scores, truth = logits.numpy(), labels.numpy()
    choice = scores.argmax(1)
    assert report["accuracy"] == pytest.approx(accuracy_score(truth, choice))
    assert report["mean_class_accuracy"] == pytest.approx(balanced_accuracy_score(truth, choice))
    if num_classes > 5:
        assert report["top5_accuracy"] == np.float32(top5 / n)
        sklearns = top_k_accuracy_score(truth, scores, k=5, labels=range(num_classes))
        assert report["top5_accuracy"] == pytest.approx(sklearns)
    else:  # it would be 1
        assert "top5_accuracy" not in report


def test_batches_of_any_size_give_the_same():
    given = predicted(8)
    assert measured(*given, sizes=1) == measured(*given, sizes=7) == measured(*given, sizes=1000)
    by_class = [part[given[2].argsort()] for part in given]
    assert measured(*by_class, sizes=7) == measured(*given, sizes=7)


def test_classes_without_images_have_no_accuracy_and_no_weight():
    embeddings, logits, labels = predicted(8, classes=[1, 2, 6])
    report = measured(embeddings, logits, labels)
    assert (logits.argmax(1) == 5).any()  # one is predicted, though there is no image of it
    truth, choice = labels.numpy(), logits.numpy().argmax(1)
    expected = [(choice[truth == c] == c).mean() if c in (1, 2, 6) else None for c in range(8)]
    assert report["class_accuracies"] == expected
    mean = np.mean([expected[c] for c in (1, 2, 6)])
    assert report["mean_class_accuracy"] == pytest.approx(mean)
    assert report["mean_class_accuracy"] != pytest.approx(report["accuracy"], abs=1e-3)


def test_of_equal_scores_the_first_class_is_predicted():
    logits = torch.tensor([[1.0, 1, 1, 0, 0, 0, 0], [0, 0, 0, 2, 2, 0, 0]]).repeat(3, 1)
    labels = torch.tensor([0, 3, 1, 4, 2, 3])
    report = measured(F.normalize(torch.randn(6, DIM), dim=1), logits, labels)
    assert report["class_accuracies"] == [1.0, 0.0, 0.0, 1.0, 0.0, None, None]
    assert report["accuracy"] == np.float32(3 / 6)
    assert report["top5_accuracy"] == 1  # the tied ones are all among the five


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_class_means_classify_by_the_nearest(dtype):
    embeddings, logits, labels = predicted(7)
    means = F.normalize(torch.stack([embeddings[labels == c].mean(0) for c in range(7)]), dim=1)
    embeddings = embeddings.to(dtype)
    report = measured(embeddings, logits.to(dtype), labels, means=means)
    right = 0
    for embedding, label in zip(embeddings.double(), labels.tolist()):
        distances = [(embedding - mean).norm().item() for mean in means.to(dtype).double()]
        right += distances.index(min(distances)) == label
    assert 0.3 < right / len(labels) < 1
    # bfloat16 cannot tell all of them apart.
    tolerance = 0.02 if dtype == torch.bfloat16 else 1e-7
    assert report["class_means_accuracy"] == pytest.approx(right / len(labels), abs=tolerance)
    assert "class_means_accuracy" not in measured(embeddings, logits, labels)


def test_each_process_measures_neural_collapse_on_its_share(monkeypatch):
    embeddings, logits, labels = predicted(4)
    alone = measured(embeddings, logits, labels, neural_collapse=True)
    update, seen = NeuralCollapse.update, []

    def remembered(self, embeddings, labels):
        seen.extend(map(tuple, embeddings.tolist()))
        update(self, embeddings, labels)

    monkeypatch.setattr(NeuralCollapse, "update", remembered)
    for i in range(3):
        process = SimpleNamespace(device="cpu", process_index=i, num_processes=3)
        report = measured(embeddings, logits, labels, process, neural_collapse=True)
        collapse, of_all = report.pop("neural_collapse"), alone["neural_collapse"]
        # Accuracies are of all images, wherever they are asked for.
        assert report == {name: value for name, value in alone.items() if name in report}
        assert collapse["nc1_cdnv"] != of_all["nc1_cdnv"]  # of a third of them
        assert collapse["optima"] == of_all["optima"]
    assert sorted(seen) == sorted(map(tuple, embeddings.tolist()))


def test_what_neural_collapse_costs_is_timed_and_a_snapshot_sees_all():
    embeddings, logits, labels = predicted(4)
    prototypes = F.normalize(torch.randn(4, DIM, generator=torch.Generator().manual_seed(1)), dim=1)
    entered = []

    class Watch:
        def __enter__(self):
            entered.append("in")

        def __exit__(self, *_):
            entered.append("out")

    snapshot = SnapshotCollector(prototypes)
    report = measured(
        embeddings, logits, labels,
        prototypes=prototypes, neural_collapse=True, stopwatch=Watch(), snapshot=snapshot,
    )  # fmt: skip
    assert entered == ["in", "out"] * 5  # four batches and the end
    taken = snapshot.snapshot(list("abcd"), "test")
    own = [(e @ prototypes[label]).item() for e, label in zip(embeddings, labels)]
    assert taken.own_cosines.tolist() == pytest.approx(own, abs=1e-6)

    metric = NeuralCollapse(4, DIM)
    metric.update(embeddings, labels)
    expected = metric.compute(prototypes)
    assert report["neural_collapse"]["nc3_self_duality"] == pytest.approx(expected["nc3_self_duality"], rel=1e-5)
    assert report["neural_collapse"]["optima"] == metric.optima


def test_a_model_is_measured_on_views_by_their_mean_logits():
    torch.manual_seed(0)
    config = ProtoSphereConfig(backbone="test_resnet", image_size=32, num_labels=7)
    model = ProtoSphereForImageClassification(config)
    pixels, labels = torch.randn(9, 2, 3, 32, 32), torch.arange(9) % 7
    items = [{"pixel_values": x, "labels": label} for x, label in zip(pixels, labels)]
    loader = DataLoader(items, batch_size=4)
    report = evaluate_model(model, loader, Accelerator(), neural_collapse=False)
    model.eval()
    with torch.no_grad():
        logits = torch.stack([model(pixels[:, view]).logits for view in range(2)]).mean(0)
    right = logits.numpy().argmax(1) == labels.numpy()
    among = [label in row.argsort()[-5:] for row, label in zip(logits.numpy(), labels.tolist())]
    assert report["accuracy"] == np.float32(right.mean())
    assert report["top5_accuracy"] == np.float32(np.mean(among))
    assert report["num_images"] == 9


def test_classes_by_their_training_images():
    counts, accuracies = [101, 100, 20, 19, 500], [0.5, 0.4, 0.2, 0.1, None]
    by_frequency = accuracy_by_frequency(accuracies, counts)
    assert by_frequency == pytest.approx({"many": 0.5, "medium": 0.3, "few": 0.1})


@pytest.mark.parametrize(
    "options", [{}, {"backbone": "test_vit", "backbone_kwargs": {"patch_size": 8}},
                {"backbone": "vit", "backbone_source": "transformers", "backbone_kwargs": TRANSFORMERS["vit"]}],
    ids=["maps", "timm's tokens", "tokens"],
)  # fmt: skip
def test_every_layer_is_measured_by_its_mean_over_places(options):
    model, pixels, labels = build(**options).eval(), images(20, 3, 32, 32), torch.arange(20) % 5
    rows = [{"pixel_values": x, "labels": y} for x, y in zip(pixels, labels)]
    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare_data_loader(torch.utils.data.DataLoader(rows, batch_size=8))
    found = collapse_by_layer(model, loader, accelerator)
    with torch.no_grad():
        output = model(pixels, output_hidden_states=True)
    layers = [h.flatten(2).mean(2) if h.dim() == 4 else h.mean(1) for h in output.hidden_states]
    layers.append(output.embeddings)
    assert [layer["layer"] for layer in found] == [*map(str, range(1, len(layers))), "embeddings"]
    for layer, features in zip(found, layers):
        metric = NeuralCollapse(5, features.shape[1])
        metric.update(F.normalize(features, dim=1), labels)
        assert layer["dim"] == features.shape[1]
        assert layer["nc1_cdnv"] == pytest.approx(metric.compute()["nc1_cdnv"], rel=1e-3)


def test_a_network_without_hidden_states_is_refused():
    model = lambda pixels, **_: SimpleNamespace(hidden_states=None)  # noqa: E731
    with pytest.raises(ArgumentError, match=r"--by_layer: the network gives no hidden states\."):
        layers_of(model, {"pixel_values": None})
