"""The model card: true to the run's files, its snippets run, and nothing foreign gets out of it."""

import functools
import html
import json
import re
import shutil
from pathlib import Path

import jinja2
import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image
from sklearn.datasets import load_digits

from hf_protosphere.hub.card import render_card, write_card
from hf_protosphere.metrics.neural_collapse import METRICS
from hf_protosphere.metrics.paper import PAPER_BIBTEX
from hf_protosphere.plots.text import one_line
from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.training.train import train

PLANTED = {"HF_TOKEN": "hf_planted_token", "USER": "planted_user", "API_KEY": "planted_key"}
RUNS = {
    "nonl": {"objective": "nonl", "epochs": 8},
    "scl": {"objective": "scl", "pictures": False},
    "cross_entropy": {
        "objective": "cross_entropy", "imbalance": "step", "imbalance_factor": 0.3, "ema_decay": 0.9,
        "label_smoothing": 0.1, "mixup": 0.2, "classes_per_batch": 2, "pictures": False,
    },
}  # fmt: skip
MARKDOWN = MarkdownIt("gfm-like")


# Compiled once: that is half of writing a card.
STRICT = functools.cache(functools.partial(jinja2.Template, undefined=jinja2.StrictUndefined))


@pytest.fixture(autouse=True)
def _strict_template(monkeypatch):
    """A name that the template knows and `card.py` does not is an error, not an empty place."""
    monkeypatch.setattr(jinja2, "Template", STRICT)


@pytest.fixture(scope="module")
def runs(digits_folder, tmp_path_factory):
    """Folders of finished runs, trained with secrets in the environment."""
    folders = {name: tmp_path_factory.mktemp("runs") / name for name in RUNS}
    with pytest.MonkeyPatch.context() as monkeypatch:
        for variable, value in PLANTED.items():
            monkeypatch.setenv(variable, value)
        for name, options in RUNS.items():
            defaults = {
                "dataset_name": str(digits_folder), "output_dir": str(folders[name]), "epochs": 1,
                "backbone": "test_resnet", "batch_size": 16, "num_workers": 0, "report_to": "none",
                "optimizer": "adamw", "augmentation": "crop", "horizontal_flip": False,
            }  # fmt: skip
            train(TrainArguments(**{**defaults, **options}))
    return folders


@pytest.fixture
def copy_of(runs, tmp_path):
    """A run's folder to change: `copy_of("nonl", results=lambda results: ...)`."""

    def copy(name, **changes):
        folder = tmp_path / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(runs[name], folder, ignore=shutil.ignore_patterns("best", "checkpoints"))
        for file, change in changes.items():
            edit(folder / f"{file}.json", change)
        return folder

    return copy


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def sections(card):
    """{heading: text below it}."""
    parts = re.split(r"(?m)^#+ (.*)$", re.sub(r"(?ms)^```.*?^```$", "", card.text))
    return dict(zip(parts[1::2], parts[2::2]))


def code_blocks(card, language):
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", card.text)


def from_the_hub(results):
    results["provenance"]["dataset"] = "uoft-cs/cifar10"


