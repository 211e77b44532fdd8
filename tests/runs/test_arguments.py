"""What cannot be drawn is said before anything is read."""

import pytest

from hf_protosphere.errors import ArgumentError
from hf_protosphere.runs.arguments import PlotArguments


def test_defaults():
    arguments = PlotArguments(runs=["a"])
    assert (arguments.output_dir, arguments.format, arguments.nc_target) == (None, "png", 95.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": "gif"}, "--format must be one of png, svg, pdf, but got 'gif'"),
        ({"nc_target": 0}, r"--nc_target must be in \(0, 100\], but got 0"),
        ({"nc_target": 101}, r"--nc_target must be in \(0, 100\], but got 101"),
    ],
)
def test_errors_name_flag_and_value(values, message):
    with pytest.raises(ArgumentError, match=message):
        PlotArguments(runs=["a"], **values)
