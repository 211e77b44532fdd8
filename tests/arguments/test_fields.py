"""The `help` of a field is its documentation."""

from dataclasses import dataclass, fields

from hf_protosphere.arguments.fields import flag


@dataclass
class Arguments:
    epochs: int = flag("Passes over the images.", 10)
    name: str | None = flag("What it is called.")


def test_a_flag_has_its_default_and_its_help():
    assert Arguments() == Arguments(10, None)
    assert Arguments(epochs=3).epochs == 3
    assert {field.name: field.metadata["help"] for field in fields(Arguments)} == {
        "epochs": "Passes over the images.",
        "name": "What it is called.",
    }
