"""Does each objective's optimum show neural collapse? Without a network, where one can see it.

    python -m scripts.theory
    python -m scripts.theory --classes 10 --dim 16 --output_dir outputs/theory
    python -m scripts.theory --nonnegative  # a few minutes

The unconstrained features model: embeddings and prototypes are free vectors, so that nothing but the objective decides
where they go. Each objective is minimised from the same random start, once by L-BFGS, which finds the optimum where
there is one, and once by Adam with a fixed learning rate, which shows how strongly the gradients pull towards it. A
simplex ETF has all cosines between class means at −1/(K−1).

Cross-entropy has free norms and a bias, as in a classifier: growing lowers its loss for ever, so
it never needs the optimum. By Adam NONL arrives while NormFace, NTCE and SCL slow down: their
gradients fade as they come closer, the argument for decoupling alignment from uniformity.

With `--nonnegative` no embedding has a negative entry, as after a ReLU, and so no two class means have a negative
cosine. At best they are orthonormal, e_1 … e_K. Given those, each loss wants the prototype that maximises
w_c·e_c − w_c·e_j for all j ≠ c. By symmetry w_c = a·e_c − b·Σ_{j≠c} e_j with a² + (K − 1)·b² = 1, and a + b is largest
at a = (K − 1)·b: the simplex ETF of the frame, whose cosine with e_c is a = √(1 − 1/K). Hence class alignment ends at
2 − 2·√(1 − 1/K) (`nonnegative_limit`) under NormFace, NTCE and NONL alike, where signed embeddings come to 0. L-BFGS,
bounded to the orthant, arrives there to 1e-9 for K = 3, 6, 10 and 100, in twice as many dimensions as classes: in as
many, some classes stay on one axis while another is empty. Adam shows who is slow: after 1,000 steps at K = 100 class
alignment is 0.013 under NONL, but 0.174 under NTCE and 0.185 under NormFace, whose gradients fade, where the limit is
0.010.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import Bounds, OptimizeResult
from scipy.optimize import minimize as scipy_minimize
from torch import Tensor

from hf_protosphere.losses import nonl_loss, normface_loss, ntce_loss, supcon_loss
from hf_protosphere.metrics.class_statistics import class_statistics
from hf_protosphere.objectives import default_temperature
from hf_protosphere.plots.style import COLORS, STYLES, new_figure
from hf_protosphere.prototypes import class_means, nonnegative_limit

LBFGS_STEPS, ADAM_STEPS, ADAM_LEARNING_RATE = 500, 1000, 0.02
NONNEGATIVE_CLASSES = (3, 6, 10, 100)
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
    nonnegative: bool = False,
) -> tuple[list[dict[str, float]], Tensor, Tensor]:
    """Minimise one objective over free vectors, by "lbfgs" or "adam"; with `nonnegative`, over
    embeddings without a negative entry.

    Returns:
        The `METRIC_TITLES`, "alignment" and "loss" after every step, and the unit embeddings
        (K·n, D) and unit prototypes (K, D) at the end; for SCL those are the class means.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_classes).repeat_interleave(per_class)
    num_embeddings = num_classes * per_class
    start = torch.randn(num_embeddings + num_classes, dim, generator=generator, dtype=torch.float64)
    if nonnegative:
        start[:num_embeddings].abs_()
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

    floor = torch.full_like(start, -math.inf)
    if nonnegative:
        floor[:num_embeddings] = 0
    run = _lbfgs if optimizer == "lbfgs" else _adam
    return record, *result(run(loss_of, start, floor, look))


Look = Callable[[Tensor, float], None]


