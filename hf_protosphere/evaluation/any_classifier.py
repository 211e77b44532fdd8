"""Any image classifier, of transformers or timm too, as one that has embeddings and prototypes.

The embeddings are what enters its classification layer and the prototypes the rows of that layer's
weight, as Papyan et al. (2020) measure neural collapse; both are scaled to unit norm."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, BaseImageProcessor

from ..backbones import load_timm, timm_name
from ..checking import auto, load_image_processor, no_larger_than, stored_tensors
from ..configuration_protosphere import ProtoSphereConfig, build_image_processor, refuse_fetching
from ..data.pixels import pixels_of
from ..errors import ArgumentError, errors_in_one_line
from ..modeling_protosphere import ProtoSphereForImageClassification
from ..runs.loading import kind_of, load_classifier


class ClassificationLayer:
    """Where a model's embeddings and prototypes are: at `layer`, the `nn.Linear` or its name among
    `model.named_modules()`; by default the only one with as many outputs as the model's configuration has labels."""

    def __init__(self, model: nn.Module, layer: str | nn.Linear | None = None) -> None:
        config = getattr(model, "config", None)  # a plain nn.Module has none
        self.model, self.layer = model, layer
        itself = layer is None and getattr(config, "model_type", None) == "protosphere"
        if itself or isinstance(layer, nn.Linear):  # a ProtoSphere model says it itself
            return
        linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
        if layer is None:
            num_labels = getattr(config, "num_labels", None)
            found = [name for name, m in linear.items() if num_labels in (None, m.out_features)]
            if len(found) != 1:
                outputs = "" if num_labels is None else f" with {num_labels} outputs, one per class"
                raise ArgumentError(
                    f"{type(model).__name__} has {len(found)} linear layers{outputs}: name the classifier by the "
                    f"callback's classification_layer, one of {', '.join(found or linear) or 'none'}."
                )
            layer = found[0]
        elif layer not in linear:
            names = f"the model, which has {', '.join(linear) or 'none'}."
            raise ArgumentError(f"classification_layer {layer!r} is not a linear layer of {names}")
        self.layer = linear[layer]

    @property
    def prototypes(self) -> Tensor:
        """(K, D), unit rows."""
        if self.layer is None:
            return self.model.prototypes.detach()
        return F.normalize(self.layer.weight.detach().float(), dim=1)

    @property
    def class_names(self) -> list[str]:
        id2label = getattr(getattr(self.model, "config", None), "id2label", {})
        return [str(id2label.get(i, i)) for i in range(len(self.prototypes))]

    def watch(self, forward: Callable[[], Any]) -> tuple[Tensor, Any]:
        """The embeddings, (M, D) float32 with unit rows, of a forward pass of the model, and what that returns."""
        if self.layer is None:
            output = forward()
            return output.embeddings.float(), output
        seen: list[Tensor] = []
        with self.layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
            output = forward()
        if len(seen) != 1 or seen[0].dim() != 2:
            raise ArgumentError(
                "the classification layer must see one vector per image, (M, D), once in a forward pass, but saw "
                f"{[tuple(x.shape) for x in seen]}: choose another classification_layer."
            )
        return F.normalize(seen[0].float(), dim=1), output


class AnyClassifier(nn.Module):
    """What the commands ask of a `ProtoSphereForImageClassification`, of one of transformers."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self._layer = network, ClassificationLayer(network)
        names = [name.removeprefix("LABEL_") for name in self._layer.class_names]  # transformers' for none
        often = Counter(names)  # two classes of ImageNet are called "crane"
        names = [f"{name} ({i})" if often[name] > 1 else name for i, name in enumerate(names)]
        self.config = ProtoSphereConfig(id2label=dict(enumerate(names)))  # with neither threshold nor sets

    @property
    def prototypes(self) -> Tensor:
        return self._layer.prototypes

    @property
    def device(self) -> torch.device:
        return self.prototypes.device

    def forward(self, pixel_values: Tensor, **options: bool) -> SimpleNamespace:
        """Images (M, 3, S, S) to "embeddings" (M, D), "logits" (M, K) and, if asked for, "hidden_states"."""
        embeddings, output = self._layer.watch(lambda: self.network(pixel_values, return_dict=True, **options))
        return SimpleNamespace(embeddings=embeddings, logits=output.logits, hidden_states=output.get("hidden_states"))


def load_any(
    name: str, flag: str = "--model"
) -> tuple[ProtoSphereForImageClassification | AnyClassifier, BaseImageProcessor]:
    """Classifier and image processor: of a checkpoint of ours or of transformers, of a timm model by its name, or of a
    folder that timm saved.

    Raises:
        ArgumentError: none there, or damaged; no weights of a classification layer, or several that could be it.
    """
    if (kind := kind_of(name, flag)) == "protosphere":
        return load_classifier(name, flag)
    with errors_in_one_line(f"{flag} {name} cannot be loaded"):
        if kind == "timm" and not Path(name).is_dir():
            name = timm.get_pretrained_cfg(timm_name(name)).hf_hub_id or name
        config = auto(AutoConfig, name)
        if kind == "timm":  # by transformers, which counts the classes itself
            refuse_fetching(config.model_args, "model_args")
            (config.model_args or {}).pop("num_classes", None)
            processor = build_image_processor(ProtoSphereConfig(**load_timm(name, False, {}, {})[1]))
        else:
            processor = load_image_processor(name)
        with no_larger_than(stored_tensors(name)):
            options = {"config": config, "use_safetensors": True, "output_loading_info": True}
            network, info = auto(AutoModelForImageClassification, name, **options)
        if missing := [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]:
            raise ArgumentError(f"{flag} {name} is no trained classifier: its weights lack {min(missing)!r}.")
        model = AnyClassifier(network).eval()
        model(pixels_of([Image.new("RGB", (32, 32))], processor))
    return model, processor
