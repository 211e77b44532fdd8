"""The demo page: what it says, what it refuses, and how it looks in a browser."""

import re
import select
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import SpaceCard
from PIL import Image

from hf_protosphere.errors import ArgumentError
from hf_protosphere.hub import demo as demo_page
from hf_protosphere.hub.arguments import DemoArguments
from hf_protosphere.hub.demo import HTML, build_page, demo, write_space
from hf_protosphere.open_set.threshold import Answer, OpenSetClassifier
from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.training.train import train
from scripts.demo import write_digits
from tests.open_set.test_threshold import noise, save_checkpoint


def answer(label, angles):
    return Answer(label, angles, dict.fromkeys(angles, 0.5), torch.zeros(2))


def test_the_verdict_names_the_class_or_says_unknown():
    angles = {"<b>cat": 20.04, "dog": 95.0}
    known = HTML.verdict(answer("<b>cat", angles))
    assert known == "<h2>&lt;b&gt;cat</h2><p>20.0° from its prototype</p>"
    unknown = HTML.verdict(answer(None, angles))
    assert unknown.startswith("<h2>unknown</h2><p>20.0° from the nearest prototype, that of &lt;b")


def test_the_ten_nearest_angles_are_shown_in_order():
    table = HTML.angles(answer("0", {f"<{c}>": 9.0 * c for c in range(15)}), 20, 10)
    assert re.findall(r"&lt;(\d+)&gt;", table) == [str(c) for c in range(10)]
    assert re.findall(r"<td>([\d.]+)°", table) == [f"{9 * c:.1f}" for c in range(10)]
    assert table.count('class="known"') == 3  # 0, 9 and 18 degrees
    assert "width: 50.0%" in HTML.angles(answer("0", {"0": 90.0}), 20, 10)


def test_gradio_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ArgumentError, match=r"needs gradio.*pip install gradio"):
        demo(DemoArguments(model="nowhere"))


def test_a_port_in_use_is_said_before_the_model_is_loaded():
    pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ArgumentError, match=rf"--host 127.0.0.1 --port {port} .*in use"):
            demo(DemoArguments(model="nowhere", port=port))


def test_a_space_shows_the_page_of_a_model_on_the_hub(tmp_path, monkeypatch, capsys):
    pytest.importorskip("gradio")
    folder = tmp_path / "space"
    demo(DemoArguments(model="user/digits", space=str(folder), unknown_angle=40.0))
    assert sorted(path.name for path in folder.iterdir()) == sorted(["README.md", "app.py", "requirements.txt"])
    assert str(folder / "app.py") in capsys.readouterr().out
    card = SpaceCard.load(folder / "README.md").data
    assert (card.sdk, card.app_file, card.models) == ("gradio", "app.py", ["user/digits"])

    started = []
    monkeypatch.setattr(demo_page, "demo", started.append)  # it would listen to other machines
    exec((folder / "app.py").read_text(), {})
    write_space("user/digits", tmp_path / "by default")
    exec((tmp_path / "by default" / "app.py").read_text(), {})
    assert started == [
        DemoArguments(model="user/digits", unknown_angle=angle, host="0.0.0.0", port=7860) for angle in (40.0, None)
    ]
    with pytest.raises(ArgumentError, match=r"has a app.py already"):
        write_space("user/digits", folder)
    with pytest.raises(ArgumentError, match=r"is a folder: upload it"):
        write_space(str(folder), tmp_path / "new")
    with pytest.raises(ArgumentError, match=r"--model a/b/c is no id of the Hub"):
        write_space("a/b/c", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("with_snapshot", [True, False])
def test_the_page_answers_and_is_cleared(tmp_path, with_snapshot):
    pytest.importorskip("gradio")
    save_checkpoint(tmp_path, with_snapshot)
    classifier = OpenSetClassifier.load(str(tmp_path), unknown_angle=180)
    page = build_page(classifier, "user/<pets>")
    (show,) = (event.fn for event in page.fns.values())
    (image,) = (block for block in page.blocks.values() if block.elem_id == "image")
    noise().save(tmp_path / "noise.png")
    upload = image.preprocess(SimpleNamespace(path=str(tmp_path / "noise.png")))
    verdict, scores, angles, sphere, narrow = show(upload)
    expected = classifier(noise())
    assert f"<h2>{expected.label}</h2>" in verdict
    assert scores == expected.scores
    assert angles.count("<tr") == 4
    cleared = show(image.preprocess(None))
    assert cleared[:3] == ("<p>Upload or paste an image to see its class.</p>", {}, "")
    for shown, before in zip((sphere, narrow), cleared[3:]):
        assert shown.size == before.size
        assert shown.tobytes() != before.tobytes()
    assert sphere.width > 2 * sphere.height
    assert narrow.height > 2 * narrow.width
    heading = page.blocks[min(page.blocks)].value
    assert "user/&lt;pets&gt;" in heading
    assert "180.0° from all of them an image is <b>unknown</b> (as asked for)" in heading


@pytest.mark.parametrize(("temperature", "said"), [(1.0, demo_page.RELATIVE), (1.7, demo_page.CALIBRATED)])
def test_scores_are_probabilities_only_where_they_are_calibrated(tmp_path, temperature, said):
    pytest.importorskip("gradio")
    save_checkpoint(tmp_path, with_snapshot=False)
    classifier = OpenSetClassifier.load(str(tmp_path))
    classifier.model.config.calibration_temperature = temperature
    (scores,) = (b for b in build_page(classifier, "pets").blocks.values() if b.elem_id == "scores")
    assert scores.label == said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"\x89PNG no image",
            "<p>&lt;a&gt;.png cannot be decoded as an image: Pillow",
        ),
        (bytes(demo_page.MAX_BYTES + 1), "<p>&lt;a&gt;.png has more than 20 MiB.</p>"),
        ((20_000, 2501), "are more than 50,000,000 pixels"),
    ],
    ids=["no image", "bytes", "pixels"],
)
def test_an_upload_that_is_too_much_or_no_image_is_told(tmp_path, content, message):
    pytest.importorskip("gradio")
    save_checkpoint(tmp_path, with_snapshot=False)
    page = build_page(OpenSetClassifier.load(str(tmp_path)), "pets")
    (show,) = (event.fn for event in page.fns.values())
    upload = tmp_path / "<a>.png"
    if isinstance(content, tuple):
        Image.new("1", content).save(upload)
    else:
        upload.write_bytes(content)
    verdict, scores, angles, *_ = show(str(upload))
    assert message in verdict
    assert str(tmp_path) not in verdict
    assert (scores, angles) == ({}, "")


