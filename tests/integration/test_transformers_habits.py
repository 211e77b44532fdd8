"""What transformers asks of every model, over our classes with a backbone of each library.

These are the checks of its ModelTesterMixin, ConfigTester and PipelineTesterMixin, which it does install. Where one of
them cannot hold here, the reason stands beside what holds instead. Left out is what is about text (embeddings of
tokens, generation, padding, caches, tied heads) and about several GPUs (tests/integration/test_processes.py shards).
"""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForImageClassification, PreTrainedModel, pipeline
from transformers.initialization import no_init_weights

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification, ProtoSphereModel
from tests.models import TRANSFORMERS, images

BACKBONES = {
    "timm": {"backbone": "test_resnet"},
    "timm vit": {"backbone": "test_vit", "backbone_kwargs": {"patch_size": 8}},
    "transformers": {
        "backbone": "vit", "backbone_source": "transformers",
        "backbone_kwargs": TRANSFORMERS["vit"] | {"num_hidden_layers": 2},
    },
    "transformers resnet": {
        "backbone": "resnet", "backbone_source": "transformers", "backbone_kwargs": TRANSFORMERS["resnet"],
    },
}  # fmt: skip
CLASSES = {"embeds": ProtoSphereModel, "classifies": ProtoSphereForImageClassification}
PIXELS, LABELS = images(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])


def config_of(backbone, **config):
    return ProtoSphereConfig(**copy.deepcopy(BACKBONES[backbone]), image_size=32, **config)


@pytest.fixture(params=["timm", "transformers"])
def backbone(request):
    return request.param


@pytest.fixture(params=CLASSES.values(), ids=CLASSES)
def make(request, backbone):
    """make(**config) → a model in evaluation mode."""

    def made(**config):
        torch.manual_seed(0)
        return request.param(config_of(backbone, **config)).eval()

    return made


def classifier(backbone, **config):
    torch.manual_seed(0)
    return ProtoSphereForImageClassification(config_of(backbone, **config)).eval()


# ConfigTester. Its common properties hidden_size, num_hidden_layers and num_attention_heads are the
# backbone's: they are in `model.protosphere.backbone.config`, and timm knows them for few models.


def test_config_says_what_it_was_told(backbone, tmp_path):
    config = config_of(backbone, num_labels=5)
    assert len(config.id2label) == len(config.label2id) == 5
    told = BACKBONES[backbone] | {"image_size": 32}
    assert told.items() <= json.loads(config.to_json_string()).items()
    for name, value in (("num_channels", 1), ("image_size", 64), ("projection_dim", 7)):
        setattr(config, name, value)
        assert getattr(config, name) == value
    config = config_of(backbone, num_labels=5)
    config.to_json_file(tmp_path / "config.json")
    assert ProtoSphereConfig.from_json_file(tmp_path / "config.json").to_dict() == config.to_dict()
    for folder, options in ((tmp_path / "a", {}), (tmp_path / "b" / "c", {"subfolder": "c"})):
        config.save_pretrained(folder)
        root = folder.parent if options else folder
        again = ProtoSphereConfig.from_pretrained(root, **options)
        assert again.to_dict() == config.to_dict()
    config.num_labels = 3
    assert len(config.id2label) == len(config.label2id) == 3
    assert ProtoSphereConfig().num_labels == 2
    with pytest.raises(OSError, match="nowhere"):
        ProtoSphereConfig.from_pretrained(tmp_path / "nowhere")


def test_config_takes_the_arguments_that_all_take():
    common = {
        "return_dict": False, "output_hidden_states": True, "output_attentions": True, "chunk_size_feed_forward": 5,
        "architectures": ["BertModel"], "id2label": {0: "label"}, "problem_type": "regression",
    }  # fmt: skip
    config = ProtoSphereConfig(**common, dtype="float16", label2id={"label": "0"})
    assert {name: getattr(config, name) for name in common} == common
    assert config.dtype in ("float16", torch.float16)
    assert config.label2id == {"label": 0}  # theirs keeps the "0"; ours follows id2label
    config = ProtoSphereConfig()
    config._attn_implementation = "eager"
    assert config._attn_implementation == "eager"
    assert "attn_implementation" not in config.to_json_string()


# ModelTesterMixin


