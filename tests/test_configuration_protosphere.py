"""The configuration: defaults, checks, and the round trip through JSON."""

import json

import pytest

from hf_protosphere import ProtoSphereConfig

SETS = {"set_score": "raps", "set_coverage": 0.9, "set_thresholds": [0.1, 0.2, 0.3]}


def test_round_trip(tmp_path):
    config = ProtoSphereConfig(
        backbone="test_vit",
        backbone_kwargs={"patch_size": 4},
        projection="mlp",
        projection_hidden_dim=32,
        objective="ntce",
        softmax_temperature=0.07,
        image_size=32,
        num_channels=1,
        image_mean=[0.1],
        image_std=[0.2],
        rejection_threshold=0.4,
        false_rejection_rate=0.05,
        rejection_score="max_softmax",
        calibration_temperature=1.3,
        **SETS,
        id2label={0: "cat", 1: "dog", 2: "eel"},
    )
    config.save_pretrained(tmp_path)
    again = ProtoSphereConfig.from_pretrained(tmp_path)
    assert again.to_json_string() == config.to_json_string()


def test_unknown_keywords_are_kept_for_newer_versions():
    assert ProtoSphereConfig(something_newer=0.3).to_dict()["something_newer"] == 0.3


def test_defaults_depend_on_the_objective_and_the_channels():
    assert ProtoSphereConfig().prototypes == "learned"
    assert ProtoSphereConfig(objective="scl").prototypes == "class_means"
    assert ProtoSphereConfig(num_channels=1).image_mean == [0.5]
    assert len(ProtoSphereConfig().image_mean) == 3


def test_a_file_that_does_not_say_it_means_what_it_meant_before(tmp_path):
    ProtoSphereConfig(backbone="test_resnet").save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    names = ("projection", "projection_dim", "softmax_temperature")
    assert [saved.pop(name) for name in names] == ["auto", None, None]
    assert ProtoSphereConfig.from_pretrained(tmp_path).projection == "auto"
    (tmp_path / "config.json").write_text(json.dumps(saved))
    old = ProtoSphereConfig.from_pretrained(tmp_path)
    assert [getattr(old, name) for name in names] == ["none", 128, 0.1]


