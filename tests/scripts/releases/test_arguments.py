"""The file of a release: what flags change of it, and what is wrong with it."""

import pytest

from hf_protosphere.arguments.parsing import parse_arguments
from hf_protosphere.errors import ArgumentError
from scripts.releases.arguments import ReleaseArguments


def parsed(path, *flags):
    return parse_arguments(ReleaseArguments, ["--config", str(path), *flags])


def arguments(recipe, **options):
    return ReleaseArguments(**{"recipes": [recipe], "objectives": ["nonl", "scl"], **options})


def test_flags_win_over_the_file(recipe, tmp_path):
    file = tmp_path / "release.yaml"
    file.write_text(f"recipes: [{recipe}]\nobjectives: [nonl]\nnamespace: lab\nrevision: v1\n")
    assert (parsed(file).namespace, parsed(file).revision, parsed(file).publish) == ("lab", "v1", True)
    release = parsed(file, "--namespace", "me", "--no_publish", "--only", "seed0")
    assert (release.namespace, release.publish, release.only) == ("me", False, "seed0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipes": []}, r"recipes must be a list of different ones, but got \[\]"),
        ({"seeds": [0, 0]}, "seeds must be a list of different ones"),
        ({"seeds": [0.0]}, "seeds must be a list, and each of it a whole number of at least 0"),
        ({"objectives": ["nolm"]}, "objectives are nonl, .*, but there is 'nolm'. Did .* 'nonl'"),
        ({"overrides": {"*": {"epocs": 3}}}, r"cannot set 'epocs'\. Did you mean 'epochs'"),
        ({"overrides": {"*": {"seed": 3}}}, "cannot set 'seed'"),
        ({"overrides": ["*"]}, "overrides must be a mapping, such as"),
        ({"launch": {"*": 8}}, "launch must be a mapping, .* and each of it text, but"),
        ({"license": "Apache 2"}, "license must be an identifier"),
    ],
)
def test_what_is_wrong_is_said_with_what_was_meant(recipe, options, message):
    with pytest.raises(ArgumentError, match=message):
        arguments(recipe, **options)


def test_an_unknown_recipe(recipe, tmp_path):
    with pytest.raises(ArgumentError, match=r"no file '.*digit\.yaml'.*mean '.*digits\.yaml'"):
        arguments(str(tmp_path / "digit.yaml"))
    with pytest.raises(ArgumentError, match=r"recipes: there is no file '.*elsewhere/x\.yaml'\.$"):
        arguments(str(tmp_path / "elsewhere" / "x.yaml"))
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ArgumentError, match=r"recipes: .*folder\.yaml is not a file"):
        arguments(str(tmp_path / "folder.yaml"))


def test_an_unknown_argument(recipe, tmp_path):
    file = tmp_path / "release.yaml"
    file.write_text(f"recipes: [{recipe}]\nobjectivs: [nonl]\n")
    with pytest.raises(ArgumentError, match=r"argument 'objectivs'\. Did you mean 'objectives'\?"):
        parsed(file)
