r"""Cost of one Ozaki step against one Langevin step of the same network, by structure of s2.

    python benchmarks/sampler_step_cost.py [--json PATH] [--chains 64] [--ngf 16] [--rank 16]

One shared trunk gives s1 and s2 in one pass. Both samplers run in the same process on the same
chains, alternately, and the ratio is the median over the repetitions. Images of 28 x 28.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from chain_timing import make_loop
from measure import device_name

from hos_jax import pointwise
from hos_jax.files import write_atomically
from hos_jax.models.heads import SecondOrderHead
from hos_jax.models.score_model import ScoreModel
from hos_jax.models.unet import UNet
from hos_jax.samplers import langevin, ozaki

SHAPE, SIGMA = (28, 28, 1), 0.5


def make_loops(structure: str, krylov_vectors: int, options) -> dict:
    """A compiled loop of `options.steps` steps for each sampler, on the same chains."""
    network = functools.partial(UNet, features=options.ngf, multipliers=(1, 2, 2))
    model = ScoreModel(network, SecondOrderHead(structure, options.rank), networks="shared")
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *SHAPE)), SIGMA)

    score_fn = pointwise.score_fn(model, params, SIGMA, SHAPE)
    derivatives_fn = pointwise.derivatives_fn(model, params, SIGMA, SHAPE)
    samplers = {
        "langevin": langevin.as_top_level_api(score_fn, 0.05),
        "ozaki": ozaki.as_top_level_api(derivatives_fn, 0.05, krylov_vectors=krylov_vectors),
    }
    start = jax.random.normal(jax.random.key(1), (options.chains, int(np.prod(SHAPE))))

    def loop_of(sampler):
        states = jax.jit(jax.vmap(sampler.init))(start)
        return make_loop(sampler, states, options.steps)

    return {name: loop_of(sampler) for name, sampler in samplers.items()}


def measure(structure: str, krylov_vectors: int, options) -> dict:
    """Milliseconds per step and chain, and the ratio."""
    loops = make_loops(structure, krylov_vectors, options)
    seconds = {name: [] for name in loops}
    for repetition in range(options.repeats + 1):
        for name, loop in loops.items():
            begun = time.perf_counter()
            loop()
            if repetition:
                seconds[name].append(time.perf_counter() - begun)
    ratio = np.median(np.array(seconds["ozaki"]) / np.array(seconds["langevin"]))
    per_step = 1000.0 / (options.steps * options.chains)
    return {
        "device": device_name(),
        "head": structure,
        "krylov_vectors": krylov_vectors if structure == "low_rank" else None,
        "langevin_ms": float(np.median(seconds["langevin"])) * per_step,
        "ozaki_ms": float(np.median(seconds["ozaki"])) * per_step,
        "ratio": float(ratio),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--chains", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--ngf", type=int, default=16)
    parser.add_argument("--rank", type=int, default=16)
    options = parser.parse_args()
    rows = []
    print(f"{options.chains} chains, {options.ngf} channels, {device_name()}")
    print(f"{'head':<12}{'Krylov':>7}{'Langevin ms':>13}{'Ozaki ms':>11}{'ratio':>8}")
    for structure, krylov_vectors in (("diagonal", 2), ("low_rank", 5), ("low_rank", 10)):
        row = measure(structure, krylov_vectors, options)
        rows.append(row)
        print(
            f"{row['head']:<12}{row['krylov_vectors'] or '-':>7}{row['langevin_ms']:>13.4f}"
            f"{row['ozaki_ms']:>11.4f}{row['ratio']:>8.2f}",
            flush=True,
        )
    if options.json:
        write_atomically(options.json, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
