"""The one exception that is shown to a user as a single line, and what it says of others."""


class UserError(ValueError):
    """A mistake that the user can mend: the message says what is wrong and what to do.

    The command line prints it on one line and exits with status 2; a library caller catches it
    like any other `ValueError`.
    """


def missing_package(what: str, package: str, extra: str) -> UserError:
    """The error that names a missing package and the command that installs it."""
    return UserError(f'{what} needs the package {package!r}: pip install "hos_jax[{extra}]"')


def reason(error: Exception) -> str:
    """What an exception says, on one line and short enough for a message."""
    said = getattr(error, "strerror", None) or str(error).strip() or repr(error)
    return said.splitlines()[0][:200]
