"""The table of errors on corrupted images: every error, every mean, and what they mean."""

from hf_protosphere.robustness.measure import corruption_metrics
from hf_protosphere.robustness.report import format_robustness

OURS = {"clean_error": 0.1, "errors": {"fog": [0.2, 0.4], "snow": [0.3, 0.6]}}
THEIRS = {"clean_error": 0.2, "errors": {"fog": [0.3, 0.5], "snow": [0.4, 0.8]}}


def report(ours=OURS, baseline=None, **more):
    whole = {"num_images": 45, "severities": [2, 4], **ours, **more}
    whole |= corruption_metrics(ours, baseline)
    if baseline:
        whole["baseline"] = {"model": "user/alexnet", **baseline, **corruption_metrics(baseline)}
    return whole


def cells(table):
    """The numbers behind each row's name."""
    found = {}
    for line in table.splitlines():
        words = line.split()
        numbers = [word for word in words if word.endswith("%")]
        found[" ".join(words[: len(words) - len(numbers)])] = numbers
    return found


def test_alone_it_shows_errors_and_their_mean():
    table = format_robustness(report())
    header = table.splitlines()[0]
    assert header.split() == [
        "error",
        "under",
        "corruption",
        "severity",
        "2",
        "severity",
        "4",
        "mean",
    ]
    rows = cells(table)
    assert rows["(clean images)"] == ["10.0%"]
    assert rows["fog"] == ["20.0%", "40.0%", "30.0%"]
    assert rows["snow"] == ["30.0%", "60.0%", "45.0%"]
    assert rows["mean of the 2"] == ["37.5%"]
    assert "not mCE" in table
    assert "baseline;" not in table
    assert "AlexNet" not in table


def test_beside_a_baseline_it_shows_the_benchmarks_metrics():
    table = format_robustness(report(baseline=THEIRS))
    rows = cells(table)
    assert rows["(clean images)"] == ["10.0%", "20.0%"]
    assert rows["fog"] == ["20.0%", "40.0%", "30.0%", "40.0%", "75.0%"]  # 0.6 / 0.8
    assert rows["snow"] == ["30.0%", "60.0%", "45.0%", "60.0%", "75.0%"]
    assert rows["mean of the 2"] == ["37.5%", "50.0%", "75.0%"]
    assert rows["mean of what is lost to clean images"] == ["93.8%"]  # (0.4/0.4 + 0.7/0.8) / 2
    assert "100 % is as bad as the baseline, user/alexnet." in table


def test_what_is_undefined_is_blank_with_the_reason():
    perfect = {"clean_error": 0.0, "errors": {"fog": [0.0, 0.0], "snow": [0.4, 0.8]}}
    table = format_robustness(report(baseline=perfect))
    rows = cells(table)
    assert rows["fog"] == ["20.0%", "40.0%", "30.0%", "0.0%"]
    assert rows["mean of the 2"] == ["37.5%", "30.0%"]
    assert "Undefined: the baseline makes no error under fog." in table


def test_of_ready_made_images_it_says_how_many_were_resized():
    table = format_robustness(report(num_corrupted_images=40, num_resized=15))
    last = table.splitlines()[-1]
    assert last.startswith("Of 40 images that were corrupted already 25 had the model's input size")
    assert last.endswith("15 were resized and cropped.")
