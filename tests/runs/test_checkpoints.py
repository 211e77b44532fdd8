"""What has its final name is whole, and what is half written is never found."""

import io
import json
import pickle
import shutil
from contextlib import contextmanager, nullcontext

import pytest
import torch
import torch.distributed.checkpoint as sharded
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from timm.utils import ModelEmaV3

from hf_protosphere.errors import WriteError
from hf_protosphere.runs import checkpoints
from hf_protosphere.runs.checkpoints import (
    DamagedCheckpoint,
    Progress,
    load_checkpoint,
    newest_checkpoint,
    read_progress,
    save_checkpoint,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("found", "newest"),
    [
        ({}, None),
        ({"step-00000009": "{}", "step-00000100": "{}", "step-00000200": None}, "step-00000100"),
        ({"step-00000009": "{}", "step-00000300.unfinished": "{}"}, "step-00000009"),
        ({"step-00000009": "{}", "step-00000010": ""}, "step-00000009"),  # the machine went down
        ({"step-00000009": ""}, None),
        ({"step-00000009": "{}", "step-00000009 copy": "{}", "step-z": "{}"}, "step-00000009"),
        # Killed while one took the place of another of the same step.
        ({"step-00000001": "{}", "step-00000009.replaced": "{}"}, "step-00000009.replaced"),
        ({"step-00000009": "{}", "step-00000009.replaced": "{}"}, "step-00000009"),
    ],
)
def test_the_newest_complete_checkpoint_is_found(tmp_path, found, newest):
    for name, progress in found.items():
        (tmp_path / name).mkdir()
        if progress is not None:
            (tmp_path / name / "progress.json").write_text(progress)
    assert getattr(newest_checkpoint(tmp_path), "name", None) == newest


def test_the_newest_checkpoints_are_kept(tmp_path):
    accelerator = Accelerator(cpu=True)
    (tmp_path / "step-00000001.unfinished").mkdir()  # of a run that was killed
    for step in (2, 4, 6, 8):
        save_checkpoint(accelerator, tmp_path, Progress(16, "none", step=step), keep=3)
    assert names(tmp_path) == ["step-00000004", "step-00000006", "step-00000008"]
    save_checkpoint(accelerator, tmp_path, Progress(16, "none", step=8))  # again, and only it
    assert names(tmp_path) == ["step-00000008"]


def test_what_else_lies_there_stays_and_is_no_checkpoint(tmp_path):
    foreign = ["step-00000001", "step-00000002 copy", "step-00000009.unfinished.old", "zebra"]
    for name in foreign:
        (tmp_path / name).mkdir()
    (tmp_path / ".DS_Store").write_text("")
    for step in (2, 4):
        save_checkpoint(Accelerator(cpu=True), tmp_path, Progress(16, "none", step=step))
    assert names(tmp_path) == sorted([*foreign, ".DS_Store", "step-00000004"])
    assert json.loads((newest_checkpoint(tmp_path) / "progress.json").read_text())["step"] == 4


def test_a_checkpoint_goes_only_when_another_of_its_step_stands(tmp_path, monkeypatch):
    accelerator, progress = Accelerator(cpu=True), Progress(16, "none", step=8)
    save_checkpoint(accelerator, tmp_path, progress)

    def killed(path, *_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_protosphere.runs.files._sync", killed)
    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(accelerator, tmp_path, progress)
    assert newest_checkpoint(tmp_path) is not None


def test_a_full_disk_keeps_the_one_before(tmp_path, monkeypatch):
    accelerator = Accelerator(cpu=True)
    save_checkpoint(accelerator, tmp_path, Progress(16, "none", step=1))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "put_in_place", full)
    with pytest.raises(WriteError, match="step-00000002 cannot be written: No space left"):
        save_checkpoint(accelerator, tmp_path, Progress(16, "none", step=2))
    assert names(tmp_path) == ["step-00000001"]


class Parts:
    """A tiny model with all that a checkpoint holds of it, trained for some steps."""

    def __init__(self, steps=0, seed=0):
        torch.manual_seed(seed)
        self.accelerator = Accelerator(cpu=True)
        model = torch.nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(model.parameters(), 0.1)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.average = ModelEmaV3(model, decay=0.5)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
        for _ in range(steps):
            self.step()

    def step(self):
        self.model(torch.ones(4, 3)).square().sum().backward()
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.average.update(self.model)

    def save(self, folder, step=1):
        progress = Progress(4, "none", step=step, training_seconds=1.0)
        return save_checkpoint(self.accelerator, folder, progress, keep=9, average=self.average)

    def load(self, checkpoint, step=1):
        parts = {"scheduler": self.scheduler, "average": self.average}
        load_checkpoint(self.accelerator, checkpoint, step, **parts)
        return self


def test_everything_comes_back_and_nothing_of_ours_is_pickled(tmp_path):
    saved = Parts(steps=3)
    checkpoint = saved.save(tmp_path)
    assert {path.name for path in checkpoint.iterdir()} == {
        "average.safetensors", "model.safetensors", "optimizer.bin", "progress.json", "random_states_0.pkl",
    }  # fmt: skip
    path = checkpoint / "optimizer.bin"  # of which the moments are taken, and nothing else
    state = torch.load(path, weights_only=True)
    state["param_groups"][0] |= {"lr": "x", "weight_decay": 1e9, "more": None}
    torch.save(state, path)
    loaded = Parts(seed=1).load(checkpoint, step=3)
    for parts in (saved, loaded):
        parts.step()
    assert loaded.scheduler.get_last_lr() == saved.scheduler.get_last_lr() == [0.1 * 0.5**4]
    for theirs, ours in ((loaded.model, saved.model), (loaded.average, saved.average)):
        for name, value in ours.state_dict().items():
            assert torch.equal(theirs.state_dict()[name], value), name


