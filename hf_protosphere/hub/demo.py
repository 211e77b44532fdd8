"""A page in the browser: upload an image, see its class or "unknown", its angles to the prototypes
and where it falls on the sphere. A Space of the Hub shows the same page.

Gradio, an extra, is imported only when a page is built."""

import importlib.metadata
import importlib.util
import json
import socket
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import SpaceCard, SpaceCardData
from huggingface_hub.utils import validate_repo_id
from jinja2 import Template
from PIL import Image
from torch import Tensor

from ..data.pixels import read
from ..errors import ArgumentError, DataError, errors_in_one_line
from ..open_set.threshold import OpenSetClassifier
from ..plots.sphere import plot_sphere
from ..plots.text import say
from ..runs.files import replacing_files, writable_folder
from .arguments import DemoArguments

if TYPE_CHECKING:
    import gradio

SHOWN_ANGLES, SHOWN_SCORES = 10, 5
CALIBRATED = "Calibrated probabilities, if it is of a known class"
RELATIVE = "Relative scores of the known classes, not calibrated probabilities"
# Of an upload: what a telephone's camera makes fits, and needs no more than a gigabyte of memory.
MAX_BYTES, MAX_PIXELS = 20 * 2**20, 50_000_000
CSS = Path(__file__).with_name("demo.css")
ANGLES_CSS = Path(__file__).with_name("demo_angles.css")
HTML = Template(Path(__file__).with_name("demo.html").read_text("utf-8"), autoescape=True).module
# By the command, whose arguments stay; modules of the package may move.
SPACE_APP = """# Upload an image, see where it falls on the sphere: the page of `protosphere demo`.

from hf_protosphere.cli import main

main({arguments})
"""


def demo(arguments: DemoArguments) -> None:
    """Serve the page until Ctrl-C, or write the files of a Space, as `protosphere demo` does.

    Raises:
        ArgumentError: gradio is missing, the address is taken, the model cannot be shown.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ArgumentError("the page needs gradio, which is not installed: pip install gradio.")
    if arguments.space is not None:
        for path in write_space(arguments.model, arguments.space, arguments.unknown_angle):
            say(path)
        return
    flags = f"--host {arguments.host}" + (f" --port {arguments.port}" if arguments.port else "")
    with errors_in_one_line(f"{flags} cannot be listened on"):
        socket.create_server((arguments.host, arguments.port or 0)).close()
    page = build_page(OpenSetClassifier.load(arguments.model, arguments.unknown_angle), arguments.model)
    _, url, _ = page.launch(
        server_name=arguments.host, server_port=arguments.port, css=CSS.read_text(),
        share=False, quiet=True, prevent_thread_lock=True, footer_links=[], run_history=False, max_file_size=MAX_BYTES,
    )  # fmt: skip
    say(f"{arguments.model}: {url} (Ctrl-C ends it)", flush=True)
    page.block_thread()


def build_page(classifier: OpenSetClassifier, title: str) -> "gradio.Blocks":
    import gradio as gr

    def show(upload: str | None) -> tuple[Any, ...]:
        if upload is None:
            return no_image, {}, "", *_spheres(classifier)
        try:
            answer = classifier(_uploaded(Path(upload)))
        except DataError as error:
            return f"<p>{escape(str(error))}</p>", {}, "", *_spheres(classifier)
        bars = HTML.angles(answer, threshold.degrees, SHOWN_ANGLES)
        return str(HTML.verdict(answer)), answer.scores, str(bars), *_spheres(classifier, answer.embedding)

    threshold, temperature = classifier.threshold, classifier.model.config.calibration_temperature
    no_image = "<p>Upload or paste an image to see its class.</p>"
    kept = (600, 3600)  # every ten minutes, images older than an hour are removed from the disk
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=kept) as page:
        gr.HTML(str(HTML.heading(title, *classifier.snapshot.prototypes.shape, threshold)))
        with gr.Row():
            image = gr.Image(
                type="filepath", label="Image", sources=["upload", "clipboard"], buttons=[],
                height=360, elem_id="image",
            )  # fmt: skip
            # Gradio would open the file, and convert it in its own way.
            image.preprocess = lambda upload: upload and upload.path
            with gr.Column():
                verdict = gr.HTML(no_image, elem_id="verdict")
                scores = gr.Label(
                    label=RELATIVE if temperature == 1 else CALIBRATED, num_top_classes=SHOWN_SCORES,
                    show_heading=False, elem_id="scores",
                )  # fmt: skip
            angles = gr.HTML(
                label="Angles to the nearest prototypes", show_label=True, container=True,
                css_template=ANGLES_CSS.read_text(), min_height=340, elem_id="angles",
            )  # fmt: skip
        spheres = [
            gr.Image(sphere, format="png", show_label=False, interactive=False, buttons=["fullscreen"], elem_id=name)
            for name, sphere in zip(("sphere", "narrow_sphere"), _spheres(classifier))
        ]
        image.change(show, image, [verdict, scores, angles, *spheres])
    return page


def write_space(model: str, folder: str | Path, unknown_angle: float | None = None) -> list[Path]:
    """Write the files of a Space that shows the page of a model on the Hub, "user/name", into a
    folder, made if it is missing. `unknown_angle` is as in `OpenSetClassifier.load`.

    Raises:
        ArgumentError: no Hub id, or a folder that has such files already.
    """
    if Path(model).is_dir():
        raise ArgumentError(f"--space shows a model of the Hub, but --model {model} is a folder: upload it.")
    with errors_in_one_line(f"--model {model} is no id of the Hub"):
        validate_repo_id(model)
    arguments = ["demo", model, "--host", "0.0.0.0", "--port", "7860"]
    if unknown_angle is not None:
        arguments += ["--unknown_angle", str(unknown_angle)]
    card = SpaceCardData(
        title=model.split("/")[-1], sdk="gradio", app_file="app.py", models=[model],
        sdk_version=importlib.metadata.version("gradio"),
    )  # fmt: skip
    files = {
        "app.py": SPACE_APP.format(arguments=json.dumps(arguments)),
        "requirements.txt": "hf_protosphere\n",
        "README.md": str(SpaceCard(f"---\n{card.to_yaml()}\n---\n\nThe page of {model}.\n")),
    }
    folder = writable_folder(folder, "--space")
    if there := [name for name in files if (folder / name).exists()]:
        raise ArgumentError(f"--space {folder} has a {there[0]} already: give a new folder.")
    with replacing_files(folder) as new:
        for name, text in files.items():
            (new / name).write_text(text)
    return [folder / name for name in files]


def _uploaded(file: Path) -> Image.Image:
    if file.stat().st_size > MAX_BYTES:
        raise DataError(f"{file.name} has more than {MAX_BYTES // 2**20} MiB.")
    # The name alone: where it lies is no visitor's business.
    return read({"path": file.name, "bytes": file.read_bytes()}, max_pixels=MAX_PIXELS)


def _spheres(classifier: OpenSetClassifier, embedding: Tensor | None = None) -> list[Image.Image]:
    """For a screen and for a telephone, of which the style sheet shows one."""
    files = BytesIO(), BytesIO()
    for file, stacked in zip(files, (False, True)):
        plot_sphere(classifier.snapshot, file, query=embedding, stacked=stacked)
    return [*map(Image.open, files)]
