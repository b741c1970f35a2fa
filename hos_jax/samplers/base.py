"""What the samplers share: blackjax's pair of functions, and the loop that runs many chains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from hos_jax.samplers.devices import over_devices
from hos_jax.types import Array, PRNGKey

Step = Callable[[PRNGKey, Any], tuple[Any, Any]]


class SamplingAlgorithm(NamedTuple):
    """A sampler with its target and settings fixed, as blackjax's inference loop takes it.

    Attributes:
      init: `init(position, rng_key=None)` gives the state of a chain.
      step: `step(rng_key, state)` gives the next state and an info.
    """

    init: Callable
    step: Step

    @classmethod
    def of(cls, init: Callable, kernel: Callable, target: Callable, step_size: Array | float):
        """From a kernel's two functions, the target's function and a step size > 0."""
        if isinstance(step_size, int | float) and not step_size > 0:
            raise ValueError(f"expected step_size > 0, got {step_size}")
        return cls(
            lambda position, rng_key=None: init(position, target),
            lambda rng_key, state: kernel(rng_key, state, target, step_size),
        )


def all_finite(tree: Any) -> Array:
    """Whether every number of a pytree is finite, a scalar."""
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(leaves))


@dataclasses.dataclass(frozen=True)
class Chains:
    """What `run_chains` returns.

    Attributes:
      states: the final states, a pytree with the chains as leading axis.
      is_finite: whether a chain stayed finite throughout, (chains,). What another one holds is
        meaningless: leave it out of every average.
      finite_steps: the number of steps before a chain left finite values, (chains,).
      trajectory: what `collect` gave at the kept steps, leaves (kept, chains, ...), numpy arrays;
        None without `collect`.
    """

    states: Any
    is_finite: np.ndarray
    finite_steps: np.ndarray
    trajectory: Any


def run_chains(
    key: PRNGKey,
    step: Step,
    states: Any,
    steps: int,
    *,
    burn_in: int = 0,
    thinning: int = 1,
    collect: Callable[[Any], Any] | None = None,
    chunk: int = 100,
    devices: list[Any] | None = None,
    progress: str | None = None,
) -> Chains:
    """Run independent chains in compiled chunks of kept steps.

    Memory does not grow with `steps` unless a trajectory is asked for, and that is kept on the
    host. Chain i at step t uses the key fold_in(fold_in(key, t), i), burn-in included, so that
    neither chunks nor thinning nor devices change what is drawn.

    Args:
      key: one key for all chains.
      step: `(key, state) -> (state, info)` for one chain; `info` has the field `is_finite`.
      states: initial states, a pytree whose leaves have the chains as leading axis.
      steps: number of steps after the burn-in, at least 1.
      burn_in: steps before the first that may be kept.
      thinning: every how many steps one is kept; divides `steps`.
      collect: `state -> pytree`, what is kept of one chain's state, such as
        `lambda state: state.position`. None keeps nothing.
      chunk: kept steps per compiled loop: how often the progress bar moves and, with a
        trajectory, what is on the device at once.
      devices: chains are split evenly over these; all local devices if they divide the number of
        chains and more than one is there, else one.
      progress: the label of a progress bar; None for none.

    Raises:
      ValueError: for numbers below 1 (burn-in: below 0), a thinning that does not divide `steps`,
        or devices that do not divide the chains.
    """
    check_counts(steps=steps, thinning=thinning, chunk=chunk)
    if burn_in < 0:
        raise ValueError(f"expected burn_in >= 0, got {burn_in}")
    if steps % thinning:
        raise ValueError(f"thinning must divide the number of steps, got {steps} and {thinning}")
    states = over_devices(states, devices)
    count = jax.tree.leaves(states)[0].shape[0]

    def one_step(t, carry):
        states, finite_steps, finite = carry
        states, stayed_finite = step_chains(jax.random.fold_in(key, t), step, states)
        finite = finite & stayed_finite
        return states, finite_steps + finite.astype(jnp.int32), finite

    @jax.jit
    def advance(carry, start, inner):
        return jax.lax.fori_loop(start, start + inner, one_step, carry)

    def keep(carry, start):
        carry = advance(carry, start, thinning)
        return carry, None if collect is None else jax.vmap(collect)(carry[0])

    run_chunk = jax.jit(lambda carry, starts: jax.lax.scan(keep, carry, starts))
    carry = (states, jnp.zeros(count, jnp.int32), jnp.ones(count, bool))
    parts = []
    with tqdm(total=burn_in + steps, desc=progress, disable=progress is None, unit="step") as bar:
        for start in range(0, burn_in, chunk * thinning):
            inner = min(chunk * thinning, burn_in - start)
            carry = advance(carry, start, inner)
            bar.update(inner)
        for start in range(burn_in, burn_in + steps, chunk * thinning):
            stop = min(start + chunk * thinning, burn_in + steps)
            carry, kept = run_chunk(carry, jnp.arange(start, stop, thinning))
            parts.append(jax.device_get(kept))
            bar.update(stop - start)
    trajectory = None
    if collect is not None:
        trajectory = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    finite_steps, finite = jax.device_get(carry[1:])
    return Chains(carry[0], finite, finite_steps, trajectory)


def step_chains(key: PRNGKey, step: Step, states: Any) -> tuple[Any, Array]:
    """One step of every chain, chain i with fold_in(key, i); states and `is_finite`, (chains,)."""
    indices = jnp.arange(jax.tree.leaves(states)[0].shape[0])
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, indices)
    states, info = jax.vmap(step)(keys, states)
    return states, info.is_finite


def check_counts(**counts: int) -> None:
    """Raise ValueError for a number below 1."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"expected {name} >= 1, got {count}")
