"""Parameters of networks for tests that train none."""

import jax
import jax.numpy as jnp
import numpy as np


def drawn(model, *inputs, mean=0.0, std=0.05):
    """Variables of the model's shapes and types, by NumPy's draws: those of every layer take XLA
    longer to compile than the network itself."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(mean, std, leaf.shape), leaf.dtype),
        jax.eval_shape(model.init, jax.random.key(0), *inputs),
    )
