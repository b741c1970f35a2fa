r"""Local dimension, errors of denoising without the truth, and noise levels, against the truth.

    python benchmarks/dimension.py [--json PATH]
    python benchmarks/dimension.py --run RUN [--json PATH]

Without a run: planes and unit spheres of 2, 4 and 8 dimensions in R^10 and R^100 (`manifolds.py`)
at `--sigma`. Means over fresh points of tr C at noisy points and of FLIPD at clean ones, by exact
scores, by heads that `hos_jax.fit` learned beside the exact s1 and beside a learned s1, and by the
derivative of the learned s1; and what is used on samples without noise: the maximum likelihood
estimate of Levina and Bickel (20 neighbours) and TwoNN (Facco et al. 2017), of 4,000 samples.

With a run of digits, of many noise levels: tr C of held-out digits beside these estimates; SURE
and sigma^2 tr C against the true squared error; the most likely noise level against that of
wavelets (the median of the finest Haar details).
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import manifolds
import numpy as np
from measure import Rows
from sklearn.neighbors import NearestNeighbors

from hos_jax import autodiff, fit, models, pointwise, tweedie
from hos_jax.evaluation import likelihood as of_run
from hos_jax.training.runs import load_run
from hos_jax.uses import dimension

NEIGHBOURS = 20
DIGIT_LEVELS = (0.1, 0.25, 0.5, 1.0)
AT_ONCE = 12
SCALED = "sigma^2 tr C, scaled by the mean of SURE"
PARTS = ("errors", "levels")


def by_neighbours(points: np.ndarray) -> tuple[np.ndarray, float]:
    """The maximum likelihood estimate at each point (Levina, Bickel 2004), and TwoNN of all."""
    search = NearestNeighbors(n_neighbors=NEIGHBOURS + 1).fit(points)
    reach = np.maximum(search.kneighbors(points)[0][:, 1:], 1e-12)
    local = (NEIGHBOURS - 2) / np.sum(np.log(reach[:, -1:] / reach[:, :-1]), axis=1)
    ratios = np.log(reach[:, 1] / reach[:, 0])
    return local, float(1.0 / np.mean(ratios))


def totals(
    key: jax.Array, clean: jax.Array, derivatives_fn: Callable, sigma: float
) -> dict[str, float]:
    """Means of tr C at noisy points and of FLIPD at clean ones."""

    def flipd(x: jax.Array) -> jax.Array:
        score1, score2 = derivatives_fn(x, sigma)
        covariance = tweedie.scaled_covariance(score2, sigma)
        return jnp.sum(dimension.flipd_map(score1, covariance, sigma))

    def noisy(key: jax.Array, x: jax.Array) -> jax.Array:
        return dimension.local_dimension(key, x, derivatives_fn, sigma, draws=1).total

    found = jax.jit(jax.vmap(noisy))(jax.random.split(key, len(clean)), clean)
    return {
        "trace": float(jnp.mean(found)),
        "flipd": float(jnp.mean(jax.jit(jax.vmap(flipd))(clean))),
    }


def learned(kind: manifolds.Manifold, d: int, dim: int, options: Any) -> dict[str, Callable]:
    """`derivatives_fn` of learned heads, beside the exact s1 and beside a learned one, and of the
    learned s1 and its derivative."""
    network = functools.partial(models.MLP, features=options.features)
    settings, sigma = {"dim": dim, "steps": options.steps}, options.sigma
    # With nearly all of y skipped, the network gives the clean point, not the noise of R^D.
    first = models.ScoreModel(network, data_std=options.data_std)
    params = jax.jit(
        lambda key: fit.fit_score(key, first, kind.sample, sigma, batch_size=256, **settings)
    )(jax.random.key(1))
    learned_fn = pointwise.score_fn(first, params, sigma)

    def exact_fn(noisy: jax.Array) -> jax.Array:
        return kind.derivatives_fn(noisy, sigma)[0]

    def with_head(score_fn: Callable, seed: int) -> Callable:
        # Unconstrained: C = I + S with S = -I + U U^T is what a plane has. The positive head keeps
        # a little variance in each of the D directions, which adds up in the trace.
        head = models.SecondOrderHead("low_rank", rank=2 * d, positive_definite=False)
        second = models.HessianModel(network, head)
        hessian_fn = fit.train_second_order(
            jax.random.key(seed), score_fn, second, kind.sample, sigma, **settings
        )
        return lambda noisy, _: (score_fn(noisy), hessian_fn(noisy))

    hessian_fn = autodiff.dense_hessian_fn(learned_fn)
    return {
        "head, exact s1": with_head(exact_fn, 2),
        "head, learned s1": with_head(learned_fn, 3),
        "autodiff of learned s1": lambda noisy, _: (learned_fn(noisy), hessian_fn(noisy)),
    }


def on_manifolds(rows: Rows, options: argparse.Namespace) -> None:
    """A row for each manifold and way."""
    for dim in options.ambient:
        for d in options.dimensions:
            for name in ("plane", "sphere"):
                if rows.find(data=name, d=d, ambient=dim, way="head, learned s1"):
                    continue
                kind = getattr(manifolds, name)(d, dim)
                key = {"data": name, "d": d, "ambient": dim}
                local, two = by_neighbours(np.asarray(kind.sample(jax.random.key(3), 4000)))
                rows.add({**key, "way": "neighbours", "trace": float(local.mean())})
                rows.add({**key, "way": "TwoNN", "trace": two})
                ways = {"exact scores": kind.derivatives_fn}
                ways |= learned(kind, d, dim, options) if options.steps else {}
                clean = kind.sample(jax.random.key(4), options.points)
                for way, derivatives_fn in ways.items():
                    found = totals(jax.random.key(5), clean, derivatives_fn, options.sigma)
                    print(rows.add({**key, "way": way, **found}), flush=True)


def in_parts(fn: Callable, params: Any, keys: jax.Array, clean: np.ndarray, sigma: Any) -> Any:
    """`fn(params, key, image, sigma)` over images, so many at once."""
    mapped = jax.jit(jax.vmap(fn, (None, 0, 0, None)))
    # The same number each time, so that it is compiled once.
    places = np.arange(-(-len(clean) // AT_ONCE) * AT_ONCE).reshape(-1, AT_ONCE) % len(clean)
    parts = [jax.device_get(mapped(params, keys[at], clean[at], sigma)) for at in places]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(clean)], *parts)


def errors_fn(problem: Any, params: Any, key: jax.Array, clean: jax.Array, sigma: Any) -> Any:
    """The true error, ||zhat||^2 - D, tr C, z^T r and ||z||^2 - D, in units of sigma^2."""
    noise = jax.random.normal(key, clean.shape, clean.dtype)
    score1, score2 = of_run.make_derivatives_fn(problem, params)(clean + sigma * noise, sigma)
    residual = noise + sigma * score1
    return {
        "error": jnp.sum(jnp.square(residual)),
        "seen": jnp.sum(jnp.square(sigma * score1)) - len(clean),
        "trace": tweedie.scaled_covariance(score2, sigma).trace(),
        "confirmed": jnp.sum(noise * residual),
        "noise": jnp.sum(jnp.square(noise)) - len(clean),
    }


def mean_and_error(values: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """How far the mean of values (images, draws) is off that of the truth, in shares of it, and the
    standard error of that over images."""
    off = np.mean(values - truth, axis=1) / truth.mean()
    return float(off.mean()), float(off.std(ddof=1) / np.sqrt(len(off)))


def of_errors(rows: Rows, run: Any, flat: dict[str, np.ndarray], options: Any) -> None:
    """SURE and sigma^2 tr C against the true error at each level, on held-out digits."""
    fn = functools.partial(errors_fn, run.problem)
    for n, sigma in enumerate(DIGIT_LEVELS):
        keys = jax.random.split(jax.random.key(20 + n), len(flat["training"]))
        known = in_parts(fn, run.params, keys, flat["training"], sigma)
        ratio = float(known["confirmed"].mean() / known["trace"].mean())
        of_ratio = known["confirmed"][:, None], ratio * known["trace"][:, None]
        ratio_error = ratio * mean_and_error(*of_ratio)[1]
        draws = []
        for draw in range(options.draws):
            keys = jax.random.split(jax.random.key(100 * (draw + 1) + n), len(flat["held out"]))
            draws.append(in_parts(fn, run.params, keys, flat["held out"], sigma))
        found = {name: np.stack([each[name] for each in draws], axis=1) for name in draws[0]}
        truth, trace = found["error"], found["trace"]
        raw = found["seen"] + 2 * trace
        sure = found["seen"] + 2 * ratio * trace
        ways = {
            "sigma^2 tr C": trace,
            SCALED: trace * sure.mean() / trace.mean(),
            "SURE": raw,
            "SURE, ratio": sure,
            # That of the noise itself has mean 0, and is most of what SURE scatters by.
            "SURE, ratio, noise known": sure - found["noise"],
        }
        # What has the scale of SURE's mean has its error too.
        of_mean = ways | {SCALED: sure}
        for way, values in ways.items():
            off, error = mean_and_error(of_mean[way], truth)
            row = {
                "part": "errors",
                "sigma": sigma,
                "way": way,
                "off": off,
                "off_error": error,
                "correlation": float(np.corrcoef(values[:, 0], truth[:, 0])[0, 1]),
                "correlation_of_means": float(
                    np.corrcoef(values.mean(axis=1), truth.mean(axis=1))[0, 1]
                ),
                "ratio": ratio,
                "ratio_error": ratio_error,
                "per_pixel": float(truth.mean() * sigma**2 / flat["held out"].shape[1]),
                "images": len(truth),
                "draws": options.draws,
            }
            print(rows.add(row), flush=True)
        for label in (*range(10), None):
            mask = np.ones(len(trace), bool) if label is None else flat["labels"] == label
            rows.add(
                {
                    "part": "digits",
                    "sigma": sigma,
                    "way": "all" if label is None else str(label),
                    "trace": float(trace[mask].mean()),
                    "error": float(truth[mask].mean()),
                }
            )


def by_wavelets(images: np.ndarray) -> np.ndarray:
    """The median of the finest diagonal details of Haar over 0.6745 (Donoho, Johnstone 1994), of
    images (N, H, W) of even sides."""
    rows = images[:, ::2] - images[:, 1::2]
    details = 0.5 * (rows[:, :, ::2] - rows[:, :, 1::2])
    return np.median(np.abs(details), axis=(1, 2)) / 0.6745


def of_levels(rows: Rows, run: Any, clean: np.ndarray) -> None:
    """The noise level of single digits, and those that other ways find."""
    model = run.problem.config.model
    sigmas = jnp.geomspace(model.smallest_noise, model.largest_noise, 10)

    def one(params: Any, key: jax.Array, clean: jax.Array, sigma: Any) -> dict[str, Any]:
        derivatives_fn = of_run.make_derivatives_fn(run.problem, params)
        noisy = clean + sigma * jax.random.normal(key, clean.shape, clean.dtype)
        found = dimension.noise_level(noisy, derivatives_fn, sigmas)
        return {"sigma": found.sigma, "slopes": found.slopes, "noisy": noisy}

    for n, sigma in enumerate(DIGIT_LEVELS):
        keys = jax.random.split(jax.random.key(300 + n), len(clean))
        found = in_parts(one, run.params, keys, clean, sigma)
        images = found["noisy"].reshape(-1, *run.image_shape)[..., 0]
        for way, values in (("likelihood", found["sigma"]), ("wavelets", by_wavelets(images))):
            row = {
                "part": "levels",
                "sigma": sigma,
                "way": way,
                "mean": float(values.mean() / sigma),
                "rms": float(np.sqrt(np.mean((values / sigma - 1) ** 2))),
                "images": len(values),
            }
            print(rows.add(row), flush=True)


def on_digits(rows: Rows, options: argparse.Namespace) -> None:
    """Rows of a run."""
    run = load_run(options.run)
    data = run.problem.data
    flat = {
        "training": data.to_float(data.train),
        "held out": data.to_float(data.held_out[: options.images]),
    }
    flat = {name: found.reshape(len(found), -1) for name, found in flat.items()}
    flat["labels"] = data.held_out_labels[: options.images]
    local, two = by_neighbours(data.to_float(data.train).reshape(len(data.train), -1))
    for label in (*range(10), None):
        mask = np.ones(len(local), bool) if label is None else data.train_labels == label
        way = "all" if label is None else str(label)
        rows.add(
            {"part": "neighbours", "sigma": 0.0, "way": way, "trace": float(local[mask].mean())}
        )
    rows.add({"part": "TwoNN", "sigma": 0.0, "way": "all", "trace": two})
    if "errors" in options.parts:
        of_errors(rows, run, flat, options)
    if "levels" in options.parts:
        of_levels(rows, run, flat["held out"][:24])


def tables(rows: Rows, digits: bool) -> str:
    """Markdown."""
    lines = []
    if not digits:
        keys = dict.fromkeys((r["data"], r["ambient"], r["d"]) for r in rows.rows)
        ways = dict.fromkeys(r["way"] for r in rows.rows)
        columns = [(way, "trace") for way in ways]
        columns += [(way, "flipd") for way in ways if way not in ("neighbours", "TwoNN")]
        names = [way if kind == "trace" else f"FLIPD, {way}" for way, kind in columns]
        lines += ["| data | d | " + " | ".join(names) + " |", "|---" * (2 + len(names)) + "|"]
        for data, ambient, d in keys:
            cells = []
            for way, kind in columns:
                row = rows.find(data=data, ambient=ambient, d=d, way=way)
                cells.append(f"{row[kind]:.2f}" if row else "")
            lines.append(f"| {data} in R^{ambient} | {d} | " + " | ".join(cells) + " |")
        return "\n".join(lines)
    lines += [
        "| sigma | estimate | mean off by | alone | means of draws |",
        "|---|---|---|---|---|",
    ]
    for r in (r for r in rows.rows if r["part"] == "errors"):
        off = f"{100 * r['off']:+.1f}% ({100 * r['off_error']:.1f})"
        both = f"{r['correlation']:.2f} | {r['correlation_of_means']:.2f}"
        lines.append(f"| {r['sigma']} | {r['way']} | {off} | {both} |")
    lines += ["", "| sigma | way | mean / sigma | rms |", "|---|---|---|---|"]
    for r in (r for r in rows.rows if r["part"] == "levels"):
        lines.append(f"| {r['sigma']} | {r['way']} | {r['mean']:.3f} | {100 * r['rms']:.1f}% |")
    columns = ["all", *map(str, range(10))]
    lines += ["", "| | " + " | ".join(columns) + " |", "|---" * 12 + "|"]
    for part, sigma in (("neighbours", 0.0), *(("digits", s) for s in DIGIT_LEVELS)):
        found = [rows.find(part=part, sigma=sigma, way=way) for way in columns]
        cells = [row["trace"] for row in found if row is not None]
        name = part if part == "neighbours" else f"tr C, sigma {sigma}"
        lines.append(f"| {name} | " + " | ".join(f"{c:.1f}" for c in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="with --run")
    parser.add_argument("--images", type=int, default=500, help="held-out digits")
    parser.add_argument("--draws", type=int, default=16, help="of the noise, for the errors")
    parser.add_argument("--dimensions", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--ambient", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--sigma", type=float, default=0.1, help="of planes and spheres")
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=10_000, help="of each fit; 0: none")
    parser.add_argument("--features", type=int, default=128)
    parser.add_argument("--data_std", type=float, default=0.01)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.run:
        settings: dict[str, Any] = {"images": options.images}
        rows = Rows(options.json, ("part", "sigma", "way"), settings)
        on_digits(rows, options)
    else:
        settings = {name: getattr(options, name) for name in ("points", "steps", "features")}
        settings |= {"data_std": options.data_std, "sigma": options.sigma}
        rows = Rows(options.json, ("data", "d", "ambient", "way"), settings)
        on_manifolds(rows, options)
    print(tables(rows, bool(options.run)))


if __name__ == "__main__":
    main()