def test_gradio_takes_no_larger_file_either(tmp_path, monkeypatch):
    gradio = pytest.importorskip("gradio")
    save_checkpoint(tmp_path, with_snapshot=False)
    launched = {}
    monkeypatch.setattr(gradio.Blocks, "launch", lambda _, **options: launched.update(options) or (0, "url", 0))
    monkeypatch.setattr(gradio.Blocks, "block_thread", lambda _: None)
    demo(DemoArguments(model=str(tmp_path)))
    assert launched["max_file_size"] == demo_page.MAX_BYTES == 20 * 2**20


@pytest.fixture
def serve():
    """Start the page of a model in a process of its own; returns its address."""
    processes = []

    def start(*argv):
        command = [sys.executable, "-m", "hf_protosphere.cli", "demo", *map(str, argv)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert select.select([process.stdout], [], [], 300)[0], "the page did not start"
        return re.search(r"http://127.0.0.1:\d+", process.stdout.readline()).group()

    yield start
    for process in processes:
        process.terminate()
        process.wait()


@pytest.mark.slow
def test_digits_are_known_and_noise_is_unknown_in_a_browser(tmp_path, serve, browser):
    pytest.importorskip("gradio")
    page, run, requests = browser.new_page(viewport={"width": 1280, "height": 1050}), tmp_path / "run", []
    digits = write_digits(tmp_path / "digits")
    train(
        TrainArguments(
            dataset_name=str(tmp_path / "digits"), output_dir=str(run), backbone="test_resnet",
            epochs=20, batch_size=128, optimizer="adamw", learning_rate=3e-3, augmentation="crop",
            horizontal_flip=False, num_workers=0, report_to=["none"], nc_every=0,
        )
    )  # fmt: skip
    classify = OpenSetClassifier.load(str(run))
    image, expected = next(
        (example["image"], answer)
        for example in digits
        if (answer := classify(example["image"])).label == str(example["label"])
    )
    image.save(tmp_path / "digit.png")
    far = next(image for image in map(noise, range(20)) if classify(image).label is None)
    far.save(tmp_path / "noise.png")

    page.on("request", lambda request: requests.append(request.url))
    address = serve(run)
    page.goto(address)
    upload, verdict = page.locator("#image input"), page.locator("#verdict h2")
    sphere = page.locator("#sphere img")
    sphere.wait_for()
    assert "95% of the 360 test images are nearer" in page.inner_text("body")
    before = sphere.get_attribute("src")

    upload.set_input_files(tmp_path / "digit.png")
    verdict.wait_for(timeout=60_000)
    assert verdict.inner_text() == expected.label
    rows = [row.split() for row in page.locator("#angles tr").all_inner_texts()]
    assert rows == [[name, f"{angle:.1f}°"] for name, angle in expected.angles.items()]
    assert f"{rows[0][1]} from its prototype" in page.inner_text("#verdict")
    scores = page.inner_text("#scores").split()
    assert f"{expected.scores[expected.label]:.0%}" == scores[scores.index(expected.label) + 1]
    assert sphere.get_attribute("src") != before
    page.screenshot(path=tmp_path / "known.png", full_page=True)
    page.set_viewport_size({"width": 390, "height": 844})
    page.locator("#narrow_sphere img").wait_for()
    assert not sphere.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.screenshot(path=tmp_path / "narrow.png", full_page=True)

    page.get_by_label("Remove Image").click()
    verdict.wait_for(state="detached")
    assert page.locator("#angles").bounding_box() is None  # on a telephone no box without angles
    page.set_viewport_size({"width": 1280, "height": 1050})
    upload.set_input_files(tmp_path / "noise.png")
    verdict.wait_for()
    assert verdict.inner_text() == "unknown"
    assert "from the nearest prototype, that of" in page.inner_text("#verdict")
    page.screenshot(path=tmp_path / "unknown.png", full_page=True)
    assert (tmp_path / "unknown.png").stat().st_size > 50_000
    away = [url for url in requests if not url.startswith((address, "data:", "blob:"))]
    assert not away, "the page asks other machines for something"
