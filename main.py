"""Train and test high-order score models; see `python main.py --help`."""

import sys

from hos_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv))
