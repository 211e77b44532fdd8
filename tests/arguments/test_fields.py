"""The `help` of a field is its documentation."""

from dataclasses import FrozenInstanceError, dataclass, fields

import pytest

from hf_protosphere.arguments.fields import decide, flag


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


def test_what_follows_from_other_arguments_is_decided_once():
    @dataclass(frozen=True, kw_only=True)
    class Picnic:
        guests: int = flag("How many.", 2)
        plates: int | None = flag("By default as many as guests.")

        def __post_init__(self):
            if self.plates is None:
                decide(self, plates=self.guests)

    assert Picnic(guests=3).plates == 3
    assert Picnic(guests=3, plates=1).plates == 1
    with pytest.raises(FrozenInstanceError):
        Picnic().plates = 5