def _lbfgs(loss_of: Callable[[Tensor], Tensor], start: Tensor, floor: Tensor, look: Look) -> Tensor:
    def value_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
        vectors = torch.from_numpy(x).view_as(start).clone().requires_grad_()
        loss = loss_of(vectors)
        (gradient,) = torch.autograd.grad(loss, vectors)
        return loss.item(), gradient.numpy().ravel()

    def callback(intermediate_result: OptimizeResult) -> None:
        vectors = torch.from_numpy(intermediate_result.x).view_as(start)
        look(vectors, float(intermediate_result.fun))

    # scipy's: the line search of torch's stalls at 1e-5 to 1e-3 here. Of many vectors, long memory
    # costs more than it saves.
    maxcor = 50 if start.numel() < 10**4 else 10
    bounds = None if floor.isinf().all() else Bounds(floor.numpy().ravel(), math.inf)
    options = {"maxcor": maxcor, "ftol": 0, "gtol": 0, "maxiter": LBFGS_STEPS, "maxls": 50}
    found = scipy_minimize(
        value_and_gradient, start.numpy().ravel(), jac=True, method="L-BFGS-B",
        bounds=bounds, callback=callback, options=options,
    )  # fmt: skip
    return torch.from_numpy(found.x).view_as(start)


def _adam(loss_of: Callable[[Tensor], Tensor], start: Tensor, floor: Tensor, look: Look) -> Tensor:
    vectors = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([vectors], lr=ADAM_LEARNING_RATE)
    for _ in range(ADAM_STEPS):
        optimizer.zero_grad()
        loss = loss_of(vectors)
        loss.backward()
        optimizer.step()
        vectors.data.clamp_(min=floor)
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
        "alignment": (prototypes - directions).square().sum(1).mean().item(),
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


def nonnegative(output_dir: Path) -> None:
    """Print and draw where class alignment ends on embeddings without a negative entry."""
    figure = new_figure(11, 4.5)
    ends, ways = figure.subplots(1, 2)
    counts = np.geomspace(2, 128)
    ends.plot(counts, [nonnegative_limit(k) for k in counts], color="gray", label="2 − 2√(1 − 1/K)")
    print(f"{'K':>4} {'temperature':>18} {'class alignment':>16} {'− limit':>9} {'Adam':>16}")
    for num_classes in NONNEGATIVE_CLASSES:
        limit = nonnegative_limit(num_classes)
        for i, objective in enumerate(LOSSES):
            temperature = default_temperature(objective, num_classes)
            options = {
                "num_classes": num_classes, "dim": 2 * num_classes, "temperature": temperature,
                "per_class": 2 if num_classes <= 10 else 1, "nonnegative": True,
            }  # fmt: skip
            end, way = (
                [step["alignment"] for step in minimise(objective, optimizer, **options)[0]]
                for optimizer in ("lbfgs", "adam")
            )
            print(
                f"{num_classes:4} {TITLES[objective]:>10} {temperature:7.3f} {end[-1]:16.10f} "
                f"{end[-1] - limit:9.1e} {way[-1]:16.10f}"
            )
            style = {"color": COLORS[i], "label": TITLES[objective]}
            ends.plot(num_classes, end[-1], "os^"[i], fillstyle="none", ms=6 + 3 * i, **style)
            if num_classes == 10:
                ways.plot(way, linestyle=STYLES[i], **style)
                ways.axhline(limit, color="gray")
    ends.set(xscale="log", xlabel="K", ylabel="class alignment", title="Where L-BFGS ends")
    ways.set(xlabel="step", yscale="log", title="How Adam comes there, K = 10")
    ways.legend()
    lines = dict(zip(*ends.get_legend_handles_labels()[::-1]))  # one for each label
    ends.legend(lines.values(), lines)
    figure.savefig(output_dir / "nonnegative.png", dpi=120)
    print(f"picture: {output_dir / 'nonnegative.png'}")


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
    help = "embeddings without negative entries, for K of 3 to 100, instead"
    parser.add_argument("--nonnegative", action="store_true", help=help)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/theory"))
    a = parser.parse_args(argv)
    if a.classes < 2 or a.dim < a.classes - 1 or a.per_class < 2:
        parser.error("--classes and --per_class must be at least 2, and --dim at least classes − 1")
    torch.set_num_threads(1)  # these matrices are small
    a.output_dir.mkdir(parents=True, exist_ok=True)
    if a.nonnegative:
        nonnegative(a.output_dir)
        return
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
    draw(records, a.output_dir / "theory.png")
    print(f"curves: {a.output_dir / 'theory.png'}")


if __name__ == "__main__":
    main()
