"""Image classifiers with the best possible geometry: class prototypes on the hypersphere.

Importing the package teaches transformers' Auto classes the model type "protosphere": at once where they are there
already, else when they are imported, so that `protosphere --help` waits for neither torch nor transformers."""

import sys
from typing import TYPE_CHECKING, Any

from .imports.lazily import after_import, lazily
from .imports.moved import OldPaths

if TYPE_CHECKING:
    from .configuration_protosphere import ProtoSphereConfig
    from .inference.predict import predict
    from .modeling_protosphere import ProtoSphereForImageClassification, ProtoSphereModel

__version__ = "0.1.0"
__all__ = ["ProtoSphereConfig", "ProtoSphereForImageClassification", "ProtoSphereModel", "predict"]
__getattr__ = lazily(
    __name__,
    ProtoSphereConfig="configuration_protosphere",
    ProtoSphereForImageClassification="modeling_protosphere",
    ProtoSphereModel="modeling_protosphere",
    predict="inference.predict",
)


def _register_models() -> None:
    from transformers import AutoModel, AutoModelForImageClassification
    from transformers.pipelines import PIPELINE_REGISTRY

    from .configuration_protosphere import OPEN_SET_TASK, ProtoSphereConfig
    from .modeling_protosphere import ProtoSphereForImageClassification, ProtoSphereModel
    from .pipeline_protosphere import OpenSetImageClassificationPipeline

    AutoModel.register(ProtoSphereConfig, ProtoSphereModel, exist_ok=True)
    AutoModelForImageClassification.register(ProtoSphereConfig, ProtoSphereForImageClassification, exist_ok=True)
    PIPELINE_REGISTRY.register_pipeline(
        OPEN_SET_TASK, pipeline_class=OpenSetImageClassificationPipeline, pt_model=AutoModelForImageClassification
    )


def _register() -> None:
    from transformers import AutoConfig

    from .configuration_protosphere import ProtoSphereConfig

    AutoConfig.register(ProtoSphereConfig.model_type, ProtoSphereConfig, exist_ok=True)

    # transformers' modelling code would add a fifth to the import time of torch, transformers and
    # timm together. No model is ever looked up before its config exists, so the first config pays.
    post_init = ProtoSphereConfig.__post_init__

    def register_then_post_init(self: "ProtoSphereConfig", **kwargs: Any) -> None:
        ProtoSphereConfig.__post_init__ = post_init
        _register_models()
        post_init(self, **kwargs)

    ProtoSphereConfig.__post_init__ = register_then_post_init


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


after_import("transformers.models.auto.configuration_auto", _register)
sys.meta_path.append(OldPaths())
