"""Chains over several devices: the only file of the samplers that knows devices."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def over_devices(states: Any, devices: list[Any] | None = None) -> Any:
    """The states, a pytree of leaves (chains, ...), with their chains split evenly over devices, or
    over all local ones if they divide the number of chains, else one.

    ValueError for given devices that do not divide the number of chains, or states without one.
    """
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(states)]
    if len({shape[:1] for shape in shapes}) != 1 or not all(shapes):
        raise ValueError(f"expected states of shape (chains, ...), got the shapes {shapes}")
    count = shapes[0][0]
    if devices is None:
        devices = jax.local_devices()
        if count % len(devices):
            devices = devices[:1]
    if not devices or count % len(devices):
        raise ValueError(f"{count} chains cannot be split evenly over {len(devices)} devices")
    mesh = Mesh(np.array(devices), ("chains",))
    return jax.device_put(states, NamedSharding(mesh, PartitionSpec("chains")))
