"""What people read."""

import torch

from hf_protosphere.evaluation.report import flat_record, format_accuracy, format_classes, format_layers, format_report
from hf_protosphere.metrics.neural_collapse import METRICS, NeuralCollapse
from hf_protosphere.training.monitoring import epoch_line


def test_the_table_has_a_row_for_every_metric():
    metric = NeuralCollapse(8, 4)
    generator = torch.Generator().manual_seed(0)
    metric.update(torch.randn(80, 4, generator=generator), torch.arange(80) % 8)
    prototypes = torch.randn(8, 4, generator=generator)
    report = {
        "num_images": 80,
        "accuracy": 0.5,
        "top5_accuracy": 0.75,
        "class_means_accuracy": 0.25,
        "neural_collapse": metric.compute(prototypes) | {"optima": metric.optima},
    }
    table = format_report(report, "test")
    for text in ("50.00%", "75.00%", "25.00%", "test (80 images)", "least attained"):
        assert text in table
    for info in METRICS:
        assert info.title in table
    header, rule, *rows = table.splitlines()
    ends = {len(row) for row in rows if row.endswith(" %")}
    assert ends == {len(header)} == {len(rule)}
    assert "epoch" not in table

    reached = {"nc1_cdnv": {"step": 30, "epoch": 2.5}}
    lines = format_report(report, "test", reached=reached, target=90).splitlines()
    assert lines[0].endswith("validation at 90 %")
    assert next(line for line in lines if line.startswith("NC1 CDNV")).endswith(" epoch 2.5")
    assert next(line for line in lines if line.startswith("NC2 equinorm")).endswith(" -")

    partial = report | {"neural_collapse": metric.compute() | {"absent_classes": [1]}}
    partial["neural_collapse"] |= {"optima": metric.optima}
    table = format_report(partial, "test", class_names=["cat", "dog"])
    assert table.endswith("\n(no image of dog: what needs every class is not defined)")


def test_what_embeddings_without_negative_entries_can_attain_is_told():
    metric = NeuralCollapse(3, 3)
    metric.update(torch.eye(3).repeat(2, 1), torch.arange(3).repeat(2))
    best = torch.nn.functional.normalize(torch.eye(3) - 1 / 3, dim=1)
    collapse = metric.compute(best) | {"optima": metric.optima}
    report = {"num_images": 6, "accuracy": 1.0, "neural_collapse": collapse}
    assert format_report(report, "test").endswith(
        "of what those attain, Instance alignment 100.0 %, Class alignment 100.0 %)"
    )


def test_an_epoch_in_one_line():
    record = {"epoch": 3, "train_loss": 1.25, "validation_accuracy": 0.5}
    assert epoch_line(record) == "epoch     3  loss 1.250  validation accuracy 50.00%"
    record["validation_neural_collapse"] = {"attained": {"overall": 71.04}}
    assert epoch_line(record).endswith("neural collapse 71.0 %")
    record["validation_neural_collapse"] = {"attained": {"nc1_cdnv": 71.04}}
    assert epoch_line(record).endswith("50.00%")  # a class without images
    del record["train_loss"]
    record["epoch"] = 2.25  # measured in the middle of it
    assert epoch_line(record).startswith("epoch  2.25  validation accuracy")


def test_trackers_get_flat_names():
    record = {
        "loss": 1.0,
        "collapse": {
            "cdnv": 2.0,
            "optima": {"cdnv": 0.0},
            "absent_classes": [1],
            "attained": {"cdnv": 3.0},
        },
    }
    assert flat_record(record) == {"loss": 1.0, "collapse/cdnv": 2.0, "collapse/attained/cdnv": 3.0}


def class_row(name, images, f1, confused=(None, None)):
    shares = dict.fromkeys(("precision", "recall", "f1"), f1 if images else None)
    return {"class": name, "images": images, **shares, "confused_with": confused[0], "confused_images": confused[1]}


def test_classes_by_name_and_of_many_the_worst():
    rows = [class_row("cat", 1200, 0.5, ("dog", 1100)), class_row("dog", 0, 0.0), class_row("owl", 3, 1.0)]
    header, _, cat, owl = format_classes(rows).splitlines()
    assert header.split() == ["class", "images", "precision", "recall", "F1", "confused", "with"]
    assert cat.split() == ["cat", "1,200", "50.0%", "50.0%", "50.0%", "dog", "(1,100)"]
    assert owl.split()[:2] == ["owl", "3"]
    many = [class_row(f"class {i}", 5, 1 - i / 100) for i in range(50)]
    lines = format_classes([*many, class_row("none", 0, 0.0)]).splitlines()
    assert [line.split()[1] for line in lines[2:22]] == [str(i) for i in range(49, 29, -1)]
    assert lines[22:] == ["(the worst by F1; --output and --pictures have the 30 others too)"]


def test_an_accuracy_is_said_with_its_interval_and_beside_another():
    report = {"accuracy": 0.5, "accuracy_interval": [0.4, 0.6]}
    assert format_accuracy(report) == "accuracy 50.00%, 95 % interval 40.00% to 60.00%"
    report["comparison"] = {
        "model": "outputs/b", "accuracy": 0.45, "difference": 0.05, "difference_interval": [-0.01, 0.11],
        "only_ours_right": 1200, "only_theirs_right": 7, "p_value": 0.0412,
    }  # fmt: skip
    assert format_accuracy(report).splitlines()[1] == (
        "45.00% of outputs/b: +5.00 points, 95 % interval -1.00 to +11.00; right in this one only 1,200, in the "
        "other only 7 images: p = 0.041 (McNemar)"
    )


def test_layers_are_a_table():
    layers = [{"layer": "1", "dim": 8, "nc1_cdnv": 0.25}, {"layer": "embeddings", "dim": 16, "nc1_cdnv": 0.125}]
    header, _, first, last = format_layers(layers).splitlines()
    assert "NC1 CDNV" in header
    assert first.split() == ["1", "8", "-", "-", "0.25", "-", "-"]
    assert last.split() == ["embeddings", "16", "-", "-", "0.125", "-", "-"]
