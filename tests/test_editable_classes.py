"""Classes come and go without training, and those that stay say what they said, to the bit."""

from statistics import fmean

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
from hf_protosphere.data.pixels import pixels_of
from hf_protosphere.data.transforms import build_image_processor
from hf_protosphere.inference.features import on_features
from hf_protosphere.prototypes import cosines_to, turned


def build(num_classes=3, **options):
    torch.manual_seed(0)
    names = {i: f"class {i}" for i in range(num_classes)}
    defaults = {"backbone": "test_resnet", "image_size": 32, "id2label": names}
    return ProtoSphereForImageClassification(ProtoSphereConfig(**defaults | options)).eval()


def logits_of(model, images):
    with torch.no_grad():
        return model.eval()(images).logits


IMAGES = torch.randn(9, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("prototypes", ["learned", "simplex_etf", "class_means"])
def test_logits_of_classes_that_stay_are_the_same_to_the_bit(prototypes):
    model = build(6, prototypes=prototypes)
    before = logits_of(model, IMAGES)
    model.add_classes({"new": IMAGES[:4]})
    assert torch.equal(logits_of(model, IMAGES)[:, :6], before)
    model.add_classes({f"more {i}": IMAGES[i % 9][None] + 0.1 * i for i in range(150)})
    after = logits_of(model, IMAGES)
    assert torch.equal(after[:, :6], before)
    model.remove_classes(["class 1", "more 3"])
    assert torch.equal(logits_of(model, IMAGES)[:, :5], before[:, [0, 2, 3, 4, 5]])
    model.merge_classes({"both": ["class 2", "class 5"]})
    merged = logits_of(model, IMAGES)
    assert torch.equal(merged[:, [0, 2, 3]], before[:, [0, 3, 4]])
    assert model.config.num_labels == merged.shape[1] == 6 + 151 - 2 - 1
    assert [model.config.id2label[i] for i in range(4)] == ["class 0", "both", "class 3", "class 4"]


def test_a_plain_product_would_change_the_last_bits():
    # What `cosines_to` is for: if this fails, matrix kernels have become the same for all shapes.
    generator = torch.Generator().manual_seed(0)
    x, w = (F.normalize(torch.randn(n, 96, generator=generator), dim=1) for n in (64, 700))
    shapes = [(k, k + more) for k in (2, 6, 10) for more in (1, 4, 600)]
    assert any(not torch.equal(x @ w[:a].T, (x @ w[:b].T)[:, :a]) for a, b in shapes)
    for a, b in shapes:
        assert torch.equal(cosines_to(x, w[:a]), cosines_to(x, w[:b])[:, :a])
        torch.testing.assert_close(cosines_to(x, w[:a]), x @ w[:a].T)


def test_a_new_prototype_is_the_mean_embedding():
    model = build()
    with torch.no_grad():
        embeddings = model(IMAGES).embeddings
    model.add_classes({"a": IMAGES[:4], "b": IMAGES[4:]}, batch_size=3)
    for row, part in ((3, embeddings[:4]), (4, embeddings[4:])):
        expected = F.normalize(part.mean(0), dim=0)
        torch.testing.assert_close(model.prototypes[row], expected)
    assert model.config.label2id["b"] == 4
    assert isinstance(model.head.weight, torch.nn.Parameter)
    assert model.head.weight.requires_grad


def test_shrinkage_and_center():
    model, center = build(), F.normalize(torch.ones(96), dim=0)
    with torch.no_grad():
        mean = model(IMAGES).embeddings.double().mean(0)
    prototypes = model.prototypes.double()
    model.add_classes({"plain": IMAGES, "centred": IMAGES}, center=center)
    expected = F.normalize(mean - center, dim=0).float()
    torch.testing.assert_close(model.prototypes[4], expected)

    model = build()
    model.add_classes({"shrunk": IMAGES}, shrinkage=3.0)
    told = (prototypes @ F.normalize(mean, dim=0) / model.config.softmax_temperature).softmax(0) @ prototypes
    expected = F.normalize((9 * mean + 3 * told) / 12, dim=0).float()
    torch.testing.assert_close(model.prototypes[3], expected)


def test_images_by_the_checkpoints_processor_saved_and_loaded(tmp_path):
    model = build(prototypes="simplex_etf")
    processor = build_image_processor(model.config)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    model = ProtoSphereForImageClassification.from_pretrained(tmp_path)
    photos = [Image.effect_noise((40, 30), 50), Image.effect_noise((32, 32), 90)]
    model.add_classes({"noise": (photo for photo in photos)})
    pixels = pixels_of(photos, processor)
    with torch.no_grad():
        mean = model.eval()(pixels).embeddings.mean(0)
    torch.testing.assert_close(model.prototypes[3], F.normalize(mean, dim=0))
    model.save_pretrained(tmp_path / "more")
    again = ProtoSphereForImageClassification.from_pretrained(tmp_path / "more")
    assert torch.equal(logits_of(again, pixels), logits_of(model, pixels))
    assert again.config.prototypes == "learned"  # no simplex ETF any more
    assert again.config.id2label[3] == "noise"


def test_images_by_what_the_configuration_describes_where_nothing_was_loaded():
    model, photo = build(), Image.effect_noise((40, 30), 50)
    model.add_classes({"noise": [photo]})
    with torch.no_grad():
        pixels = pixels_of([photo], build_image_processor(model.config))
        torch.testing.assert_close(model.prototypes[3:], model.eval()(pixels).embeddings)


def test_training_mode_comes_back_and_nothing_changes_when_it_fails():
    model = build().train()
    with pytest.raises(ValueError, match="class 'empty' has no images"):
        model.add_classes({"full": IMAGES, "empty": []})
    assert model.training
    assert model.config.num_labels == len(model.head.weight) == 3


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.add_classes({"class 1": IMAGES}), "has a class 'class 1' already"),
        (lambda m: m.add_classes({}), "no classes"),
        (lambda m: m.add_classes({"x": IMAGES}, shrinkage=-1), "0 or more images, but got -1"),
        (lambda m: m.remove_classes(["x"]), "no class 'x', but"),
        (lambda m: m.remove_classes("class 1"), "expected a list of names"),
        (lambda m: m.remove_classes(["class 0", "class 1"]), "at least two classes, but 1"),
        (lambda m: m.merge_classes({"a": ["class 0"], "b": ["class 0"]}), "'class 0' is merged"),
        (lambda m: m.merge_classes({"class 2": ["class 0", "class 1"]}), "a class 'class 2'"),
        (lambda m: m.merge_classes({"a": ["class 0", "class 1", "class 2"]}), "1 would stay"),
    ],
)
def test_errors_leave_the_model_alone(edit, message):
    model = build()
    weight = model.head.weight.detach().clone()
    with pytest.raises(ValueError, match=message):
        edit(model)
    assert torch.equal(model.head.weight, weight)
    assert model.config.num_labels == 3


