"""Pictures of the sphere, drawn from a snapshot: cosines of class means, points, and margins."""

import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..metrics.snapshot import Snapshot
from .style import COLORS, STYLES, draw_shares, new_figure, save_figure
from .text import for_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Paul Tol's muted colours and black: ten that the colour-blind tell apart. Markers serve the rest.
CLASS_COLORS = (
    "#332288", "#CC6677", "#117733", "#DDCC77", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499", "#000000",
)  # fmt: skip
CLASS_MARKERS = "osD^v<>phX"
SHOWN_CLASSES = len(CLASS_COLORS)  # in pictures of points
NAMED_CLASSES = 30  # beside matrices
PRINTED_CLASSES = 12  # with numbers in the cells
DRAWN_CLASSES = 400  # each with a row of its own; of more, a cell is the mean of several
COMPARED = 2**36  # products of numbers, about a second
QUERY_COLOR = "#FF3B00"  # unlike any class

Styles = dict[int, tuple[str, str]]  # colour and marker of each class that is shown


def plot_cosines(snapshot: Snapshot, picture: Path) -> None:
    """Cosines between class means, and between prototypes, beside those of the simplex ETF. Of more than
    `DRAWN_CLASSES` sorted into clusters, with histograms and the nearest pairs, in memory of O(K·D)."""
    num_classes, dim = snapshot.prototypes.shape
    if num_classes > DRAWN_CLASSES:
        return _plot_many_cosines(snapshot, picture)
    means, prototypes = (F.normalize(x, dim=1) for x in (snapshot.class_means, snapshot.prototypes))
    ideal = torch.full((num_classes, num_classes), -1 / (num_classes - 1)).fill_diagonal_(1)
    matrices = {
        f"Class means of the {for_figure(snapshot.split)} images": means @ means.T,
        "Prototypes": prototypes @ prototypes.T,
        f"Simplex ETF: 1 and −1/{num_classes - 1}": ideal,
    }
    lowest = min(matrix.min().item() for matrix in matrices.values())
    figure = new_figure(17, 6)
    for axes, (title, matrix) in zip(figure.subplots(1, 3), matrices.items()):
        # cividis grows lighter from end to end: readable in grey, and by the colour-blind.
        image = axes.imshow(matrix.numpy(), cmap="cividis", vmin=lowest, vmax=1, interpolation="nearest")
        axes.set_title(title)
        if num_classes <= NAMED_CLASSES:
            names = [for_figure(name) for name in snapshot.class_names]
            axes.set_xticks(range(num_classes), names, rotation=90)
            axes.set_yticks(range(num_classes), names)
        else:
            axes.set(xlabel="class", ylabel="class")
        if num_classes <= PRINTED_CLASSES:
            middle = (1 + lowest) / 2
            for (row, column), value in np.ndenumerate(matrix.numpy()):
                color = "black" if value > middle else "white"
                text = f"{value:.2f}".replace("-", "−").replace("0.", ".")
                axes.text(column, row, text, ha="center", va="center", color=color, fontsize=7)
    figure.colorbar(image, ax=figure.axes, label="cosine", shrink=0.8)
    title = "Cosines between classes: at neural collapse all three matrices are equal"
    if num_classes > dim + 1:
        title += f" (no simplex ETF of {num_classes} classes exists in {dim} dimensions)"
    figure.suptitle(title)
    save_figure(figure, picture, 110)


