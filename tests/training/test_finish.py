"""The end of a run: the best epoch's model, its final metrics, and results.json last of all."""

import json

import pytest
from safetensors.torch import load_file

from hf_protosphere.training import finish as finishing
from hf_protosphere.training.train import train


def test_results_hold_what_cards_and_tables_need(arguments, tmp_path, capsys):
    results = train(arguments(imbalance="exp", imbalance_factor=0.2, epochs=1))
    assert results["train_counts"] == {"digit_0": 36, "digit_1": 16, "digit_2": 7}
    assert set(results["test"]["accuracy_by_frequency"]) == {"medium", "few"}
    assert results["best_epoch"] == 1
    assert results["images_per_second"] > 0
    assert set(results["first_reached"]) == {"train", "validation"}
    assert results["provenance"]["splits"]["validation"]["from"] == "train"
    printed = capsys.readouterr().out
    assert "accuracy, classes with < 20" in printed
    assert "Measuring neural collapse took" in printed
    best = load_file(tmp_path / "run" / "best" / "model.safetensors")
    final = load_file(tmp_path / "run" / "model.safetensors")
    assert all(tensor.equal(final[name]) for name, tensor in best.items())


def test_where_results_are_the_run_is_finished(arguments, tmp_path, monkeypatch):
    """A run that is ended at the very last file is finished by the same command with --resume."""
    options = {"epochs": 1, "pictures": True}

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finishing, "draw_run", killed)
        with pytest.raises(KeyboardInterrupt):
            train(arguments(**options))
    folder = tmp_path / "run"
    assert (folder / "model.safetensors").exists()
    assert not (folder / "results.json").exists()
    results = train(arguments(**options | {"pictures": False}, resume=True))
    assert json.loads((folder / "results.json").read_text()) == results
