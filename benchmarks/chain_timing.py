"""A compiled loop of many chains, to time: what the benchmarks of samplers share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from hos_jax.samplers import SamplingAlgorithm
from hos_jax.samplers.base import advance, start_carry


def make_loop(sampler: SamplingAlgorithm, states: Any, steps: int) -> Callable[[], None]:
    """A function that runs the chains for `steps` steps and waits; its first call compiles."""

    key = jax.random.key(0)
    loop = jax.jit(lambda states: advance(sampler.step, key, start_carry(states), 0, steps))
    return lambda: jax.block_until_ready(loop(states))