def _plot_many_cosines(snapshot: Snapshot, picture: Path) -> None:
    figure, num_classes = new_figure(20, 5.5), len(snapshot.prototypes)
    *panels, right = figure.subplots(1, 3)
    names = f"class means of the {for_figure(snapshot.split)} images", "prototypes"
    both = F.normalize(snapshot.class_means, dim=1), F.normalize(snapshot.prototypes, dim=1)
    order, size = _by_cluster(both[0]), math.ceil(num_classes / DRAWN_CLASSES)
    for axes, name, vectors, color, style in zip(panels, names, both, COLORS, STYLES):
        parts = vectors[order].split(size)
        cells, counts = torch.stack([part.mean(0) for part in parts]), torch.tensor([*map(len, parts)])
        matrix = cells @ cells.T
        matrix.diagonal().mul_(counts).sub_(1).div_(counts - 1)  # without the cosine to itself
        extent = 2 * (0, size * len(parts))
        image = axes.imshow(matrix.numpy(), cmap="cividis", interpolation="nearest", extent=extent, origin="lower")
        figure.colorbar(image, ax=axes, label=f"cosine, mean of {size} × {size} classes", shrink=0.8)
        axes.set(title=name.capitalize(), xlabel="classes, similar ones side by side")
        # Some against all are enough for a histogram; their cosines to themselves are no part of it.
        some = vectors[:: math.ceil(num_classes / 256)]
        shares = sum(torch.histc((part @ vectors.T).clamp_(-1, 1), 400, -1, 1) for part in some.split(64))
        shares[-1] -= some.any(1).sum()
        right.stairs(100 * shares / shares.sum(), np.linspace(-1, 1, 401), label=name, color=color, linestyle=style)
    ideal = {"color": "0.3", "linestyle": ":", "label": f"simplex ETF: −1/{num_classes - 1:,}"}
    right.axvline(-1 / (num_classes - 1), **ideal)
    cosines, others = _nearest(both[0])
    pairs = {frozenset((c, int(others[c]))): c for c in cosines.argsort(descending=True)[:40].tolist()}
    words = {c: " and ".join(for_figure(snapshot.class_names[i]) for i in pair) for pair, c in pairs.items()}
    nearest = [f"{cosines[c]:.3f}  {pair}" for c, pair in words.items()][:8]
    right.set(title="All pairs", xlabel="cosine", ylabel="share of the pairs (%)", yscale="log", xticks=range(-1, 2))
    figure.legend(loc="outside right center", title="\n".join(["nearest class means:", *nearest]), fontsize="small")
    figure.suptitle(f"Cosines between {num_classes:,} classes: at neural collapse all are those of the simplex ETF")
    save_figure(figure, picture, 110)


def _by_cluster(vectors: Tensor) -> Tensor:
    """Of unit vectors (K, D), an order (K,) in which similar ones are side by side: that of the nearest of at most
    1,000 of them in a hierarchical clustering by average linkage."""
    from scipy.cluster.hierarchy import leaves_list, linkage

    some = vectors[:: math.ceil(len(vectors) / 1000)]
    nearest = torch.cat([(part @ some.T).argmax(1) for part in vectors.split(4096)])
    return torch.tensor(leaves_list(linkage(some, "average"))).argsort()[nearest].argsort(stable=True)


