"""A compiled loop of many chains, to time: what the benchmarks of samplers share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from hos_jax.samplers import SamplingAlgorithm
from hos_jax.samplers.base import step_chains


def make_loop(sampler: SamplingAlgorithm, states: Any, steps: int) -> Callable[[], None]:
    """A function that runs the chains for `steps` steps and waits; its first call compiles."""

    @jax.jit
    def loop(states):
        def body(t, states):
            return step_chains(jax.random.key(t), sampler.step, states)[0]

        return jax.lax.fori_loop(0, steps, body, states)

    return lambda: jax.block_until_ready(loop(states))
