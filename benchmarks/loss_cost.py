"""Cost of the second-order losses and their gradient: structured against the dense formula.

    python benchmarks/loss_cost.py [--json PATH] [--quick] [--batch 40] [--sizes 784 ...]

Value and gradient, in the network's outputs at every point, of a batch's mean loss; the outputs are
random. `structured` is `hos_jax.losses` on diag(a) + U U^T, rank 0 meaning a diagonal. `dense`
is the same formula on D x D arrays, as it is written in the paper. Losses: `d2sm_vr`, the
published objective (three points per image), and `residual_nll`, this project's default (one).

Memory is what XLA plans beside the outputs and the noise: temporary arrays and the gradients. The
dense formula is timed on the examples that fit --gibibytes and the row says "extrapolated from n of
N examples"; where not even one fits there is only its planned memory. The growth table has fewer
examples, so that D = 196608 (a 256 x 256 RGB image) with rank 200 fits; its exponent e is that of
seconds ~ D^e and bytes ~ D^e by least squares. `local` rows are of a local factor with neighbours
within `--reach` pixels, with and without columns: C for `residual_nll`, C - I for `d2sm_vr`; all of
colour images, the smallest 16 x 16 x 3: with three channels a value has three times the neighbours.

The published implementation, measured elsewhere on 2 cores at these batches, needs 1.0 to 11.6 s
and 12.9 GiB for the diagonal loss at D = 3072, and 0.2 to 0.8 s and 1.1 GiB for rank 50 at D = 784.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from measure import (
    Compiled,
    Rows,
    device_name,
    growth_exponent,
    matmul_rate,
    seconds_side_by_side,
)

from hos_jax import losses
from hos_jax.linops import Diagonal, DiagonalPlusLowRank, Local
from hos_jax.linops.local import count_taps

SIGMA = 0.5
POINTS = {"d2sm_vr": 3, "residual_nll": 1}
# (loss, rank): the published diagonal and low-rank objectives, and ours.
KINDS = [("d2sm_vr", 0), ("d2sm_vr", 50), ("residual_nll", 0), ("residual_nll", 50)]
GROWTH_RANKS = (0, 5, 20, 50, 200)
COMPARED_SIZES = (784, 3072)
GROWTH_SIZES = (784, 3072, 12288, 49152, 196608)
LOCAL_RANKS = (0, 16)


def image_of(dim: int) -> tuple[int, int, int]:
    """Digits, or colour images of that many values."""
    side = round((dim / 3) ** 0.5)
    return (28, 28, 1) if dim == 784 else (side, side, 3)


PUBLISHED = {
    ("d2sm_vr", 3072, 0): "published: 1.0 to 11.6 s, 12.9 GiB",
    ("d2sm_vr", 784, 50): "published: 0.2 to 0.8 s, 1.1 GiB",
}


def local_loss(reach: int, name: str, outputs: list, noise: jax.Array) -> jax.Array:
    """One example's loss from [(s1, l, U, taps)] at its points; U is None without columns."""
    arguments = []
    for score1, scales, factor, taps in outputs:
        matrix = Local(scales, taps, image_of(scales.shape[0]), reach)
        matrix = matrix if factor is None else matrix.add_columns(factor)
        arguments += [score1, matrix.add_identity(-1.0) if name == "d2sm_vr" else matrix]
    return _loss(name, arguments, noise)


def structured_loss(name: str, outputs: list, noise: jax.Array) -> jax.Array:
    """One example's loss from [(s1, a, U)] at its points; U is None for a diagonal."""
    arguments = []
    for score1, diag, factor in outputs:
        matrix = Diagonal(diag) if factor is None else DiagonalPlusLowRank(diag, factor)
        arguments += [score1, matrix]
    return _loss(name, arguments, noise)


def _loss(name: str, arguments: list, noise: jax.Array) -> jax.Array:
    if name == "d2sm_vr":
        return losses.d2sm_vr(*arguments, noise, SIGMA)
    return losses.residual_nll(losses.residual(arguments[0], noise, SIGMA), arguments[1])