@contextmanager
def refused(checkpoint, message=""):
    """In one line."""
    with pytest.raises(DamagedCheckpoint, match=rf"^{checkpoint} is damaged: .*{message}") as error:
        yield
    assert len(str(error.value).splitlines()) == 1


class Evil:
    """Unpickled, it leaves a file."""

    def __init__(self, ran):
        self.ran = ran

    def __reduce__(self):
        return open, (str(self.ran), "w")


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    "name",
    ["custom_checkpoint_0.pkl", "custom_checkpoint_1.pkl", "custom_checkpoint_2.pkl",
     "optimizer.bin", "random_states_0.pkl", "pytorch_model.bin", "model.safetensors",
     "scheduler.bin", "sampler.bin", "average.safetensors", "progress.json",
     "scaler.pt", ".metadata"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_hostile_pickle_runs_nowhere(tmp_path, name, zipped):
    checkpoint, ran = Parts(steps=1).save(tmp_path / "run"), tmp_path / "ran"
    if name == "pytorch_model.bin":
        (checkpoint / "model.safetensors").unlink()
    torch.save({"base_lrs": Evil(ran)}, archive := io.BytesIO())
    written = archive.getvalue() if zipped else pickle.dumps(Evil(ran))
    (checkpoint / name).write_bytes(written)
    unread = ("custom_checkpoint_0.pkl", "scheduler.bin", "sampler.bin", "scaler.pt", "random_states_0.pkl")
    with nullcontext() if name in unread else refused(checkpoint):
        read_progress(checkpoint)
        Parts().load(checkpoint)
    assert not ran.exists()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_what_shards_say_of_themselves_is_read_without_code(tmp_path, monkeypatch):
    checkpoint = Parts(steps=1).save(tmp_path)
    saved = Parts(steps=1)
    state = {"model": saved.model.state_dict(), "optimizer": saved.optimizer.state_dict()}
    sharded.save(state, checkpoint_id=checkpoint / "sharded", no_dist=True)
    assert (checkpoint / "sharded" / ".metadata").exists()
    Parts().load(checkpoint)
    # As `load_checkpoint` has torch read what is not a tensor in them.
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    read = {"model": Parts().model.state_dict(), "optimizer": Parts(1).optimizer.state_dict()}
    sharded.load(read, checkpoint_id=checkpoint / "sharded", no_dist=True)
    assert torch.equal(read["model"]["weight"], state["model"]["weight"])
    assert read["optimizer"]["param_groups"] == state["optimizer"]["param_groups"]
    sharded.save({"x": Evil(ran := tmp_path / "ran")}, checkpoint_id=tmp_path / "x", no_dist=True)
    with pytest.raises(sharded.CheckpointException, match="Weights only load failed"):
        sharded.load({"x": None}, checkpoint_id=tmp_path / "x", no_dist=True)
    assert not ran.exists()


def test_shards_that_cannot_be_read_are_damage(tmp_path, monkeypatch):
    checkpoint = Parts(steps=1).save(tmp_path)

    def fail(*_):
        raise sharded.CheckpointException("read", {0: (OSError("cut short"), [])})

    monkeypatch.setattr(Accelerator, "load_state", fail)
    with refused(checkpoint, "its shards cannot be read: cut short"):
        Parts().load(checkpoint)


def nan(path):
    tensors = {name: tensor * torch.nan for name, tensor in load_file(path).items()}
    save_file(tensors, path)


def other_moments(path):
    state = torch.load(path, weights_only=True)
    for of_parameter in state["state"].values():
        of_parameter["exp_avg"] = torch.zeros(7)
    torch.save(state, path)


def change(**values):
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.safetensors", nan, "values that are not finite"),
        ("average.safetensors", nan, "values that are not finite"),
        ("model.safetensors", lambda path: path.unlink(), "No such file"),
        ("average.safetensors", lambda path: path.unlink(), "No such file"),
        ("optimizer.bin", lambda path: path.write_bytes(path.read_bytes()[:-50]), ""),
        ("optimizer.bin", other_moments, "its optimiser is that of another model"),
        ("progress.json", lambda path: path.write_text(""), "is not whole JSON"),
        ("progress.json", change(step="x"), ""),
        ("progress.json", change(step=-1), "it counts"),
        ("progress.json", change(epoch_totals=[1]), "not enough values"),
        ("progress.json", change(best_score=float("nan")), "it counts"),
        ("progress.json", change(more=1), "unexpected keyword"),
        ("progress.json", change(step=1, training_seconds=0), "it counts"),
    ],
)
def test_damage_is_said_in_one_line(tmp_path, name, damage, message):
    checkpoint = Parts(steps=1).save(tmp_path)
    damage(checkpoint / name)
    with refused(checkpoint, message):
        read_progress(checkpoint)
        Parts().load(checkpoint)
