"""The command line of hos_jax."""
