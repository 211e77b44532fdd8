"""Run by test_commands_across_processes.py, in one process and two: a Trainer that measures."""

import sys

import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

from hf_protosphere.evaluation.callbacks import NeuralCollapseCallback


def collate(items):
    images, labels = zip(*items)
    return {"pixel_values": torch.stack(images), "labels": torch.stack(labels)}


def main(output_dir, batch_size):
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    data = TensorDataset(images, torch.tensor(digits.target))
    torch.manual_seed(0)
    config = ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8], depths=[1], num_labels=10)
    arguments = TrainingArguments(
        output_dir, max_steps=2, report_to="none", use_cpu=True, save_strategy="no", per_device_train_batch_size=16,
        per_device_eval_batch_size=int(batch_size), disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    trainer = Trainer(
        ResNetForImageClassification(config), arguments, data_collator=collate,
        train_dataset=data, eval_dataset=torch.utils.data.Subset(data, range(203)),
    )  # fmt: skip
    trainer.add_callback(NeuralCollapseCallback(trainer, train_samples=150, class_names=None))
    trainer.train()


if __name__ == "__main__":
    main(*sys.argv[1:])
