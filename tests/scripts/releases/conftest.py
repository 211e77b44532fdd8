"""A recipe for releases that train nothing."""

import pytest


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "base.yaml").write_text("backbone: test_resnet\nepochs: 3\nreport_to: none\n")
    (tmp_path / "digits.yaml").write_text("base: base.yaml\ndataset_name: digits\n")
    (tmp_path / "digits-scl.yaml").write_text("base: digits.yaml\nprojection: mlp\n")
    return str(tmp_path / "digits.yaml")
