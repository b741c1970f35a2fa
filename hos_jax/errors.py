"""The one exception that is shown to a user as a single line, without a traceback."""


class UserError(ValueError):
    """A mistake that the user can mend: the message says what is wrong and what to do.

    The command line prints it on one line and exits with status 2; a library caller catches it
    like any other `ValueError`.
    """
