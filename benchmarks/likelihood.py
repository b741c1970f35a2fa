r"""Likelihood of held-out images by the trace of s2, by autodiff's exact divergence, and by probes.

    python benchmarks/likelihood.py --run runs/annealed [--images 8] [--json PATH]

Needs a run of many noise levels with a second-order head. Each way solves the flow ODE from the
same noisy images, "calibrated" with the trace set right by level (`likelihood.trace_ratios`): bits
per dimension (mean; "off" is the mean absolute difference from the exact divergence), the standard
error by probes, passes (evaluations of the slope; each of the exact divergence is D products with
the derivative of s1), and seconds of all images in one compiled call, timed once, without
compiling.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from measure import Compiled

from hos_jax import pointwise
from hos_jax.evaluation import likelihood as of_run
from hos_jax.files import write_atomically
from hos_jax.noise import example_keys, stream_key
from hos_jax.training.problem import Problem
from hos_jax.training.runs import load_run
from hos_jax.uncertainty import bound, likelihood

EXACT = "exact divergence"


def ways_of(
    problem: Problem, ratios: Any, probes: list[int], chunk: int, exact: bool
) -> dict[str, Callable]:
    """`make(params, key)` of the function that gives s1 and its trace, by name."""
    dim = int(np.prod(problem.data.image_shape))

    def score_fn(params: Any) -> Callable:
        return pointwise.score_fn(problem.model, params, None, problem.data.image_shape)

    def by_probes(count: int) -> Callable:
        return lambda params, key: likelihood.hutchinson_trace_fn(
            key, score_fn(params), dim, probes=count
        )

    def by_trace(params: Any, _: Any) -> Callable:
        return likelihood.structured_trace_fn(of_run.make_derivatives_fn(problem, params))

    def by_autodiff(params: Any, _: Any) -> Callable:
        return likelihood.exact_trace_fn(score_fn(params), chunk_size=chunk)

    def by_ratios(params: Any, _: Any) -> Callable:
        derivatives_fn = of_run.make_derivatives_fn(problem, params)
        return likelihood.calibrated_trace_fn(derivatives_fn, *ratios)

    ways = {"trace of s2": by_trace, "the same, calibrated": by_ratios}
    ways |= {f"{count} probe{'s' * (count > 1)}": by_probes(count) for count in probes}
    return ways | ({EXACT: by_autodiff} if exact else {})


def measure(run: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each way."""
    problem, model = run.problem, run.problem.config.model
    clean, width = of_run.dequantized(problem, options.images)
    dim, end = clean.shape[1], of_run.law_at_largest(problem)
    floor = of_run.smallest_variance(problem, width)
    keys = example_keys(stream_key("likelihood", problem.config.seed, 1), 0, len(clean))

    def encode(params: Any, clean: jax.Array, key: jax.Array) -> bound.Encoding:
        derivatives_fn = of_run.make_derivatives_fn(problem, params)
        return bound.encode(key, clean, derivatives_fn, model.smallest_noise, floor=floor)

    encoding = jax.jit(jax.vmap(encode, (None, 0, 0)))(run.params, clean, keys)
    levels, tolerance = (model.smallest_noise, model.largest_noise), options.tolerance
    found, rows = {}, []
    ratios = of_run.measured_ratios(problem, run.params)
    print(
        "confirmed of tr C, by level:", *(f"{s:.2g}: {r:.3f}" for s, r in zip(*ratios, strict=True))
    )
    exact = not options.without_exact
    for name, make in ways_of(problem, ratios, options.probes, options.chunk, exact).items():

        def one(params: Any, noisy: jax.Array, key: jax.Array, make: Callable = make) -> Any:
            return likelihood.log_likelihood(
                noisy, make(params, key), *levels, end, rtol=tolerance, atol=tolerance
            )

        compiled = Compiled(jax.vmap(one, (None, 0, 0)), run.params, encoding.noisy, keys)
        begun = time.perf_counter()
        result = jax.device_get(compiled.run())
        seconds = time.perf_counter() - begun
        nats = encoding.cost - result.log_density
        found[name] = np.asarray(likelihood.bits_per_dim(-nats, dim, width))
        spread = float(result.standard_error.mean() / dim / np.log(2))
        rows.append(
            {
                "way": name,
                "bits_per_dim": float(found[name].mean()),
                # A single probe has none.
                "probe_error": spread if np.isfinite(spread) else None,
                "passes": float(result.evaluations.mean()),
                "seconds": seconds,
                "images": len(clean),
                "training_steps": run.step,
                "tolerance": tolerance,
            }
        )
        print(name, rows[-1]["bits_per_dim"], f"{seconds:.2f} s", flush=True)
    for row in rows if EXACT in found else ():
        row["off"] = float(np.abs(found[row["way"]] - found[EXACT]).mean())
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--probes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--chunk", type=int, default=28, help="tangents at once, exact divergence")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--without_exact", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = measure(load_run(options.run), options)
    print(f"\n{'way':<22}{'bits/dim':>10}{'off':>9}{'probes +-':>11}{'passes':>8}{'seconds':>9}")
    for row in rows:
        off = f"{row['off']:.4f}" if "off" in row else ""
        spread = "" if row["probe_error"] is None else f"{row['probe_error']:.4f}"
        print(
            f"{row['way']:<22}{row['bits_per_dim']:>10.4f}{off:>9}{spread:>11}"
            f"{row['passes']:>8.0f}{row['seconds']:>9.2f}"
        )
    if options.json:
        write_atomically(options.json, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
