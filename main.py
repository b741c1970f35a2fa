"""Train and test high-order score models; see `python main.py --help`."""

import sys

from hos_jax.cli.interruption import leave_on_ctrl_c

if __name__ == "__main__":
    leave_on_ctrl_c()  # before the long imports
    from hos_jax.cli.logs import ignore_late_reads
    from hos_jax.cli.main import main

    sys.unraisablehook = ignore_late_reads
    sys.exit(main(sys.argv))
