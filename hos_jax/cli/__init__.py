"""The command line of hos_jax."""

import sys

from hos_jax.cli.interruption import leave_on_ctrl_c


def run() -> None:
    """What `hos-jax` does: the command of the process's arguments, and its exit."""
    leave_on_ctrl_c()  # before the long imports
    from hos_jax.cli.logs import ignore_late_reads
    from hos_jax.cli.main import main

    sys.unraisablehook = ignore_late_reads
    sys.exit(main(sys.argv))
