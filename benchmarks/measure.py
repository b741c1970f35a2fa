"""What the benchmarks of cost share: compiling, timing side by side, rows that outlive a kill."""

from __future__ import annotations

import collections
import gzip
import json
import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hos_jax.files import write_atomically


class Compiled:
    """A function compiled for given arguments, ready to be timed.

    Attributes:
      run: calls it and waits for the result.
      temporary_bytes: what XLA plans beside arguments and results.
      output_bytes: the results.
      compile_seconds: what tracing and compiling took.
    """

    def __init__(self, fn: Callable, *arguments: Any):
        begun = time.perf_counter()
        compiled = jax.jit(fn).lower(*arguments).compile()
        self.compile_seconds = time.perf_counter() - begun
        memory = compiled.memory_analysis()
        self.temporary_bytes = int(memory.temp_size_in_bytes)
        self.output_bytes = int(memory.output_size_in_bytes)
        self.run = lambda: jax.block_until_ready(compiled(*arguments))

    @property
    def bytes(self) -> int:
        """Memory above the arguments: temporary arrays and results."""
        return self.temporary_bytes + self.output_bytes


def seconds_side_by_side(
    runs: dict[str, Callable[[], Any]], *, repeats: int, budget: float = 5.0
) -> dict[str, list[float]]:
    """Seconds of every function, called in turn so that a slow moment of the machine hits all.

    Each is called once before. A function that takes much of `budget` seconds is called less often,
    at least once; a fast one as often as 100 ms need within one repetition, after a call that does
    not count, as the caches are full of what was called before it; its mean counts.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    once = {}
    for name, run in runs.items():
        run()
        begun = time.perf_counter()
        run()
        once[name] = time.perf_counter() - begun
    for repetition in range(repeats):
        for name, run in runs.items():
            if repetition and repetition * once[name] > budget:
                continue
            calls = int(np.clip(0.1 / once[name], 1, 100))
            if calls > 1:
                run()
            begun = time.perf_counter()
            for _ in range(calls):
                run()
            seconds[name].append((time.perf_counter() - begun) / calls)
    return seconds


def matmul_rate(dtype: str = "float32") -> float:
    """GFLOP/s of a square product on this machine now, the best of three: 2048 x 2048 on a CPU,
    8192 x 8192 on an accelerator, of random numbers.
    """
    size = 2048 if jax.default_backend() == "cpu" else 8192
    square = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(lambda a: a @ a)
    found = seconds_side_by_side({"": lambda: product(square).block_until_ready()}, repeats=3)
    return 2 * size**3 / min(found[""]) / 1e9


def operation_shares(folder: Path, most: int = 15) -> dict[str, float]:
    """What an accelerator was busy with in a trace that `jax.profiler.trace` wrote with
    `create_perfetto_trace`: the share of the time that it was idle, and that of each kind of
    kernel, the `most` largest first.
    """
    path = max(folder.rglob("perfetto_trace.json.gz"))
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    streams = {
        (event["pid"], event["tid"])
        for event in events
        if event.get("name") == "thread_name" and event["args"]["name"].startswith("Stream")
    }
    spent: collections.Counter[str] = collections.Counter()
    edges = []
    for event in events:
        if event.get("ph") == "X" and (event["pid"], event["tid"]) in streams:
            spent[re.sub(r"([._]\d+)+$", "", event["name"])] += event["dur"]
            edges += [event["ts"], event["ts"] + event["dur"]]
    whole = max(edges) - min(edges) if edges else 1.0
    shares = {name: duration / whole for name, duration in spent.most_common(most)}
    return {f"idle, between {len(edges) // 2} kernels": 1.0 - sum(spent.values()) / whole, **shares}


def device_name() -> str:
    """The device that JAX computes on: its kind, and for a CPU the processor's own name."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{len(jax.devices())} x {device.device_kind}"
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.is_file() else []:
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    return f"{len(os.sched_getaffinity(0))} cores of {name}"


def random_tree(abstract: Any) -> Any:
    """Parameters of a Flax model, or a state with such, of the size that initializers give, without
    minutes of compiling these; what is no kernel, scale or embedding is 0.
    """
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = str(getattr(path[-1], "key", ""))
        if name == "scale":
            return jnp.ones(leaf.shape, leaf.dtype)
        if name not in ("kernel", "embedding"):
            return jnp.zeros(leaf.shape, leaf.dtype)
        std = np.prod(leaf.shape[:-1]) ** -0.5
        return jnp.asarray(std * rng.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract)


def growth_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of log(value) over log(size), by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


class Rows:
    """Rows of a table that are written as they are finished; a rerun skips those that are there.

    Args:
      path: a JSON file, or None to keep them in memory alone.
      key: the columns that tell rows apart.
      settings: what all rows must have in common; rows of other settings in the file are refused.
    """

    def __init__(self, path: Path | None, key: Sequence[str], settings: dict[str, Any]):
        self.path, self.key = path, tuple(key)
        self.settings = json.loads(json.dumps(settings))
        self.rows: list[dict] = []
        if path is not None and path.is_file():
            self.rows = json.loads(path.read_text())
        if any(row["settings"] != self.settings for row in self.rows):
            raise SystemExit(f"{path} has rows of other settings: choose another file")

    def find(self, **key: Any) -> dict | None:
        """The row of this key, or None."""
        for row in self.rows:
            if all(row[name] == key[name] for name in self.key):
                return row
        return None

    def add(self, row: dict) -> dict:
        """Keep a row, in the file too, in place of one of the same key."""
        row = {**row, "settings": self.settings}
        same = self.find(**{name: row[name] for name in self.key})
        self.rows = [kept for kept in self.rows if kept is not same] + [row]
        if self.path is not None:
            text = "[\n" + ",\n".join(json.dumps(row) for row in self.rows) + "\n]\n"
            write_atomically(self.path, text)
        return row
