"""The model card of a finished run, from its files alone: no model is loaded, nothing is trained.

The words are in `model_card_template.md`, which takes most of the numbers from the run itself; here is what it cannot.
Whatever comes from data sets, such as names of classes, is made safe to print by `markdown.inline`; paths never enter.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id

from ..arguments.fields import check_license
from ..errors import errors_in_one_line
from ..evaluation.report import FREQUENCIES
from ..metrics.paper import PAPER_BIBTEX, PAPER_URL
from ..objectives import OBJECTIVES
from ..open_set.scores import SCORES
from ..plots.text import one_line
from ..runs.files import write_text
from ..runs.finished_run import RELIABILITY, FinishedRun
from ..runs.folders import CARD_FILES, held_folder
from .comparison import WORDS, applicable_metrics, compare
from .markdown import duration, inline, listed, percent

TEMPLATE = Path(__file__).with_name("model_card_template.md")
PICTURES = ("curves.png", "neural_collapse.png", "sphere.png", "cosines.png", "margins.png")
LEAST_ACCURATE_SHOWN = 5


def render_card(
    folder: str | Path, *, repo_id: str | None = None, license: str | None = None,
    notes: str | None = None, compare_with: Sequence[str | Path] | None = None,
) -> ModelCard:  # fmt: skip
    """The model card of a finished run, with metadata for the Hub.

    Args:
        folder: the --output_dir of `protosphere train`. Pictures that are there are shown.
        repo_id: "user/name" on the Hub, for title and snippets; by default a placeholder.
        license: of the weights, as the Hub names it ("apache-2.0"). Without one the card says that none was stated.
        notes: Markdown of the authors, printed as it is, in a section of its own.
        compare_with: folders of finished runs of the same recipe with other objectives and seeds, for a table. Each is
            linked as a repository with the name of its folder, of the user in `repo_id`.

    Raises:
        ArgumentError: a file missing or not whole; `repo_id` or `license` malformed; runs that cannot be compared.
    """
    run = FinishedRun.read(folder)
    repo_id = _checked_repo_id(repo_id) if repo_id else f"user/{run.default_name}"
    check_license(license)
    user, name = repo_id.split("/")[0], repo_id.split("/")[-1]
    others = [path for path in map(Path, compare_with or []) if path.resolve() != run.folder.resolve()]
    # A linear layer has no prototypes, which all but the curves show.
    pictures = ("curves.png",) if run.classifier == "linear" else PICTURES
    return ModelCard.from_template(
        _metadata(run, name, license), template_path=str(TEMPLATE),
        title=inline(name), repo_id=repo_id, license=license, notes=notes,
        paper_url=PAPER_URL, paper_bibtex=PAPER_BIBTEX, objective=WORDS[run.config.objective],
        trains_prototypes=not OBJECTIVES[run.config.objective].contrasts_views,
        run=run, config=run.config, arguments=run.arguments, results=run.results, origin=run.provenance,
        device=run.provenance["device"], reported=run.results[run.reported], least_accurate=_least_accurate(run),
        metrics=applicable_metrics(run), pictures=[name for name in pictures if (run.folder / name).is_file()],
        calibration=run.calibration, has_reliability=(run.folder / RELIABILITY).is_file(),
        comparison=compare(run, list(map(FinishedRun.read, others))) if compare_with else [],
        repositories={path: _checked_repo_id(f"{user}/{path.resolve().name}") for path in others},
        inline=inline, listed=listed, percent=percent, duration=duration,
        degrees=lambda cosine: math.degrees(math.acos(cosine)), frequencies=FREQUENCIES, scores=SCORES,
    )  # fmt: skip


def write_card(folder: str | Path, **options: Any) -> None:
    """Write `render_card`, which says options and what is raised, into a run's folder, over an earlier one."""
    with held_folder(folder, "--folder", CARD_FILES) as folder:
        write_text(folder / "README.md", str(render_card(folder, **options)))


def _checked_repo_id(repo_id: str) -> str:
    with errors_in_one_line(f"repo_id must be 'user/name', but got {repo_id!r}"):
        validate_repo_id(repo_id)
    return repo_id


def _metadata(run: FinishedRun, name: str, license: str | None) -> ModelCardData:
    base_model = run.provenance["base_model"]
    tags = ["hf_protosphere", "neural-collapse", run.config.objective.replace("_", "-")]
    tags += ["arxiv:" + PAPER_URL.rsplit("/")[-1]]
    tags += ["prototypes", "hypersphere"] if run.classifier != "linear" else []
    return ModelCardData(
        model_name=name, license=license, tags=tags,
        library_name="transformers", pipeline_tag="image-classification",
        datasets=[run.dataset_id] if run.dataset_id else None,
        base_model=base_model, base_model_relation="finetune" if base_model else None,
        metrics=["accuracy"], eval_results=_evaluation_results(run),
    )  # fmt: skip


def _evaluation_results(run: FinishedRun) -> list[EvalResult]:
    """Accuracies on every held-out split, neural collapse on the last one."""
    arguments, results = run.arguments, []
    config, revision = arguments.dataset_config, arguments.dataset_revision
    for split in run.held_out:
        report = run.results[split]
        metrics = {"accuracy": ("Accuracy", report["accuracy"])}
        metrics["top_5_accuracy"] = "Top-5 accuracy", report.get("top5_accuracy")
        if arguments.imbalance:
            metrics["mean_class_accuracy"] = ("Mean class accuracy", report["mean_class_accuracy"])
        if split == run.reported:
            metrics |= {m.name: (m.title, report["neural_collapse"][m.name]) for m in applicable_metrics(run)}
        on = ""
        if split != "train" and run.is_drawn_from_training(split):
            on = f" on {report['num_images']} held-out images"  # no split of the data set
        results += [
            EvalResult(
                task_type="image-classification", task_name="Image classification",
                dataset_type=run.dataset_id or "imagefolder",
                dataset_name=one_line(run.dataset_name),
                dataset_config=config and one_line(config),
                dataset_split=one_line(run.provenance["splits"][split]["from"]),
                dataset_revision=revision and one_line(revision), metric_type=kind,
                metric_name=f"{title}{on}", metric_value=float(f"{value:.6g}"),
            )
            for kind, (title, value) in metrics.items()
            if value is not None and math.isfinite(value)
        ]  # fmt: skip
    return results


def _least_accurate(run: FinishedRun) -> str:
    pairs = zip(run.results[run.reported]["class_accuracies"], map(inline, run.class_names))
    below = [(accuracy, name) for accuracy, name in pairs if accuracy is not None and accuracy < 1]
    worst = sorted(below, key=lambda pair: pair[0])[:LEAST_ACCURATE_SHOWN]
    return ", ".join(f"{name} ({percent(accuracy)})" for accuracy, name in worst)
