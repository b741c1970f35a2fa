"""A compiled loop of many chains, to time: what the benchmarks of samplers share."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax

from hos_jax.samplers import SamplingAlgorithm, run_chains
from hos_jax.samplers.base import Chains, advance, start_carry


def make_loop(sampler: SamplingAlgorithm, states: Any, steps: int) -> Callable[[], None]:
    """A function that runs the chains for `steps` steps and waits; its first call compiles."""

    key = jax.random.key(0)
    loop = jax.jit(lambda states: advance(sampler.step, key, start_carry(states), 0, steps))
    return lambda: jax.block_until_ready(loop(states))


def seconds_per_step(
    sampler: SamplingAlgorithm, states: Any, steps: int, *, repeats: int = 1
) -> float:
    """Of the compiled loop of so many steps, the fastest of its runs after the first."""
    loop = make_loop(sampler, states, steps)
    loop()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        loop()
        times.append(time.perf_counter() - begun)
    return min(times) / steps


def timed_positions(
    sampler: SamplingAlgorithm, start: jax.Array, steps: int, every: int, *, timed: int
) -> tuple[float, Chains]:
    """Seconds per step, of `timed` steps, and chains from `start`, (chains, D), with their
    positions every so many steps."""
    states = jax.jit(jax.vmap(sampler.init))(start)
    chains = run_chains(
        jax.random.key(5),
        sampler.step,
        states,
        steps,
        thinning=every,
        collect=lambda state: state.position,
    )
    return seconds_per_step(sampler, states, timed), chains
