"""Train and test high-order score models; see `python main.py --help`."""

import sys

if __name__ == "__main__":
    try:
        from hos_jax.cli import ignore_late_reads, main

        sys.unraisablehook = ignore_late_reads
        status = main(sys.argv)
    except KeyboardInterrupt:  # during the imports
        status = 130
    sys.exit(status)