def test_every_section_tells_of_the_run(runs):
    results = results_of(runs["nonl"])
    card = render_card(runs["nonl"], repo_id="someone/digits", license="mit", notes="\r\n*By hand.*")
    parts = sections(card)
    assert list(parts) == [
        "digits", "From the authors", "How to use", "Classify an image", "Compare images",
        "Fine-tune it on other classes", "Add classes without training", "Results", "Neural collapse", "In pictures",
        "Training", "Intended use and limits", "Licence", "Citation",
    ]  # fmt: skip
    accuracy = f"{100 * results['test']['accuracy']:.2f} %"
    summary = parts["digits"]
    assert "3 classes (digit_0, digit_1, digit_2), trained on digits" in summary
    assert f"**{accuracy} accuracy** on 45 test images" in summary
    assert "sphere of 96 dimensions" in summary
    assert "grayscale images of 32 × 32" in summary
    assert parts["From the authors"].strip() == "*By hand.*"
    validation = f"{100 * results['validation']['accuracy']:.2f} %"
    assert f"| accuracy by prototypes | {validation} | {accuracy} |" in parts["Results"]
    assert f"epoch {results['best_epoch']} of 8; the test images" in parts["Results"]
    collapse = results["test"]["neural_collapse"]
    for metric in METRICS:
        metrics = f"{collapse[metric.name]:.4g} | {collapse['optima'][metric.name]:.4g}"
        attained = f"{collapse['attained'][metric.name]:.1f} %"
        row = rf"\| {metric.title} \| {re.escape(metrics)} \| {attained} \| \w[^|]* \|"
        assert re.search(row, parts["Neural collapse"])
    shown = re.findall(r"\]\((.*)\)", parts["In pictures"])
    assert sorted(shown) == sorted(path.name for path in runs["nonl"].glob("*.png"))
    assert "108 training images of digits" in parts["Training"]
    assert "36 of each class. The 12 validation images were taken from" in parts["Training"]
    assert "Random weights" in parts["Training"]
    assert "| optimiser | AdamW, weight decay 0.05 |" in parts["Training"]
    assert "| learning rate | 0.001 at its peak" in parts["Training"]
    assert f"transformers {results['provenance']['versions']['transformers']}" in parts["Training"]
    assert "L = mean_i [ logsumexp_{j: yj ≠ yi} w_yi·u_j / t" in card.text
    assert "under `mit`" in parts["Licence"]
    assert code_blocks(card, "bibtex") == [f"{PAPER_BIBTEX}\n"]
    assert "\n\n\n\n" not in card.text
    assert "{{" not in card.text
    assert "None" not in card.text


def test_metadata_survive_writing_and_reading(runs, copy_of):
    folder = copy_of("nonl", results=from_the_hub)
    write_card(folder, repo_id="someone/digits", license="apache-2.0")
    card = ModelCard((folder / "README.md").read_text())
    rendered = render_card(folder, repo_id="someone/digits", license="apache-2.0")
    assert card.data.to_dict() == rendered.data.to_dict()
    data = card.data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-classification")
    assert (data.license, data.datasets) == ("apache-2.0", ["uoft-cs/cifar10"])
    assert data.base_model is None
    assert {"hf_protosphere", "nonl", "arxiv:2605.20302"} <= set(data.tags)
    test = results_of(folder)["test"]
    found = {(result.dataset_split, result.metric_type): result.metric_value for result in data.eval_results}
    assert found["test", "accuracy"] == pytest.approx(test["accuracy"], rel=1e-5)
    for metric in METRICS:
        value = test["neural_collapse"][metric.name]
        assert found["test", metric.name] == pytest.approx(value, rel=1e-5)
    # The validation images are of the split for training: not passed off as another.
    held_out = [result for result in data.eval_results if result.dataset_split == "train"]
    assert [result.metric_name for result in held_out] == ["Accuracy on 12 held-out images"]
    assert {result.dataset_type for result in data.eval_results} == {"uoft-cs/cifar10"}


def test_pretrained_weights_are_the_base_model(copy_of):
    def pretrained(results):
        results["provenance"]["base_model"] = "timm/resnet18.a1_in1k"

    card = render_card(copy_of("nonl", results=pretrained))
    assert card.data.base_model == "timm/resnet18.a1_in1k"
    assert card.data.base_model_relation == "finetune"
    assert "(https://huggingface.co/timm/resnet18.a1_in1k)" in card.text


def save_digits(target, folder, count):
    """Images that no class of the runs is for."""
    folder.mkdir(parents=True)
    digits = load_digits()
    for i, pixels in enumerate(digits.images[digits.target == target][:count]):
        Image.fromarray(np.uint8(np.kron(pixels, np.ones((4, 4))) * 15)).save(folder / f"{i}.png")


