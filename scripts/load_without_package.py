"""Load a checkpoint where hf_protosphere is not installed, and classify images.

usage: python scripts/load_without_package.py CHECKPOINT IMAGE [IMAGE ...]
"""

import sys

sys.modules["hf_protosphere"] = None  # importing it fails from here on, as where it is missing

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import (  # noqa: E402
    AutoImageProcessor,
    AutoModelForImageClassification,
    pipeline,
)
from transformers.utils import logging  # noqa: E402


def run(checkpoint: str, files: list[str]) -> None:
    logging.disable_progress_bar()
    try:
        import hf_protosphere  # noqa: F401
    except ImportError:
        print("import hf_protosphere: ImportError, as it should be here")
    else:
        raise SystemExit("hf_protosphere could be imported: this would prove nothing.")

    model = AutoModelForImageClassification.from_pretrained(checkpoint, trust_remote_code=True)
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    images = [Image.open(file) for file in files]
    with torch.no_grad():
        inputs = processor([image.convert("RGB") for image in images], return_tensors="pt")
        scores = model.eval()(**inputs).logits.softmax(-1)
    classify = pipeline("image-classification", model=checkpoint, trust_remote_code=True)
    for file, score, answer in zip(files, scores, classify(files)):
        label = model.config.id2label[int(score.argmax())]
        print(
            f"{file}: AutoModel {label} ({score.max():.1%}), pipeline {answer[0]['label']} ({answer[0]['score']:.1%})"
        )


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    run(sys.argv[1], sys.argv[2:])
