"""`python -m hos_jax` does what `hos-jax` does."""

from hos_jax.cli import run

if __name__ == "__main__":
    run()