def test_label_maps_never_disagree(tmp_path):
    config = ProtoSphereConfig(id2label={0: "a", 1: "b"})
    assert config.label2id == {"a": 0, "b": 1}
    config.save_pretrained(tmp_path)
    other = ProtoSphereConfig.from_pretrained(tmp_path, id2label={0: "x", 1: "y", 2: "z"})
    assert other.label2id == {"x": 0, "y": 1, "z": 2}
    assert other.num_labels == 3


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"objective": "triplet"}, "objective must be one of 'nonl'.*'triplet'"),
        ({"prototypes": "random"}, "prototypes must be one of"),
        ({"objective": "normface", "margin": 1.5}, r"margin must be in \[0, 1\].*1.5"),
        ({"objective": "ntce", "margin": 0.1}, "margin 0.1 is for objective 'normface'"),
        ({"margin_type": "sphereface"}, "margin_type must be one of 'cosface', 'arcface'"),
        ({"projection": "conv"}, "projection must be one of"),
        ({"backbone_source": "torchvision"}, "backbone_source must be one of"),
        ({"interpolation": "sinc"}, "interpolation must be one of"),
        ({"softmax_temperature": 0.0}, "softmax_temperature must be positive"),
        ({"softmax_temperature": float("inf")}, "softmax_temperature must be positive"),
        ({"rejection_threshold": 1.1}, r"rejection_threshold must be in \[-1, 1\].*1.1"),
        ({"rejection_threshold": float("nan")}, "rejection_threshold must be in .*nan"),
        ({"rejection_score": "angle"}, "rejection_score must be one of 'cosine', .*, 'neco', but got 'angle'"),
        ({"rejection_score": "vim"}, "rejection_sizes must be two whole numbers for mahalanobis, .*, but got None"),
        ({"rejection_score": "vim", "rejection_sizes": 7}, "rejection_sizes must be two .*, but got 7"),
        ({"rejection_sizes": [2, 3]}, r"rejection_sizes must be two .*, else None, but got \[2, 3\]"),
        ({"rejection_score": "vim", "rejection_sizes": [-1, 3]}, r"rejection_sizes must be .*\[-1, 3\]"),
        ({"rejection_score": "max_softmax", "rejection_threshold": -0.5}, r"rejection_threshold must be in \[0, 1\]"),
        ({"rejection_score": "energy", "rejection_threshold": float("inf")}, "rejection_threshold must be in"),
        (
            {"set_thresholds": [0.5]},
            r"set_thresholds must be numbers, for a set_score and a set_coverage, or None, but got \[0.5\]",
        ),
        (SETS | {"set_score": "top5"}, "set_score must be one of 'lac', 'aps', 'raps', None, but got 'top5'"),
        (SETS | {"set_coverage": 2}, r"set_coverage must be in \[0, 1\] or None, but got 2"),
        (SETS | {"set_thresholds": [0.1, "x"]}, "set_thresholds must be numbers"),
        (SETS | {"set_thresholds": []}, "set_thresholds must be numbers"),
        ({"false_rejection_rate": "5%"}, r"false_rejection_rate must be in \[0, 1\].*5%"),
        ({"calibration_temperature": 0}, "calibration_temperature must be positive.*0"),
        ({"image_size": -1}, "image_size must be positive"),
        ({"num_channels": 4}, "num_channels must be 1 .* or 3"),
        ({"image_mean": [0.5]}, "image_mean must be a list of one number per channel"),
        ({"objective": "scl", "prototypes": "learned"}, "class_means"),
        ({"objective": "cross_entropy", "prototypes": "simplex_etf"}, "linear head"),
        ({"id2label": {0: "cat", 1: "cat"}}, "two classes alike.*cat"),
    ],
)
def test_errors_name_argument_and_value(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ProtoSphereConfig(**kwargs)


def test_calibration_is_forgotten_and_absent_from_older_checkpoints(tmp_path):
    calibration = {"rejection_threshold": 4.0, "rejection_score": "energy", "calibration_temperature": 1.3} | SETS
    config = ProtoSphereConfig(**calibration)
    config.save_pretrained(tmp_path)
    config.forget_calibration()
    del config.auto_map  # which saving has set
    assert config.to_dict() == ProtoSphereConfig().to_dict()
    older = json.loads((tmp_path / "config.json").read_text())
    for name in ("false_rejection_rate", *calibration):
        older.pop(name, None)
    (tmp_path / "config.json").write_text(json.dumps(older))
    config = ProtoSphereConfig.from_pretrained(tmp_path)
    assert config.rejection_threshold is config.false_rejection_rate is None
    assert (config.calibration_temperature, config.rejection_score, config.set_thresholds) == (1, "cosine", None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        *(
            ({"backbone_kwargs": {name: value}}, f"must not hold '{name}'")
            for name, value in (
                ("pretrained", True), ("pretrained_cfg", "resnet18.a1_in1k"),
                ("pretrained_cfg_overlay", {"file": "x"}), ("checkpoint_path", "x.pth"), ("file", "x.bin"),
                ("url", "http://x"), ("hf_hub_id", "user/x"), ("cache_dir", "x"), ("use_pretrained_backbone", True),
                ("state_dict", {"x": 1}), ("trust_remote_code", True), ("auto_map", {"AutoModel": "x.Y"}),
            )
        ),
        ({"backbone_kwargs": {"a": [{"pretrained": 1}]}}, r"backbone_kwargs\['a'\] must not hold"),
        ({"backbone_kwargs": {"architecture": "hf-hub:user/x"}}, "must name no file or repository"),
        ({"backbone_kwargs": {"backbone": "user/x"}}, "must name no file or repository"),
        ({"backbone_kwargs": {"act_layer": "local-dir:x"}}, "must name no file or repository"),
        ({"backbone_kwargs": {"depth": 10**9}}, "must be at most 131072"),
        ({"backbone_kwargs": {"depth": float("nan")}}, "must be at most 131072"),
        ({"backbone_kwargs": [1]}, "backbone_kwargs must be a dict"),
        *(({"backbone": name}, "backbone must be the name of an architecture, such as 'resnet18'")
          for name in ("hf-hub:timm/resnet18", "local-dir:x", None, 5)),
        ({"attn_implementation": "user/kernel"}, "must be one of transformers'"),
        ({"attn_implementation": ["sdpa"]}, "must be one of transformers'"),
        ({"transformers_weights": "x.bin"}, "transformers_weights must not be set"),
        ({"small_images": "no"}, "small_images must be true or false"),
        ({"projection_batch_norm": 1}, "projection_batch_norm must be true or false"),
        ({"projection_dropout": 1.0}, r"projection_dropout must be in \[0, 1\)"),
        ({"projection_dropout": True}, r"projection_dropout must be in \[0, 1\)"),
        ({"image_mean": ["a"] * 3}, "image_mean must be a list of one number per channel"),
        ({"image_std": [float("nan")] * 3}, "image_std must be a list of one number per channel"),
        ({"image_mean": 5}, "image_mean must be a list of one number per channel"),
        ({"projection_dim": 2.5}, "projection_dim must be a whole number"),
        ({"projection_hidden_dim": -1}, "projection_hidden_dim must be positive"),
        ({"image_size": 10**400}, "image_size must be a whole number up to 16384"),
        ({"crop_pct": 1e-9}, "crop_pct must be larger for image_size 224"),
        ({"num_labels": "5"}, "num_labels must be a number up to 1,000,000"),
        ({"num_labels": 2.5}, "num_labels must be a number up to 1,000,000"),
        ({"id2label": {"0": "a", "1": None}}, "id2label must map 0, 1, 2"),
        ({"id2label": dict.fromkeys(map(str, range(10**5)), "a")}, "but repeats .'a'."),
        ({"torch_dtype": "float33"}, "dtype must be one of float32"),
    ],
)  # fmt: skip
def test_what_a_file_may_not_ask_for(values, message):
    for make in (lambda: ProtoSphereConfig(**values), lambda: ProtoSphereConfig.from_dict(values)):
        with pytest.raises(ValueError, match=message) as error:
            make()
        assert len(str(error.value)) < 400


def test_numbers_of_classes_are_those_of_their_names_whatever_a_file_says():
    values = {"id2label": {"0": "a", "1": "b"}, "label2id": {"b": 0, "c": 7}}
    assert ProtoSphereConfig.from_dict(values).label2id == {"a": 0, "b": 1}
    assert ProtoSphereConfig.from_dict({"label2id": [1]}).label2id == {"LABEL_0": 0, "LABEL_1": 1}
