"""Does each objective's optimum show neural collapse? Without a network, where one can see it.

    python -m scripts.theory
    python -m scripts.theory --classes 10 --dim 16 --output_dir outputs/theory

The unconstrained features model: embeddings and prototypes are free vectors, so that nothing but
the objective decides where they go. Each objective is minimised from the same random start, once by
L-BFGS, which finds the optimum where there is one, and once by Adam with a fixed learning rate,
which shows how strongly the gradients pull towards it. A simplex ETF has all cosines between class
means at −1/(K−1).

Cross-entropy has free norms and a bias, as in a classifier: growing lowers its loss for ever, so
it never needs the optimum. By Adam NONL arrives while NormFace, NTCE and SCL slow down: their
gradients fade as they come closer, the argument for decoupling alignment from uniformity.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import OptimizeResult
from scipy.optimize import minimize as scipy_minimize
from torch import Tensor

from hf_protosphere.losses import nonl_loss, normface_loss, ntce_loss, supcon_loss
from hf_protosphere.metrics.class_statistics import class_statistics
from hf_protosphere.plots.style import COLORS, STYLES, new_figure
from hf_protosphere.prototypes import class_means

LBFGS_STEPS, ADAM_STEPS, ADAM_LEARNING_RATE = 500, 1000, 0.02
LOSSES = {"nonl": nonl_loss, "ntce": ntce_loss, "normface": normface_loss}
OBJECTIVES = ("nonl", "ntce", "normface", "scl", "cross_entropy")
TITLES = {"nonl": "NONL", "ntce": "NTCE", "normface": "NormFace", "scl": "SCL"}
TITLES["cross_entropy"] = "cross-entropy"
METRIC_TITLES = {
    "cosines": "largest distance of a cosine between class means from −1/(K − 1)",
    "collapse": "root mean square distance of embeddings from their class mean",
    "self_duality": "largest distance of a prototype from its class mean",
}


def optimal_loss(objective: str, num_classes: int, per_class: int, temperature: float) -> float:
    """The value of an objective at neural collapse: own cosine 1, all others −1/(K − 1)."""
    k, n, gap = num_classes, per_class, num_classes / (num_classes - 1) / temperature
    return {
        "normface": math.log1p((k - 1) * math.exp(-gap)),
        "ntce": math.log(n) + math.log1p((k - 1) * math.exp(-gap)),
        "nonl": math.log(n * (k - 1)) - gap,
        "scl": math.log(n - 1 + n * (k - 1) * math.exp(-gap)),
        "cross_entropy": 0.0,
    }[objective]


def minimise(
    objective: str,
    optimizer: str = "lbfgs",
    num_classes: int = 6,
    dim: int = 10,
    per_class: int = 8,
    temperature: float = 0.2,
    seed: int = 0,
) -> tuple[list[dict[str, float]], Tensor, Tensor]:
    """Minimise one objective over free vectors, by "lbfgs" or "adam".

    Returns:
        The `METRIC_TITLES` and "loss" after every step, and the unit embeddings (K·n, D) and
        unit prototypes (K, D) at the end; for SCL those are the class means.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_classes).repeat_interleave(per_class)
    num_embeddings = num_classes * per_class
    start = torch.randn(num_embeddings + num_classes, dim, generator=generator, dtype=torch.float64)
    start = F.pad(start, (0, 1))  # rows: embeddings, prototypes; last column: cross-entropy's bias

    def loss_of(vectors: Tensor) -> Tensor:
        features, weights = vectors[:num_embeddings, :dim], vectors[num_embeddings:, :dim]
        if objective == "scl":
            return supcon_loss(features, labels, temperature)
        if objective == "cross_entropy":
            return F.cross_entropy(features @ weights.T + vectors[num_embeddings:, dim], labels)
        return LOSSES[objective](features, weights, labels, temperature)

    def result(vectors: Tensor) -> tuple[Tensor, Tensor]:
        embeddings = F.normalize(vectors[:num_embeddings, :dim], dim=1)
        prototypes = F.normalize(vectors[num_embeddings:, :dim], dim=1)
        return embeddings, class_means(embeddings, labels) if objective == "scl" else prototypes

    record: list[dict[str, float]] = []

    def look(vectors: Tensor, loss: float) -> None:
        embeddings, prototypes = result(vectors)
        record.append({"loss": loss} | metrics(embeddings, labels, prototypes))

    run = _lbfgs if optimizer == "lbfgs" else _adam
    return record, *result(run(loss_of, start, look))


Look = Callable[[Tensor, float], None]


