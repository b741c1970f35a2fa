"""The one exception that is shown to a user as a single line, and the one line of the others."""


class UserError(ValueError):
    """A mistake that the user can mend: the message says what is wrong and what to do.

    The command line prints it on one line and exits with status 2; a library caller catches it
    like any other `ValueError`.
    """


def reason(error: Exception) -> str:
    """What an exception says, on one line and short enough for a message."""
    said = getattr(error, "strerror", None) or str(error).strip() or repr(error)
    return said.splitlines()[0][:200]