def dense_loss(name: str, outputs: list, noise: jax.Array) -> jax.Array:
    """The same, by the formulas of the papers on D x D arrays."""

    def dense(diag, factor):
        return jnp.diag(diag) if factor is None else jnp.diag(diag) + factor @ factor.T

    if name == "residual_nll":
        score1, diag, factor = outputs[0]
        covariance = dense(diag, factor)
        residual = jax.lax.stop_gradient(noise + SIGMA * score1)
        _, logdet = jnp.linalg.slogdet(covariance)
        return 0.5 * (residual @ jnp.linalg.solve(covariance, residual) + logdet)
    psi = [dense(diag, factor) + jnp.outer(score1, score1) for score1, diag, factor in outputs]
    contrast = (jnp.eye(noise.shape[0]) - jnp.outer(noise, noise)) / SIGMA**2
    squares = jnp.sum(psi[0] ** 2) + jnp.sum(psi[1] ** 2)
    return 0.5 * squares + jnp.sum(contrast * (psi[0] + psi[1] - 2.0 * psi[2]))


def value_and_gradient(form: Callable, name: str) -> Callable:
    """(outputs, noise) -> mean loss of a batch and its gradient in the outputs."""

    def batch_loss(outputs, noise):
        return jnp.mean(jax.vmap(lambda o, z: form(name, o, z))(outputs, noise))

    return jax.value_and_grad(batch_loss)


def random_outputs(name: str, batch: int, dim: int, rank: int) -> tuple[list, jax.Array]:
    """What a network might say at the points of a batch, and the noise, (batch, D)."""
    keys = jax.random.split(jax.random.key(dim + rank), 2 * POINTS[name] + 1)
    outputs = []
    for index in range(POINTS[name]):
        draws = jax.random.normal(keys[2 * index], (2, batch, dim))
        factor = None
        if rank:
            size = (batch, dim, rank)
            factor = jax.random.normal(keys[2 * index + 1], size) / np.sqrt(10.0 * dim)
        outputs.append((draws[0], 0.5 + jax.nn.softplus(draws[1]), factor))
    return outputs, jax.random.normal(keys[-1], (batch, dim))


def random_local_outputs(name: str, batch: int, dim: int, rank: int, reach: int):
    """The same for `local_loss`."""
    outputs, noise = random_outputs(name, batch, dim, rank)
    keys = jax.random.split(jax.random.key(reach), len(outputs))
    taps = [
        0.1 * jax.random.normal(key, (batch, dim, count_taps(image_of(dim), reach))) for key in keys
    ]
    return [(*found, one) for found, one in zip(outputs, taps, strict=True)], noise


def first_examples(tree, count: int):
    return jax.tree.map(lambda leaf: leaf[:count], tree)


def compare(name: str, rank: int, dim: int, options) -> list[dict]:
    """Structured and dense at one size, in turn; the values of both must agree."""
    arguments = random_outputs(name, options.batch, dim, rank)
    whole = {
        form: Compiled(value_and_gradient(function, name), *arguments)
        for form, function in (("structured", structured_loss), ("dense", dense_loss))
    }
    fits = int(options.gibibytes * 2**30 / (whole["dense"].bytes / options.batch))
    count = min(options.batch, options.examples, fits)
    runs, part, difference = {"structured": whole["structured"].run}, None, None
    if count:
        few = first_examples(arguments, count)
        part = Compiled(value_and_gradient(dense_loss, name), *few)
        runs["dense"] = part.run
        ours = Compiled(value_and_gradient(structured_loss, name), *few).run()
        difference = relative_difference(ours, part.run())
        if difference > 0.02:
            raise SystemExit(f"{name}, D={dim}: dense and structured differ by {difference:.2g}")
    found = seconds_side_by_side(runs, repeats=options.repeats)
    rows = []
    for form, compiled in whole.items():
        row = new_row("compare", name, rank, dim, form, options.batch, compiled)
        row["note"] = PUBLISHED.get((name, dim, rank), "") if form == "structured" else ""
        row["seconds"], row["difference"] = None, difference
        if form in found:
            row["seconds"] = float(np.median(found[form]))
        if form == "dense" and count == 0:
            row["note"] = "planned memory alone: not even one example fits"
        elif form == "dense" and count < options.batch:
            row["seconds"] *= options.batch / count
            row["note"] = f"extrapolated from {count} of {options.batch} examples"
            row["extrapolated_from"] = [count, options.batch]
        rows.append(row)
    return rows


def relative_difference(one, other) -> float:
    """|a - b| / |b| over the gradients of both, as one vector."""
    pairs = list(zip(jax.tree.leaves(one[1]), jax.tree.leaves(other[1]), strict=True))
    wrong = sum(float(jnp.sum(jnp.square(a - b))) for a, b in pairs)
    return float(np.sqrt(wrong / sum(float(jnp.sum(jnp.square(b))) for _, b in pairs)))


