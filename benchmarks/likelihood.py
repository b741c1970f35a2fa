r"""Likelihood of held-out images by the trace of s2, by autodiff's exact divergence, and by probes.

    python benchmarks/likelihood.py --run runs/annealed [--images 8] [--json PATH]

Needs a run of many noise levels with a second-order head. Each way solves the same ODE from the
same noisy images: bits per dimension (mean, and the mean absolute difference from the exact
divergence), the standard error of probes, evaluations of the model, seconds of all images in one
compiled call. An evaluation of the exact divergence is D products with the derivative of s1.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import jax
import numpy as np
from measure import Compiled

from hos_jax import pointwise
from hos_jax.evaluation import likelihood as of_run
from hos_jax.files import write_atomically
from hos_jax.noise import example_keys, stream_key
from hos_jax.training.runs import load_run
from hos_jax.uncertainty import bound, likelihood


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
    run = load_run(options.run)
    problem, model = run.problem, run.problem.config.model
    clean, width = of_run.dequantized(problem, options.images)
    dim, end = clean.shape[1], of_run.law_at_largest(problem)
    floor = of_run.smallest_variance(problem, width)
    keys = example_keys(stream_key("likelihood", problem.config.seed, 1), 0, len(clean))

    def encode(params, clean, key):
        derivatives_fn = of_run.make_derivatives_fn(problem, params)
        return bound.encode(key, clean, derivatives_fn, model.smallest_noise, floor=floor)

    encoding = jax.jit(jax.vmap(encode, (None, 0, 0)))(run.params, clean, keys)

    def way(make):
        def one(params, noisy, key):
            return likelihood.log_likelihood(
                noisy,
                make(params, key),
                model.smallest_noise,
                model.largest_noise,
                end,
                rtol=options.tolerance,
                atol=options.tolerance,
            )

        return Compiled(jax.vmap(one, (None, 0, 0)), run.params, encoding.noisy, keys)

    def score_fn(params):
        return pointwise.score_fn(problem.model, params, None, problem.data.image_shape)

    def of_trace(params, _):
        return likelihood.structured_trace_fn(of_run.make_derivatives_fn(problem, params))

    def of_probes(count):
        return lambda params, key: likelihood.hutchinson_trace_fn(
            key, score_fn(params), dim, probes=count
        )

    def of_autodiff(params, _):
        return likelihood.exact_trace_fn(score_fn(params), chunk_size=options.chunk)

    ways = {"trace of s2": of_trace}
    ways |= {f"probes: {count}": of_probes(count) for count in options.probes}
    if not options.without_exact:
        ways["exact divergence"] = of_autodiff
    found, rows = {}, []
    for name, make in ways.items():
        compiled = way(make)
        # The exact divergence takes minutes: timed once, as compiling is apart.
        begun = time.perf_counter()
        result = jax.device_get(compiled.run())
        seconds = time.perf_counter() - begun
        nats = encoding.cost - result.log_density
        found[name] = np.asarray(likelihood.bits_per_dim(-nats, dim, width))
        rows.append(
            {
                "way": name,
                "bits_per_dim": float(found[name].mean()),
                "probe_error": float(result.standard_error.mean() / dim / np.log(2)),
                "evaluations": float(result.evaluations.mean()),
                "seconds": seconds,
                "images": len(clean),
            }
        )
    reference = found.get("exact divergence")
    print(f"{'way':<18}{'bits/dim':>10}{'off':>10}{'probes +-':>11}{'passes':>8}{'seconds':>9}")
    for row in rows:
        off = None
        if reference is not None:
            off = row["off"] = float(np.abs(found[row["way"]] - reference).mean())
        shown = "" if off is None else f"{off:.4f}"
        print(
            f"{row['way']:<18}{row['bits_per_dim']:>10.4f}{shown:>10}{row['probe_error']:>11.4f}"
            f"{row['evaluations']:>8.0f}{row['seconds']:>9.2f}"
        )
    if options.json:
        write_atomically(options.json, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
