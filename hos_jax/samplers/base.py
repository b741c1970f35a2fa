"""What the samplers share: blackjax's pair of functions, and the loop that runs many chains."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from tqdm import tqdm

from hos_jax.noise import example_keys
from hos_jax.samplers.devices import over_devices
from hos_jax.types import Array, PRNGKey, check_counts, check_function

Step = Callable[[PRNGKey, Any], tuple[Any, Any]]
# States, whether each chain is finite, its finite steps, and its largest `lanczos_error`.
Carry = tuple[Any, Array, Array, Array]


def as_partial(fn: Callable | None) -> Any:
    """A function as a pytree, whose leaves are the arguments that a `Partial` has bound."""
    return fn if fn is None or isinstance(fn, Partial) else Partial(fn)


def _init(init: Callable, target: Callable, position: Array, rng_key: Any = None) -> Any:
    return init(position, target)


def _step(kernel: Callable, target: Callable, step_size: Array | float, rng_key, state) -> Any:
    return kernel(rng_key, state, target, step_size)


class SamplingAlgorithm(NamedTuple):
    """A sampler with its target and settings fixed, as blackjax's inference loop takes it.

    `init(position, rng_key=None)` gives the state of a chain, `step(rng_key, state)` the next state
    and an info. Both are `jax.tree_util.Partial`: those of one kernel and target compile once.
    """

    init: Callable
    step: Step

    @classmethod
    def of(cls, init: Callable, kernel: Callable, target: Callable, step_size: Array | float):
        """From a kernel's two functions, the target's function and a step size > 0."""
        known = 1.0 if isinstance(step_size, jax.core.Tracer) else np.asarray(step_size)
        if not np.all((known > 0) & np.isfinite(known)):
            raise ValueError(f"expected step_size > 0 and finite, got {step_size}")
        target = as_partial(target)
        return cls(
            Partial(_init, as_partial(init), target),
            Partial(_step, as_partial(kernel), target, step_size),
        )


def all_finite(tree: Any) -> Array:
    """Whether every number of a pytree is finite, a scalar."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


