"""Data parallelism over devices and hosts: the only file that knows processes and `pmap`.

A function mapped with `map_over_devices` runs once per device of all processes, on arrays with a
leading axis for the devices of its process.

With several processes each is started with the same command but its own index (`connect`), gives
its own part of every batch to `shard`, and only the first one, of index 0, writes.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import sys
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost as orbax_multihost

from hos_jax.errors import UserError, reason
from hos_jax.models import winograd

AXIS = "devices"
ENVIRONMENT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# Seconds that a process waits for the others: compiling a large network takes many minutes.
PATIENCE = 3600
# By YNN gradients of XLA's convolutions of many channels take up to 5 times as long. Where the
# filtering of `models.winograd` takes their place, YNN is the faster way (benchmarks/README.md).
WITHOUT_YNN = {"xla_cpu_experimental_ynn_fusion_type": ""}
CPU_OPTIONS = {} if winograd.ENABLED else WITHOUT_YNN
_barriers = itertools.count()
# How many processes the run has, which of them this is, and the devices of them all.
process_count, process_index, device_count = jax.process_count, jax.process_index, jax.device_count
# A function compiled to run on every local device; `donate_argnums` give up their memory.
map_over_devices = functools.partial(jax.pmap, axis_name=AXIS)
# Inside of it: average and sum over all devices, leaf by leaf, and which of them this one is.
mean_over_devices = functools.partial(jax.lax.pmean, axis_name=AXIS)
sum_over_devices = functools.partial(jax.lax.psum, axis_name=AXIS)
device_index = functools.partial(jax.lax.axis_index, AXIS)


def connect(
    coordinator: str | None = None,
    processes: int | None = None,
    process_index: int | None = None,
    *,
    detect: bool = False,
    timeout: int = 300,
) -> None:
    """Join the other processes of a run; to be called before anything else of JAX.

    What is not given is read from the environment (`ENVIRONMENT`). With nothing there either the
    run has one process.

    Args:
      coordinator: address:port of process 0, reachable from all.
      processes, process_index: how many there are, and which one this is, from 0.
      detect: ask the cluster (Slurm, Open MPI, Kubernetes, a TPU slice) for what is missing.
      timeout: seconds to wait for the others.

    Raises:
      UserError: if only a part is known, or the processes do not find one another.
    """
    given = zip(ENVIRONMENT, (coordinator, processes, process_index), strict=True)
    known = {name: os.environ.get(name) if value is None else str(value) for name, value in given}
    missing = [name for name, value in known.items() if value is None]
    if not detect:
        if len(missing) == len(ENVIRONMENT):
            return
        if missing:
            raise UserError(
                "several processes need --coordinator, --processes and --process_index, or "
                f"{', '.join(ENVIRONMENT)} in the environment: {', '.join(missing)} is missing"
            )
    try:
        address, *numbers = known.values()
        count, index = (None if value is None else int(value) for value in numbers)
    except ValueError as error:
        raise UserError(f"the number and index of processes must be whole: {error}") from error
    _check_process(address, count, index)
    try:
        jax.distributed.initialize(address, count, index, initialization_timeout=timeout)
    except (RuntimeError, ValueError) as error:
        if address is None and "coordinator_address" in str(error):
            raise UserError(
                "no cluster is found that starts this process (Slurm, Open MPI, Kubernetes, TPU): "
                "give --coordinator, --processes and --process_index, or leave --cluster out"
            ) from error
        raise UserError(
            f"the processes of this run did not find one another: {reason(error)}"
        ) from error


def _check_process(address: str | None, count: int | None, index: int | None) -> None:
    if address is not None and not address.rpartition(":")[2].isdigit():
        raise UserError(f"the coordinator must be given as address:port, got {address!r}")
    if count is not None and count < 1:
        raise UserError(f"the number of processes must be at least 1, got {count}")
    if count is not None and index is not None and not 0 <= index < count:
        raise UserError(f"the process index must be in 0..{count - 1}, got {index}")


def wait_for_all() -> None:
    """Return when every process is here; raise if one ended or did not come within `PATIENCE`.

    Gloo, which connects processes on CPUs, gives up when one comes to a collective operation half
    a minute after another. So this stands where they may come apart: before the first operation,
    where something is compiled, and where the first process works while others wait.
    """
    if process_count() > 1:
        wait = orbax_multihost.get_barrier_sync_fn()
        wait(key=f"hos_jax_{next(_barriers)}", timeout_ms=1000 * PATIENCE)


def leave(status: int) -> None:
    """End this process where there are several; alone, go on.

    Together, and without a wait for threads: after a save that failed Orbax's wait for the other
    processes, and these for this one, for minutes.
    """
    if not jax.distributed.is_initialized():
        return
    # What another one that is gone makes it raise was said already.
    with contextlib.suppress(Exception):
        jax.distributed.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def find_devices() -> None:
    """Let JAX find its devices; UserError where it has none of the kind that it was told to use, or
    another number in each process."""
    try:
        devices = jax.devices()
    # For a kind without its plugin it asserts, and has no words.
    except (RuntimeError, AssertionError) as error:
        told = os.environ.get("JAX_PLATFORMS", "")
        what = " ".join(str(error).split()) or f"there is none of JAX_PLATFORMS={told}"
        raise UserError(f"JAX finds no device: {what}") from error
    counts = np.bincount([device.process_index for device in devices])
    if counts.min() != counts.max():
        listed = ", ".join(map(str, counts))
        raise UserError(f"every process must have the same number of devices, they have {listed}")


def on_cpu() -> bool:
    """Whether the devices are CPUs."""
    return jax.default_backend() == "cpu"


def from_first_process(make: Callable[[], Any], template: Callable[[], Any]) -> Any:
    """What `make()` returns in the first process, in every process; the others do not call it.

    They call `template()`, arrays of that structure and those shapes and dtypes, abstract or not.

    Raises:
      UserError: in the other processes, if `make` raised anything in the first one.
    """
    if process_count() == 1:
        return make()
    value, failure = None, None
    if process_index() == 0:
        try:
            value = make()
        except Exception as error:
            failure = error
    wait_for_all()
    failed = multihost_utils.broadcast_one_to_all(np.int32(failure is not None))
    if failure is not None:
        raise failure
    if failed:
        raise UserError("the first process stopped; its message says why")
    if value is None:
        value = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), template())
    return multihost_utils.broadcast_one_to_all(value)


def in_first_process(act: Callable[..., Any], *arguments: Any) -> None:
    """Let the first process act; the others wait, and raise UserError where it fails."""
    from_first_process(functools.partial(act, *arguments), lambda: None)


def check_agreement(what: str, content: Any) -> None:
    """Raise UserError in every process if one has other content, of JSON types, than the first."""
    if process_count() == 1:
        return
    wait_for_all()
    checksum = zlib.crc32(json.dumps(content, sort_keys=True).encode()) >> 1
    everyone = multihost_utils.process_allgather(np.int32(checksum))
    different = np.flatnonzero(everyone != everyone[0])
    if len(different):
        raise UserError(
            f"processes 0 and {', '.join(map(str, different))} differ in {what}: start all with "
            "the same arguments"
        )


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; all of them have to ask at the same step."""
    if process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.bool_(flag))))


