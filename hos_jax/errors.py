"""Mistakes that a user can mend, shown as a single line, and the one line of other errors."""

import difflib
import errno
import os
import re
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake that the user can mend, named in the message; the command line adds the remedy."""


class NoRunError(UserError):
    """There is no run in the folder."""


class OtherRunError(UserError):
    """The run in the folder was made with other settings, or of other images."""


class InUseError(UserError):
    """Another process works in the folder."""


class StorageError(UserError):
    """What a run saves cannot be written."""


class NonFiniteError(UserError):
    """A loss, its gradient, what was fitted or a belief stopped being numbers."""


class NotDifferentiableError(UserError):
    """The derivative of a denoiser is asked for that has values alone."""


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`did you mean X?` of the nearest word that is known, or nothing where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f"did you mean {near[0]}? " if near else ""


def missing_package(what: str, package: str, extra: str) -> UserError:
    """The error that names a missing package and the command that installs it."""
    return UserError(f'{what} needs the package {package!r}: pip install "hos_jax[{extra}]"')


def raised_in_callback(error: BaseException) -> str | None:
    """What a function outside of JAX raised when JAX called it, on one line, and in which line of a
    file that is not of this package, of which JAX keeps the text of its traceback alone; None for
    an error of another kind."""
    first, _, text = str(error).partition("\n")
    if "callback: Traceback (most recent call last)" not in first:
        return None
    lines, own = text.splitlines(), os.path.dirname(__file__)
    matches = [re.match(r' *File "(.*)", line (\d+)', line) for line in lines]
    last = max((index for index, match in enumerate(matches) if match), default=-1)
    said = [line for line in lines[last + 1 :] if line.strip() and not line.startswith(" ")]
    place = matches[last] if last >= 0 else None
    known = place is not None and not place[1].startswith(own + os.sep)
    where = f" ({place[1]}, line {place[2]})" if place is not None and known else ""
    return (said or [first])[0].strip() + where


def reason(error: BaseException) -> str:
    """What an exception says, on one line and short enough for a message."""
    said = getattr(error, "strerror", None) or str(error).strip() or repr(error)
    # Tensorstore wraps what the system says into a long text with the names of its own files.
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.EFBIG):
        if os.strerror(code) in said:
            return os.strerror(code)
    return said.splitlines()[0][:200]
