"""Pictures of the sphere show what they say."""

import pytest
import torch
import torch.nn.functional as F

from hf_protosphere.metrics.snapshot import Snapshot, SnapshotCollector
from hf_protosphere.plots import sphere
from hf_protosphere.plots.sphere import _by_cluster, _nearest, plot_cosines, plot_margins, plot_sphere
from hf_protosphere.prototypes import simplex_etf


def snapshot_of(num_classes, dim, noise=0.1, name="class {}"):
    generator = torch.Generator().manual_seed(0)
    if num_classes <= dim + 1:
        prototypes = simplex_etf(num_classes, dim, generator)
    else:
        prototypes = F.normalize(torch.randn(num_classes, dim, generator=generator), dim=1)
    labels = torch.arange(num_classes).repeat(20)
    points = prototypes[labels] + noise * torch.randn(len(labels), dim, generator=generator)
    collector = SnapshotCollector(prototypes)
    collector.update(F.normalize(points, dim=1), labels)
    return collector.snapshot([name.format(c) for c in range(num_classes)], "test")


def offsets(axes):
    return [torch.as_tensor(points.get_offsets().data) for points in axes.collections]


def test_the_circle_is_exact(tmp_path, figures):
    snapshot = snapshot_of(3, 2)
    plot_sphere(snapshot, tmp_path / "sphere.png")
    (axes,) = figures[0].axes
    images, mean, prototype = offsets(axes)[:3]  # of the class that is drawn first
    first = axes.collections[0].get_label()
    c = snapshot.class_names.index(first)
    assert torch.allclose(images.float(), snapshot.embeddings[snapshot.labels == c])
    assert torch.allclose(mean[0].float(), snapshot.class_means[c])
    assert torch.allclose(prototype[0].float(), snapshot.prototypes[c])
    assert "circle" in figures[0].get_suptitle()


def test_the_globe(tmp_path, figures):
    plot_sphere(snapshot_of(4, 3), tmp_path / "sphere.png")
    assert figures[0].axes[0].name == "3d"


def test_projections_are_orthogonal_and_collapse_is_a_triangle(tmp_path, figures):
    snapshot = snapshot_of(4, 16, noise=0)
    plot_sphere(snapshot, tmp_path / "sphere.png")
    left, right = figures[0].axes
    assert "three class means" in left.get_title()
    assert "% of their variance" in right.get_title()
    assert "16 dimensions" in figures[0].get_suptitle()
    means = torch.cat([points for points in offsets(left) if len(points) == 1][::2])  # (3, 2)
    sides = (means - means.roll(1, 0)).norm(dim=1)
    # an orthogonal projection along their plane keeps distances: √(2 + 2/(K − 1))
    assert torch.allclose(sides, torch.full((3,), (2 + 2 / 3) ** 0.5, dtype=sides.dtype))


def test_a_telephone_has_one_projection_below_the_other(tmp_path, figures):
    snapshot = snapshot_of(4, 16)
    plot_sphere(snapshot, tmp_path / "sphere.png", stacked=True)
    above, below = (axes.get_position() for axes in figures[0].axes)
    assert above.y0 > below.y1
    assert above.x0 == pytest.approx(below.x0, abs=0.1)


def test_classes_shown_are_the_nearest_or_those_asked_for(tmp_path, figures):
    snapshot = snapshot_of(40, 16)
    cosines = (snapshot.class_means @ snapshot.class_means.T).fill_diagonal_(-2)
    closest = {snapshot.class_names[i] for i in divmod(int(cosines.argmax()), 40)}
    plot_sphere(snapshot, tmp_path / "sphere.png")
    labels = [points.get_label() for points in figures[0].axes[0].collections]
    assert closest < set(labels)
    assert "10 of 40 classes, those nearest" in figures[0].get_suptitle()
    plot_sphere(snapshot, tmp_path / "sphere.png", classes=["class 3", "class 30"])
    labels = [points.get_label() for points in figures[1].axes[1].collections]
    assert {"class 3", "class 30"} < set(labels)
    for classes in (["class 3", "fly"], ["class 3"], snapshot.class_names[:11]):
        with pytest.raises(ValueError, match="2 to 10 class names"):
            plot_sphere(snapshot, tmp_path / "sphere.png", classes=classes)


@pytest.mark.parametrize("dim", [2, 3, 16])
def test_one_more_image_is_marked_where_it_falls(tmp_path, figures, dim):
    snapshot = snapshot_of(3, dim)
    query = F.normalize(torch.ones(dim), dim=0)
    plot_sphere(snapshot, tmp_path / "sphere.png", query=query)
    for axes in figures[0].axes:
        assert "this image" in axes.get_legend_handles_labels()[1]
    if dim == 2:
        assert any(torch.allclose(o.float(), query[None]) for o in offsets(axes) if len(o) == 1)


def test_classes_nearest_to_the_image_are_shown(tmp_path, figures):
    snapshot = snapshot_of(40, 16)
    query = snapshot.prototypes[7]
    with open(tmp_path / "sphere", "wb") as file:
        plot_sphere(snapshot, file, query=query)
    nearest = (snapshot.prototypes @ query).topk(10).indices.tolist()
    left, right = (axes.get_legend_handles_labels()[1] for axes in figures[0].axes)
    assert {f"class {c}" for c in nearest[:3]} < set(left)
    assert {f"class {c}" for c in nearest} < set(right)
    assert "10 of 40 classes, those nearest to this image" in figures[0].get_suptitle()


