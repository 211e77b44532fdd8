"""The table of commands: the module of each, its arguments, and what it is for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Command:
    """A job and its arguments, by name: imported when the command runs, so that `--help` answers
    without loading data sets, Accelerate and so on."""

    name: str
    arguments: str  # room.module:Class
    job: str  # room.module:function, the module of the command's own name
    summary: str
    description: str
    example: str  # what stands behind the name
    positional: str = ""  # arguments that need no flag; the last one takes all that are left
    common: str = ""  # arguments that --help begins with, where there are many

    def parse(self, argv: Sequence[str]) -> Any:
        from ..arguments.parsing import parse_arguments

        return parse_arguments(
            _imported(self.arguments), argv, f"protosphere {self.name}", self.description,
            positional=self.positional.split(), common=self.common.split(), example=self.example,
        )  # fmt: skip

    def __call__(self, argv: Sequence[str]) -> Any:
        arguments = self.parse(argv)  # before the job, whose module may be slow to import
        if "WORLD_SIZE" in os.environ:
            _imported("runs.processes:join_processes")()
        return _imported(self.job)(arguments)


def _imported(path: str) -> Any:
    module, name = path.split(":")
    return getattr(import_module(f"hf_protosphere.{module}"), name)


_COMMANDS = (
    Command(
        "train", "training.arguments:TrainArguments", "training.train:train_or_plan",
        "train a classifier on a data set of the Hub or a local folder",
        "Train an image classifier whose classes are prototypes on the unit sphere.",
        example="--dataset_name cifar10 --backbone resnet18 --small_images --epochs 100",
        common="dataset_name objective backbone pretrained epochs batch_size learning_rate "
        "output_dir resume dry_run config",
    ),
    Command(
        "evaluate", "evaluation.arguments:EvaluateArguments", "evaluation.evaluate:evaluate",
        "accuracy and neural collapse of a checkpoint on a data set",
        "Accuracy, by prototypes and by class means, and neural collapse of a checkpoint.",
        example="--model outputs/run --dataset_name cifar10 --pictures outputs/pictures",
        common="model dataset_name split class_means ood_dataset corruptions output pictures json",
    ),
    Command(
        "finetune", "transfer.arguments:FinetuneArguments", "transfer.finetune:finetune",
        "transfer a checkpoint, or a timm or transformers backbone, to other classes",
        "Transfer a trained network to another data set: by training it in one of several ways, or "
        "without, by probes, nearest neighbours or the class means; compare them, few-shot too.",
        example="--model outputs/run --dataset_name path/to/my_images --compare all",
        common="model dataset_name mode compare shots epochs batch_size learning_rate output_dir "
        "resume config",
    ),
    Command(
        "transfer-suite", "transfer.suite.arguments:TransferSuiteArguments",
        "transfer.suite.transfer_suite:transfer_suite",
        "transfer several models to several data sets: one table, over a baseline",
        "Transfer several models to several data sets, as `protosphere finetune` does, into one "
        "table with means and relative improvements over a baseline. The YAML file says which. The "
        "same command goes on after an interruption, and tries again what could not be loaded.",
        example="scripts/transfer/paper.yaml --models outputs/first outputs/second",
        positional="config",
    ),
    Command(
        "add-class", "transfer.arguments:AddClassArguments", "transfer.add_class:add_class",
        "teach a checkpoint a new class from a few images, without training",
        "New classes for a checkpoint without training: their prototypes are the mean embeddings "
        "of a few images. What it says of the classes that it knows stays the same, to the bit.",
        example="outputs/run okapi path/to/okapis",
        positional="folder name images",
    ),
    Command(
        "calibrate", "open_set.arguments:CalibrateArguments", "open_set.calibrate:calibrate",
        'scores that can be trusted, and a threshold below which an image is "unknown"',
        "Choose a checkpoint's threshold for unknown images and the temperature of its scores on "
        "images that it was not trained on, and save both in its configuration.",
        example="outputs/run --dataset_name cifar10 --false_rejection_rate 0.05",
        positional="model",
        common="model dataset_name split false_rejection_rate output_dir",
    ),
    Command(
        "publish", "hub.arguments:PublishArguments", "hub.publish:publish",
        "send a finished run to the Hub, with a card",
        "Publish a finished run on the Hub: weights, configuration, code, card, metrics and "
        "pictures in one commit, then a tag. Log in by `hf auth login` first.",
        example="outputs/run --repo_id user/name --revision v1.0 --license apache-2.0",
        positional="folder",
    ),
    Command(
        "release", "release.arguments:ReleaseArguments", "release.release:release",
        "train and publish a whole matrix of recipes, objectives and seeds",
        "Train what is missing of a matrix of recipes, objectives and seeds, and publish it with "
        "cards that compare the models, and a page that lists them. The YAML file says which. "
        "The same command goes on after an interruption.",
        example="scripts/releases/paper.yaml --dry_run",
        positional="config",
    ),
    Command(
        "plot", "runs.arguments:PlotArguments", "runs.plot:plot",
        "draw the pictures of one run again, or compare several",
        "Draw a run's pictures again, from its files alone: curves.png, neural_collapse.png and, "
        "once training is over, cosines.png, margins.png and sphere.png.",
        example="outputs/first outputs/second --format pdf",
        positional="runs",
    ),
    Command(
        "export", "hub.arguments:ExportArguments", "hub.export:export",
        "write a checkpoint as ONNX or as a torch.export program",
        "A checkpoint as ONNX or torch.export program, compared with the checkpoint.",
        example="outputs/run --format onnx --dataset_name cifar10",
        positional="model",
    ),
    Command(
        "index", "retrieval.arguments:IndexArguments", "retrieval.index:index",
        "embed a folder of images, or a data set, to search in it",
        "Embed all images of a folder, at any depth, or of a data set, and write an index of them. "
        "Again, it embeds what is new in the folder and drops what is gone.",
        example="path/to/photos --model outputs/run --index_dir outputs/index",
        positional="images",
        common="images dataset_name split model index_dir labels_from_folders overwrite",
    ),
    Command(
        "search", "retrieval.arguments:SearchArguments", "retrieval.search:search",
        "find the images of an index that are nearest to yours",
        "Find the images of an index that are nearest to yours, by cosine, or measure how well "
        "images find their own class.",
        example="outputs/index path/to/query.png --k 5 --picture outputs/neighbours.png",
        positional="index queries",
        common="index queries k picture evaluate dataset_name split",
    ),
    Command(
        "demo", "hub.arguments:DemoArguments", "hub.demo:demo",
        "a page in the browser: upload an image, see where it falls on the sphere",
        "A page in the browser, by Gradio: upload an image, see its scores, its angles to the "
        'prototypes, where it falls on the sphere, and "unknown" when it is far from all.',
        example="outputs/run --unknown_angle 40",
        positional="model",
    ),
)  # fmt: skip
COMMANDS: dict[str, Command] = {command.name: command for command in _COMMANDS}
