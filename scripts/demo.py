"""The whole road in about a minute: digits → training → metrics → checkpoint → pipeline.

`make demo` runs it. The data are the handwritten digits of scikit-learn, 1,797 real 8×8 images,
written as a folder of Parquet files such as anyone could have.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from hf_protosphere.cli import main

OUTPUT = Path("outputs/demo")
DATA, RUN, SAMPLES = OUTPUT / "digits", OUTPUT / "run", OUTPUT / "samples"


def write_digits(folder: Path) -> Dataset:
    """scikit-learn's digits as train and test Parquet files; returns the test split."""
    digits = load_digits()
    features = Features({"image": Image(), "label": ClassLabel(names=list("0123456789"))})
    # Pixels are 0..16; four times the size keeps each one visible in the saved samples.
    pixels = np.kron(digits.images, np.ones((4, 4))) * 255 / 16
    images = [PILImage.fromarray(array.round().astype(np.uint8)) for array in pixels]
    parts = train_test_split(np.arange(len(images)), test_size=360, stratify=digits.target, random_state=0)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, rows in zip(("train", "test"), parts):
        split = Dataset.from_dict(
            {"image": [images[i] for i in rows], "label": digits.target[rows]}, features=features
        )
        split.to_parquet(folder / f"{name}-00000-of-00001.parquet")
    return split


def save_samples(split: Dataset, folder: Path, count: int = 5) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    labels = split[:]["label"]
    for digit in range(count):  # the first image of each
        row = labels.index(digit)
        split[row]["image"].save(folder / f"a_{digit}.png")


def run() -> None:
    save_samples(write_digits(DATA), SAMPLES)
    main(
        f"train --dataset_name {DATA} --output_dir {RUN} --overwrite --backbone test_resnet --objective nonl "
        "--epochs 20 --batch_size 128 --optimizer adamw --learning_rate 3e-3 --augmentation crop --no_horizontal_flip "
        "--validation_fraction 0.15 --num_workers 2".split()
    )
    print(f"\nThe checkpoint, loaded without hf_protosphere, on five held-out images of {SAMPLES}:")
    loader = Path(__file__).with_name("load_without_package.py")
    subprocess.run([sys.executable, loader, RUN, *sorted(SAMPLES.iterdir())], check=True)


if __name__ == "__main__":
    run()
