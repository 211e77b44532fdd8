"""The corruptions of ImageNet-C: their names, and one image under one of them.

They come from imagecorruptions-imaug, the maintained successor of imagecorruptions, with ImageNet-C's parameters at
every image size. CIFAR-10-C was made with smaller ones: for metrics on it, read its files."""

import re
from collections.abc import Callable, Iterable
from functools import cache
from importlib import metadata

import numpy as np

from ..arguments.fields import check_known
from ..errors import ArgumentError, errors_in_one_line

LIBRARY = "imagecorruptions-imaug"
SMALLEST_SIDE = 32  # of an image, in pixels; the library refuses smaller ones
SEVERITIES = (1, 2, 3, 4, 5)
GROUPS = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    # Kept for validation by the benchmark: not among its 15.
    "extra": ("speckle_noise", "gaussian_blur", "spatter", "saturate"),
}
BENCHMARK = tuple(name for group in GROUPS if group != "extra" for name in GROUPS[group])
CORRUPTIONS = (*BENCHMARK, *GROUPS["extra"])
# These draw from generators that numpy's global seed does not reach.
_WITH_OWN_SEED = ("impulse_noise", "glass_blur")


def parse_corruptions(names: str | Iterable[str]) -> list[str]:
    """Corruptions by name or group, in the order of the benchmark, each once.

    >>> parse_corruptions(["fog", "noise"])
    ['gaussian_noise', 'shot_noise', 'impulse_noise', 'fog']
    >>> len(parse_corruptions("all")), len(parse_corruptions("all,extra"))
    (15, 19)

    Args:
        names: of corruptions, of `GROUPS`, or "all" for the 15; in a string by commas or spaces.

    Raises:
        ArgumentError: an unknown name, or none at all.
    """
    asked = re.findall(r"[^,\s]+", names if isinstance(names, str) else " ".join(map(str, names)))
    groups = {"all": BENCHMARK, **GROUPS}
    check_known(asked, [*groups, *CORRUPTIONS], "--corruptions: there is no")
    if not asked:
        raise ArgumentError(f"--corruptions needs at least one of {', '.join(groups)} or a name.")
    chosen = {one for name in asked for one in groups.get(name, (name,))}
    return [name for name in CORRUPTIONS if name in chosen]


def parse_severities(text: str | int | Iterable[int]) -> list[int]:
    """Severities from 1 to 5, ascending, each once.

    >>> parse_severities("1-3,5")
    [1, 2, 3, 5]

    Raises:
        ArgumentError: something else than ranges and numbers from 1 to 5.
    """
    given = text if isinstance(text, str | int) else ",".join(map(str, text))
    chosen: set[int] = set()
    for part in str(given).split(","):
        match = re.fullmatch(r"\s*([1-5])\s*(?:-\s*([1-5])\s*)?", part)
        numbers = range(int(match[1]), int(match[2] or match[1]) + 1) if match else ()
        if not numbers:
            raise ArgumentError(f"--severities must be such as 1-5 or 1,3,5, from 1 to 5, but got {given!r}.")
        chosen.update(numbers)
    return sorted(chosen)


def corrupt(image: np.ndarray, corruption: str, severity: int, *, seed: int) -> np.ndarray:
    """One image under one corruption: always the same pixels for the same arguments.

    ImageNet-C was made from images that had been resized and cropped to the model's input size
    already: give it such ones, and only rescale and normalise what comes back.

    Args:
        image: (H, W, 3) uint8, of at least 32 pixels a side; it stays as it is.
        corruption, severity: one of `CORRUPTIONS`, from 1 to 5.
        seed: from 0 to 2³² − 1. numpy's global generator, which the library draws from, is put back to where it was.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ArgumentError: the library is not installed, or the image is too small.
    """
    check_side(min(image.shape[:2]))
    library = load_library()
    own_seed = {"seed": seed} if corruption in _WITH_OWN_SEED else {}
    # On small images spatter may have no drop at all: the library then divides 0 by 0.
    no_drops = "raise" if corruption == "spatter" else None
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        with np.errstate(invalid=no_drops):
            # A copy: some of them write into the image.
            return library(image.copy(), severity, corruption, **own_seed)
    except FloatingPointError:
        if no_drops is None:
            raise
        return image.copy()
    finally:
        np.random.set_state(state)


def check_side(side: int) -> None:
    """An `ArgumentError` where images of this side are too small to be corrupted."""
    if side < SMALLEST_SIDE:
        raise ArgumentError(
            f"--corruptions needs images of at least {SMALLEST_SIDE} pixels a side, but the model's are {side}: train "
            f"with --image_size {SMALLEST_SIDE} or more, or give corrupted images as --corrupted_dataset."
        )


@cache  # it is asked for with every image
def load_library() -> Callable[..., np.ndarray]:
    """The library's `corrupt`. OpenCV, which it uses, works on one thread from then on.

    Raises:
        ArgumentError: it is missing or cannot be imported, with what to install.
    """
    what = f"--corruptions needs `pip install {LIBRARY}`, after `pip uninstall imagecorruptions`, which is broken, but"
    with errors_in_one_line(what, of=ImportError):  # also of a distribution that is not installed
        metadata.version(LIBRARY)  # the unmaintained original is imported by the same name
        import cv2
        from imagecorruptions import corrupt as library
    # Before workers are forked: they would wait for ever for threads that they do not inherit.
    cv2.setNumThreads(0)
    return library