def test_saved_and_loaded_it_is_the_same(make, tmp_path):
    model = make()
    with torch.no_grad():
        first, second = model(PIXELS)[0], model(PIXELS)[0]
        assert torch.equal(first, second)
        model.save_pretrained(tmp_path)
        assert torch.equal(type(model).from_pretrained(tmp_path)(PIXELS)[0], first)
    for name in ("dtype", "torch_dtype"):
        half = type(model).from_pretrained(tmp_path, **{name: torch.float16})
        assert half.dtype == torch.float16
    assert type(model).from_pretrained(tmp_path, device_map="cpu").device.type == "cpu"
    assert model.main_input_name == "pixel_values"
    assert not model.all_tied_weights_keys
    with pytest.raises(OSError, match="nowhere"):
        type(model).from_pretrained(tmp_path / "nowhere")


def test_tuples_and_dictionaries_hold_the_same(make):
    model = make(output_hidden_states=True)
    with torch.no_grad():
        output, values = model(PIXELS), model(PIXELS, return_dict=False)
    assert isinstance(values, tuple)
    torch.testing.assert_close(values, output.to_tuple(), rtol=0, atol=0)
    model.config.return_dict = False
    assert isinstance(model(PIXELS), tuple)


def test_an_image_is_the_same_in_any_batch(make):
    model = make(output_hidden_states=True)
    with torch.no_grad():
        batch, single = model(PIXELS), model(PIXELS[:1])
    for name, value in single.items():
        for one, many in zip(*[(x,) if torch.is_tensor(x) else x for x in (value, batch[name])]):
            torch.testing.assert_close(many[:1], one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_hidden_states_by_argument_and_by_configuration(make, backbone):
    model = make()
    assert model(PIXELS).hidden_states is None
    by_argument = model(PIXELS, output_hidden_states=True)
    model.config.output_hidden_states = True
    by_configuration = model(PIXELS)
    assert model(PIXELS, output_hidden_states=False).hidden_states is None
    states = by_argument.hidden_states
    torch.testing.assert_close(states, by_configuration.hidden_states, rtol=0, atol=0)
    if backbone == "transformers":
        assert [tuple(state.shape) for state in states] == 3 * [(4, 17, 32)]
    else:  # feature maps
        assert len(states) >= 2
        assert {state.dim() for state in states} == {4}
    torch.testing.assert_close(by_argument[0], model(PIXELS, output_hidden_states=False)[0])
    views = model(PIXELS.unflatten(0, (2, 2))).hidden_states
    torch.testing.assert_close(views, states, rtol=1e-5, atol=1e-5)


def test_attentions():
    model = classifier("transformers", attn_implementation="eager")
    assert model(PIXELS).attentions is None
    attentions = model(PIXELS, output_attentions=True).attentions
    assert [tuple(weights.shape) for weights in attentions] == 2 * [(4, 2, 17, 17)]
    for weights in attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(4, 2, 17))
    model.config.output_attentions = True
    torch.testing.assert_close(model(PIXELS).attentions, attentions, rtol=0, atol=0)


def test_what_a_backbone_does_not_give_is_said():
    timm, resnet, vit = map(classifier, ("timm", "transformers resnet", "transformers"))
    with pytest.raises(ValueError, match=r"attentions=True: ResNet gives none.*transformers"):
        timm(PIXELS, output_attentions=True)
    with pytest.raises(ValueError, match="output_attentions=True: ResNetModel gives none"):
        resnet(PIXELS, output_attentions=True)
    with pytest.raises(ValueError, match=r"ViTModel gives none.*attn_implementation='eager'"):
        vit(PIXELS, output_attentions=True)
    timm.protosphere.backbone = nn.Conv2d(3, 8, 32)  # as a few of timm's models
    with pytest.raises(ValueError, match="output_hidden_states=True: Conv2d gives none"):
        timm(PIXELS, output_hidden_states=True)


# Not of a timm transformer, whose feature maps are copies of its tokens, nor of several views.
def test_gradients_reach_hidden_states_and_attentions(make, backbone):
    model = make(output_hidden_states=True, attn_implementation="eager")
    model.config.output_attentions = backbone == "transformers"
    output = model(PIXELS)
    kept = [output.hidden_states[0], *(output.attentions or ())[:1]]
    for tensor in kept:
        tensor.retain_grad()
    output[0].flatten()[0].backward()
    assert all(tensor.grad.abs().sum() > 0 for tensor in kept)


