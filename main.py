"""Train and test high-order score models; see `python main.py --help`."""

from hos_jax import cli

if __name__ == "__main__":
    cli.run()