def compile_for(mapped: Any, *arguments: Any) -> Any:
    """A mapped function compiled for arguments of these shapes, to be called with such alone."""
    if process_count() > 1 or jax.config.jax_disable_jit:  # type: ignore[attr-defined]
        # A compiled `pmap` compares the shapes of all processes with those of one, and refuses:
        # the first call compiles.
        return mapped
    lowered = mapped.lower(*arguments)
    if not on_cpu():
        return lowered.compile()
    try:
        return lowered.compile(compiler_options=CPU_OPTIONS)
    except RuntimeError as error:
        if "INVALID_ARGUMENT" not in str(error):  # else the option is another version's
            raise
        return lowered.compile()


def replicate(tree: Any) -> Any:
    """One copy of every leaf on each local device."""
    mesh = jax.sharding.Mesh(np.asarray(jax.local_devices()), (AXIS,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))
    copies = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (mesh.size, *np.shape(leaf))), tree)
    return jax.device_put(copies, sharding)


def unreplicate(tree: Any) -> Any:
    """The first local device's copy, as NumPy arrays on the host."""
    return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0))[0], tree)


def shard(batch: Any, axis: int = 0) -> Any:
    """This process's part of a batch, split evenly over its devices: (B, ...) -> (devices, ...).

    The examples lie along `axis`; the devices' axis comes first whichever it is. The parts of all
    processes, in the order of their indices, are the global batch. ValueError if a part does not
    divide evenly.
    """
    count = jax.local_device_count()
    return jax.tree.map(lambda leaf: np.stack(np.split(np.asarray(leaf), count, axis)), batch)
