"""Mistakes that a user can mend: shown as a single line, without a traceback."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake that the user can mend: the message says what is wrong.

    The command line prints it on one line, with what to do, and exits with status 2; a library
    caller catches it like any other `ValueError`.
    """


class NoRunError(UserError):
    """There is no run in the folder."""


class OtherRunError(UserError):
    """The run in the folder was made with other settings, or of other images."""


class InUseError(UserError):
    """Another process works in the folder."""


class StorageError(UserError):
    """What a run saves cannot be written."""


class NonFiniteError(UserError):
    """The loss or its gradient stopped being a number."""


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`did you mean X? ` of the nearest word that is known, or nothing where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f"did you mean {near[0]}? " if near else ""


def first_line(error: Exception) -> str:
    """What an exception says, on one line."""
    return (str(error).strip() or repr(error)).splitlines()[0]
