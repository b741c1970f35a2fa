"""The command line of hos_jax."""

import os
import sys

from hos_jax.cli.interruption import leave_on_ctrl_c


def run() -> None:
    """What `hos-jax` does: the command of the process's arguments, and its exit."""
    leave_on_ctrl_c()  # before the long imports
    if sys.getfilesystemencoding() != "utf-8" and "PYTHONUTF8" not in os.environ:
        # Orbax names files in UTF-8 whatever the locale, so the rest of the program has to.
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, sys.orig_argv)
    # Figures are files, and matplotlib refuses to load where it does not know what this names.
    os.environ.pop("MPLBACKEND", None)
    from hos_jax.cli.logs import ignore_late_reads, mend_streams
    from hos_jax.cli.main import main

    mend_streams()
    sys.unraisablehook = ignore_late_reads
    try:
        status = main(sys.argv)
        sys.stdout.flush()
    except BrokenPipeError:
        # Nobody reads on, as with `| head`: what is left to be said goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = 141  # as of a process that SIGPIPE ends
    sys.exit(status)
