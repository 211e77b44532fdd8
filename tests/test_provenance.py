"""Where data and weights come from, without the paths of this machine."""

from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.training.provenance import base_model, hub_id


def test_local_paths_are_no_ids(tmp_path, monkeypatch):
    assert hub_id("uoft-cs/cifar10") == "uoft-cs/cifar10"
    assert hub_id(str(tmp_path)) is None
    (tmp_path / "user" / "pets").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_id("user/pets") is None
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub_id("~/user") is None


def test_pretrained_weights_have_a_name_on_the_hub(tmp_path):
    def started_from(backbone, **options):
        return base_model(TrainArguments(dataset_name="x", backbone=backbone, **options))

    assert started_from("resnet18") is None
    assert started_from("resnet18", pretrained=True).startswith("timm/resnet18.")
    tagged = "vit_tiny_patch16_224.augreg_in21k"
    assert started_from(f"timm/{tagged}", pretrained=True) == f"timm/{tagged}"
    transformers = {"backbone_source": "transformers", "pretrained": True}
    assert started_from("facebook/dinov2-small", **transformers) == "facebook/dinov2-small"
    assert started_from(str(tmp_path), **transformers) is None