def test_a_linear_head_has_no_prototypes():
    with pytest.raises(ValueError, match="protosphere finetune --mode prototypes"):
        build(objective="cross_entropy").add_classes({"x": IMAGES})


def test_a_thousand_classes_in_one_pass():
    model, passes = build(), []
    model.protosphere.register_forward_hook(lambda *_: passes.append(1))
    model.add_classes({str(i): IMAGES[i % 9][None] for i in range(1000)}, batch_size=100)
    assert (len(passes), model.config.num_labels) == (10, 1003)


def with_room(**options):
    """A model of four classes and three spare vertices, of which an image is its embedding (24,)."""
    model = build(4, prototypes="simplex_etf", reserved_classes=3, projection="linear", projection_dim=24, **options)
    model.protosphere.projection = torch.nn.Identity()
    return on_features(model).eval()


def points(directions, count, generator, noise):
    """(n · count, D) unit rows around n directions (n, D)."""
    around = directions.repeat_interleave(count, 0)
    return F.normalize(around + noise * torch.randn(around.shape, generator=generator) / 24**0.5, dim=1)


def frame_of(model):
    return torch.cat([model.head.weight, model.head.spare]).double().detach()


def best_by_brute_force(old, spare, new, known, labels):
    """(prototype, margin) of the best of all pairs of a candidate and a margin, by predictions one at a time."""
    found = []
    for of_spare in (False, True):

        def cosines(image, examples, of_spare=of_spare):
            mean = examples.mean(0)
            prototype = turned(spare, old, mean[None])[0] if of_spare else F.normalize(mean, dim=0)
            return (torch.cat([old, prototype[None]]) @ image).numpy()

        own = [cosines(image, torch.cat([new[:i], new[i + 1 :]])) for i, image in enumerate(new)]
        tests = [(c, [cosines(image, new) for image in known[labels == c]]) for c in range(len(old))]
        for margin in (m / 100 for m in range(101)):
            less = np.array([0.0] * len(old) + [margin])
            shares = [fmean((each - less).argmax() == c for each in of) for c, of in [*tests, (len(old), own)]]
            found.append((fmean(shares), of_spare, margin))
    return max(found, key=lambda each: round(each[0], 9))  # the first of equals


