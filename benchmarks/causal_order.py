r"""Causal orders of simulated tables with known graphs, and of real data, beside other ways.

    python benchmarks/causal_order.py [--json PATH] [--dims 10 20] [--degrees 1] [--noises gaussian]
        [--counts 1000] [--graphs 20]
    python benchmarks/causal_order.py --sachs cyto_full_data.csv [--rows 853]

With `--json` rows are written as they finish, and what is there is not run again.

Simulated: Erdos-Renyi graphs with `degree * dim` edges in expectation ("ER1" to "ER5" of the
literature), mechanisms drawn from a Gaussian process with an RBF kernel of width 1 and variance 1
by 1,000 random Fourier features, noise of variance uniform in 0.4 to 0.8, as Rolland et al. 2022
have them. The measure is the divergence: how many true edges the order forbids. The ways:

- learned: `hos_jax.uses.causal.causal_order`, on standardized columns.
- learned, same noise: the same with `same_noise`, of columns in the units of the simulation.
- kernel: SCORE as published, a Stein estimator of the second derivatives with an RBF kernel of
  median bandwidth and ridge 0.001, of standardized columns; of `--kernel_rows` rows at most.
- kernel, relative: the same with the variance of each column over its squared mean.
- kernel, dispersion: the same with the variance over the size of the mean, as the learned one has.
- kernel, raw: as published, on columns in the units of the simulation, in which all noises are
  about equally large. No measured table comes in such units.
- variance: columns sorted by variance in the units of the simulation ("varsortability").
- R2: sorted by the share of variance that a linear regression on all other columns explains.
- random: any order.

The standardized columns all have variance 1, so that sorting these by variance is a random order.

Sachs: 11 proteins in 7,466 cells (Sachs et al., Science 308, 2005), a file of the package `cdt`;
the first 853 rows are those without intervention. Judged by the 17 edges of the consensus graph as
the package `bnlearn` has it; the list of `cdt` has a cycle.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import jax
import numpy as np
from measure import Rows
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial.distance import pdist, squareform

from hos_jax.cli.causal_order import read_table
from hos_jax.uses import causal

NOISES = {
    "gaussian": lambda rng, count: rng.standard_normal(count),
    "exponential": lambda rng, count: rng.exponential(size=count) - 1.0,
    "laplace": lambda rng, count: rng.laplace(size=count) / np.sqrt(2.0),
}
SACHS_EDGES = """
    p44/42>pakts473 pmek>p44/42 PIP3>PIP2 PKA>pakts473 PKA>p44/42 PKA>pjnk PKA>pmek PKA>P38
    PKA>praf PKC>pjnk PKC>pmek PKC>P38 PKC>PKA PKC>praf plcg>PIP2 plcg>PIP3 praf>pmek
