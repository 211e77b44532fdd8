"""The paper's claims about the optima, on free unit vectors: no network, seconds."""

from itertools import count

import pytest
import torch

from hf_protosphere.losses import normface_loss
from hf_protosphere.objectives import default_temperature
from hf_protosphere.prototypes import nonnegative_limit
from scripts import theory

CLASSES, PER_CLASS, TEMPERATURE = 6, 8, 0.2


def excess(objective, loss, per_class=PER_CLASS):
    return loss - theory.optimal_loss(objective, CLASSES, per_class, TEMPERATURE)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("objective", ["nonl", "ntce", "normface", "scl"])
def test_the_optimum_is_neural_collapse(objective, seed):
    record, _, _ = theory.minimise(objective, seed=seed)
    assert record[0]["cosines"] > 0.3  # far from it at the start
    assert excess(objective, record[-1]["loss"]) == pytest.approx(0, abs=1e-9)
    for metric in theory.METRIC_TITLES:
        assert record[-1][metric] < 1e-3, metric


def test_cross_entropy_with_free_norms_does_not_get_there():
    record, _, _ = theory.minimise("cross_entropy")
    assert record[-1]["loss"] < 1e-9  # its loss is at the optimum all the same
    for metric in theory.METRIC_TITLES:
        assert record[-1][metric] > 0.1, metric


def test_class_means_of_scl_are_the_best_prototypes():
    _, embeddings, means = theory.minimise("scl")
    labels = torch.arange(CLASSES).repeat_interleave(PER_CLASS)
    loss = normface_loss(embeddings, means, labels, TEMPERATURE).item()
    assert excess("normface", loss, per_class=1) == pytest.approx(0, abs=1e-9)


def test_only_decoupled_alignment_keeps_its_gradients(monkeypatch):
    monkeypatch.setattr(theory, "ADAM_STEPS", 400)
    measure, steps = theory.metrics, count(1)  # after the last step; they take longer than it
    after = lambda *inputs: measure(*inputs) if next(steps) % 400 == 0 else {}  # noqa: E731
    monkeypatch.setattr(theory, "metrics", after)
    last = {name: theory.minimise(name, "adam")[0][-1] for name in theory.OBJECTIVES}
    assert last["nonl"]["collapse"] < 1e-3
    for name in ("ntce", "normface", "scl", "cross_entropy"):
        assert last[name]["collapse"] > 30 * last["nonl"]["collapse"], name


@pytest.mark.parametrize("num_classes", [3, 6])
@pytest.mark.parametrize("objective", ["nonl", "ntce", "normface"])
def test_without_negative_entries_alignment_ends_at_the_limit(objective, num_classes):
    record, embeddings, _ = theory.minimise(
        objective, num_classes=num_classes, dim=2 * num_classes, per_class=2, nonnegative=True,
        temperature=default_temperature(objective, num_classes),
    )  # fmt: skip
    limit = nonnegative_limit(num_classes)
    assert record[0]["alignment"] > 1.5 * limit
    assert record[-1]["alignment"] == pytest.approx(limit, abs=1e-6)
    assert embeddings.min() >= 0
    gram = embeddings[::2] @ embeddings[::2].T  # orthonormal
    torch.testing.assert_close(gram, torch.eye(num_classes).double(), atol=1e-6, rtol=0)


def test_the_script_prints_a_table_and_draws(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(theory, "ADAM_STEPS", 5)
    monkeypatch.setattr(theory, "LBFGS_STEPS", 5)
    theory.main(["--classes", "3", "--dim", "2", "--output_dir", str(tmp_path / "pictures")])
    printed = capsys.readouterr().out
    assert printed.count("NONL") == 2
    assert "SCL's class means as NormFace prototypes" in printed
    assert (tmp_path / "pictures" / "theory.png").stat().st_size > 10_000
    monkeypatch.setattr(theory, "NONNEGATIVE_CLASSES", (3, 10))
    theory.main(["--nonnegative", "--output_dir", str(tmp_path)])
    assert capsys.readouterr().out.count("NONL") == 2
    assert (tmp_path / "nonnegative.png").stat().st_size > 10_000
    with pytest.raises(SystemExit):
        theory.main(["--classes", "5", "--dim", "3"])
