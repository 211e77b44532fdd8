"""What `index` and `search` refuse before any work, and what they hand on."""

import pytest

from hf_protosphere.errors import ArgumentError
from hf_protosphere.retrieval.arguments import IndexArguments, SearchArguments


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"give --queries, images to look for, or --evaluate"),
        ({"queries": ["nowhere.png"]}, r"--queries nowhere.png: there is no such"),
        ({"evaluate": True, "picture": "x.png"}, r"--picture is for --queries, not for --evaluate"),
        ({"evaluate": True, "k": 10}, r"--k is for --queries, not for --evaluate"),
        ({"queries": ["."], "recall_at": [1]}, r"--recall_at is for --evaluate: leave it out"),
        ({"queries": ["."], "split": "train"}, r"--split train is for --dataset_name only"),
        ({"queries": ["."], "num_queries": 9}, r"--num_queries is for --evaluate: leave it out"),
        ({"evaluate": True, "num_queries": 0}, r"--num_queries must be a whole number of at least 1"),
        ({"evaluate": True, "recall_at": [0]}, r"--recall_at must be"),
        ({"evaluate": True, "k": 0}, r"k must be"),
        ({"queries": ["."], "dataset_name": "x"}, r"--dataset_name is for --evaluate"),
        ({"evaluate": True, "batch_size": 0}, r"--batch_size must be"),
    ],
)
def test_arguments_of_search_are_checked(given, message):
    with pytest.raises(ArgumentError, match=message):
        SearchArguments(index="i", **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"give one of --images"),
        ({"images": "nowhere"}, r"--images nowhere: there is no such folder"),
        ({"dataset_name": "x", "labels_from_folders": True}, r"--labels_from_folders is for"),
        ({"dataset_name": "x", "on_bad_image": "ignore"}, r"--on_bad_image must be"),
    ],
)
def test_arguments_of_index_are_checked(given, message):
    with pytest.raises(ArgumentError, match=message):
        IndexArguments(model="m", **given)


def test_columns_and_options_go_on_under_the_names_of_those_who_take_them():
    arguments = IndexArguments(model="m", dataset_name="x", dataset_revision="v1", label_column="fine", batch_size=3)
    assert arguments.columns == {
        "dataset_config": None, "revision": "v1", "image_column": None, "label_column": "fine"
    }  # fmt: skip
    assert arguments.embedding_options == {"on_bad_image": "error", "batch_size": 3, "num_workers": 2}
