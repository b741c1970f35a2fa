"""Data parallelism: the only file that knows `pmap`.

A function mapped with `map_over_devices` runs once per local device, on arrays with a leading
device axis; inside it `mean_over_devices`, `sum_over_devices` and `device_index` speak of all
devices of all processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from hos_jax.types import Array

AXIS = "devices"


def map_over_devices(fn: Callable, *, donate_argnums: Sequence[int] = ()) -> Callable:
    """`fn` compiled to run on every local device; donated arguments give up their memory."""
    return jax.pmap(fn, axis_name=AXIS, donate_argnums=tuple(donate_argnums))


def mean_over_devices(tree: Any) -> Any:
    """The average over all devices, leaf by leaf; inside a mapped function only."""
    return jax.lax.pmean(tree, AXIS)


def sum_over_devices(tree: Any) -> Any:
    """The sum over all devices, leaf by leaf; inside a mapped function only."""
    return jax.lax.psum(tree, AXIS)


def device_index() -> Array:
    """The global index of this device; inside a mapped function only."""
    return jax.lax.axis_index(AXIS)


def _sharding() -> jax.sharding.Sharding:
    mesh = jax.sharding.Mesh(np.asarray(jax.local_devices()), (AXIS,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))


def replicate(tree: Any) -> Any:
    """One copy of every leaf on each local device."""
    count = jax.local_device_count()
    copies = jax.tree.map(
        lambda leaf: np.broadcast_to(np.asarray(leaf), (count, *np.shape(leaf))), tree
    )
    return jax.device_put(copies, _sharding())


def unreplicate(tree: Any) -> Any:
    """The first local device's copy, as NumPy arrays on the host."""
    return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0))[0], tree)


def shard(batch: Any) -> Any:
    """Split this process's batch evenly over its devices: (B, ...) -> (devices, B / devices, ...).

    Raises:
      ValueError: if B is not a multiple of the number of local devices.
    """
    count = jax.local_device_count()

    def split(leaf):
        if leaf.shape[0] % count:
            raise ValueError(f"a batch of {leaf.shape[0]} does not divide over {count} devices")
        return leaf.reshape(count, leaf.shape[0] // count, *leaf.shape[1:])

    return jax.tree.map(split, batch)