@pytest.mark.slow  # processes that import everything anew: 12 s
def test_every_snippet_runs_where_the_package_is_missing(runs, digits_folder, python, tmp_path):
    known, new = tmp_path / "known", tmp_path / "new"
    for name in ("digit_0", "digit_2"):
        shutil.copytree(digits_folder / "train" / name, known / "my_images" / "train" / name)
    first, second = sorted((digits_folder / "test" / "digit_1").iterdir())[:2]
    shutil.copy(first, known / "image.png")
    shutil.copy(second, known / "other_image.png")
    save_digits(4, new / "new_classes" / "four", 5)
    save_digits(7, new / "new_classes" / "seven", 6)
    (new / "new_classes" / "seven" / "5.png").rename(new / "image.png")
    program = ["import os, sys", "sys.modules['hf_protosphere'] = None"]  # as where it is missing
    for name, folder in runs.items():
        card = render_card(folder, repo_id="someone/digits")
        for block in code_blocks(card, "python"):
            assert "someone/digits" in block
            block = block.replace("someone/digits", str(folder)).replace("my_model", f"my_{name}")
            place = new if "new_classes" in block else known
            program.append(f"print('---'); os.chdir({str(place)!r}); exec({block!r}, {{}})")
    result = python("-c", "\n".join(program))
    assert result.returncode == 0, result.stderr[-3000:]
    outputs = result.stdout.split("---\n")[1:]
    assert len(outputs) == 5 * len(runs)
    pipeline, without, compared, _, added = outputs[:5]
    assert pipeline.startswith("[{'label': 'digit_1'")
    assert without.startswith("digit_1 0.")
    assert re.fullmatch(r"torch.Size\(\[2, 96\]\) 0\.\d*\n", compared)
    assert added == "seven\n"
    assert outputs[-1] in ("four\n", "seven\n")  # beside a linear layer only the new ones
    for name in runs:
        config = json.loads((known / f"my_{name}" / "config.json").read_text())
        assert config["id2label"] == {"0": "digit_0", "1": "digit_2"}
        assert (known / f"my_{name}" / "modeling_protosphere.py").exists()


def test_contrastive_training_has_class_means_for_prototypes(runs):
    card = render_card(runs["scl"])
    parts = sections(card)
    assert "The prototypes are the mean embeddings of the training images" in card.text
    assert "accuracy by class means" not in parts["Results"]  # they are the prototypes
    assert "16, 2 views of each" in parts["Training"]
    assert [block[:23] for block in code_blocks(card, "bibtex")[0].split("\n\n")] == [
        "@inproceedings{koromila", "@inproceedings{khosla20"
    ]  # fmt: skip


def test_a_linear_layer_has_no_prototypes(runs):
    card = render_card(runs["cross_entropy"])
    text = str(card).replace(PAPER_BIBTEX, "")
    assert "prototype" not in text.lower()
    assert "a linear layer turns these into a score" in text
    measured = {result.metric_type for result in card.data.eval_results}
    without = {metric.name for metric in METRICS if not metric.needs_prototypes}
    assert measured == {"accuracy", "mean_class_accuracy", *without}


def test_long_tailed_training_shows_accuracy_by_frequency(runs):
    folder = runs["cross_entropy"]
    parts, test = sections(render_card(folder)), results_of(folder)["test"]
    counts = results_of(folder)["train_counts"].values()
    told = f"between {min(counts)} and {max(counts)} of each class; made long-tailed on purpose"
    assert told in parts["Training"]
    accuracy = f"{100 * test['mean_class_accuracy']:.2f} %"
    assert re.search(rf"\| mean of the classes[^|]* \|[^|]*\| {accuracy} \|", parts["Results"])
    few = f"{100 * test['accuracy_by_frequency']['few']:.2f} %"
    assert re.search(rf"\| classes with [^|]*20[^|]* \|[^|]*\| {few} \|", parts["Results"])
    types = [result.metric_type for result in render_card(folder).data.eval_results]
    assert types.count("mean_class_accuracy") == 2


def test_a_thousand_classes_take_no_more_lines(runs, copy_of):
    def many(config):
        config["id2label"] = {str(i): f"class number {i}" for i in range(1000)}
        config["label2id"] = {}

    card = render_card(copy_of("nonl", config=many))
    assert "class number 9 and 990 more, all in config.json" in card.text
    assert "class number 10" not in card.text
    assert len(str(card).splitlines()) == len(str(render_card(runs["nonl"])).splitlines())


def test_what_was_not_measured_is_not_told(copy_of):
    def only_trained_on(results):
        results["train"] = results.pop("test")
        for split in (results, results["provenance"]["splits"]):
            split.pop("validation")
        results["provenance"]["splits"].pop("test")
        collapse = results["train"]["neural_collapse"] | {"absent_classes": [2]}
        del collapse["nc3_self_duality"], collapse["attained"]["nc3_self_duality"]
        results["train"]["neural_collapse"] = collapse

    folder = copy_of("nonl", results=only_trained_on)
    for picture in folder.glob("*.png"):
        picture.unlink()
    card = render_card(folder)
    assert "In pictures" not in sections(card)
    assert "Classes without such images: 1. The others were measured" in card.text
    assert "NC3 self-duality" not in card.text
    assert "on 45 of the images it was trained on" in card.text
    assert "best accuracy on the training images" in card.text
    assert "measured on the images it was trained on only" in card.text
    assert "have not stated a licence" in card.text
    assert "license" not in card.data.to_dict()


