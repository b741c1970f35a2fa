r"""Time and memory of the posterior of one image, by its size: the variance map and 5 directions.

    python benchmarks/posterior_cost.py [--json PATH] [--ngf 16] [--rank 20] [--head low_rank]

The U-Net of the demo with a shared trunk, at random parameters (the work does
not depend on them). `network`: one forward pass, s1 alone. `map`: the denoised image and the
variance of each value. `directions`: the 5 directions of largest variance too, by Lanczos.
`autodiff`: the same 5 from products with the Jacobian of s1. Median seconds of interleaved runs;
memory is what XLA plans beside parameters and image. e is the exponent of growth, seconds ~ D^e,
bytes ~ D^e, by least squares.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from measure import Compiled, Rows, device_name, growth_exponent, matmul_rate, seconds_side_by_side

from hos_jax import autodiff, pointwise
from hos_jax.models.heads import STRUCTURES, SecondOrderHead
from hos_jax.models.score_model import ScoreModel
from hos_jax.models.unet import UNet

SIZES = ((28, 28, 1), (32, 32, 3), (64, 64, 3), (256, 256, 3))
DIRECTIONS, SIGMA = 5, 0.5
WORK = ("network", "map", "directions", "autodiff")


def programs(shape: tuple[int, int, int], options) -> dict[str, Compiled]:
    """The compiled programs for one image of a shape."""
    network = functools.partial(UNet, features=options.ngf, multipliers=(1, 2, 2))
    head = SecondOrderHead(options.head, options.rank)
    model = ScoreModel(network, head, networks="shared")
    noisy = jax.random.normal(jax.random.key(1), (int(np.prod(shape)),))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *shape)), SIGMA)

    def score1(params, noisy):
        return pointwise.score_fn(model, params, SIGMA, shape)(noisy)

    def posterior(params, noisy):
        return pointwise.posterior_fn(model, params, SIGMA, shape)(noisy)

    def variance_map(params, noisy):
        found = posterior(params, noisy)
        return found.mean, found.diagonal()

    def directions(params, noisy):
        found = posterior(params, noisy)
        return found.mean, found.diagonal(), found.top_eigenpairs(DIRECTIONS)

    def by_autodiff(params, noisy):
        return autodiff.posterior_eigenpairs(
            jax.random.key(0),
            functools.partial(score1, params),
            noisy,
            SIGMA,
            count=DIRECTIONS,
            krylov_vectors=30,
        )

    functions = dict(zip(WORK, (score1, variance_map, directions, by_autodiff), strict=True))
    return {name: Compiled(fn, params, noisy) for name, fn in functions.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--ngf", type=int, default=16)
    parser.add_argument("--rank", type=int, default=20)
    parser.add_argument("--head", default="low_rank", choices=STRUCTURES[:-1])
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    settings = {"ngf": options.ngf, "rank": options.rank, "device": device_name()}
    if options.head != "low_rank":
        settings["head"] = options.head
    rows = Rows(options.json, ("shape", "work"), settings)
    print(f"{device_name()}, {matmul_rate():.0f} GFLOP/s, JAX {jax.__version__}")
    print(f"{'image':<14}{'work':<12}{'ms':>10}{'MB':>10}")
    for shape in SIZES:
        name = " x ".join(map(str, shape))
        if rows.find(shape=name, work=WORK[-1]) is None:
            compiled = programs(shape, options)
            runs = {work: program.run for work, program in compiled.items()}
            seconds = seconds_side_by_side(runs, repeats=options.repeats, budget=20.0)
            for work, program in compiled.items():
                rows.add(
                    {
                        "shape": name,
                        "dim": int(np.prod(shape)),
                        "work": work,
                        "seconds": float(np.median(seconds[work])),
                        "bytes": program.bytes,
                    }
                )
        for work in WORK:
            row = rows.find(shape=name, work=work)
            numbers = f"{1e3 * row['seconds']:>10.1f}{row['bytes'] / 1e6:>10.1f}"
            print(f"{name:<14}{work:<12}{numbers}", flush=True)
    for work in WORK:
        found = [row for row in rows.rows if row["work"] == work]
        sizes = [row["dim"] for row in found]
        time_growth = growth_exponent(sizes, [row["seconds"] for row in found])
        memory_growth = growth_exponent(sizes, [row["bytes"] for row in found])
        print(
            f"{'growth':<14}{work:<12}{'e =':>6}{time_growth:>5.2f}{'e =':>6}{memory_growth:>5.2f}"
        )


if __name__ == "__main__":
    main()
