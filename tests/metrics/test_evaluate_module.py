"""The module for 🤗 evaluate: loaded from its folder, the same numbers as the metric."""

import re
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
import yaml

import hf_protosphere
from hf_protosphere.metrics.neural_collapse import METRICS, NeuralCollapse

FOLDER = Path(hf_protosphere.__file__).parent / "metrics" / "evaluate_modules" / "neural_collapse"


@pytest.fixture
def module(tmp_path):
    return evaluate.load(str(FOLDER), cache_dir=str(tmp_path))


def draw(num=300, num_classes=4, dim=6):
    rng = np.random.default_rng(0)
    labels = np.arange(num) % num_classes
    return rng.normal(size=(num, dim)), labels, rng.normal(size=(num_classes, dim))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_same_numbers_batch_by_batch(module, dtype):
    embeddings, labels, prototypes = draw()
    embeddings = embeddings.astype(dtype)
    metric = NeuralCollapse(4, 6)
    metric.update(torch.tensor(embeddings), torch.tensor(labels))
    for start in range(0, 300, 70):
        batch = slice(start, start + 70)
        module.add_batch(embeddings=embeddings[batch], references=labels[batch])
    assert module.compute(prototypes=prototypes) == metric.compute(torch.tensor(prototypes))
    # and again, from nothing, in one call, by lists, without prototypes
    once = module.compute(embeddings=embeddings.tolist(), references=labels.tolist())
    assert once == metric.compute()


def test_what_does_not_fit_is_said(module):
    embeddings, labels, prototypes = draw()
    with pytest.raises(ValueError, match=r"vectors of one length, but have lengths \[1, 2\]"):
        module.compute(embeddings=[[1.0, 2.0], [3.0]], references=[0, 1])
    more = module.compute(embeddings=embeddings, references=labels, num_classes=5)
    assert more["absent_classes"] == [4]
    assert "overall" not in more["attained"]
    with pytest.raises(ValueError, match=r"prototypes must be.*\(4, 6\)"):
        module.compute(embeddings=embeddings, references=labels, prototypes=prototypes.T)
    embeddings[3, 2] = np.nan
    with pytest.raises(ValueError, match="1 non-finite"):
        module.compute(embeddings=embeddings, references=labels)


def test_the_card_runs_and_describes_every_metric(monkeypatch, capsys):
    card = (FOLDER / "README.md").read_text()
    front_matter = yaml.safe_load(card.split("---\n")[1])
    assert {"evaluate", "metric"} <= set(front_matter["tags"])
    for info in METRICS:
        assert f"| `{info.name}` |" in card
    monkeypatch.chdir(FOLDER.parents[3])
    first, second, push = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    exec(first + second, {})
    assert capsys.readouterr().out.splitlines()[-1] == "100.0"
    compile(push, "card", "exec")  # it needs an account


def test_its_own_description_is_complete(module):
    assert "Koromilas" in module.citation
    assert "prototypes: optional (K, D)" in module.inputs_description
    assert set(module.features) == {"embeddings", "references"}