def test_paths_and_secrets_stay_at_home(runs, digits_folder, tmp_path_factory):
    for folder in runs.values():
        published = str(render_card(folder)) + (folder / "results.json").read_text()
        assert "planted" not in published
        for path in (tmp_path_factory.getbasetemp(), Path.home(), Path.cwd(), folder):
            if path != Path(path.anchor):
                assert str(path) not in published
        assert not re.search(r"(?<![\w/])/(home|root|tmp|Users)/", published)
        assert render_card(folder).data.datasets is None
        assert digits_folder.name in published


NASTY = [
    "a\nb", "---", "\n---\n", "- x", "# x", "1. x", "a|b", "`x`", "```", "*x*", "_x_", "~~x~~",
    "<script>alert(1)</script>", "<!--", "](javascript:alert(1))", "![x](http://x.y)", "[x]: y",
    "http://evil.com", "www.evil.com", "me@evil.com", "{{ 7 * 7 }}", "{% raw %}", "{#", "$$x$$",
    "\\(x\\)", "\\", "&lt;", "&#60;", ": x", "!!python/object", "key: [", "'\"", "\u202eevil",
    "\u2028", "\x00", "\ud800", "\ufeff", "🦆", "é" * 500, " ", "", "../../etc/passwd", "C:\\x\\y",
]  # fmt: skip
FOREIGN = st.one_of(st.sampled_from(NASTY), st.text(), st.tuples(st.text(), st.sampled_from(NASTY)))
NAMES = FOREIGN.map(lambda value: "".join(value))


def structure(card):
    """Every element of the Markdown but the words."""

    def walk(tokens):
        for token in tokens:
            if token.type not in ("text", "text_special"):
                yield token.type, token.tag, token.attrs
            yield from walk(token.children or [])

    return list(walk(MARKDOWN.parse(card.text)))


@pytest.fixture(scope="module")
def scratch(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scratch")
    for name in ("config.json", "arguments.yaml", "results.json"):
        shutil.copy(runs["nonl"] / name, folder)
    return folder


@pytest.fixture(scope="module")
def harmless(scratch):
    return renamed_card(scratch, ["alpha", "beta", "gamma"], "delta", "epsilon")


def renamed_card(folder, classes, dataset, split):
    def rename(config):
        config["id2label"] = dict(enumerate(classes))

    def sources(results):
        results["provenance"]["splits"]["test"]["from"] = split
        results["test"]["class_accuracies"] = [0.25, 0.5, 0.75]

    edit(folder / "config.json", rename)
    edit(folder / "results.json", sources)
    arguments = yaml.safe_load((folder / "arguments.yaml").read_text())
    arguments["dataset_name"] = dataset
    (folder / "arguments.yaml").write_text(yaml.safe_dump(arguments))
    return render_card(folder, repo_id="someone/digits")


@settings(max_examples=60, deadline=None)
@given(
    classes=st.lists(NAMES, min_size=3, max_size=3, unique=True),
    dataset=NAMES.map(lambda name: name.encode("utf-8", "ignore").decode()),
    split=NAMES,
)
def test_foreign_names_are_words_and_nothing_else(scratch, harmless, classes, dataset, split):
    card = renamed_card(scratch, classes, dataset, split)
    assert structure(card) == structure(harmless)
    again = ModelCard(str(card))
    assert again.text == card.text
    assert again.data.to_dict() == card.data.to_dict()
    for name in ("tags", "license", "datasets", "library_name"):
        assert getattr(again.data, name) == getattr(harmless.data, name)
    assert len(again.data.eval_results) == len(harmless.data.eval_results)
    words = html.unescape(MARKDOWN.render(card.text))
    for name in classes:
        assert one_line(name)[:59] in words
    default = render_card(scratch).data.model_name
    assert re.fullmatch(r"\w[\w-]*", default, re.ASCII)
