"""What a run says before it begins."""

from hf_protosphere.training.reporting import announcement
from hf_protosphere.training.run import TrainingRun


def test_the_first_lines_of_a_run(arguments, tmp_path):
    def said(**options):
        return announcement(TrainingRun(arguments(overwrite=True, **options))).splitlines()

    first, second, third = said(batch_size=16, gradient_accumulation_steps=2)
    assert first.startswith("nonl on test_resnet (0.37 M parameters, embeddings of 96, learned")
    assert second.endswith("3 classes, train 108, test 45, validation 12; 32 px, 1 channel(s)")
    assert third == (
        f"2 epochs of 3 steps of 32 images, 1 process(es) on cpu; → {tmp_path / 'run'}"
    )
    first, *_, tail, last = said(
        freeze_backbone=True, imbalance="exp", imbalance_factor=0.1, batch_size=8,
        validation_fraction=0.0,
    )  # fmt: skip
    assert ", 288 of them trained, " in first
    assert tail == "long-tailed (exp): 40, 12, 4 images a class"
    assert last == "No validation images: validating on the training set."
    dry = said(dry_run=True)[2]
    assert dry.endswith("on cpu")  # nothing goes anywhere
