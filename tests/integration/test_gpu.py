"""On a CUDA device what the other tests hold on the CPU: `make test-gpu`."""

import json

import pytest
import torch

from hf_protosphere import losses
from hf_protosphere.cli import main
from hf_protosphere.errors import TrainingInterrupted
from hf_protosphere.metrics.neural_collapse import METRICS, NeuralCollapse
from hf_protosphere.runs.metrics_log import read_metrics
from hf_protosphere.training import run as training
from hf_protosphere.training.train import train
from tests.test_losses import PROTOTYPE_LOSSES, draw, with_gradients
from tests.training.conftest import arguments  # noqa: F401  (a fixture)
from tests.training.test_run import stop_after

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("objective", ["normface", "ntce", "nonl", "scl"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)],
)
def test_losses_and_gradients_are_those_of_the_cpu(objective, dtype, tolerance):
    views = 2 if objective == "scl" else None
    embeddings, prototypes, labels = draw(0, 64, 7, 16, views=views)
    tensors = [embeddings.to(dtype)] + ([] if views else [prototypes.to(dtype)])

    def value(device):
        def loss(*leaves):
            if objective == "scl":
                return losses.supcon_loss(*leaves, labels.to(leaves[0].device))
            return PROTOTYPE_LOSSES[objective](*leaves, labels.to(leaves[0].device))

        return with_gradients(loss, *(tensor.to(device) for tensor in tensors))

    expected, (got, gradients) = value("cpu"), value("cuda")
    torch.testing.assert_close(got.cpu(), expected[0], atol=tolerance, rtol=tolerance)
    for ours, theirs in zip(gradients, expected[1]):
        assert ours.device.type == "cuda"
        torch.testing.assert_close(ours.cpu(), theirs, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("objective", PROTOTYPE_LOSSES)
def test_chunks_keep_the_matrix_of_similarities_out_of_memory(objective):
    """100,000 prototypes: the matrix alone would be as large as all that is allowed."""
    size, num_classes, dim = 4096, 100_000, 64
    embeddings = torch.randn(size, dim, device="cuda", requires_grad=True)
    prototypes = torch.randn(num_classes, dim, device="cuda", requires_grad=True)
    labels = torch.randint(num_classes, (size,), device="cuda")
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    PROTOTYPE_LOSSES[objective](embeddings, prototypes, labels).backward()
    assert torch.cuda.max_memory_allocated() - before < 4 * size * num_classes
    assert prototypes.grad.isfinite().all()


@pytest.mark.parametrize("keep", ["embeddings", "moments"])
def test_neural_collapse_is_that_of_the_cpu(keep):
    embeddings, prototypes, labels = draw(1, 300, 7, 16)

    def measured(device):
        metric = NeuralCollapse(7, 16, keep=keep).to(device)
        metric.update(embeddings.to(device), labels.to(device))
        values = metric.compute(prototypes.to(device))
        return {info.name: float(values[info.name]) for info in METRICS if info.name in values}

    assert measured("cuda") == pytest.approx(measured("cpu"), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("objective", ["nonl", "scl"])
def test_every_precision_trains_and_is_evaluated_as_it_was(
    arguments,  # noqa: F811
    tmp_path,
    precision,
    objective,
):
    run = arguments(mixed_precision=precision, objective=objective, epochs=20)
    results = train(run)
    assert results["test"]["accuracy"] > 0.5
    epochs = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert all(line["loss"] < float("inf") for line in epochs)
    report = tmp_path / "report.json"
    main([
        "evaluate", "--model", str(tmp_path / "run"), "--dataset_name", run.dataset_name,
        "--num_workers", "0", "--output", str(report),
    ])  # fmt: skip
    evaluated = json.loads(report.read_text())
    assert evaluated["accuracy"] == pytest.approx(results["test"]["accuracy"], abs=0.05)


def test_interrupted_and_resumed_is_the_same_run_to_the_bit(arguments, tmp_path, monkeypatch):  # noqa: F811
    """Dropout draws from the generator of the device."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    options = {"epochs": 3, "batch_size": 16, "backbone_kwargs": {"drop_rate": 0.2}}
    train(arguments(**options, output_dir=str(tmp_path / "whole")))
    with monkeypatch.context() as patch:
        stop_after(patch, step=9)
        with pytest.raises(TrainingInterrupted):
            train(arguments(**options))
    train(arguments(**options, resume=True))
    assert read_metrics(tmp_path / "whole" / "metrics.jsonl") == read_metrics(tmp_path / "run" / "metrics.jsonl")


def test_the_whole_way_on_the_device(arguments, digits_folder, tmp_path, capsys):  # noqa: F811
    run, seen = str(tmp_path / "run"), []
    original = training.TrainingRun.step

    def step(self, batches):
        seen.append(next(self.model.parameters()).device.type)
        return original(self, batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.TrainingRun, "step", step)
        train(arguments(epochs=3))
    assert set(seen) == {"cuda"}
    data = ["--dataset_name", str(digits_folder), "--num_workers", "0"]
    images = str(digits_folder / "test")
    main(["calibrate", "--model", run, *data, "--split", "test"])
    main(["index", "--model", run, "--images", images, "--index_dir", str(tmp_path / "index"), "--num_workers", "0"])
    capsys.readouterr()
    query = next((digits_folder / "test" / "digit_0").iterdir())
    main(["search", str(tmp_path / "index"), str(query), "--k", "1", "--json"])
    assert query.name in capsys.readouterr().out
    main([
        "finetune", "--model", run, *data, "--mode", "full", "--epochs", "1", "--batch_size", "32",
        "--output_dir", str(tmp_path / "tuned"), "--report_to", "none",
    ])  # fmt: skip
    assert (tmp_path / "tuned" / "results.json").exists()