@pytest.mark.parametrize("backbone", ["timm", "timm vit", "transformers"])
def test_gradient_checkpointing_changes_no_gradient(backbone):
    def gradients(model):
        model.zero_grad()
        model.train()(PIXELS, labels=LABELS).loss.backward()
        return [p.grad for p in model.parameters() if p.requires_grad]

    model = classifier(backbone, num_labels=3, projection="mlp", projection_dim=8)
    expected = gradients(model)
    assert not model.is_activation_checkpointing
    model.activation_checkpointing_enable()
    assert model.is_activation_checkpointing
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, id):
        model(PIXELS)
    with_checkpoints = sum(saved)
    assert all(grad is not None for grad in expected)
    torch.testing.assert_close(gradients(model), expected, rtol=1e-4, atol=1e-6)
    with pytest.warns(FutureWarning):  # the name that most code still has
        model.gradient_checkpointing_disable()
    assert not model.is_activation_checkpointing
    saved.clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, id):
        model(PIXELS)
    assert with_checkpoints < 0.8 * sum(saved)


@pytest.mark.parametrize(
    "config",
    [BACKBONES["transformers resnet"], {"backbone": "dla46_c"}],
)
def test_a_backbone_that_cannot_checkpoint_is_named(config):
    model = ProtoSphereModel(ProtoSphereConfig(**config, image_size=32))
    with pytest.raises(ValueError, match=f"'{config['backbone']}' has no gradient checkpointing"):
        model.activation_checkpointing_enable()
    model.activation_checkpointing_disable()


def test_input_embeddings(make, backbone):
    model = make()
    assert model.get_output_embeddings() is None
    if backbone == "timm":  # no common name for what comes first
        assert model.get_input_embeddings() is None
        with pytest.raises(AttributeError, match="set_input_embeddings"):
            model.set_input_embeddings(nn.Embedding(10, 10))
        return
    assert type(model.get_input_embeddings()).__name__ == "ViTPatchEmbeddings"
    model.requires_grad_(False)
    model.enable_input_require_grads()  # as adapters under a frozen backbone need it
    assert model(PIXELS)[0].requires_grad
    model.disable_input_require_grads()
    new = nn.Embedding(10, 10)
    model.set_input_embeddings(new)
    assert model.get_input_embeddings() is new


# Theirs initialise what a file lacks; ours refuse it, but for a head where a new one is asked for.