@dataclasses.dataclass(frozen=True)
class Chains:
    """What `run_chains` and `anneal_chains` return.

    Attributes:
      states: the final states, a pytree with the chains as leading axis.
      is_finite: whether a chain stayed finite throughout, (chains,). What another one holds is
        meaningless: leave it out of every average.
      finite_steps: the number of steps before a chain left finite values, (chains,).
      lanczos_error: the largest `lanczos_error` of a finite step of each chain, (chains,); 0 where
        the steps have none.
      trajectory: what `collect` gave at the kept steps, leaves (kept, chains, ...), numpy arrays;
        None without `collect`.
    """

    states: Any
    is_finite: np.ndarray
    finite_steps: np.ndarray
    lanczos_error: np.ndarray
    trajectory: Any

    @classmethod
    def of(cls, carry: Carry, kept: list[Any], join: Callable) -> Chains:
        """From where the chains are, and the parts of the trajectory, to be joined."""
        finite, finite_steps, error = jax.device_get(carry[1:])
        joined = jax.tree.map(lambda *leaves: join(leaves), *kept)
        return cls(carry[0], finite, finite_steps, error, joined)


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

    A trajectory is kept on the host. Chain i at step t uses the key fold_in(fold_in(key, t), i),
    burn-in included, so that neither chunks nor thinning nor devices change what is drawn.

    Compiled once for the same `step`, `collect` and shapes; as with `jax.jit`, what these functions
    close over must not change. Arrays that do change are bound with `jax.tree_util.Partial`::

        sampler = langevin.as_top_level_api(Partial(score, params), 0.1)  # score(params, noisy)
        chains = run_chains(key, sampler.step, jax.vmap(sampler.init)(start), 1000)

    ValueError for numbers below 1 (burn-in: 0), a thinning that does not divide `steps`, states
    without an axis of chains, or devices that do not divide the chains; TypeError for a step that
    is no function.

    Args:
      key: one key for all chains.
      step: `(key, state) -> (state, info)` for one chain; `info` has the field `is_finite`.
      states: initial states, a pytree whose leaves have the chains as leading axis.
      steps, burn_in: number of steps after and before the first that may be kept.
      thinning: every how many steps one is kept; divides `steps`.
      collect: `state -> pytree`, what is kept of one chain's state. None keeps nothing.
      chunk: kept steps per compiled loop: at once on the device, and per move of the progress bar.
      devices: chains are split evenly over these; None for all local devices if they divide the
        number of chains, else one.
      progress: the label of a progress bar; None for none.
    """
    check_function(step, "expected step(key, state)", "that of a sampler is sampler.step")
    check_counts(steps=steps, thinning=thinning, chunk=chunk)
    check_counts(0, burn_in=burn_in)
    if steps % thinning:
        raise ValueError(f"thinning must divide the number of steps, got {steps} and {thinning}")
    functions, structure = jax.tree.flatten((as_partial(step), as_partial(collect)))
    carry = start_carry(over_devices(states, devices))
    most = min(chunk, steps // thinning)
    run_chunk = functools.partial(_chunk(structure), most, functions, key)
    parts = []
    with tqdm(total=burn_in + steps, desc=progress, disable=progress is None, unit="step") as bar:
        for start in range(0, burn_in, chunk * thinning):
            stop = min(start + chunk * thinning, burn_in)
            carry, _ = run_chunk(carry, start, 1, stop - start)
            bar.update(stop - start)
        for start in range(burn_in, burn_in + steps, chunk * thinning):
            stop = min(start + chunk * thinning, burn_in + steps)
            places = (stop - start) // thinning
            carry, kept = run_chunk(carry, start, places, thinning)
            first = operator.itemgetter(slice(places))
            parts.append(jax.tree.map(first, jax.device_get(kept)))
            bar.update(stop - start)
    return Chains.of(carry, parts, np.concatenate)


# Few, as each holds what its functions close over.
@functools.lru_cache(maxsize=8)
def _chunk(structure: Any) -> Callable:
    """The compiled loop of `run_chains`; `structure` and `functions` give (step, collect).

    It goes on for `count` steps `places` times, keeping what is collected after each: `most` places
    are allocated, and the others zero. So burn-in and a last, shorter chunk are the same program.
    """

    @functools.partial(jax.jit, static_argnums=0)
    def run_chunk(most, functions, key, carry, start, places, count):
        step, collect = jax.tree.unflatten(structure, functions)

        def collected(states):
            return None if collect is None else jax.vmap(collect)(states)

        def keep(place, so_far):
            carry, kept = so_far
            carry = advance(step, key, carry, start + place * count, count)
            now = collected(carry[0])
            return carry, jax.tree.map(lambda all, one: all.at[place].set(one), kept, now)

        shapes = jax.eval_shape(collected, carry[0])
        kept = jax.tree.map(lambda one: jnp.zeros((most, *one.shape), one.dtype), shapes)
        return jax.lax.fori_loop(0, places, keep, (carry, kept))

    return run_chunk


def start_carry(states: Any) -> Carry:
    """Chains before their first step."""
    count = jax.tree.leaves(states)[0].shape[0]
    return states, jnp.ones(count, bool), jnp.zeros(count, jnp.int32), jnp.zeros(count, jnp.float32)


def advance(step: Step, key: PRNGKey, carry: Carry, start: Array | int, count: Array | int) -> Any:
    """Chains after `count` steps more."""

    def one_step(t, carry):
        states, finite, finite_steps, error = carry
        keys = example_keys(jax.random.fold_in(key, t), 0, len(finite))
        states, info = jax.vmap(step)(keys, states)
        finite = finite & info.is_finite
        now = jnp.asarray(getattr(info, "lanczos_error", 0.0), error.dtype)
        error = jnp.where(finite, jnp.maximum(error, now), error)
        return states, finite, finite_steps + finite.astype(jnp.int32), error

    return jax.lax.fori_loop(start, start + count, one_step, carry)
