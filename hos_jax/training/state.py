"""Everything that a training step changes, and how the optimizer changes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from hos_jax.training import parallel
from hos_jax.types import Array


@flax.struct.dataclass
class TrainState:
    """State of a run; restoring it and the config makes the run go on bit for bit.

    Attributes:
      step: number of steps taken, int32.
      params: parameters of the model.
      ema_params: exponential moving average of `params`, or None without one; see `ema_decay`.
      opt_state: state of the optimizer, which sees all parameters as one vector.
      first_nonfinite_step: the first step whose loss or gradient was not finite, or -1.
    """

    step: Array
    params: Any
    ema_params: Any
    opt_state: Any
    first_nonfinite_step: Array

    @property
    def best_params(self) -> Any:
        """The averaged parameters where there are some: what evaluation uses."""
        return self.params if self.ema_params is None else self.ema_params


def init_state(
    params: Any, optimizer: optax.GradientTransformation, ema: float, step: int = 0
) -> TrainState:
    """The state before the first step, or, of parameters from elsewhere, after `step` steps: there
    the learning rate is, while nothing is known of gradients."""
    opt_state = optimizer.init(ravel_pytree(params)[0])
    if step:

        def is_of_schedule(path: Any, _: Any) -> bool:
            return getattr(path[-1], "tuple_name", "") == "ScaleByScheduleState"

        count = jnp.asarray(step, jnp.int32)
        opt_state = optax.tree_utils.tree_set(opt_state, is_of_schedule, count=count)
    return TrainState(
        step=jnp.full((), step, jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params) if ema else None,
        opt_state=opt_state,
        first_nonfinite_step=jnp.full((), -1, jnp.int32),
    )


def ema_decay(ema: float, step: Array) -> Array:
    """What the average keeps of itself after `step` steps: min(ema, (10 + step) / (20 + step)).

    It reaches back over 2 + step / 10 steps at most, so that in a run shorter than 1 / (1 - ema)
    it is of the last tenth, and not of the network that training started from.
    """
    step = step.astype(jnp.float32)
    return jnp.minimum(ema, (10.0 + step) / (20.0 + step))


def _splitting(tree: Any, step: Array) -> Callable[[Array], Any]:
    """The function that cuts a vector of all parameters into arrays like those of a tree."""
    # On a CPU, XLA compiles equal loops once. These are equal where shapes are, if the places to
    # cut at are data: each is the first of two numbers, as a single one would be written into its
    # loop, in a sum with the part of the step below zero, which XLA does not know to be none.
    zero = jnp.minimum(step, 0) if parallel.on_cpu() else 0
    leaves, structure = jax.tree.flatten(tree)
    starts = np.cumsum([0, *(leaf.size for leaf in leaves)])[:-1]
    places = [(jnp.asarray([start, 0], jnp.int32) + zero)[0] for start in starts.tolist()]

    def split(vector: Array) -> Any:
        return jax.tree.unflatten(
            structure,
            [
                jax.lax.dynamic_slice(vector, (place,), (leaf.size,), allow_negative_indices=False)
                .reshape(leaf.shape)
                .astype(leaf.dtype)
                for leaf, place in zip(leaves, places, strict=True)
            ],
        )

    return split


def apply_gradients(
    state: TrainState,
    gradients: Any,
    loss: Array,
    optimizer: optax.GradientTransformation,
    ema: float,
) -> tuple[TrainState, dict[str, Array]]:
    """One optimizer step; returns the new state and the norms worth logging.

    The gradients are a tree like the parameters or one vector of them all, as `ravel_pytree` makes.
    From the first non-finite loss or gradient on, parameters stay as they are, so that the state
    remains worth keeping while the host finds out.
    """
    # As one vector: a few fused loops over all parameters, where hundreds of small arrays would
    # make the compiler emit a dozen loops for each. (`optax.flatten` hands back a tree, and the
    # averages and norms are then loops of their own: 4.7 against 3.1 ms at the demo's size.)
    flat_gradients, _ = ravel_pytree(gradients)
    flat_params, _ = ravel_pytree(state.params)
    split = _splitting(state.params, state.step)
    # The optimizer needs parameters for the decay alone, and norms and biases do not decay.
    kernels = jax.tree.map(lambda p: p if p.ndim > 1 else jnp.zeros_like(p), state.params)
    flat_kernels, _ = ravel_pytree(kernels)
    # optax itself adds integers to Python's floats.
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = optimizer.update(flat_gradients, state.opt_state, flat_kernels)
    new_params = optax.apply_updates(flat_params, updates)
    gradient_norm = jnp.linalg.norm(flat_gradients)
    earlier = state.first_nonfinite_step
    finite = jnp.isfinite(gradient_norm) & jnp.isfinite(loss) & (earlier < 0)
    first_nonfinite = jnp.where(finite | (earlier >= 0), earlier, state.step)
    norms = {
        "norm/gradient": gradient_norm,
        "norm/update": jnp.linalg.norm(updates),
        "norm/parameters": jnp.linalg.norm(new_params),
    }
    ema_params = None
    if state.ema_params is not None:
        flat_ema, _ = ravel_pytree(state.ema_params)
        change = (1.0 - ema_decay(ema, state.step)).astype(flat_ema.dtype)
        new_ema = optax.incremental_update(new_params, flat_ema, change)
        ema_params = split(jnp.where(finite, new_ema, flat_ema))
    new_state = TrainState(
        step=state.step + 1,
        params=split(jnp.where(finite, new_params, flat_params)),
        ema_params=ema_params,
        opt_state=jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), opt_state, state.opt_state
        ),
        first_nonfinite_step=first_nonfinite,
    )
    return new_state, norms


def make_optimizer(optim: Any, steps: int) -> optax.GradientTransformation:
    """Adam with gradient clipping and a learning-rate schedule.

    Args:
      optim: has lr, schedule ("constant", or "cosine" down to final_lr), warmup (steps), beta1,
        beta2, eps, weight_decay and clip (largest gradient norm, 0 for none).
      steps: length of the run, for the cosine schedule.
    """
    warmup = min(optim.warmup, steps)
    rest = optax.constant_schedule(optim.lr)
    if optim.schedule == "cosine":
        lowest = optim.final_lr / optim.lr
        rest = optax.cosine_decay_schedule(optim.lr, max(steps - warmup, 1), alpha=lowest)
    schedule = rest
    if warmup:
        schedule = optax.join_schedules([lambda t: optim.lr * (t + 1) / warmup, rest], [warmup])
    # The chain has the same state whatever the settings, so that a run can resume with others.
    clip = optax.clip_by_global_norm(optim.clip) if optim.clip else optax.identity()
    adam = optax.adamw(
        schedule, optim.beta1, optim.beta2, optim.eps, weight_decay=optim.weight_decay
    )
    return optax.chain(clip, adam)