def test_missing_and_misfitting_tensors(backbone, tmp_path):
    model = classifier(backbone, num_labels=3)
    model.base_model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"missing tensors: 'head\.weight'"):
        type(model).from_pretrained(tmp_path)
    again, info = type(model).from_pretrained(tmp_path, ignore_mismatched_sizes=True, output_loading_info=True)
    assert set(info["missing_keys"]) == {"head.weight"}
    for name, weight in again.base_model.state_dict().items():
        assert torch.equal(weight, model.base_model.state_dict()[name]), name
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"'head\.weight' is .* for 42 classes"):
        AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=42)
    other = AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=42, ignore_mismatched_sizes=True)
    assert other(PIXELS).logits.shape == (4, 42)
    save_file({"tensor": torch.zeros(2)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    tensors = len(model.state_dict())
    with pytest.raises(ValueError, match=f"missing tensors: '.*' and {tensors - 1} more"):
        type(model).from_pretrained(tmp_path)


# Parameters of timm's models cannot be initialised again: they do it by themselves, once.


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("prototypes", ["learned", "simplex_etf"])
def test_buffers_that_were_on_the_meta_device_are_initialised(backbone, prototypes):
    config = config_of(backbone, num_labels=4, prototypes=prototypes)
    with no_init_weights():
        expected = dict(ProtoSphereForImageClassification(copy.deepcopy(config)).named_buffers())
    with torch.device("meta"):
        model = ProtoSphereForImageClassification(config)
    model.to_empty(device="cpu")
    for tensor in [*model.parameters(), *model.buffers()]:  # such memory may be zero by chance
        tensor.data.fill_(7)
    model.init_weights()
    buffers = dict(model.named_buffers())
    assert buffers.keys() == expected.keys()
    if prototypes == "simplex_etf":  # in an orientation of chance
        cosines = buffers.pop("head.weight") @ model.head.weight.T
        torch.testing.assert_close(cosines, torch.eye(4) * 4 / 3 - 1 / 3)
    for name, value in buffers.items():
        assert torch.equal(value, expected[name]), name
    assert not [
        name for name, module in model.named_modules() for value in vars(module).values() if torch.is_tensor(value)
    ]
    assert model.eval()(PIXELS).logits.shape == (4, 4)


@pytest.mark.parametrize("backbone", ["timm vit", "transformers"])
def test_attention_can_be_chosen_and_changed(backbone, tmp_path):
    model = classifier(backbone)
    model.save_pretrained(tmp_path)

    def used(model):
        network = model.protosphere.backbone
        if isinstance(network, PreTrainedModel):
            return {model.config._attn_implementation, network.config._attn_implementation}
        fused = {m.fused_attn for m in network.modules() if hasattr(m, "fused_attn")}
        assert len(fused) == 1
        return {model.config._attn_implementation, "sdpa" if fused.pop() else "eager"}

    assert used(model) == {"sdpa"}  # the backbone's own choice
    with torch.no_grad():
        expected = model(PIXELS).logits
        for name in ("eager", "sdpa"):
            loaded = AutoModelForImageClassification.from_pretrained(tmp_path, attn_implementation=name)
            assert used(loaded) == {name}
            torch.testing.assert_close(loaded(PIXELS).logits, expected, rtol=1e-4, atol=1e-4)
            model.set_attn_implementation(name)
            assert used(model) == {name}
    with pytest.raises(ValueError, match='Specified `attn_implementation="foo"` is not supported'):
        model.set_attn_implementation("foo")
    assert used(model) == {"sdpa"}
    with pytest.raises(ValueError, match="attn_implementation"):
        AutoModelForImageClassification.from_pretrained(tmp_path, attn_implementation="foo")


def test_a_backbone_without_attention_says_so():
    for backbone in ("timm", "transformers resnet"):
        assert classifier(backbone).config._attn_implementation == "eager"
        assert classifier(backbone, attn_implementation="eager")
        with pytest.raises(ValueError, match=r"ResNet.* (not support|is not supported)|not supported .*ResNet"):
            classifier(backbone, attn_implementation="sdpa")


def test_an_image_has_one_class():
    assert classifier("timm", problem_type="single_label_classification")
    for problem in ("regression", "multi_label_classification"):
        with pytest.raises(ValueError, match=f"problem_type must be .* but got '{problem}'"):
            classifier("timm", problem_type=problem)


# PipelineTesterMixin


@pytest.mark.parametrize("backbone", ["timm", "transformers"])
def test_pipelines(backbone, tmp_path):
    model = classifier(backbone, num_labels=3)
    model.save_pretrained(tmp_path)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    photo.save(tmp_path / "photo.png")
    modes = [str(tmp_path / "photo.png"), photo, *map(photo.convert, ("RGBA", "L", "LA"))]
    classify = pipeline("image-classification", model=str(tmp_path), top_k=2)
    single, many = classify(photo), classify(modes, batch_size=2)
    assert [len(answer) for answer in many] == 5 * [2]
    assert [answer["label"] for answer in many[1]] == [answer["label"] for answer in single]
    for answer in many:
        assert {"label": str, "score": float} == {k: type(v) for k, v in answer[0].items()}
    scores = classify(photo, top_k=3, function_to_apply="none")
    with torch.no_grad():
        logits = model(classify.image_processor(photo, return_tensors="pt")["pixel_values"]).logits
    assert scores[0]["score"] == pytest.approx(logits.max().item(), abs=1e-5)
    features = pipeline("image-feature-extraction", model=str(tmp_path))
    (embeddings,) = features(photo)
    assert np.linalg.norm(embeddings) == pytest.approx(1, abs=1e-5)
    assert features(photo, return_tensors=True).shape == (1, len(embeddings))
    assert len(features([photo, photo])) == 2
    (pooled,) = features(photo, pool=True)
    assert len(pooled) == model.protosphere.embedding_dim
