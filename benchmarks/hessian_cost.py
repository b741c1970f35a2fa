r"""Cost of the Hessian s2 of log q: a second-order model against automatic differentiation of s1.

    python benchmarks/hessian_cost.py --json PATH [--quick] [--sizes 784 ...] [--methods jacfwd ...]
        [--features 16] [--chunk 64] [--points 1 16]

Every method has the same network: an MLP of width 256 on vectors, a U-Net of 16 channels (or
--features) on images. `direct` is one forward pass of a second-order model: a diagonal, a diagonal
and r columns, or `shared`, where one trunk gives s1 and s2 (r = 50). The others differentiate s1:

* exact, the whole matrix: `jacfwd`, `jacrev`, `chunked` Jacobian-vector products (64 at a time, or
  --chunk: an accelerator wants more), `jet` (Taylor mode of order 1, where all operations of the
  network have a rule for it);
* exact, the diagonal alone: `chunked diagonal`;
* estimates: `hutchinson`, the diagonal from random probes, `eigenpairs`, the 10 leading ones by
  Lanczos iteration.

s1 is trained for a moment, so that its Jacobian is one of a denoiser. The number of Hutchinson's
probes is what its expected relative squared error of the diagonal needs to be --diagonal-error,
0.01: about the error that learned diagonals have where the exact one is known (accuracy.py). By its
variance, (||s2||_F^2 - ||diag s2||^2) / n, that is the ratio of off-diagonal to diagonal squares,
found from 32 probes, over the error. It can exceed D: then the exact diagonal is the cheaper one.

All methods of one size and number of points are called in turn in one process. Memory is what XLA
plans beside the arguments: temporary arrays and results. A method that would take too long or
too much memory is timed on a part of its columns or probes, and its row says "extrapolated from n
of N"; its memory is planned for all of them.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import jet
from measure import (
    Compiled,
    Rows,
    device_name,
    matmul_rate,
    random_tree,
    seconds_side_by_side,
)

from hos_jax import autodiff, distributions, fit, pointwise
from hos_jax.data import load
from hos_jax.linops.lanczos import top_eigenpairs
from hos_jax.losses.objective import Objective
from hos_jax.models.heads import SecondOrderHead
from hos_jax.models.mlp import MLP
from hos_jax.models.score_model import ScoreModel
from hos_jax.models.unet import UNet

SIGMA, EIGENPAIRS, PILOT = 0.5, 10, 32


class Size(NamedTuple):
    """Shape of one example, where examples come from, training steps, points of the batch."""

    shape: tuple[int, ...]
    data: str
    steps: int
    batch: int


SIZES = {
    100: Size((100,), "gaussian", 300, 16),
    500: Size((500,), "gaussian", 300, 16),
    1000: Size((1000,), "gaussian", 300, 16),
    784: Size((28, 28, 1), "mnist5k", 100, 16),
    3072: Size((32, 32, 3), "photos", 50, 16),
    12288: Size((64, 64, 3), "photos", 10, 4),
    196608: Size((256, 256, 3), "photos", 10, 4),
}
# For an accelerator, and by name only; the whole matrix would take 144 GiB, so that only what
# takes it in parts is measured.
LARGE = (196608,)
# The sides of the crops that there are; larger images are tiles of the largest.
CROPS = {32: 32, 64: 64, 256: 64}
RANKS = (5, 20, 50, 200)
DIRECT = ("direct diagonal", *(f"direct rank {r}" for r in RANKS), "direct shared")
EXACT = ("jacfwd", "jacrev", "chunked", "jet")
METHODS = (*DIRECT, *EXACT, "chunked diagonal", "hutchinson", "eigenpairs")
# At a batch of points: what the comparison needs. At more, differentiation is extrapolated from one
# batch, as its time is then proportional to the points.
BATCH_METHODS = ("direct diagonal", "direct rank 50", "direct shared", "jacfwd", "chunked")
BATCH_METHODS += ("chunked diagonal", "hutchinson")


class Work(NamedTuple):
    """A method at given points: `make(n)` does the first n of its `units`, all of the same cost."""

    make: Callable[[int], Callable]
    units: int


def network_of(size: Size, features: int) -> Callable:
    if len(size.shape) == 1:
        return functools.partial(MLP, features=256, depth=3)
    return functools.partial(UNet, features=features)


def model_of(size: Size, method: str, features: int) -> ScoreModel:
    """The model of a direct method, or the first-order one."""
    head = None
    if method == "direct diagonal":
        head = SecondOrderHead("diagonal")
    elif method in DIRECT:
        head = SecondOrderHead("low_rank", 50 if method.endswith("shared") else rank_of(method))
    networks = "shared" if method == "direct shared" else "per_order"
    return ScoreModel(network_of(size, features), head, networks=networks)


def rank_of(method: str) -> int:
    return int(method.rpartition(" ")[2])


def examples(size: Size, count: int) -> jax.Array:
    """Clean examples, (count, ...), data units."""
    if size.data == "gaussian":
        law = distributions.random_correlated_gaussian(jax.random.key(0), size.shape[0], 100.0)
        return law.sample(jax.random.key(1), count)
    crop = None if size.data == "mnist5k" else CROPS[size.shape[0]]
    data = load(size.data, image_size=crop)
    images = data.to_float(data.train[:count])
    tiles = size.shape[0] // images.shape[1]
    return jnp.tile(images, (1, tiles, tiles, 1))


def random_params(model: ScoreModel, images: jax.Array) -> Any:
    """Parameters of the size that initializers give."""
    return random_tree(jax.eval_shape(model.init, jax.random.key(0), images, SIGMA))


def trained_score(size: Size, features: int, clean: jax.Array) -> tuple[ScoreModel, Any]:
    """A first-order model and its parameters after a short training."""
    model, objective = model_of(size, "s1", features), Objective("dsm")
    params = random_params(model, clean[:1])

    def loss_fn(key, params):
        index_key, noise_key = jax.random.split(key)
        batch = clean[jax.random.randint(index_key, (8,), 0, len(clean))]
        noise = jax.random.normal(noise_key, batch.shape)
        evaluate = functools.partial(model.apply, params)
        return jnp.mean(objective.per_example(evaluate, batch, noise, SIGMA)["loss"])

    train = functools.partial(fit.minimize, loss_fn=loss_fn, steps=size.steps)
    return model, jax.jit(train)(jax.random.key(3), params=params)


class Case:
    """All methods at one size; points are flat, (D,), as the autodiff baselines take them."""

    def __init__(self, dim: int, options):
        self.dim, self.size, self.options = dim, SIZES[dim], options
        clean = examples(self.size, 16 if dim in LARGE else 500)
        self.model, self.params = trained_score(self.size, options.features, clean)
        self.probes = 0
        noise = jax.random.normal(jax.random.key(4), clean.shape)
        # At more points than there are examples, these are seen again.
        again = -(-max(options.points or [0]) // len(clean)) or 1
        self.noisy = jnp.tile((clean + SIGMA * noise).reshape(len(clean), -1), (again, 1))

    def score_fn(self, params: Any) -> Callable:
        return pointwise.score_fn(self.model, params, SIGMA, self.size.shape)

    def choose_probes(self) -> int:
        """See the head of this file."""

        @jax.jit
        def pilot(params, noisy):
            return autodiff.hutchinson_diagonal(
                jax.random.key(5), self.score_fn(params), noisy, probes=PILOT, chunk_size=PILOT
            )

        found = pilot(self.params, self.noisy[0])
        spread = float(jnp.sum(jnp.square(found.standard_error)))
        squares = max(float(jnp.sum(jnp.square(found.estimate))) - spread, 1e-12)
        return max(1, round(PILOT * spread / squares / self.options.diagonal_error))

    def works(self, methods: list[str]) -> dict[str, Work]:
        """The methods as functions of (params, noisy point)."""
        dim, score_fn, chunk = self.dim, self.score_fn, self.options.chunk
        basis = functools.partial(jnp.eye, M=dim)

        def forward(count):
            def columns(params, noisy):
                if count == dim:
                    return autodiff.dense_hessian_fn(score_fn(params))(noisy).matrix
                product_fn = autodiff.hessian_vector_product_fn(score_fn(params))
                return jax.vmap(product_fn, (None, 0))(noisy, basis(count))

            return columns

        def reverse(count):
            def rows(params, noisy):
                if count == dim:
                    hessian_fn = autodiff.dense_hessian_fn(score_fn(params), mode="reverse")
                    return hessian_fn(noisy).matrix
                _, transpose_fn = jax.vjp(score_fn(params), noisy)
                return jax.vmap(transpose_fn)(basis(count))

            return rows

        def chunked(count, diagonal=False):
            def columns(params, noisy):
                product_fn = autodiff.hessian_vector_product_fn(score_fn(params))
                if count == dim and diagonal:
                    diagonal_fn = autodiff.chunked_hessian_diagonal_fn
                    return diagonal_fn(score_fn(params), chunk_size=chunk)(noisy)
                if count == dim:
                    hessian_fn = autodiff.chunked_hessian_fn(score_fn(params), chunk_size=chunk)
                    return hessian_fn(noisy).matrix

                def column(index):
                    product = product_fn(noisy, jax.nn.one_hot(index, dim))
                    return product[index] if diagonal else product

                return jax.lax.map(column, jnp.arange(count), batch_size=chunk)

            return columns

        def taylor(count):
            def columns(params, noisy):
                def column(unit):
                    return jet.jet(score_fn(params), (noisy,), ((unit,),))[1][0]

                return jax.vmap(column)(basis(count))

            return columns

        def hutchinson(count):
            def estimate(params, noisy):
                return autodiff.hutchinson_diagonal(
                    jax.random.key(6), score_fn(params), noisy, probes=count, chunk_size=chunk
                )

            return estimate

        def eigenpairs(_):
            def pairs(params, noisy):
                product_fn = autodiff.hessian_vector_product_fn(score_fn(params), symmetrize=True)
                matvec = functools.partial(product_fn, noisy)
                return top_eigenpairs(
                    jax.random.key(7), matvec, dim, EIGENPAIRS, krylov_vectors=min(dim, 21)
                )

            return pairs

        made = {
            "jacfwd": Work(forward, dim),
            "jacrev": Work(reverse, dim),
            "chunked": Work(chunked, dim),
            "jet": Work(taylor, dim),
            "chunked diagonal": Work(functools.partial(chunked, diagonal=True), dim),
            "eigenpairs": Work(eigenpairs, 1),
        }
        if "hutchinson" in methods:
            self.probes = self.probes or self.choose_probes()
            made["hutchinson"] = Work(hutchinson, self.probes)
        return {name: work for name, work in made.items() if name in methods}

    def direct(self, method: str, noisy: jax.Array) -> Compiled:
        """A second-order model at points (N, D), compiled; s1 comes with it where it is shared."""
        model = model_of(self.size, method, self.options.features)
        images = noisy.reshape(len(noisy), *self.size.shape)
        params = random_params(model, images[:1])

        def evaluate(params, images):
            outputs = model.apply(params, images, SIGMA)
            return (outputs.score1, outputs.score2) if method.endswith("shared") else outputs.score2

        return Compiled(evaluate, params, images)

    def compile_part(self, work: Work, noisy: jax.Array, column_seconds: float):
        """The whole method where it is affordable, else a part; with its planned memory."""

        def compiled(count):
            function = work.make(count)
            batched = function if len(noisy) == 1 else jax.vmap(function, (None, 0))
            return Compiled(batched, self.params, noisy[0] if len(noisy) == 1 else noisy)

        whole = compiled(work.units)
        limit = self.options.gibibytes * 2**30
        affordable = self.options.seconds / (column_seconds * len(noisy))
        if work.units == 1 or (work.units <= affordable and whole.bytes <= limit):
            return whole, work.units, whole
        count = min(affordable, work.units * limit / whole.bytes, work.units)
        chunk = self.options.chunk
        count = min(work.units, max(chunk, int(count) // chunk * chunk))
        return compiled(count), count, whole

    def column_seconds(self) -> float:
        """Seconds of one column by chunked products, roughly."""
        count = min(self.options.chunk, self.dim)
        chunk = Compiled(self.works(["chunked"])["chunked"].make(count), self.params, self.noisy[0])
        found = seconds_side_by_side({"": chunk.run}, repeats=2)
        return min(found[""]) / count

    def measure(self, points: int, methods: list[str], column_seconds: float) -> list[dict]:
        """A row for every method at that many points."""
        noisy, runs, facts = self.noisy[:points], {}, {}
        few = noisy[: self.size.batch]
        for method in [name for name in methods if name in DIRECT]:
            if method.startswith("direct rank") and rank_of(method) >= self.dim:
                continue
            done = self.direct(method, noisy)
            runs[method], facts[method] = done.run, (1, 1, done)
        rows = []
        for method, work in self.works(methods).items():
            try:
                part, count, whole = self.compile_part(work, few, column_seconds)
            except (KeyError, AttributeError, NotImplementedError, TypeError, ValueError) as error:
                # jet lacks rules (a KeyError names the primitive), and JAX 0.12's loses itself in a
                # custom JVP (an AttributeError).
                if method != "jet":
                    raise
                reason = f"{type(error).__name__}: {error}".splitlines()[0][:80]
                rows.append(self.row(points, method, note=f"does not apply: {reason}"))
                continue
            runs[method], facts[method] = part.run, (count, work.units, whole)
        found = seconds_side_by_side(runs, repeats=self.options.repeats)
        for method, (count, units, whole) in facts.items():
            scale = units / count
            what = "probes" if method == "hutchinson" else "columns"
            note = "" if count == units else f"extrapolated from {count} of {units} {what}"
            if method == "hutchinson" and not note:
                note = f"{units} probes"
            if method not in DIRECT and len(few) < points:
                scale *= points / len(few)
                note = f"{note + ', ' if note else ''}extrapolated from {len(few)} points"
            row = self.row(points, method, note=note)
            row["seconds"] = float(np.median(found[method])) * scale
            row["extrapolated_from"] = None if count == units else [count, units]
            row["temporary_bytes"], row["output_bytes"] = whole.temporary_bytes, whole.output_bytes
            rows.append(row)
        return rows

    def row(self, points: int, method: str, note: str) -> dict:
        network = "MLP" if len(self.size.shape) == 1 else "U-Net"
        common = {"dim": self.dim, "points": points, "method": method, "network": network}
        return {**common, "seconds": None, "note": note, "device": device_name()}


def memory_of(row: dict) -> int:
    return row["temporary_bytes"] + row["output_bytes"]


def show(rows: list[dict]) -> None:
    """One table for a size and number of points, and the direct methods against exact ones."""
    timed = [row for row in rows if row["seconds"] is not None]
    exact = [row for row in timed if row["method"] in EXACT]
    fastest = min(exact, key=lambda row: row["seconds"], default=None)
    head = rows[0]
    print(f"\nD = {head['dim']} ({head['network']}), points {head['points']}, {head['device']}")
    print(f"{'method':<18}{'ms':>12}{'MiB':>10}{'exact / it':>12}{'memory':>9}")
    for row in rows:
        if row["seconds"] is None:
            print(f"{row['method']:<18}{'':>43}  {row['note']}")
            continue
        ratios = f"{'':>21}"
        if fastest is not None:
            ratios = f"{fastest['seconds'] / row['seconds']:>12.1f}"
            ratios += f"{memory_of(fastest) / memory_of(row):>9.1f}"
        size = memory_of(row) / 2**20
        print(
            f"{row['method']:<18}{1e3 * row['seconds']:>12.2f}{size:>10.2f}{ratios}  {row['note']}"
        )
    if fastest is not None:
        print(f"exact / it: time and memory of the fastest exact method, {fastest['method']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="a small size, short runs")
    parser.add_argument("--sizes", type=int, nargs="*", choices=list(SIZES))
    parser.add_argument("--points", type=int, nargs="*", help="1 and a batch by default")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--features", type=int, default=16, help="channels of the U-Net")
    parser.add_argument("--chunk", type=int, default=64, help="columns of `chunked` at a time")
    parser.add_argument("--seconds", type=float, default=2.0, help="of one evaluation, at most")
    parser.add_argument("--gibibytes", type=float, default=3.0, help="memory of one, at most")
    parser.add_argument("--diagonal-error", type=float, default=0.01)
    options = parser.parse_args()
    if options.quick:
        options.repeats, options.seconds = 2, min(options.seconds, 0.3)
    sizes = options.sizes or ([100] if options.quick else [d for d in SIZES if d not in LARGE])
    settings = {
        name: getattr(options, name)
        for name in ("quick", "features", "repeats", "seconds", "gibibytes", "diagonal_error")
    }
    if options.chunk != parser.get_default("chunk"):
        settings["chunk"] = options.chunk
    table = Rows(options.json, ("dim", "points", "method"), {**settings, "device": device_name()})
    print(f"matrix product: {matmul_rate():.0f} GFLOP/s on {device_name()}", flush=True)
    for dim in sizes:
        case, seconds = None, 0.0
        for points in options.points or (1, SIZES[dim].batch):
            wanted = [m for m in options.methods if points == 1 or m in BATCH_METHODS]
            wanted = [m for m in wanted if "rank" not in m or rank_of(m) < dim]
            if dim in LARGE:
                wanted = [m for m in wanted if m not in ("jacfwd", "jacrev", "jet")]
            keys = [{"dim": dim, "points": points, "method": method} for method in wanted]
            # Ratios hold within one run: a size is measured again unless it is there as a whole.
            if not all(table.find(**key) for key in keys):
                case = case or Case(dim, options)
                seconds = seconds or case.column_seconds()
                for row in case.measure(points, wanted, seconds):
                    table.add(row)
            show([table.find(**key) for key in keys])
            jax.clear_caches()


if __name__ == "__main__":
    main()