"""


MODEL = causal.Conditionals()
NETWORKS, STEPS = 8, 6000


def simulate(seed: int, dim: int, degree: float, count: int, noise: str):
    """A table (count, dim) in its own units, and edges (dim, dim): `edges[i, j]` for i -> j."""
    rng = np.random.default_rng(seed)
    share = min(1.0, degree * dim / (dim * (dim - 1) / 2))
    upper = np.triu(rng.random((dim, dim)) < share, 1)
    order = rng.permutation(dim)
    edges = np.zeros_like(upper)
    edges[np.ix_(order, order)] = upper
    table = np.zeros((count, dim))
    for j in order:
        table[:, j] = np.sqrt(rng.uniform(0.4, 0.8)) * NOISES[noise](rng, count)
        if edges[:, j].any():
            table[:, j] += gaussian_process(rng, table[:, edges[:, j]])
    return table, edges


def gaussian_process(rng, points: np.ndarray, features: int = 1000) -> np.ndarray:
    """A draw of a Gaussian process with kernel exp(-||x - y||^2 / 2) at points (N, D), nearly."""
    slopes = rng.standard_normal((points.shape[1], features))
    phases = rng.uniform(0.0, 2.0 * np.pi, features)
    weights = rng.standard_normal(features) * np.sqrt(2.0 / features)
    blocks = np.array_split(points, max(1, len(points) // 2000))
    return np.concatenate([np.cos(block @ slopes + phases) @ weights for block in blocks])


def divergence(order: np.ndarray, edges: np.ndarray) -> int:
    """How many edges point backwards in an order."""
    place = np.argsort(order)
    causes, effects = np.nonzero(edges)
    return int(np.sum(place[causes] > place[effects]))


def stein_second_derivatives(points: np.ndarray, ridge: float = 0.001) -> np.ndarray:
    """d^2 log p / dx_j^2 at every point, (N, D).

    With a kernel matrix K, and grad K and K'' the sums over its second argument of the first and
    the pure second derivatives, the Stein identities give the gradient G = -(K + ridge)^-1 grad K
    (Li and Turner 2018) and the diagonal (K + ridge)^-1 K'' - G^2 (Rolland et al. 2022).
    """
    distances = squareform(pdist(points))
    square = np.median(distances[np.triu_indices(len(points), 1)]) ** 2
    kernel = np.exp(-(distances**2) / (2.0 * square))
    sums, first = kernel.sum(axis=1, keepdims=True), kernel @ points
    gradient = (points * sums - first) / square
    spread = points**2 * sums - 2.0 * points * first + kernel @ points**2
    factor = cho_factor(kernel + ridge * np.eye(len(points)))
    scores = -cho_solve(factor, gradient)
    return cho_solve(factor, spread / square**2 - sums / square) - scores**2


def kernel_order(table: np.ndarray, power: int = 0) -> np.ndarray:
    """SCORE's order, causes first, by the variance over |mean|^power."""

    def statistics(known):
        values = stein_second_derivatives(table[:, known])
        found = np.full(table.shape[1], np.inf)
        found[known] = values.var(axis=0) / np.abs(values.mean(axis=0)) ** power
        return found

    return causal.peel(statistics, table.shape[1]).order


def orders(table: np.ndarray, seed: int, kernel_rows: int) -> dict[str, np.ndarray]:
    """The order by each way, but for the learned one."""
    columns = causal.standardized(table).astype(float)
    unexplained = 1.0 / np.diag(np.linalg.inv(np.corrcoef(columns.T)))
    rows = slice(kernel_rows)
    return {
        "kernel": kernel_order(columns[rows]),
        "kernel, relative": kernel_order(columns[rows], power=2),
        "kernel, dispersion": kernel_order(columns[rows], power=1),
        "kernel, raw": kernel_order(table[rows]),
        "variance": np.argsort(table.var(axis=0)),
        "R2": np.argsort(-unexplained),
        "random": np.random.default_rng(seed).permutation(table.shape[1]),
    }