def test_a_class_looks_the_same_whatever_is_near(tmp_path, figures):
    snapshot = snapshot_of(6, 16)
    for c in range(2):
        plot_sphere(snapshot, tmp_path / "sphere.png", query=snapshot.prototypes[c])
    colors = [
        {points.get_label(): points.get_facecolor().tolist() for points in axes.collections}
        for figure in figures
        for axes in figure.axes
    ]
    for name in snapshot.class_names:
        found = [of_axes[name] for of_axes in colors if name in of_axes]
        assert found == found[:1] * len(found)


@pytest.mark.parametrize("dim", [2, 3, 16])
def test_prototypes_are_drawn_without_images(tmp_path, figures, dim):
    whole = snapshot_of(3, dim)
    snapshot = Snapshot.of_prototypes(whole.prototypes, whole.class_names)
    plot_sphere(snapshot, tmp_path / "sphere.png", query=whole.embeddings[0])
    assert figures[0].get_suptitle().startswith("Prototypes on the unit")
    for axes in figures[0].axes:
        assert set(axes.get_legend_handles_labels()[1]) == {*whole.class_names, "this image"}
        assert "class means" not in axes.get_title()


def test_two_classes(tmp_path):
    plot_sphere(snapshot_of(2, 5), tmp_path / "sphere.png")
    assert (tmp_path / "sphere.png").stat().st_size > 10_000


@pytest.mark.parametrize("num_classes", [3, 100])
def test_cosines_stand_beside_the_simplex(tmp_path, figures, num_classes):
    snapshot = snapshot_of(num_classes, 8)
    plot_cosines(snapshot, tmp_path / "cosines.png")
    means, prototypes, ideal = (torch.as_tensor(axes.images[0].get_array().data) for axes in figures[0].axes[:3])
    assert torch.allclose(means, snapshot.class_means @ snapshot.class_means.T, atol=1e-6)
    assert torch.allclose(prototypes.diagonal(), torch.ones(num_classes))
    assert ideal[0, 1] == pytest.approx(-1 / (num_classes - 1))
    assert ("no simplex ETF" in figures[0].get_suptitle()) == (num_classes > 9)


def of_clusters(num_classes, dim, size):
    """Classes in clusters of `size`, numbered at random, the first two nearest to each other."""
    generator = torch.Generator().manual_seed(0)
    clusters = torch.arange(num_classes)[torch.randperm(num_classes, generator=generator)] // size
    parents = torch.randn(num_classes // size + 1, dim, generator=generator)
    prototypes = F.normalize(parents[clusters] + 0.5 * torch.randn(num_classes, dim, generator=generator), dim=1)
    prototypes[1] = F.normalize(prototypes[0] + 0.01 * prototypes[1], dim=0)
    names = [f"class {c}" for c in range(num_classes)]
    return clusters, Snapshot.of_prototypes(prototypes, names)


def test_many_classes_are_sorted_into_clusters_and_the_nearest_are_named(tmp_path, figures):
    clusters, snapshot = of_clusters(1200, 16, 100)
    plot_cosines(snapshot, tmp_path / "cosines.png")
    means, prototypes, histogram = figures[0].axes[:3]
    order = _by_cluster(snapshot.prototypes)
    cosines = snapshot.prototypes[order] @ snapshot.prototypes[order].T
    cosines.fill_diagonal_(torch.nan)
    cells = cosines.view(400, 3, 400, 3).transpose(1, 2).flatten(2).nanmean(2)
    for axes in (means, prototypes):
        assert torch.allclose(torch.as_tensor(axes.images[0].get_array().data), cells, atol=1e-5)
    assert (clusters[order].diff() != 0).sum() < 100  # of 1,199: similar classes are side by side
    (legend,) = figures[0].legends
    assert legend.get_title().get_text().split("\n")[1] in ("1.000  class 0 and class 1", "1.000  class 1 and class 0")
    shares = [patch.get_data().values for patch in histogram.patches]
    assert [values.sum() for values in shares] == [pytest.approx(100), pytest.approx(100)]
    below = (snapshot.prototypes[::5] @ snapshot.prototypes.T < 0).float().mean() * 1200 / 1199
    assert shares[0][:200].sum() == pytest.approx(100 * below.item(), abs=0.01)


def test_the_nearest_of_very_many_classes_are_sought_beside_them(monkeypatch):
    _, snapshot = of_clusters(6000, 16, 20)
    cosines = (snapshot.prototypes @ snapshot.prototypes.T).fill_diagonal_(-2)
    exact, others = _nearest(snapshot.prototypes)
    assert torch.allclose(exact, cosines.amax(1), atol=1e-6)
    assert torch.equal(others, cosines.argmax(1))
    monkeypatch.setattr(sphere, "COMPARED", 0)
    found, others = _nearest(snapshot.prototypes)
    assert (found > exact - 1e-6).float().mean() > 0.7
    assert torch.allclose(cosines.gather(1, others[:, None])[:, 0], found, atol=1e-6)
    assert {*found.topk(2).indices.tolist()} == {0, 1}


def test_margins_count_every_image(tmp_path, figures):
    snapshot = snapshot_of(5, 8, noise=0.4)
    plot_margins(snapshot, tmp_path / "margins.png")
    (axes,) = figures[0].axes
    right = (snapshot.own_cosines > snapshot.nearest_other_cosines).float().mean()
    assert f"100 test images, {right:.1%} nearest" in axes.get_title()
    heights = sum(patch.get_height() for patch in axes.patches if hasattr(patch, "get_height"))
    assert heights == pytest.approx(200)  # per cent, of both histograms


def test_strange_names_are_drawn(tmp_path):
    snapshot = snapshot_of(3, 4, name="_$\\frac{}$ <b> " + "x" * 40)
    plot_cosines(snapshot, tmp_path / "cosines.png")
    plot_sphere(snapshot, tmp_path / "sphere.png")