def grow(form: str, name: str, rank: int, sizes: list[int], options) -> list[dict]:
    """A structured or local loss at growing D, in turn, with few examples."""
    compiled = {}
    for dim in sizes:
        of_size = name, options.growth_batch, dim, rank
        loss, arguments = structured_loss, None
        if form == "local":
            loss = functools.partial(local_loss, options.reach)
            arguments = random_local_outputs(*of_size, options.reach)
        compiled[dim] = Compiled(
            value_and_gradient(loss, name), *(arguments or random_outputs(*of_size))
        )
    runs = {str(dim): done.run for dim, done in compiled.items()}
    found = seconds_side_by_side(runs, repeats=options.repeats, budget=2.0)
    rows = []
    for dim, done in compiled.items():
        row = new_row("growth", name, rank, dim, form, options.growth_batch, done)
        rows.append({**row, "seconds": float(np.median(found[str(dim)])), "note": ""})
    return rows


def new_row(table, name, rank, dim, form, batch, compiled) -> dict:
    return {
        "table": table,
        "loss": name,
        "rank": rank,
        "dim": dim,
        "form": form,
        "batch": batch,
        "extrapolated_from": None,
        "temporary_bytes": compiled.temporary_bytes,
        "output_bytes": compiled.output_bytes,
        "device": device_name(),
    }


def show(rows: list[dict]) -> None:
    for row in rows:
        seconds = "" if row["seconds"] is None else f"{1e3 * row['seconds']:.2f}"
        size = (row["temporary_bytes"] + row["output_bytes"]) / 1e6
        print(
            f"{row['loss']:<14}{row['rank']:>5}{row['dim']:>8}{row['batch']:>6}  {row['form']:<11}"
            f"{seconds:>12}{size:>12.1f}  {row['note']}",
            flush=True,
        )


def show_growth(rows: list[dict]) -> None:
    sizes = [row["dim"] for row in rows]
    if len(sizes) < 2:
        return
    seconds = growth_exponent(sizes, [row["seconds"] for row in rows])
    size = [row["temporary_bytes"] + row["output_bytes"] for row in rows]
    memory = growth_exponent(sizes, size)
    print(
        f"{'':<14}exponents of growth in D: seconds {seconds:.2f}, memory {memory:.2f}", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="small sizes, few repetitions")
    parser.add_argument("--batch", type=int, default=40)
    parser.add_argument("--growth-batch", type=int, default=2)
    parser.add_argument("--sizes", type=int, nargs="*", help="D, of both tables")
    parser.add_argument("--ranks", type=int, nargs="*", default=list(GROWTH_RANKS))
    parser.add_argument("--reach", type=int, default=2, help="of the local factors")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--examples", type=int, default=4, help="of the dense formula, at most")
    parser.add_argument("--gibibytes", type=float, default=3.0, help="of the dense formula")
    options = parser.parse_args()
    compared, growth = options.sizes or COMPARED_SIZES, options.sizes or GROWTH_SIZES
    if options.quick:
        options.repeats, compared = 2, options.sizes or (100, 200)
        growth = options.sizes or (784, 3072)
        options.ranks = [rank for rank in options.ranks if rank <= 50]
    names = ("quick", "batch", "growth_batch", "repeats", "examples", "gibibytes")
    settings = {name: getattr(options, name) for name in names} | {"device": device_name()}
    table = Rows(options.json, ("table", "loss", "rank", "dim", "form"), settings)
    print(f"matrix product: {matmul_rate():.0f} GFLOP/s on {device_name()}")
    print(
        f"\n{'loss':<14}{'rank':>5}{'D':>8}{'batch':>6}  {'form':<11}{'ms':>12}{'MB':>12}",
        flush=True,
    )
    for name, rank in KINDS:
        for dim in compared:
            key = {"table": "compare", "loss": name, "rank": rank, "dim": dim}
            if not all(table.find(**key, form=form) for form in ("structured", "dense")):
                for row in compare(name, rank, dim, options):
                    table.add(row)
            show([table.find(**key, form=form) for form in ("structured", "dense")])
    print("\nGrowth with D")
    kinds = {"structured": options.ranks, "local": LOCAL_RANKS}
    for form, name in itertools.product(kinds, POINTS):
        for rank in kinds[form]:
            key = {"table": "growth", "loss": name, "rank": rank, "form": form}
            sizes = [768 if form == "local" and dim == 784 else dim for dim in growth]
            if not all(table.find(**key, dim=dim) for dim in sizes):
                for row in grow(form, name, rank, sizes, options):
                    table.add(row)
            rows = [table.find(**key, dim=dim) for dim in sizes]
            show(rows)
            show_growth(rows)


if __name__ == "__main__":
    main()
