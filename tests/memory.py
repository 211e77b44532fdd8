"""How much memory a piece of a test takes at most."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Peak:
    mebibytes: float = float("nan")


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Filled at the end: the most that the process has grown by in between."""
    if not CLEAR.exists():
        pytest.skip("needs Linux, which tells a process its peak of memory")
    peak = Peak()
    CLEAR.write_text("5")  # the peak begins anew
    before = _mebibytes("VmRSS")
    yield peak
    peak.mebibytes = _mebibytes("VmHWM") - before


def _mebibytes(name: str) -> float:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024
