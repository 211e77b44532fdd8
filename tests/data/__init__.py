"""Small data sets of random images, on the disk."""

import io
import os
import tarfile

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage


def image(seed=0, size=8):
    rng = np.random.default_rng(seed)
    return PILImage.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8))


def write(folder, labels, feature, *, image_column="image", label_column="label", extra=None):
    """A Parquet file of one random image per label."""
    columns = {image_column: [image(i) for i in range(len(labels))], label_column: labels}
    features = {image_column: Image(), label_column: feature}
    for name, (values, kind) in (extra or {}).items():
        columns[name], features[name] = values, kind
    folder.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(columns, features=Features(features)).to_parquet(folder / "train.parquet")
    return str(folder)


def image_folder(folder, **splits):
    """{"train": {"cat": 4, ...}} → folder/train/cat/0.png, ..."""
    for split, classes in splits.items():
        for name, count in classes.items():
            for i in range(count):
                path = folder / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image(i).save(path)
    return folder


def photos(folder, *names):
    """An image at each of the names, below the folder."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image(i).save(folder / name, "PNG")
    return folder


def write_shard(path, images, labels):
    """A tar file as WebDataset has them."""
    with tarfile.open(path, "w") as tar:
        for i, (picture, label) in enumerate(zip(images, labels, strict=True)):
            file = Image().encode_example(picture)["bytes"]
            for ending, content in {"png": file, "cls": b"%d" % label, "json": b'{"seen": "today"}'}.items():
                entry = tarfile.TarInfo(f"{path.stem}-{i}.{ending}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


def replace_file(path, content):
    """Another file of the same name, size and time."""
    before = path.stat()
    new = path.with_suffix(".new")
    new.write_bytes(content)
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    new.rename(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


NAMES = ClassLabel(names=["cat", "dog"])
