"""The loop that runs many chains of any kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from hos_jax.types import Array, PRNGKey


def run_chains(
    key: PRNGKey, step: Callable[[PRNGKey, Any], tuple[Any, Any]], states: Any, steps: int
) -> tuple[Any, Array]:
    """Run independent chains for a number of steps; memory does not grow with it.

    Args:
      key: one key for all chains; chain i at step t uses fold_in(fold_in(key, t), i).
      step: `(key, state) -> (state, info)` for one chain; `info` has the field `is_finite`.
      states: initial states, a pytree whose leaves have the chains as leading axis.
      steps: number of steps, at least 1.

    Returns:
      The final states, and for every chain whether it stayed finite throughout, (chains,).

    Raises:
      ValueError: if steps < 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    chains = jax.tree.leaves(states)[0].shape[0]
    indices = jax.numpy.arange(chains)

    def body(carry, t):
        states, finite = carry
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, t), indices)
        states, info = jax.vmap(step)(keys, states)
        return (states, finite & info.is_finite), None

    start = (states, jax.numpy.ones(chains, bool))
    (states, finite), _ = jax.lax.scan(body, start, jax.numpy.arange(steps))
    return states, finite
