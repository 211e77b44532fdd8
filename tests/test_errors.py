"""Errors of users are one family, which the command line prints in a line; none is left unused."""

import ast
import inspect
import pickle
from functools import cache

import pytest

from hf_protosphere import errors
from tests import ROOT

ERRORS = [value for value in vars(errors).values() if inspect.isclass(value) and value.__module__ == errors.__name__]


@cache
def raised() -> set[str]:
    """Names of what the package raises."""
    found = set()
    for path in (ROOT / "hf_protosphere").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                found.add(ast.unparse(node.exc.func))
    return found


@pytest.mark.parametrize("error", ERRORS)
def test_each_is_a_value_error_that_says_whose_fault_it_is(error):
    assert issubclass(error, errors.UserError)
    assert issubclass(error, ValueError)
    assert error.__doc__
    assert error in (errors.UserError, errors.TrainingError) or error.__name__ in raised()


def test_what_comes_after_the_results_costs_a_warning(caplog):
    with errors.at_no_cost("drawing"):
        raise OSError(28, "No space left on device")
    (record,) = caplog.records
    assert record.getMessage() == (
        "drawing failed; the results are kept (OSError: [Errno 28] No space left on device)"
    )
    with pytest.raises(KeyboardInterrupt), errors.at_no_cost("drawing"):
        raise KeyboardInterrupt
    # Other processes would wait for this one.
    with pytest.raises(OSError, match="No space"), errors.at_no_cost("means", alone=False):
        raise OSError(28, "No space left on device")


def test_of_an_error_in_a_worker_process_its_own_line_is_left():
    worker = (
        "Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call "
        "last):\n  ...\nhf_protosphere.errors.DataError: a.png cannot be decoded: ValueError: 3\n"
    )
    assert str(errors.DataError(worker)) == "a.png cannot be decoded: ValueError: 3"
    assert str(errors.DataError("Caught in the rain")) == "Caught in the rain"


def test_an_interruption_tells_its_signal():
    interrupted = errors.TrainingInterrupted("stopped", 15)
    assert (str(interrupted), interrupted.signal) == ("stopped", 15)
    assert str(pickle.loads(pickle.dumps(errors.DataError("no images")))) == "no images"
