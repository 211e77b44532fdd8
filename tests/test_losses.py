"""Every loss against the published fixtures and against double loops, over shapes and dtypes."""

import inspect
import itertools
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from hf_protosphere import contrast, losses
from hf_protosphere.losses import nonl_loss, normface_loss, ntce_loss, supcon_loss
from tests import FIXTURES, oracles

PUBLISHED = np.load(FIXTURES / "losses.npz")
PROTOTYPE_LOSSES = {"normface": normface_loss, "ntce": ntce_loss, "nonl": nonl_loss}
MODULES = {
    "normface": losses.NormFaceLoss,
    "ntce": losses.NTCELoss,
    "nonl": losses.NONLLoss,
    "scl": losses.SupConLoss,
}


def fixture(case, key):
    return torch.from_numpy(PUBLISHED[f"case{case}/{key}"])


def draw(seed, size, num_classes, dim, dtype=torch.float64, views=None):
    generator = torch.Generator().manual_seed(seed)
    shape = (size, dim) if views is None else (size, views, dim)
    embeddings = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    prototypes = torch.randn(num_classes, dim, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(0, num_classes, (size,), generator=generator)
    return embeddings, prototypes, labels


def with_gradients(loss, *tensors):
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    value = loss(*leaves)
    return value.detach(), torch.autograd.grad(value, leaves)


def assert_same(got, expected, atol):
    assert torch.allclose(got[0].double(), expected[0].double(), atol=atol, rtol=0)
    for ours, theirs in zip(got[1], expected[1]):
        assert torch.allclose(ours.double(), theirs.double(), atol=atol, rtol=0)


# The published values. Published gradients are those of the bare formula, on unit vectors; with the
# normalisation inside, their radial part is gone.


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 1, 3, 7, 100])
@pytest.mark.parametrize("case", range(4))
@pytest.mark.parametrize("objective", PROTOTYPE_LOSSES)
def test_published_values_and_gradients(objective, case, chunk_size, normalize):
    points = [fixture(case, name) for name in ("embeddings", "prototypes")]
    labels, temperature = fixture(case, "labels"), fixture(case, "temperature").item()

    def loss(embeddings, prototypes):
        function = PROTOTYPE_LOSSES[objective]
        options = {"chunk_size": chunk_size, "normalize": normalize}
        return function(embeddings, prototypes, labels, temperature, **options)

    published = [fixture(case, f"{objective}/grad_{name}") for name in ("embeddings", "prototypes")]
    if normalize:
        published = [g - (g * x).sum(-1, keepdim=True) * x for g, x in zip(published, points)]
    assert_same(with_gradients(loss, *points), (fixture(case, f"{objective}/loss"), published), 1e-9)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 1, 7, 100])
@pytest.mark.parametrize("case", range(4))
def test_published_supcon(case, chunk_size, normalize):
    views, labels = fixture(case, "scl/views"), fixture(case, "labels")
    temperature = fixture(case, "temperature").item()

    def loss(views):
        return supcon_loss(views, labels, temperature, chunk_size=chunk_size, normalize=normalize)

    published = fixture(case, "scl/grad_views")
    if normalize:
        published = published - (published * views).sum(-1, keepdim=True) * views
    assert_same(with_gradients(loss, views), (fixture(case, "scl/loss"), [published]), 1e-9)


# The oracles.

SHAPES = {
    "size": st.integers(1, 9),
    "num_classes": st.integers(2, 7),
    "dim": st.integers(1, 6),
    "temperature": st.sampled_from([0.05, 0.1, 0.5, 1.0, 10.0]),
    "chunk_size": st.sampled_from([None, 1, 2, 5, 50]),
    "reduction": st.sampled_from(["mean", "sum", "none"]),
    "seed": st.integers(0, 2**16),
    "duplicates": st.booleans(),
    "weighted": st.booleans(),
    "ignored": st.booleans(),
}


