"""A field's help is its documentation, and its default a default."""

from dataclasses import MISSING, dataclass, fields

from hf_protosphere.arguments.fields import flag


@dataclass(kw_only=True)
class Arguments:
    side: int | None = flag("Of the square.")
    colour: str = flag("Of the square's edge.", "red")


def test_a_flag_is_a_field_with_help_and_a_default():
    side, colour = fields(Arguments)
    assert (side.metadata["help"], side.default) == ("Of the square.", None)
    assert (colour.metadata["help"], colour.default) == ("Of the square's edge.", "red")
    assert side.default_factory is MISSING
    assert Arguments() == Arguments(side=None, colour="red")