@pytest.mark.parametrize(("seed", "is_spare"), [(10, False), (36, True), (99, True)])
def test_the_place_and_the_margin_are_the_best_of_all_by_leave_one_out(seed, is_spare):
    generator, model = torch.Generator().manual_seed(seed), with_room()
    before = frame_of(model)
    old, spare = before[:4], before[4:]
    known, labels = points(old.float(), 6, generator, 1.5), torch.arange(4).repeat_interleave(6)
    direction = torch.randn(1, 24, generator=generator) + 2 * old[:1].float()
    new = points(F.normalize(direction, dim=1), 5, generator, 1.5)
    asked = torch.cat([known, new])[..., None, None]
    logits = logits_of(model, asked)
    model.add_classes({"new": new[..., None, None]}, known=(known, labels))

    nearest = spare[(spare @ new.double().mean(0)).argmax()]
    accuracy, of_spare, margin = best_by_brute_force(old, nearest, new.double(), known.double(), labels)
    assert of_spare == is_spare
    mean = new.double().mean(0)
    expected = turned(nearest, old, mean[None])[0] if is_spare else F.normalize(mean, dim=0)
    torch.testing.assert_close(model.prototypes[4].detach().double(), expected, atol=1e-6, rtol=0)
    assert (model.config.class_margins or [0.0] * 5)[4] == margin
    after = logits_of(model, asked)
    assert torch.equal(after[:, :4], logits)
    cosines = cosines_to(asked[..., 0, 0], model.prototypes.detach())[:, 4]
    torch.testing.assert_close(after[:, 4], (cosines - margin) / model.config.softmax_temperature)
    right = after.argmax(1)[:24] == labels
    assert right.float().mean() >= (5 * accuracy - 1) / 4 - 1e-6

    assert model.config.reserved_classes == 3 - is_spare
    assert model.config.prototypes == ("simplex_etf" if is_spare else "learned")
    if is_spare:  # one simplex of seven vertices still, the old ones where they were to the bit
        frame = frame_of(model)
        assert torch.equal(frame[:4], before[:4])
        expected = torch.full((7, 7), -1 / 6, dtype=torch.float64).fill_diagonal_(1)
        torch.testing.assert_close(frame @ frame.T, expected, atol=1e-6, rtol=0)


def test_without_known_images_or_of_one_image_a_class_is_its_mean():
    model, generator = with_room(), torch.Generator().manual_seed(0)
    new = points(torch.eye(24)[:1], 3, generator, 1.0)[..., None, None]
    known = model.prototypes.detach(), torch.arange(4)
    model.add_classes({"a": new})
    model.add_classes({"b": new[:1]}, known=known)
    torch.testing.assert_close(model.prototypes[4], F.normalize(new[..., 0, 0].mean(0), dim=0))
    torch.testing.assert_close(model.prototypes[5], new[0, :, 0, 0])
    assert (model.config.class_margins, model.config.reserved_classes, len(model.head.spare)) == (None, 3, 3)


def test_margins_and_spare_vertices_come_back_from_a_file_and_go_with_their_classes(tmp_path):
    model = build(4, prototypes="simplex_etf", reserved_classes=3)
    model.config.class_margins = [0.0, 0.25, 0.0, 0.5]
    model.save_pretrained(tmp_path)
    again = ProtoSphereForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(again.head.spare, model.head.spare)
    assert torch.equal(logits_of(again, IMAGES), logits_of(model, IMAGES))
    again.remove_classes(["class 0"])
    assert again.config.class_margins == [0.25, 0.0, 0.5]
    again.merge_classes({"both": ["class 1", "class 3"]})
    assert again.config.class_margins == [0.25, 0.0]
    assert torch.equal(again.head.spare, model.head.spare)
    again.set_prototypes(again.prototypes)
    assert again.config.class_margins is None

    other = ProtoSphereForImageClassification.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    frame = frame_of(other)  # of one simplex, and not of two
    expected = torch.full((8, 8), -1 / 7, dtype=torch.float64).fill_diagonal_(1)
    torch.testing.assert_close(frame @ frame.T, expected, atol=1e-6, rtol=0)
    assert other.config.class_margins is None