def _nearest(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines (K,) of unit vectors (K, D) to their nearest others, and which those are, (K,): of all or, where those
    are beyond `COMPARED`, of hundreds beside them by cluster."""
    every = len(vectors) * vectors.numel() <= COMPARED
    order, reach = (torch.arange(len(vectors)), len(vectors)) if every else (_by_cluster(vectors), 256)
    rows, cosines, others = vectors[order], vectors.new_empty(len(order)), torch.empty_like(order)
    for start, part in zip(range(0, len(order), 512), order.split(512)):
        first = max(start - reach, 0)
        products = rows[start : start + 512] @ rows[first : start + 512 + reach].T
        products.diagonal(start - first).fill_(-2)
        cosines[part], found = products.max(1)
        others[part] = order[first + found]
    return cosines, others


def plot_margins(snapshot: Snapshot, picture: Path) -> None:
    """Histogram of the cosines of all images to their own and to the nearest other prototype."""
    own, other = snapshot.own_cosines.numpy(), snapshot.nearest_other_cosines.numpy()
    right, figure = (own > other).mean(), new_figure(9, 5)
    axes = figure.subplots()
    bins = np.linspace(min(own.min(), other.min()), max(own.max(), other.max()), 81)
    draw_shares(axes, bins, {"to the own prototype": own, "to the nearest other prototype": other})
    for name, value in (("own", 1.0), ("others", -1 / (len(snapshot.prototypes) - 1))):
        axes.axvline(value, color="0.3", linewidth=1, linestyle=":")
        axes.annotate(f" {name} at collapse", (value, 0.98), xycoords=("data", "axes fraction"),
                      rotation=90, va="top", ha="right", color="0.3", fontsize=8)  # fmt: skip
    title = f"{len(own):,} {for_figure(snapshot.split)} images, {right:.1%} nearest to their own prototype"
    axes.set(xlabel="cosine between embedding and prototype", title=title)
    axes.legend(loc="upper center")
    save_figure(figure, picture, 120)


def plot_sphere(
    snapshot: Snapshot, picture: Path | BinaryIO, classes: Sequence[str] | None = None,
    query: Tensor | None = None, *, stacked: bool = False,
) -> None:  # fmt: skip
    """Embeddings, class means and prototypes on the sphere; prototypes alone where no images are.

    In 2 and 3 dimensions exactly where they are. In more, two orthogonal projections, both labelled as such: onto the
    plane through the class means of three classes (after Müller et al., "When Does Label Smoothing Help?", 2019),
    where neural collapse is an equilateral triangle; and onto the two directions in which the class means vary most.

    Args:
        picture: the file to write, or an open one, in which the format is PNG.
        classes: names of the classes to show, at most ten; by default those nearest to another, or to the query.
        query: (D,), unit norm, the embedding of one more image, to mark.
        stacked: one projection below the other, for a telephone.

    Raises:
        ValueError: an unknown class, fewer than two, or more than ten.
    """
    shown = _classes_to_show(snapshot, classes, query)
    dim = snapshot.prototypes.shape[1]
    images = f"{for_figure(snapshot.split)} images" if len(snapshot.embeddings) else "Prototypes"
    if dim in (2, 3):
        figure = new_figure(9, 8 if dim == 3 else 7.5)
        axes = figure.add_subplot(projection="3d" if dim == 3 else None)
        (_draw_globe if dim == 3 else _draw_circle)(axes)
        _draw_points(axes, snapshot, _styles(shown), torch.eye(dim), query)
        title = f"{images} on the unit {'sphere' if dim == 3 else 'circle'}"
    else:
        figure = new_figure(6, 13.5) if stacked else new_figure(16, 7)
        _draw_projections(*figure.subplots(*((2, 1) if stacked else (1, 2))), snapshot, shown, query)
        title = f"{images} on the unit sphere of {dim} dimensions"
    if len(shown) < len(snapshot.class_names):
        nearest_to = "another" if query is None else "this image"
        which = f", those nearest to {nearest_to}" if classes is None else ""
        title += f": {len(shown)} of {len(snapshot.class_names):,} classes{which}"
    figure.suptitle("\n".join(wrap(title, 45)) if stacked else title)
    where = {"loc": "outside lower center", "ncols": 3} if stacked else {"loc": "outside right center"}
    figure.legend(*figure.axes[-1].get_legend_handles_labels(), **where)
    save_figure(figure, picture, 110)


def _draw_projections(left: "Axes", right: "Axes", snapshot: Snapshot, shown: list[int], query: Tensor | None) -> None:
    means, corners, styles = F.normalize(snapshot.class_means, dim=1), shown[:3], _styles(shown)
    what = "class means" if len(snapshot.embeddings) else "prototypes"
    # Of two classes the plane through both and the origin.
    points = F.pad(means[corners], (0, 0, 0, 3 - len(corners)))
    plane = torch.linalg.qr((points[1:] - points[0]).T).Q  # (D, 2), orthonormal
    _draw_circle(left)
    _draw_points(left, snapshot, {c: styles[c] for c in corners}, plane, query)
    left.plot(*(means[[*corners, corners[0]]] @ plane).T.tolist(), color="0.4", linewidth=1, zorder=0)
    left.set_title(
        f"Projected onto the plane through three {what}\n(at neural collapse an equilateral triangle)"
        if len(corners) == 3
        else f"Projected onto the plane of both {what}"
    )
    left.legend(loc="upper left", fontsize="small")

    centred = means - means.mean(0)
    square = torch.linalg.qr(centred, mode="r").R if len(means) > means.shape[1] else centred
    principal = torch.linalg.svd(square, full_matrices=False)
    variances = principal.S.square()
    _draw_circle(right)
    _draw_points(right, snapshot, styles, principal.Vh[:2].T, query)
    most = f"Projected onto the two directions in which the {what} vary most"
    right.set_title(f"{most}\n({variances[:2].sum() / variances.sum():.0%} of their variance)")


def _classes_to_show(snapshot: Snapshot, classes: Sequence[str] | None, query: Tensor | None) -> list[int]:
    names = snapshot.class_names
    if classes is not None:
        unknown = [name for name in classes if name not in names]
        if unknown or not 2 <= len(classes) <= SHOWN_CLASSES:
            raise ValueError(f"classes must be 2 to {SHOWN_CLASSES} class names, got {', '.join(unknown or classes)}.")
        return [names.index(name) for name in classes]
    if query is not None:
        return (snapshot.prototypes @ query).argsort(descending=True)[:SHOWN_CLASSES].tolist()
    cosines, others = _nearest(means := F.normalize(snapshot.class_means, dim=1))
    # The closest pair, and who is closest to them; then the others by their nearest neighbour.
    closest = [first := int(cosines.argmax()), int(others[first])]
    to_both = (means @ means[closest].T).sum(1)
    to_both[closest] = -torch.inf
    order = [*closest, int(to_both.argmax()), *cosines.argsort(descending=True).tolist()]
    return list(dict.fromkeys(order))[: min(SHOWN_CLASSES, len(names))]


def _styles(shown: list[int]) -> Styles:
    """In the order of the classes: of ten or fewer, each looks the same in every picture."""
    return dict(zip(sorted(shown), zip(CLASS_COLORS, CLASS_MARKERS)))


def _draw_points(axes: "Axes", snapshot: Snapshot, styles: Styles, directions: Tensor, query: Tensor | None) -> None:
    """Of some classes, in the coordinates along `directions` (D, 2 or 3)."""
    flat, with_images = directions.shape[1] == 2, len(snapshot.embeddings) > 0
    on_top = {"zorder": 5} if flat else {"depthshade": False}
    for c, (color, marker) in styles.items():
        name = for_figure(snapshot.class_names[c])
        ends = torch.stack([snapshot.class_means[c], snapshot.prototypes[c]]) @ directions
        outlined = {"color": color, "edgecolors": "black", **on_top}
        if with_images:
            points = (snapshot.embeddings[snapshot.labels == c] @ directions).T.tolist()
            axes.scatter(*points, s=14, color=color, marker=marker, alpha=0.5, linewidths=0, label=name)
            axes.plot(*ends.T.tolist(), color="black", linewidth=1)
            axes.scatter(*ends[:1].T.tolist(), s=140, marker=marker, linewidths=1.5, **outlined)
        axes.scatter(*ends[1:].T.tolist(), s=240, marker="*", linewidths=1.0, **outlined,
                     label=None if with_images else name)  # fmt: skip
    nowhere = [[]] * directions.shape[1]
    hollow = {"facecolors": "none", "edgecolors": "black"}
    if with_images:
        axes.scatter(*nowhere, s=100, label="large: class mean", **hollow)
        axes.scatter(*nowhere, s=140, marker="*", label="its prototype", **hollow)
    if query is not None:
        burst = {"marker": (8, 1), "color": QUERY_COLOR, "edgecolors": "black"}
        point = (query @ directions)[:, None].tolist()
        axes.scatter(*point, s=500, linewidths=1.5, **burst, **(on_top | {"zorder": 6}))
        axes.scatter(*nowhere, s=140, label="this image", **burst)


def _draw_circle(axes: "Axes") -> None:
    angles = np.linspace(0, 2 * np.pi, 200)
    axes.plot(np.cos(angles), np.sin(angles), color="0.7", linewidth=1, zorder=0)
    axes.set(aspect="equal", xticks=(-1, 0, 1), yticks=(-1, 0, 1))


def _draw_globe(axes: "Axes") -> None:
    longitude, latitude = np.meshgrid(np.linspace(0, 2 * np.pi, 25), np.linspace(-np.pi / 2, np.pi / 2, 13))
    x, y, z = np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)
    axes.plot_wireframe(x, y, z, color="0.8", linewidth=0.5)
    axes.set(xticks=(-1, 0, 1), yticks=(-1, 0, 1), zticks=(-1, 0, 1))
    axes.set_box_aspect((1, 1, 1))