def _lbfgs(loss_of: Callable[[Tensor], Tensor], start: Tensor, look: Look) -> Tensor:
    def value_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
        vectors = torch.from_numpy(x).view_as(start).clone().requires_grad_()
        loss = loss_of(vectors)
        (gradient,) = torch.autograd.grad(loss, vectors)
        return loss.item(), gradient.numpy().ravel()

    def callback(intermediate_result: OptimizeResult) -> None:
        vectors = torch.from_numpy(intermediate_result.x).view_as(start)
        look(vectors, float(intermediate_result.fun))

    # scipy's: the line search of torch's stalls at 1e-5 to 1e-3 here.
    options = {"maxcor": 50, "ftol": 0, "gtol": 0, "maxiter": LBFGS_STEPS, "maxls": 50}
    found = scipy_minimize(
        value_and_gradient, start.numpy().ravel(), jac=True, method="L-BFGS-B",
        callback=callback, options=options,
    )  # fmt: skip
    return torch.from_numpy(found.x).view_as(start)


def _adam(loss_of: Callable[[Tensor], Tensor], start: Tensor, look: Look) -> Tensor:
    vectors = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([vectors], lr=ADAM_LEARNING_RATE)
    for _ in range(ADAM_STEPS):
        optimizer.zero_grad()
        loss = loss_of(vectors)
        loss.backward()
        optimizer.step()
        look(vectors.detach(), loss.item())
    return vectors.detach()


def metrics(embeddings: Tensor, labels: Tensor, prototypes: Tensor) -> dict[str, float]:
    statistics = class_statistics(embeddings, labels, len(prototypes))
    directions = F.normalize(statistics.means, dim=1)
    cosines = directions @ directions.T
    off_diagonal = ~torch.eye(len(cosines), dtype=torch.bool)
    return {
        "cosines": (cosines + 1 / (len(cosines) - 1))[off_diagonal].abs().max().item(),
        "collapse": statistics.variances.mean().sqrt().item(),
        "self_duality": (prototypes - directions).norm(dim=1).max().item(),
    }


def draw(records: dict[str, dict[str, list[dict[str, float]]]], picture: Path) -> None:
    figure = new_figure(15, 8)
    rows = figure.subplots(len(records), len(METRIC_TITLES), sharey=True)
    for (optimizer, of_objective), row in zip(records.items(), rows):
        for axes, (name, title) in zip(row, METRIC_TITLES.items()):
            for i, (objective, record) in enumerate(of_objective.items()):
                values = [max(step[name], 1e-17) for step in record]
                axes.plot(values, color=COLORS[i], linestyle=STYLES[i], label=TITLES[objective])
            axes.set(yscale="log", xlabel=f"step of {optimizer}", ylim=(1e-17, 10))
            axes.set_title(title, fontsize="medium")
            axes.grid(alpha=0.3)
        row[0].set_ylabel("0 at neural collapse")
    rows[0][0].legend(loc="lower left")
    figure.suptitle("Free vectors on the sphere: how each objective approaches neural collapse")
    figure.savefig(picture, dpi=120)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--classes", type=int, default=6, help="K (default 6)")
    parser.add_argument("--dim", type=int, default=10, help="D ≥ K − 1 (default 10)")
    parser.add_argument("--per_class", type=int, default=8, help="embeddings per class (default 8)")
    parser.add_argument("--temperature", type=float, default=0.2, help="default 0.2")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/theory"))
    a = parser.parse_args(argv)
    if a.classes < 2 or a.dim < a.classes - 1 or a.per_class < 2:
        parser.error("--classes and --per_class must be at least 2, and --dim at least classes − 1")
    torch.set_num_threads(1)  # these matrices are small
    records: dict[str, dict[str, list[dict[str, float]]]] = {}
    for optimizer, title in {"lbfgs": "L-BFGS", "adam": "Adam"}.items():
        records[title] = {}
        print(f"{title:14} steps {'loss − optimum':>15} {'cosines':>9} ", end="")
        print(f"{'collapse':>9} {'self-duality':>13}")
        for objective in OBJECTIVES:
            record, embeddings, prototypes = minimise(
                objective, optimizer, a.classes, a.dim, a.per_class, a.temperature
            )
            records[title][objective], last = record, record[-1]
            excess = last["loss"] - optimal_loss(objective, a.classes, a.per_class, a.temperature)
            print(
                f"{TITLES[objective]:14} {len(record):5} {excess:15.1e} {last['cosines']:9.1e} "
                f"{last['collapse']:9.1e} {last['self_duality']:13.1e}"
            )
            if (objective, optimizer) == ("scl", "lbfgs"):  # are its class means the best head?
                labels = torch.arange(a.classes).repeat_interleave(a.per_class)
                loss = normface_loss(embeddings, prototypes, labels, a.temperature).item()
                excess_of_means = loss - optimal_loss("normface", a.classes, 1, a.temperature)
        print()
    print(f"SCL's class means as NormFace prototypes: {excess_of_means:.1e} above its optimum")
    a.output_dir.mkdir(parents=True, exist_ok=True)
    draw(records, a.output_dir / "theory.png")
    print(f"curves: {a.output_dir / 'theory.png'}")


if __name__ == "__main__":
    main()
