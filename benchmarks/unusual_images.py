r"""Unusual images found by one evaluation at a few noise levels, and by autodiff's same scores.

    python benchmarks/unusual_images.py --run RUN [--json PATH] [--figure PATH]

RUN is a run of digits of 28 x 28 pixels with many noise levels and a second-order head, of
`--config diffusion_mnist5k` for instance. Kinds of images that are no upright digits
(`unusual_kinds.py`) are to be told from held-out digits: area under the ROC curve (AUROC), of each
score that `hos_jax.uses.unusual` makes, z-scored by training digits. All is done on two parts that
share no image: "choose", in which the score is chosen by its mean AUROC over all kinds plus that
over the kinds near to digits, and "report". The bound on the likelihood (`uncertainty.bound`)
stands beside them.

"autodiff" has the same scores from products with the derivative of s1, on `--few` images of the
kinds that are not easily told (`HARD`): the trace by `--probes` random signs, and the leading
eigenvalues by Rayleigh and Ritz on the leading directions of these products (Halko et al. 2011). A
pass is one evaluation of the network, or one product with its derivative. "map" is the AUROC by
which `unusual_map` tells the pixels of a hole from the others. `--parts` does some of it; rows in
the file of `--json` are kept.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm
from measure import Rows
from scipy.stats import rankdata
from unusual_kinds import HARD, NEAR, hole, kinds

from hos_jax.evaluation import figures
from hos_jax.evaluation import likelihood as of_run
from hos_jax.training.runs import load_run
from hos_jax.uncertainty import bound
from hos_jax.uses import unusual

LEVELS = (0.1, 0.4, 1.6)
LEADING = 4
AT_ONCE = 16
# What is tried in "choose": names of numbers, and how they make one score.
SINGLE = unusual.Features._fields
PAIRS = (
    ("spread", "leading"),
    ("spread", "trace"),
    ("spread", "distance"),
    ("distance", "leading"),
)
CHOSEN_FROM: dict[str, tuple[tuple[str, ...], str]] = {
    **{name: ((name,), "excess") for name in SINGLE},
    **{" and ".join(names): (names, "excess") for names in PAIRS},
    "all": (SINGLE, "excess"),
    "all, Mahalanobis": (SINGLE, "distances"),
}
PARTS = ("direct", "autodiff", "map")
PUBLISHED = ("trace", "leading", "ratio")


def auroc(usual: np.ndarray, other: np.ndarray) -> float:
    """The share of pairs in which the other one has the larger score; ties count half."""
    ranks = rankdata(np.concatenate([usual, other]))[len(usual) :]
    return float((ranks.sum() - len(other) * (len(other) + 1) / 2) / len(usual) / len(other))


def in_parts(fn: Callable, params: Any, images: np.ndarray, seed: int) -> Any:
    """`fn(params, key, image)` over images (N, 28, 28), so many at once."""
    flat = np.asarray(images, np.float32).reshape(len(images), -1)
    padded = np.concatenate([flat, flat[:1].repeat(-len(flat) % AT_ONCE, 0)])
    keys = jax.random.split(jax.random.key(seed), len(padded))
    parts = [
        jax.device_get(fn(params, keys[i : i + AT_ONCE], padded[i : i + AT_ONCE]))
        for i in range(0, len(padded), AT_ONCE)
    ]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(flat)], *parts)


def batched(fn: Callable) -> Callable:
    """Compiled for a batch of images, each with its key."""
    return jax.jit(jax.vmap(fn, (None, 0, 0)))


def features_fn(problem: Any, draws: int) -> Callable:
    """`Features` by the second-order model."""

    def one(params: Any, key: jax.Array, clean: jax.Array) -> unusual.Features:
        derivatives_fn = of_run.make_derivatives_fn(problem, params)
        return unusual.features(
            key, clean, derivatives_fn, jnp.array(LEVELS, jnp.float32), draws=draws
        )

    return batched(one)


def bound_fn(problem: Any) -> Callable:
    """The bound on -log p by as many steps as there are levels, nats."""
    end, largest = of_run.law_at_largest(problem), problem.config.model.largest_noise

    def one(params: Any, key: jax.Array, clean: jax.Array) -> jax.Array:
        derivatives_fn = of_run.make_derivatives_fn(problem, params)
        sigmas = jnp.array([largest, *LEVELS[::-1]], clean.dtype)
        found = bound.ancestral_bound(
            key, clean, derivatives_fn, sigmas, end, covariances=("full",), floor=1e-3
        )
        return found["full"].total

    return batched(one)


def autodiff_fn(problem: Any, probes: int) -> Callable:
    """trace, leading and ratio at each level by 1 + probes + LEADING passes of s1."""

    def one(params: Any, key: jax.Array, clean: jax.Array) -> dict[str, jax.Array]:
        derivatives_fn, dim = of_run.make_derivatives_fn(problem, params), len(clean)

        def at_level(level: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
            # The noise that `unusual.features` draws by the same key.
            probe_key = jax.random.fold_in(jax.random.clone(level[0]), 1)
            sigma = level[1]
            noisy = clean + sigma * jax.random.normal(level[0], clean.shape, clean.dtype)
            score, derivative = jax.linearize(lambda y: derivatives_fn(y, sigma)[0], noisy)

            def products(vectors: jax.Array) -> jax.Array:
                """Those of I + sigma^2 J with rows, (k, D)."""
                return vectors + sigma**2 * jax.lax.map(derivative, vectors)

            signs = jax.random.rademacher(probe_key, (probes, dim), clean.dtype)
            seen = products(signs)
            trace = jnp.sum(signs * seen) / probes
            rows = jnp.linalg.svd(seen, full_matrices=False)[2][:LEADING]
            # The sum of the Ritz values is the trace of the projection.
            leading = jnp.sum(rows * products(rows))
            free = jnp.maximum(dim - trace, 1.0)
            numbers = trace, leading, jnp.sum(jnp.square(sigma * score)) / free
            return tuple(jnp.log(jnp.maximum(number, 1e-3)) for number in numbers)

        keys = jax.random.split(key, len(LEVELS))
        found = jax.lax.map(at_level, (keys, jnp.array(LEVELS, clean.dtype)))
        return dict(zip(PUBLISHED, found, strict=True))

    return batched(one)


def scores(known: np.ndarray, values: np.ndarray, way: str) -> np.ndarray:
    """The score of each row of values (N, F), by the usual ones."""
    usual = unusual.usual(jnp.asarray(known))
    return np.asarray(jax.vmap(functools.partial(getattr(unusual, way), usual))(values))


def rows_of(
    name: str, part: str, usual: np.ndarray, others: dict[str, np.ndarray], **more: Any
) -> dict[str, Any]:
    """A row of AUROCs, by kind, their mean, and the mean over the near kinds."""
    by_kind = {kind: auroc(usual, values) for kind, values in others.items()}
    near = [by_kind[kind] for kind in NEAR]
    return {
        "score": name,
        "part": part,
        "mean": float(np.mean(list(by_kind.values()))),
        "near": float(np.mean(near)),
        "auroc": by_kind,
        **more,
    }


def judge(features: dict[str, Any], part: str, names: Iterable[str]) -> list[dict[str, Any]]:
    """Rows of the scores of these names in one part."""
    rows = []
    for name in names:
        fields, way = CHOSEN_FROM[name]
        known = features["training"].stacked(*fields)
        found = {kind: scores(known, f.stacked(*fields), way) for kind, f in features[part].items()}
        passes = len(LEVELS) * features["draws"]
        rows.append(rows_of(name, part, found.pop("digits"), found, passes=passes))
    return rows


def by_autodiff(rows: Rows, run: Any, images: dict[str, np.ndarray], options: Any) -> None:
    """Rows of the published scores from the derivative of s1, and ours on the same images, one
    draw of the noise each, and of the bound."""
    more = {"training": 2 * options.few, "digits": 2 * options.few}
    few = {kind: images[kind][: more.get(kind, options.few)] for kind in (*more, *HARD)}
    costs = {k: in_parts(bound_fn(run.problem), run.params, v, 9) for k, v in few.items()}
    usual = costs.pop("digits")
    del costs["training"]
    rows.add(rows_of("bound", "few", usual, costs, passes=1 + len(LEVELS), few=options.few))
    direct_fn = features_fn(run.problem, 1)
    derived_fn = autodiff_fn(run.problem, options.probes)
    found: dict[str, dict[str, Any]] = {"direct": {}, "autodiff": {}}
    for n, (kind, of_kind) in enumerate(few.items()):
        found["direct"][kind] = in_parts(direct_fn, run.params, of_kind, 50 + n)._asdict()
        found["autodiff"][kind] = in_parts(derived_fn, run.params, of_kind, 50 + n)
        print(kind, flush=True)
    each = {"trace": 1 + options.probes, "ratio": 1 + options.probes}
    each["leading"] = 1 + options.probes + LEADING
    for way, name in itertools.product(found, PUBLISHED):
        passes = len(LEVELS) * (1 if way == "direct" else each[name])
        values = {kind: numbers[name] for kind, numbers in found[way].items()}
        known = values.pop("training")
        judged = {kind: scores(known, value, "excess") for kind, value in values.items()}
        usual = judged.pop("digits")
        rows.add(rows_of(f"{name}, {way}", "few", usual, judged, passes=passes, few=options.few))


def map_fn(problem: Any) -> Callable:
    """`unusual_map` by the second-order model."""

    def one(params: Any, key: jax.Array, clean: jax.Array) -> jax.Array:
        derivatives_fn = of_run.make_derivatives_fn(problem, params)
        levels = jnp.array(LEVELS, jnp.float32)
        return unusual.unusual_map(key, clean, derivatives_fn, levels, draws=4)

    return batched(one)


def of_maps(run: Any, digits: np.ndarray, figure: Path | None) -> dict[str, Any]:
    """How well the map tells the pixels of a bright square, or of a hole, from the others."""
    rng, row = np.random.default_rng(5), {"score": "map", "part": "report"}
    count = 32
    shown = []
    for name, value in (("hole of 8 x 8", 0.0), ("square of 4 x 4 at 0.5", 0.5)):
        changed, places = digits[:count].copy(), np.zeros((count, 28, 28), bool)
        for image, place in zip(changed, places, strict=True):
            if value:
                top, left = rng.integers(2, 22, 2)
                where = slice(top, top + 4), slice(left, left + 4)
            else:
                where = hole(image, rng)
            image[where], place[where] = value, True
        maps = in_parts(map_fn(run.problem), run.params, changed, 7).reshape(-1, 28, 28)
        row[name] = float(np.mean([auroc(m[~p], m[p]) for m, p in zip(maps, places, strict=True)]))
        shown.append((changed[:8], places[:8], maps[:8]))
    if figure is not None:
        figures.save(draw_maps(shown), figure)
    return row


def draw_maps(shown: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Any:
    """Images with a hole, then with a square, and below them the maps with the places outlined."""
    figure, axes = plt.subplots(4, 8, figsize=(9, 4.4), layout="constrained")
    # What is expected is 1, and black: what is below says nothing.
    colours = {"cmap": "magma", "norm": LogNorm(1.0, 30.0)}
    for pair, found in zip(axes.reshape(2, 2, 8), shown, strict=True):
        for above, below, image, place, values in zip(*pair, *found, strict=True):
            above.imshow(image, cmap="gray", vmin=0, vmax=1)
            drawn = below.imshow(values, **colours)
            below.contour(place, levels=[0.5], colors="tab:cyan", linewidths=1)
    for row, name in zip(axes, ("hole", "map", "grey square", "map"), strict=True):
        row[0].set_ylabel(name)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    label = "squared error / predicted variance"
    bar = figure.colorbar(drawn, ax=axes, label=label, extend="both", ticks=[1, 3, 10, 30])
    bar.ax.set_yticklabels(["1", "3", "10", "30"])
    bar.ax.minorticks_off()
    return figure


def directly(rows: Rows, run: Any, images: dict[str, Any], options: Any) -> None:
    """Rows of all scores in both parts, and which one is chosen."""
    compute = features_fn(run.problem, options.draws)
    features: dict[str, Any] = {"draws": options.draws}
    features["training"] = in_parts(compute, run.params, images["training"], 0)
    for part in ("choose", "report"):
        features[part] = {
            kind: in_parts(compute, run.params, found, 1000 * len(part) + n)
            for n, (kind, found) in enumerate(images[part].items())
        }
        print(part, "done", flush=True)
    tried = judge(features, "choose", CHOSEN_FROM)
    best = max(tried, key=lambda row: row["mean"] + row["near"])["score"]
    for row in [*tried, *judge(features, "report", CHOSEN_FROM)]:
        rows.add({**row, "chosen": row["score"] == best})


def measure(run: Any, options: argparse.Namespace) -> Rows:
    """All rows."""
    data, count = run.problem.data, options.images
    training = data.to_float(data.train)[..., 0]
    held_out = data.to_float(data.held_out)[..., 0]
    chosen, reported = held_out[::2], held_out[1::2]
    images: dict[str, Any] = {
        "training": training[:: max(1, len(training) // options.training)][: options.training],
        "choose": {"digits": chosen[: 2 * count], **kinds(training, "choose", count // 2)},
        "report": {"digits": reported[: 4 * count], **kinds(reported, "report", count)},
    }
    settings = {"images": count, "training": options.training, "draws": options.draws}
    settings["levels"] = LEVELS
    rows = Rows(options.json, ("score", "part"), settings)
    if "direct" in options.parts:
        directly(rows, run, images, options)
    if "autodiff" in options.parts:
        by_autodiff(rows, run, {"training": images["training"], **images["report"]}, options)
    if "map" in options.parts:
        rows.add(of_maps(run, reported, options.figure))
    return rows


def table(rows: Rows, part: str) -> str:
    """Markdown: a line for each score of a part."""
    chosen = [row for row in rows.rows if row["part"] == part and "auroc" in row]
    if not chosen:
        return ""
    names = list(chosen[0]["auroc"])
    lines = [f"| {part} | passes | mean | near | " + " | ".join(names) + " |"]
    lines.append("|---" * (4 + len(names)) + "|")
    for row in chosen:
        cells = [row["mean"], row["near"], *row["auroc"].values()]
        name = f"**{row['score']}**" if row.get("chosen") else row["score"]
        lines.append(
            f"| {name} | {row['passes']} | " + " | ".join(f"{c:.3f}" for c in cells) + " |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument(
        "--images", type=int, default=120, help="of each kind; half as many to choose by"
    )
    parser.add_argument("--training", type=int, default=200, help="digits that say what is usual")
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--few", type=int, default=120, help="of each kind for autodiff")
    parser.add_argument("--probes", type=int, default=49)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path, help="images with something wrong, and the maps")
    options = parser.parse_args()
    rows = measure(load_run(options.run), options)
    for part in ("choose", "report", "few"):
        print(table(rows, part))
    print(rows.find(score="map", part="report"))


if __name__ == "__main__":
    main()
