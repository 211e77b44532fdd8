"""Small models of every family, and images for them."""

import torch

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification

SWIN = {"embed_dim": 24, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4}
SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 2, "patch_size": 8}
TIMM = {
    "test_resnet": {},
    "test_convnext": {},
    "test_vit": {"patch_size": 8},
    "swin_tiny_patch4_window7_224": SWIN,
    "beit_base_patch16_224": SMALL,
    "eva02_tiny_patch14_224": SMALL,
    "test_efficientnet": {},
    "test_maxvit": {},
}
TRANSFORMERS = {
    "vit": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8},
    "resnet": {
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "embedding_size": 8,
        "layer_type": "basic",
    },
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "dinov2": {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "patch_size": 8,
    },
}


def build(backbone="test_resnet", **kwargs):
    kwargs = {"image_size": 32, "num_labels": 5, **kwargs}
    torch.manual_seed(0)
    return ProtoSphereForImageClassification(ProtoSphereConfig(backbone=backbone, **kwargs))


def images(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