def learned_orders(table: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """What `causal_order` gives, with and without `same_noise`, by the same networks for both."""
    columns = jax.numpy.asarray(causal.standardized(table))
    fit_key, noise_key = jax.random.split(jax.random.key(seed))
    members = causal.fit_members(
        jax.random.split(fit_key, NETWORKS), MODEL, columns, 1.0, steps=STEPS
    )
    return {
        name: causal.order_by(
            jax.random.clone(noise_key), MODEL, members, columns[:1000], 1.0, variances=variances
        ).order
        for name, variances in (("learned", None), ("learned, same noise", table.var(axis=0)))
    }


def measure(table: np.ndarray, edges: np.ndarray, seed: int, options) -> dict:
    """Divergences by way, and what the learned ones cost."""
    begun, used = time.perf_counter(), time.process_time()
    ways = learned_orders(table, seed)
    cost = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - used}
    cost["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if not options.learned_only:
        ways |= orders(table, seed, options.kernel_rows)
    return {
        "edges": int(edges.sum()),
        **{name: divergence(order, edges) for name, order in ways.items()},
        **cost,
    }


def simulated(options) -> None:
    columns = ["dim", "degree", "noise", "count", "seed"]
    settings = {"kernel_rows": options.kernel_rows, "networks": NETWORKS, "steps": STEPS}
    table = Rows(options.json, columns, settings)
    cells = [
        (dim, degree, noise, count)
        for dim in options.dims
        for degree in options.degrees
        for noise in options.noises
        for count in options.counts
    ]
    for cell in cells:
        rows = []
        for seed in range(options.first, options.first + options.graphs):
            key = dict(zip(columns, (*cell, seed), strict=True))
            row = table.find(**key)
            if row is None:
                data, edges = simulate(seed, cell[0], cell[1], cell[3], cell[2])
                row = table.add({**key, **measure(data, edges, seed, options)})
            rows.append(row)
        show(cell, rows)


def show(cell, rows: list[dict]) -> None:
    def mean(values) -> str:
        error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
        return f"{np.mean(values):6.2f} +- {error:.2f}"

    dim, degree, noise, count = cell
    edges = np.mean([row["edges"] for row in rows])
    print(f"\n{dim} variables, degree {degree}, {noise} noise, {count} rows, {len(rows)} graphs")
    print(
        f"edges {edges:.1f}; seconds {mean([row['seconds'] for row in rows])}, of the CPU", end=" "
    )
    print(
        f"{mean([row['cpu_seconds'] for row in rows])}; GiB {max(r['peak_gib'] for r in rows):.2f}"
    )
    every = "learned", "kernel", "kernel, relative", "kernel, dispersion", "R2", "random"
    in_units = "learned, same noise", "kernel, raw", "variance"
    for ways in (every, in_units):
        for way in [way for way in ways if way in rows[0]]:
            found = np.array([row[way] for row in rows])
            paired = np.array([row[ways[0]] for row in rows]) - found
            print(f"{way:<20}{mean(found)}   {ways[0]} minus it {mean(paired)}", flush=True)


def sachs(options) -> None:
    names, table = read_table(options.sachs)
    table = table[: options.rows]
    edges = np.zeros((len(names), len(names)), bool)
    for edge in SACHS_EDGES.split():
        cause, effect = edge.split(">")
        edges[names.index(cause), names.index(effect)] = True
    print(f"{len(table)} rows, {edges.sum()} edges")
    for label, data in (("as measured", table), ("logarithms", np.log(table))):
        found = [
            causal.causal_order(jax.random.key(seed), data).order for seed in range(options.graphs)
        ]
        wrong = [divergence(order, edges) for order in found]
        others = orders(data, 0, options.kernel_rows)
        print(f"{label}: learned {np.mean(wrong):.2f} of {wrong}", end="")
        others["random"] = None
        draws = [np.random.default_rng(seed).permutation(len(names)) for seed in range(1000)]
        for way, order in others.items():
            value = (
                np.mean([divergence(draw, edges) for draw in draws])
                if order is None
                else divergence(order, edges)
            )
            print(f"; {way} {value:.4g}", end="")
        print(f"\n  {' '.join(names[j] for j in found[0])}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--dims", type=int, nargs="+", default=[10, 20, 50])
    parser.add_argument("--degrees", type=float, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--noises", nargs="+", default=list(NOISES), choices=list(NOISES))
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 20_000])
    parser.add_argument("--graphs", type=int, default=20, help="graphs, or seeds for --sachs")
    parser.add_argument("--first", type=int, default=0, help="seed of the first graph")
    parser.add_argument("--kernel_rows", type=int, default=1000)
    parser.add_argument("--learned_only", action="store_true")
    parser.add_argument("--sachs", type=Path, help="cyto_full_data.csv")
    parser.add_argument("--rows", type=int, default=853, help="rows of --sachs")
    options = parser.parse_args()
    if options.sachs:
        sachs(options)
    else:
        simulated(options)


if __name__ == "__main__":
    main()
