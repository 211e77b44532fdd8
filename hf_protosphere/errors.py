"""What a user can mend: every message names the argument, the value received and the way out.

Those of other code become such by `errors_in_one_line`. What need not be mended for results to count: `at_no_cost`."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


@contextmanager
def at_no_cost(what: str, *, alone: bool = True) -> Iterator[None]:
    """For what comes beside or after the results of long work: if it fails, a warning names it; an
    error it stays where this process is not alone, and others would wait for it."""
    try:
        yield
    except Exception as error:  # of whatever library
        if not alone:
            raise
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        logger.warning("%s failed; the results are kept (%s)", what, reason)


class UserError(ValueError):
    """Something the user gave cannot work. The command line prints it without a traceback."""

    def __init__(self, message: str) -> None:
        if message.startswith(f"Caught {type(self).__name__} in "):  # torch adds a traceback
            message = message.rpartition(f"{type(self).__name__}: ")[2].strip()
        super().__init__(message)


class ArgumentError(UserError):
    """An argument, or a combination of arguments, that cannot work."""


class DataError(UserError):
    """A data set that cannot be read, or that does not hold what training needs."""


class CacheError(UserError):
    """Decoded images cannot be kept on the disk."""


class WriteError(UserError):
    """The disk is full, or takes no such file; what was there before is there still."""


class ExportError(UserError):
    """An exported model that does not compute what the checkpoint does."""


class TrainingError(UserError):
    """Training cannot go on; the last good checkpoint is kept."""


class PublishError(UserError):
    """The Hub cannot be reached or refuses; nothing is lost here, nothing was changed there."""


class TrainingInterrupted(UserError):
    """Training was asked to stop by a signal, and has written a checkpoint to resume from."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


@contextmanager
def errors_in_one_line(
    what: str, then: str = "", kind: type[UserError] = ArgumentError,
    of: type[Exception] | tuple[type[Exception], ...] = Exception,
) -> Iterator[None]:  # fmt: skip
    """What a damaged file brings other code to raise, whatever it is, becomes an error that says
    which file it was; errors that are for the user stay as they are.

    Args:
        what: begins the message, such as "--model outputs/run cannot be loaded".
        then: ends it, a sentence: the way out.
        of: no other errors than these.
    """
    try:
        yield
    except UserError:
        raise
    except of as error:
        reason = " ".join(str(error).split())[:600]
        name = "" if isinstance(error, OSError | ValueError) and reason else type(error).__name__
        reason = ": ".join(filter(None, (name, reason)))
        end = f"{reason.rstrip('.')}. {then}" if then else reason
        raise kind(f"{what}: {end}") from error
