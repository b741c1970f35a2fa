"""Train and test high-order score models, from a checkout; `hos-jax` is the same, installed."""

from hos_jax.cli import run

if __name__ == "__main__":
    run()