def random_case(size, num_classes, dim, seed, duplicates, weighted, ignored, views=None):
    embeddings, prototypes, labels = draw(seed, size, num_classes, dim, views=views)
    if duplicates:
        embeddings[-1], labels[-1] = embeddings[0], labels[0]
    if ignored:
        labels[size // 2] = -100
    weight = torch.rand(num_classes, dtype=torch.float64) + 0.5 if weighted else None
    return embeddings, prototypes, labels, weight


@pytest.mark.filterwarnings("ignore:nonl_loss")
@pytest.mark.parametrize("objective", PROTOTYPE_LOSSES)
@settings(max_examples=60, deadline=None)
@given(**SHAPES)
def test_prototype_losses_are_their_equations(
    objective, size, num_classes, dim, temperature, chunk_size, reduction, seed,
    duplicates, weighted, ignored,
):  # fmt: skip
    embeddings, prototypes, labels, weight = random_case(size, num_classes, dim, seed, duplicates, weighted, ignored)
    upstream = torch.linspace(0.5, 1.5, size, dtype=torch.float64)
    options = {"weight": weight, "reduction": reduction}

    def scalar(value):
        return (value * upstream).sum() if reduction == "none" else value

    def ours(u, w):
        function = PROTOTYPE_LOSSES[objective]
        return scalar(function(u, w, labels, temperature, chunk_size=chunk_size, **options))

    def oracle(u, w):
        value = oracles.prototype_loss(objective, u, w, labels, temperature, **options)
        return scalar(value) + w.sum() * 0

    expected = with_gradients(oracle, embeddings, prototypes)
    assert_same(with_gradients(ours, embeddings, prototypes), expected, 1e-9)


@settings(max_examples=60, deadline=None)
@given(**SHAPES, views=st.integers(1, 3))
def test_supcon_is_its_equation(
    size, num_classes, dim, temperature, chunk_size, reduction, seed,
    duplicates, weighted, ignored, views,
):  # fmt: skip
    embeddings, _, labels, weight = random_case(size, num_classes, dim, seed, duplicates, weighted, ignored, views)
    options = {"weight": weight, "reduction": reduction}

    def ours(u):
        value = supcon_loss(u, labels, temperature, chunk_size=chunk_size, **options)
        assert reduction != "none" or value.shape == (size, views)
        return value.sum()

    def oracle(u):
        return oracles.supcon_loss(u, labels, temperature, **options).sum()

    assert_same(with_gradients(ours, embeddings), with_gradients(oracle, embeddings), 1e-9)


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("objective", [*PROTOTYPE_LOSSES, "scl"])
def test_gradcheck(objective, chunk_size):
    embeddings, prototypes, labels = draw(0, 6, 4, 3, views=2 if objective == "scl" else None)
    labels[2] = -100
    if objective == "scl":
        inputs = (embeddings.requires_grad_(),)

        def loss(u):
            return supcon_loss(u, labels, 0.3, chunk_size=chunk_size)
    else:
        inputs = (embeddings.requires_grad_(), prototypes.requires_grad_())

        def loss(u, w):
            function = PROTOTYPE_LOSSES[objective]
            return function(u, w, labels, 0.3, chunk_size=chunk_size, reduction="none")

    assert torch.autograd.gradcheck(loss, inputs)


def test_normface_is_cross_entropy_on_cosines():
    embeddings, prototypes, labels = draw(3, 40, 7, 5)
    labels[::6] = -100
    weight = torch.rand(7, dtype=torch.float64)
    cosines = F.normalize(embeddings, dim=1) @ F.normalize(prototypes, dim=1).T
    for reduction in ("mean", "sum", "none"):
        options = {"weight": weight, "reduction": reduction}
        expected = F.cross_entropy(cosines / 0.2, labels, **options)
        got = normface_loss(embeddings, prototypes, labels, 0.2, **options)
        assert torch.allclose(got, expected, atol=1e-12)


@pytest.mark.parametrize("objective", MODULES)
def test_modules_are_the_functions(objective):
    embeddings, prototypes, labels = draw(1, 20, 5, 6, views=2 if objective == "scl" else None)
    module = MODULES[objective](0.3, reduction="sum", chunk_size=2, weight=torch.rand(5))
    options = {"weight": module.weight, "reduction": "sum"}
    if objective == "scl":
        got, expected = module(embeddings, labels), supcon_loss(embeddings, labels, 0.3, **options)
    else:
        got = module(embeddings, prototypes, labels)
        expected = PROTOTYPE_LOSSES[objective](embeddings, prototypes, labels, 0.3, **options)
    assert torch.allclose(got, expected)
    assert "temperature=0.3" in repr(module)
    assert module.left_out == 0


def test_k_equal_to_d_is_no_special_case():
    # The published code guesses the prototypes' orientation from their shape.
    embeddings, prototypes, labels = draw(2, 12, 6, 6)
    expected = oracles.prototype_loss("ntce", embeddings, prototypes, labels, 0.1)
    assert torch.allclose(ntce_loss(embeddings, prototypes, labels), expected)
    transposed = oracles.prototype_loss("ntce", embeddings, prototypes.T, labels, 0.1)
    assert not torch.allclose(expected, transposed)


# Numerics.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("objective", [*PROTOTYPE_LOSSES, "scl"])
def test_low_precision_gives_the_result_of_the_rounded_inputs(objective, dtype, autocast):
    embeddings, prototypes, labels = draw(4, 32, 5, 16, dtype, 2 if objective == "scl" else None)

    def loss(u, w):
        if objective == "scl":
            return supcon_loss(u, labels, 0.07) + w.sum() * 0
        return PROTOTYPE_LOSSES[objective](u, w, labels, 0.07)

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        got = with_gradients(loss, embeddings, prototypes)
    expected = with_gradients(loss, embeddings.double(), prototypes.double())
    assert got[0].dtype == torch.float32
    assert got[1][0].dtype == dtype
    assert abs(got[0] - expected[0]) < 2e-5
    tolerance = 4 * torch.finfo(dtype).eps * max(g.abs().max().item() for g in expected[1])
    assert_same((got[0], got[1]), expected, max(tolerance, 2e-5))


@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("temperature", [0.01, 0.023, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("objective", [*PROTOTYPE_LOSSES, "scl"])
def test_any_temperature_is_finite_even_at_opposite_points(objective, temperature, chunk_size):
    directions = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    labels = torch.arange(12) % 2

    def loss(u, w):
        if objective == "scl":
            return supcon_loss(u, labels, temperature, chunk_size=chunk_size) + w.sum() * 0
        return PROTOTYPE_LOSSES[objective](u, w, labels, temperature, chunk_size=chunk_size)

    got = with_gradients(loss, directions[labels], directions)
    expected = with_gradients(loss, directions[labels].double(), directions.double())
    assert all(x.isfinite().all() for x in (got[0], *got[1]))
    assert_same(got, expected, 1e-4)


@pytest.mark.parametrize("objective", [*PROTOTYPE_LOSSES, "scl"])
def test_zero_vectors_have_finite_gradients(objective):
    embeddings, prototypes, labels = draw(5, 8, 3, 4, torch.float32)
    embeddings[2] = 0
    prototypes[1] = 0

    def loss(u, w):
        if objective == "scl":
            return supcon_loss(u, labels) + w.sum() * 0
        return PROTOTYPE_LOSSES[objective](u, w, labels)

    value, gradients = with_gradients(loss, embeddings, prototypes)
    assert value.isfinite()
    assert max(g.abs().max() for g in gradients) < 100


def test_a_batch_of_one_class_leaves_nonl_without_negatives():
    embeddings, prototypes, _ = draw(6, 5, 3, 4)
    labels = torch.full((5,), 1)
    module = losses.NONLLoss()
    message = "single class, so 5 anchors have no negatives"
    with pytest.warns(UserWarning, match=message) as warned:
        value, gradients = with_gradients(lambda u, w: module(u, w, labels), embeddings, prototypes)
    assert warned[0].filename == __file__  # whose batch it is
    with pytest.warns(UserWarning, match=message) as warned:
        nonl_loss(embeddings, prototypes, labels)
    assert warned[0].filename == __file__
    assert value == 0
    assert module.left_out == 5
    assert all((g == 0).all() for g in gradients)
    labels[4] = 0  # and with one instance of another class every anchor has a negative
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(embeddings, prototypes, labels)
    assert module.left_out == 0


def test_supcon_leaves_out_and_counts_anchors_without_a_positive():
    embeddings, _, _ = draw(7, 5, 3, 4)
    module = losses.SupConLoss()
    value = module(embeddings, torch.tensor([0, 0, 1, 2, 3]))
    assert module.left_out == 3
    expected = oracles.supcon_loss(embeddings[:, None], torch.tensor([0, 0, 1, 2, 3]), 0.1)
    assert torch.allclose(value, expected)
    value, (gradient,) = with_gradients(lambda u: module(u, torch.arange(5)), embeddings)
    assert (value, module.left_out) == (0, 5)
    assert (gradient == 0).all()


@pytest.mark.parametrize("objective", [*PROTOTYPE_LOSSES, "scl"])
def test_nothing_but_ignored_labels_is_a_connected_zero(objective):
    embeddings, prototypes, labels = draw(8, 4, 3, 2)
    labels.fill_(-100)

    def loss(u, w):
        if objective == "scl":
            return supcon_loss(u, labels) + w.sum() * 0
        return PROTOTYPE_LOSSES[objective](u, w, labels)

    value, gradients = with_gradients(loss, embeddings, prototypes)
    assert value == 0
    assert all((g == 0).all() for g in gradients)


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("objective", [*PROTOTYPE_LOSSES, "scl"])
def test_an_empty_batch_is_a_connected_zero(objective, chunk_size):
    embeddings, prototypes, labels = draw(8, 4, 3, 2)

    def loss(u, w):
        if objective == "scl":
            return supcon_loss(u, labels[:0], chunk_size=chunk_size) + w.sum() * 0
        return PROTOTYPE_LOSSES[objective](u, w, labels[:0], chunk_size=chunk_size)

    value, gradients = with_gradients(loss, embeddings[:0], prototypes)
    assert value == 0
    assert (gradients[1] == 0).all()


@pytest.mark.parametrize("objective", PROTOTYPE_LOSSES)
def test_nan_is_reported_and_not_left_out(objective):
    embeddings, prototypes, labels = draw(9, 6, 3, 4)
    embeddings[0] = math.nan
    assert PROTOTYPE_LOSSES[objective](embeddings, prototypes, labels).isnan()


@pytest.mark.parametrize("objective", PROTOTYPE_LOSSES)
@pytest.mark.parametrize("wrong", [-1, 3, 99])
def test_labels_out_of_range_raise(objective, wrong):
    embeddings, prototypes, labels = draw(10, 6, 3, 4)
    labels[2] = wrong
    with pytest.raises(IndexError, match=rf"\[0, 3\) or -100.*got \[{wrong}\]"):
        PROTOTYPE_LOSSES[objective](embeddings, prototypes, labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive and finite, but got 0.0"),
        ({"temperature": math.inf}, "temperature must be positive"),
        ({"reduction": "max"}, "reduction must be 'mean', 'sum' or 'none', but got 'max'"),
        ({"chunk_size": 0}, "chunk_size must be at least 1 or None, but got 0"),
        ({"group": "all"}, "group must be a process group, 'local' or None, but got 'all'"),
        ({"prototypes": torch.ones(4, 3)}, r"prototypes \(K, D\).*\(6, 4\).*\(4, 3\)"),
        ({"labels": torch.zeros(5, dtype=torch.long)}, r"labels of shape \(6,\).*\(5,\)"),
        ({"labels": torch.zeros(6)}, "integer labels, but got torch.float32"),
    ],
)
def test_errors_name_argument_and_value(change, message):
    arguments = {
        "embeddings": torch.ones(6, 4),
        "prototypes": torch.ones(3, 4),
        "labels": torch.zeros(6, dtype=torch.long),
    }
    with pytest.raises(ValueError, match=message):
        ntce_loss(**{**arguments, **change})


# Memory: no (M, K) tensor when chunked, and never an M×M one.


class LargestTensor(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.numel = max(self.numel, value.numel())
        return result


def largest(loss, *tensors):
    with LargestTensor() as mode:
        with_gradients(loss, *tensors)
    return mode.numel


@pytest.mark.parametrize("objective", PROTOTYPE_LOSSES)
def test_chunked_no_matrix_of_all_similarities_exists(objective):
    size, num_classes, dim = 512, 400, 8
    embeddings, prototypes, labels = draw(11, size, num_classes, dim, torch.float32)

    def loss(chunk_size):
        function = PROTOTYPE_LOSSES[objective]
        return lambda u, w: function(u, w, labels, chunk_size=chunk_size)

    inputs = max(embeddings.numel(), prototypes.numel())
    assert largest(loss(16), embeddings, prototypes) <= max(16 * size, inputs)
    assert largest(loss(None), embeddings, prototypes) == size * num_classes  # not M × M


def test_large_problems_are_chunked_by_themselves(monkeypatch):
    monkeypatch.setattr(contrast, "MAX_SIMILARITIES", 1000)
    monkeypatch.setattr(contrast, "CHUNK_SIMILARITIES", 640)
    embeddings, prototypes, labels = draw(12, 64, 40, 4, torch.float32)
    assert largest(lambda u, w: ntce_loss(u, w, labels), embeddings, prototypes) == 640
    features = embeddings.detach()
    # SupCon's blocks of pairs hold twice as many: 20 anchors against up to 64, not 64 × 64.
    assert largest(lambda u: supcon_loss(u, labels), features) == 1280


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["NormFace", "NTCE", "NONL"])
def test_two_hundred_thousand_classes_fit_beside_their_gradients(objective):
    from scripts.benchmarks.losses import memory_in_own_process

    size = (4096, 200_000, 512)
    assert size[0] * size[1] > contrast.MAX_SIMILARITIES  # chunked by itself
    peak = memory_in_own_process(f"{objective}, chunked", size, "cpu", "float32")
    assert peak <= 400 * 2**20


# torch.compile and torch.func.


ALSO_COMPILES = pytest.mark.slow  # a second each, for what the cases beside them compile too


@pytest.mark.parametrize(
    ("objective", "chunk_size"),
    [
        ("normface", None),
        ("ntce", 3),
        ("nonl", 3),
        ("scl", 3),
        pytest.param("normface", 3, marks=ALSO_COMPILES),
        pytest.param("ntce", None, marks=ALSO_COMPILES),
        pytest.param("nonl", None, marks=ALSO_COMPILES),
        pytest.param("scl", None, marks=ALSO_COMPILES),
    ],
)
def test_compiles_without_a_graph_break(objective, chunk_size):
    embeddings, prototypes, labels = draw(13, 16, 5, 4, torch.float32)

    def loss(u, w):
        if objective == "scl":
            return supcon_loss(u, labels, chunk_size=chunk_size) + w.sum() * 0
        return PROTOTYPE_LOSSES[objective](u, w, labels, chunk_size=chunk_size)

    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    expected = with_gradients(loss, embeddings, prototypes)
    assert_same(with_gradients(compiled, embeddings, prototypes), expected, 1e-6)


@pytest.mark.slow  # compiles C++
def test_compiles_with_inductor():
    embeddings, prototypes, labels = draw(13, 16, 5, 4, torch.float32)
    compiled = torch.compile(nonl_loss, fullgraph=True)
    assert torch.allclose(compiled(embeddings, prototypes, labels), nonl_loss(embeddings, prototypes, labels))


def test_second_derivatives_say_clearly_that_there_are_none():
    embeddings, prototypes, labels = draw(14, 6, 3, 4)
    embeddings.requires_grad_()
    loss = ntce_loss(embeddings, prototypes, labels)
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        torch.autograd.grad(loss, embeddings, create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        torch.func.grad(lambda u: ntce_loss(u, prototypes, labels))(embeddings.detach())


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("function", [ntce_loss, nonl_loss])
def test_a_queue_is_contrasted_with_and_constant(function, chunk_size):
    embeddings, prototypes, labels = draw(17, 9, 5, 4)
    queue, _, queued = draw(18, 6, 5, 4)
    queued[2], labels[1] = -100, -100

    def ours(u, w):
        return function(u, w, labels, 0.3, queue=(queue, queued), chunk_size=chunk_size)

    def oracle(u, w):
        everyone, theirs = torch.cat([u, queue]), torch.cat([labels, queued])
        scores = F.normalize(everyone, dim=1) @ F.normalize(w, dim=1).T / 0.3
        losses = []
        for i, label in enumerate(labels.tolist()):
            kept = (theirs != -100) & ((theirs != label) | (function is ntce_loss))
            if label != -100:
                losses.append(scores[kept, label].logsumexp(0) - scores[i, label])
        return torch.stack(losses).mean()

    expected = with_gradients(oracle, embeddings, prototypes)
    assert_same(with_gradients(ours, embeddings, prototypes), expected, 1e-9)


def test_a_queue_has_negatives_for_a_batch_of_one_class():
    embeddings, prototypes, _ = draw(6, 5, 3, 4)
    ones = torch.ones(5, dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = losses.NONLLoss()
        assert module(embeddings, prototypes, ones, queue=(embeddings, 2 * ones)).isfinite()
    assert module.left_out == 0
    with pytest.raises(IndexError, match=r"\[0, 3\) or -100.*got \[3\]"):
        ntce_loss(embeddings, prototypes, ones, queue=(embeddings, 3 * ones))


def test_values_do_not_depend_on_the_order_of_instances():
    embeddings, prototypes, labels = draw(15, 9, 4, 5)
    order = torch.randperm(9)
    for loss, chunk_size in itertools.product(PROTOTYPE_LOSSES.values(), (None, 2)):
        whole = loss(embeddings, prototypes, labels, chunk_size=chunk_size)
        shuffled = loss(embeddings[order], prototypes, labels[order], chunk_size=chunk_size)
        assert torch.allclose(whole, shuffled, atol=1e-12)


# What is public: plain signatures, and modules whose attributes may change.


OWN = {normface_loss: ["bias"], ntce_loss: ["queue"], nonl_loss: ["queue"]}


@pytest.mark.parametrize("function", [*PROTOTYPE_LOSSES.values(), supcon_loss, losses.NTCELoss])
def test_options_are_keywords_of_every_loss(function):
    signature = inspect.signature(function)
    options = inspect.signature(losses.LossOptions).parameters
    keywords = [p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
    own = OWN.get(function, [])
    assert [p.name for p in keywords[: len(own)]] == own
    assert keywords[len(own) :] == list(options.values())
    assert signature.parameters["temperature"].default == 0.1
    with pytest.raises(TypeError, match="unexpected keyword argument 'margin'"):
        function(*[torch.eye(2)] * (len(signature.parameters) - 7 - len(own)), margin=1)


def test_the_positional_arguments_are_those_of_a_function():
    signature = inspect.signature(ntce_loss)
    assert list(signature.parameters)[:4] == ["embeddings", "prototypes", "labels", "temperature"]
    assert list(inspect.signature(supcon_loss).parameters)[:2] == ["embeddings", "labels"]
    assert signature.return_annotation == "Tensor"
    with pytest.raises(TypeError, match="positional argument"):
        ntce_loss(torch.eye(2), torch.eye(2), torch.arange(2), 0.1, None)
    assert pickle.loads(pickle.dumps(ntce_loss)) is ntce_loss


def test_attributes_of_a_module_are_its_options():
    embeddings, prototypes, labels = draw(16, 10, 3, 4)
    module = losses.NTCELoss(weight=torch.tensor([1.0, 2.0, 3.0]))
    assert module.state_dict() == {}
    assert module.double().weight.dtype == torch.float64  # a buffer, which moves with the module
    module.temperature, module.reduction, module.ignore_index = 0.4, "none", 1
    expected = ntce_loss(
        embeddings, prototypes, labels, 0.4,
        weight=module.weight, reduction="none", ignore_index=1,
    )  # fmt: skip
    assert torch.equal(module(embeddings, prototypes, labels), expected)
    assert (expected[labels == 1] == 0).all()
