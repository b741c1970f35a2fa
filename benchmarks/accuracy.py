r"""Accuracy of second- and third-order scores against exact ones, on laws whose scores are known.

    python benchmarks/accuracy.py --quick                      # about 3 minutes on 2 cores
    python benchmarks/accuracy.py --json benchmarks/accuracy.json
    python benchmarks/accuracy.py --json PATH --laws mixture10 --sigmas 0.1 --methods d2sm_vr

Every method spends the same number of steps and of network evaluations. A direct method takes
`--steps` steps for s1 (with dsm_vr, shared by all of them) and as many for s2; autodiff takes twice
as many for s1 and needs no more. "Jacobian" takes three halves of them for s1 and one for s2, whose
network begins as that of s1; "Jacobian, s1 of autodiff" and "of dsm" take as many for s2 after all
those of autodiff of dsm_vr or dsm: the question of whoever has s1 already, at five quarters of the
steps. A loss that looks at k points per example gets a batch of `--evaluations` / k, where a
Jacobian-vector product of s1 counts as two. Same network (an MLP), same optimizer and schedule for
all.

Errors are against the exact score of the smoothed law at fresh noisy points, the same for every
method and seed:
mse = mean of ||estimate - exact||_F^2 / D^2,
relative = mean of ||estimate - exact||_F^2 / mean of ||exact||_F^2.
Both are averaged over seeds, with the standard error over seeds. "held_out" is the mean residual
loss per dimension at other fresh points, of the residuals of autodiff's s1, which needs no truth
(`fit.held_out_losses`): the last column takes, seed by seed, the direct method and head that it
prefers. Rows are written to PATH as they finish, and what is already there is not run again.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import NullLocator

from hos_jax import autodiff, distributions, fit, losses, pointwise
from hos_jax.evaluation import figures
from hos_jax.files import write_atomically
from hos_jax.losses.objective import FIRST_ORDER, SECOND_ORDER
from hos_jax.models.heads import SecondOrderHead
from hos_jax.models.hessian_model import HessianModel
from hos_jax.models.mlp import MLP
from hos_jax.models.score_model import ScoreModel

SIGMAS = (0.01, 0.05, 0.1, 0.5)
AUTODIFF = {"autodiff of dsm": "dsm", "autodiff of dsm_vr": "dsm_vr"}
# The losses of s2 and of its s1, the share of the Jacobian beside the former, and the steps of
# s1 and s2 in units of `--steps`. What learns from the Jacobian begins with the layers of s1.
DIRECT = {
    "d2sm": ("d2sm", "dsm_vr", 0.0, 1.0, 1.0),
    "d2sm_vr": ("d2sm_vr", "dsm_vr", 0.0, 1.0, 1.0),
    "d2sm_residual_plain": ("d2sm_residual_plain", "dsm_vr", 0.0, 1.0, 1.0),
    "d2sm_residual": ("d2sm_residual", "dsm_vr", 0.0, 1.0, 1.0),
    "residual_nll": ("residual_nll", "dsm_vr", 0.0, 1.0, 1.0),
    "Jacobian": ("jacobian", "dsm_vr", 0.0, 1.5, 0.5),
    "Jacobian and residual": ("d2sm_residual", "dsm_vr", 0.5, 1.5, 0.5),
    "Jacobian, s1 of autodiff": ("jacobian", "dsm_vr", 0.0, 2.0, 0.5),
    "Jacobian, s1 of dsm": ("jacobian", "dsm", 0.0, 2.0, 0.5),
}
# Those of the figure, which would be crowded by all.
SHOWN = (
    *AUTODIFF,
    "d2sm_vr",
    "d2sm_residual_plain",
    "d2sm_residual",
    "Jacobian, s1 of autodiff",
    "Jacobian, s1 of dsm",
)
CHOSEN = "best by held-out residual loss"
THIRD = (
    "third: autodiff of dsm_vr",
    "third: derivative of direct s2",
    "third: d3sm",
    "third: d3sm centred",
)
METHODS = (*AUTODIFF, *DIRECT, *THIRD)

# Values kept for the exact tensors of a cell; more are computed again for each row.
LARGEST_TRUTH = 2**27


def _mixture(dim: int, smallest: float, largest: float) -> distributions.GaussianMixture:
    """Five spherical components at random places of norm sqrt(D), of these standard deviations."""
    rng = np.random.default_rng(dim)
    means = rng.normal(size=(5, dim))
    weights = rng.dirichlet(np.full(5, 5.0))
    return distributions.GaussianMixture(
        jnp.asarray(weights), jnp.asarray(means), stds=jnp.linspace(smallest, largest, 5)
    )


def _signals(dim: int) -> distributions.GaussianMixture:
    """Three Gaussian processes on a line of so many points: rough to smooth, each with a mean."""
    rng = np.random.default_rng(dim)
    place = np.arange(dim)
    distance = np.abs(place[:, None] - place[None])
    covariances = [
        variance * np.exp(-distance / length) for length, variance in ((1, 0.5), (3, 1), (10, 2))
    ]
    means = np.stack([np.sin(2 * np.pi * place / period) for period in (10, 25, 50)])
    weights = rng.dirichlet(np.full(3, 5.0))
    arrays = (jnp.asarray(a) for a in (weights, means, np.stack(covariances)))
    return distributions.GaussianMixture(*arrays)


def _logistics(dim: int) -> distributions.LogisticMixture:
    """Each coordinate three logistics, of scale 0.15 to 0.4, at random places."""
    rng = np.random.default_rng(dim)
    weights = rng.dirichlet(np.full(3, 3.0), size=dim)
    locations = rng.normal(size=(dim, 3))
    scales = rng.uniform(0.15, 0.4, size=(dim, 3))
    return distributions.LogisticMixture(*(jnp.asarray(a) for a in (weights, locations, scales)))


# The law, the heads that are tried on it, and whether its third order is too.
LAWS = {
    "gaussian100": (
        lambda: distributions.random_correlated_gaussian(jax.random.key(100), 100, 10.0),
        ("low_rank", "dense"),
        False,
    ),
    # Its vectors are signals, so that the local structures fit.
    "signals50": (
        lambda: _signals(50),
        ("low_rank", "local", "local_low_rank", "dense"),
        False,
    ),
    "logistics20": (lambda: _logistics(20), ("diagonal", "low_rank", "dense"), False),
    "logistics100": (lambda: _logistics(100), ("diagonal", "low_rank"), False),
    "mixture10": (lambda: _mixture(10, 0.2, 0.4), ("low_rank", "dense"), False),
    "mixture20": (lambda: _mixture(20, 0.2, 0.4), ("low_rank", "dense"), False),
    # Components that touch: where two meet, in one point of a hundred, s2 has large peaks.
    "touching10": (lambda: _mixture(10, 0.4, 0.8), ("low_rank", "dense"), True),
    "touching3": (lambda: _mixture(3, 0.4, 0.8), ("dense",), True),
}


class Cell:
    """One law at one noise level: trains what the methods need, each thing once."""

    def __init__(self, law_name: str, sigma: float, options: argparse.Namespace):
        self.law = LAWS[law_name][0]()
        self.sigma, self.options, self.dim = sigma, options, self.law.dim
        self.smooth = self.law.smooth(sigma)
        self.keys = jax.random.split(jax.random.key(2024), options.seeds)
        self.network = functools.partial(MLP, features=options.width, depth=3)
        self.score_model = ScoreModel(self.network, data_std=1.0)
        self._scores: dict = {}
        self._hessians: dict = {}
        self._truth: dict = {}

    def over_seeds(self, function, *arguments):
        """`function` for each seed: vmapped where that is fast, one by one on a CPU."""
        if jax.default_backend() == "cpu":
            return jax.lax.map(lambda args: function(*args), arguments)
        return jax.vmap(function)(*arguments)

    def score_params(self, loss: str, steps: int):
        """Parameters of s1, one set per seed."""
        if (loss, steps) not in self._scores:
            batch = self.options.evaluations // len(FIRST_ORDER[loss])
            train = functools.partial(
                fit.fit_score,
                model=self.score_model,
                sample=self.law.sample,
                sigma=self.sigma,
                dim=self.dim,
                steps=steps,
                batch_size=batch,
                loss=loss,
                learning_rate=self.options.learning_rate,
            )
            self._scores[loss, steps] = jax.jit(lambda keys: self.over_seeds(train, keys))(
                self.keys
            )
        return self._scores[loss, steps]

    def score_fn(self, params):
        return pointwise.score_fn(self.score_model, params, self.sigma)

    def hessian_model(self, structure: str, method: str) -> HessianModel:
        head = SecondOrderHead(
            structure,
            rank=min(20, self.dim),
            positive_definite=method == "residual_nll" or structure.startswith("local"),
            scale=self.sigma**2 / (self.sigma**2 + 1.0),
        )
        return HessianModel(self.network, head, data_std=1.0)

    def hessian_params(self, method: str, structure: str):
        """Parameters of s1 and of s2, one set of each per seed."""
        if (method, structure) not in self._hessians:
            self._hessians[method, structure] = self._train_hessian(method, structure)
        return self._hessians[method, structure]

    def _train_hessian(self, method: str, structure: str):
        loss, score_loss, weight, first, second = DIRECT[method]
        model = self.hessian_model(structure, method)
        products = loss == "jacobian" or weight > 0
        batch = self.options.evaluations // (len(SECOND_ORDER[loss]) + 2 * products)

        def train(score_params, key):
            return fit.fit_hessian(
                jax.random.fold_in(key, 1),
                self.score_fn(score_params),
                model,
                self.law.sample,
                self.sigma,
                dim=self.dim,
                steps=int(second * self.options.steps),
                batch_size=batch,
                loss=loss,
                jacobian_weight=weight,
                start_from=score_params if products else None,
                learning_rate=self.options.learning_rate,
            )

        score_params = self.score_params(score_loss, int(first * self.options.steps))
        run = jax.jit(lambda params, keys: self.over_seeds(train, params, keys))
        return score_params, run(score_params, self.keys)

    def second_order(self, method: str, structure: str) -> list[dict]:
        """Errors of s2, one row per seed."""
        if method in AUTODIFF:
            params = self.score_params(AUTODIFF[method], 2 * self.options.steps)
            return self.errors(
                lambda p: autodiff.dense_hessian_fn(self.score_fn(p)), params, self.smooth.hessian
            )
        model = self.hessian_model(structure, method)

        def hessian_fn(p):
            return pointwise.hessian_fn(model, p[1], self.sigma, score_fn=self.score_fn(p[0]))

        # The residuals of one and the same s1 for all: a better s1 has smaller ones.
        judge = self.score_params("dsm_vr", 2 * self.options.steps)

        def held_out(judge, p):
            values = fit.held_out_losses(
                jax.random.key(11),
                self.score_fn(judge),
                hessian_fn(p),
                self.law.sample,
                self.sigma,
                dim=self.dim,
                count=self.options.points,
            )
            return jnp.mean(values) / self.dim

        params = self.hessian_params(method, structure)
        rows = self.errors(hessian_fn, params, self.smooth.hessian)
        judged = jax.jit(lambda judge, p: self.over_seeds(held_out, judge, p))(judge, params)
        losses_found = jax.device_get(judged)
        return [
            {**row, "held_out": float(loss)} for row, loss in zip(rows, losses_found, strict=True)
        ]

    def third_order(self, method: str) -> list[dict]:
        """Errors of s3, one row per seed; the learned tensor is dense."""

        def exact(noisy):
            return self.smooth.score_tensor(noisy, 3)

        if method == "third: autodiff of dsm_vr":
            params = self.score_params("dsm_vr", 2 * self.options.steps)
            return self.errors(
                lambda p: functools.partial(autodiff.third_derivative, self.score_fn(p)),
                params,
                exact,
                order=3,
            )
        hessian_model = self.hessian_model("dense", "d2sm_residual")
        if method == "third: d3sm":
            pair = (self.score_params("dsm_vr", self.options.steps), None)
        else:
            pair = self.hessian_params("d2sm_residual", "dense")
        if method == "third: derivative of direct s2":

            def derivative(p):
                hessian_fn = pointwise.hessian_fn(
                    hessian_model, p[1], self.sigma, score_fn=self.score_fn(p[0])
                )
                return lambda y: _symmetric(jax.jacfwd(lambda at: hessian_fn(at).to_dense())(y))

            return self.errors(derivative, pair, exact, order=3)
        centred = method == "third: d3sm centred"
        network = self.network(out_channels=self.dim**3, name=None)
        # Beyond order 2 the density varies on its own scale, here 1.
        unit = (self.sigma**2 / (self.sigma**2 + 1.0)) ** 1.5

        def tensors(params, noisy):
            raw = network.apply(params, noisy[:, None, None, :] / math.sqrt(1 + self.sigma**2))
            raw = unit * raw.reshape(len(noisy), self.dim, self.dim, self.dim)
            return jax.vmap(_symmetric)(raw)

        def train(frozen, key):
            score_fn = self.score_fn(frozen[0])
            batch = self.options.evaluations // 2

            def loss_fn(step_key, params):
                clean_key, noise_key = jax.random.split(step_key)
                clean = self.law.sample(clean_key, batch)
                half = jax.random.normal(noise_key, clean.shape, clean.dtype)
                noise = jnp.concatenate([half, -half])
                noisy = jnp.concatenate([clean, clean]) + self.sigma * noise
                residual = noise + self.sigma * jax.vmap(score_fn)(noisy)
                third = tensors(params, noisy)
                if not centred:
                    return jnp.mean(jax.vmap(losses.d3sm)(third, residual)) / unit**2
                hessian_fn = pointwise.hessian_fn(
                    hessian_model, frozen[1], self.sigma, score_fn=score_fn
                )
                scaled = jax.vmap(lambda y: hessian_fn(y).scale(self.sigma**2).add_identity())
                return jnp.mean(jax.vmap(losses.d3sm)(third, residual, scaled(noisy))) / unit**2

            init_key, loop_key = jax.random.split(jax.random.fold_in(key, 2))
            params = network.init(init_key, jnp.zeros((1, 1, 1, self.dim)))
            return fit.minimize(
                loop_key,
                loss_fn,
                params,
                steps=self.options.steps,
                learning_rate=self.options.learning_rate,
            )

        run = jax.jit(lambda frozen, keys: self.over_seeds(train, frozen, keys))
        params = run(pair, self.keys)
        return self.errors(
            lambda p: lambda y: tensors(p, y[None])[0] / self.sigma**3, params, exact, order=3
        )

    def errors(self, make_estimate, params, exact, order: int = 2) -> list[dict]:
        """Squared error and size of a tensor of that order, over the same points for all seeds."""
        points, truth = self.truth(exact, order)

        def one_seed(p):
            estimate = make_estimate(p)

            def one_chunk(chunk):
                noisy, known = chunk
                known = jax.vmap(exact)(noisy) if known is None else known
                known = jax.vmap(_dense)(known)
                wrong = jax.vmap(lambda y: _dense(estimate(y)))(noisy) - known
                return jnp.sum(jnp.square(wrong)), jnp.sum(jnp.square(known))

            return jax.tree.map(jnp.sum, jax.lax.map(one_chunk, (points, truth)))

        error, size = jax.device_get(jax.jit(lambda p: self.over_seeds(one_seed, p))(params))
        per_entry = points.shape[0] * points.shape[1] * self.dim**order
        return [
            {"seed": seed, "mse": float(e) / per_entry, "relative": float(e) / float(s)}
            for seed, (e, s) in enumerate(zip(error, size, strict=True))
        ]

    def truth(self, exact, order: int):
        """Fresh noisy points (chunks, n, D) and, where it fits, the exact tensor at each."""
        if order not in self._truth:
            chunk = min(500, self.options.points)
            keys = jax.random.split(jax.random.key(7), self.options.points // chunk)

            @functools.partial(jax.lax.map, xs=keys)
            def points(key):
                clean_key, noise_key = jax.random.split(key)
                clean = self.law.sample(clean_key, chunk)
                return clean + self.sigma * jax.random.normal(noise_key, clean.shape, clean.dtype)

            size = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(exact, points[0, 0])))
            truth = None
            if size * self.options.points <= LARGEST_TRUTH:
                truth = jax.jit(lambda p: jax.lax.map(jax.vmap(exact), p))(points)
            self._truth[order] = points, truth
        return self._truth[order]


def _dense(value):
    return value if isinstance(value, jax.Array) else value.to_dense()


def _symmetric(tensor):
    """The symmetric part of a (D, D, D) tensor."""
    return sum(tensor.transpose(turn) for turn in itertools.permutations(range(3))) / 6.0


def plan(options) -> list[tuple[str, float, str, str]]:
    """(law, sigma, method, head) of every entry of the table that is asked for."""
    entries = []
    for law in options.laws:
        _, heads, third = LAWS[law]
        for sigma in options.sigmas:
            for method in options.methods:
                if method in AUTODIFF:
                    entries.append((law, sigma, method, "-"))
                elif method in DIRECT:
                    entries += [(law, sigma, method, h) for h in heads if h in options.heads]
                elif third:
                    entries.append((law, sigma, method, "-"))
    return entries


def run(options) -> list[dict]:
    """Every entry of the plan that is not in the file yet; returns all rows."""
    settings = {
        name: getattr(options, name)
        for name in ("steps", "evaluations", "width", "seeds", "points", "learning_rate")
    }
    rows = []
    if options.json and options.json.is_file():
        rows = json.loads(options.json.read_text())
        stale = [row for row in rows if row["settings"] != settings]
        if stale:
            raise SystemExit(f"{options.json} has rows of other settings: choose another file")
    done = {(row["law"], row["sigma"], row["method"], row["head"]) for row in rows}
    cell, where = None, None
    for law, sigma, method, head in plan(options):
        if (law, sigma, method, head) in done:
            continue
        if where != (law, sigma):
            cell, where = Cell(law, sigma, options), (law, sigma)
        begun = time.perf_counter()
        found = cell.third_order(method) if method in THIRD else cell.second_order(method, head)
        seconds = time.perf_counter() - begun
        common = {"law": law, "sigma": sigma, "method": method, "head": head}
        rows += [{**common, **row, "settings": settings} for row in found]
        print(
            f"{law:<13}{sigma:<6}{method:<28}{head:<10}{_cell_text(found):<20}{seconds:6.0f} s",
            flush=True,
        )
        if options.json:
            text = "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"
            write_atomically(options.json, text)
    return rows


def _cell_text(rows: list[dict]) -> str:
    values = np.array([row["relative"] for row in rows])
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{values.mean():.4f} ({error:.4f})"


def chosen(rows: list[dict], methods: tuple[str, ...] = tuple(DIRECT)) -> list[dict]:
    """Of one law and noise level, for every seed the direct row with the lowest held-out loss."""
    rows = [row for row in rows if row["method"] in methods and "held_out" in row]
    seeds = sorted({row["seed"] for row in rows})
    return [min((r for r in rows if r["seed"] == s), key=lambda r: r["held_out"]) for s in seeds]


def best(rows: list[dict]) -> str:
    """The better autodiff and the row that the held-out loss takes, cell by cell, as Markdown."""
    lines = ["| law | sigma | better autodiff | chosen | its error | ratio |", "|---" * 6 + "|"]
    ratios = []
    for law, sigma in sorted({(row["law"], row["sigma"]) for row in rows}):
        cell = [row for row in rows if (row["law"], row["sigma"]) == (law, sigma)]
        taken = chosen(cell)
        columns = [[row for row in cell if row["method"] == method] for method in AUTODIFF]
        if not taken or not all(columns):
            continue
        known = min(columns, key=_mean)
        names = sorted({f"{row['method']}, {row['head']}" for row in taken})
        ratios.append(_mean(known) / _mean(taken))
        values = _cell_text(known), " / ".join(names), _cell_text(taken), f"{ratios[-1]:.2f}"
        lines.append(f"| {law} | {sigma} | " + " | ".join(values) + " |")
    if ratios:
        lines.append(
            f"\nGeometric mean of {len(ratios)} ratios: {np.exp(np.mean(np.log(ratios))):.2f}"
        )
    return "\n".join(lines)


def _mean(rows: list[dict]) -> float:
    return float(np.mean([row["relative"] for row in rows]))


def table(rows: list[dict], order: int = 2) -> str:
    """Relative errors of one order by law and noise level, a column per method, as Markdown."""
    rows = [row for row in rows if (row["method"] in THIRD) == (order == 3)]
    methods = [m for m in METHODS if any(row["method"] == m for row in rows)]
    lines = [
        "| law | sigma | head | " + " | ".join(methods) + " |",
        "|---" * (3 + len(methods)) + "|",
    ]
    places = {(r["law"], r["sigma"], r["head"]) for r in rows if order == 3 or r["head"] != "-"}
    for law, sigma, head in sorted(places):
        cells = []
        for method in methods:
            found = [
                r
                for r in rows
                if (r["law"], r["sigma"], r["method"]) == (law, sigma, method)
                and r["head"] in (head, "-")
            ]
            cells.append(_cell_text(found) if found else "")
        lines.append(f"| {law} | {sigma} | {head} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figure(rows: list[dict], path: Path) -> None:
    """Relative error of s2 by noise level, a panel per law and head, a line per method shown."""
    rows = [row for row in rows if row["method"] not in THIRD]
    run_at: dict[tuple[str, str], set[float]] = {}
    for row in rows:
        if row["head"] != "-":
            run_at.setdefault((row["law"], row["head"]), set()).add(row["sigma"])
    # A single noise level makes no line.
    places = sorted(place for place, sigmas in run_at.items() if len(sigmas) > 1)
    columns = min(4, len(places))
    lines = math.ceil(len(places) / columns)
    plot, grid = plt.subplots(
        lines,
        columns,
        figsize=(3.4 * columns, 3.4 * lines),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    axes = grid.ravel()
    for panel in axes[len(places) :]:
        panel.set_axis_off()
    for panel, (law, head) in zip(axes, places, strict=False):
        for method in SHOWN:
            chosen = [
                r
                for r in rows
                if (r["law"], r["method"]) == (law, method) and r["head"] in (head, "-")
            ]
            sigmas = sorted({r["sigma"] for r in chosen})
            values = [[r["relative"] for r in chosen if r["sigma"] == s] for s in sigmas]
            style = "--" if method in AUTODIFF else "-"
            panel.loglog(sigmas, [np.mean(v) for v in values], style, marker="o", label=method)
        panel.set_title(f"{law}, {head.replace('_', '-')} head", fontsize=10)
        panel.set_xlabel("sigma")
        shown = sorted({row["sigma"] for row in rows})
        panel.set_xticks(shown, [f"{sigma:g}" for sigma in shown])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.tick_params(labelbottom=True)
        panel.grid(alpha=0.3)
    for panel in grid[:, 0]:
        panel.set_ylabel("relative squared error of s2")
    # A run that diverged is off the picture, and in the table.
    axes[0].set_ylim(top=min(axes[0].get_ylim()[1], 100.0))
    handles, labels = axes[len(places) - 1].get_legend_handles_labels()
    plot.legend(handles, labels, loc="outside lower center", ncols=4)
    figures.save(plot, path)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small part, in about 3 minutes")
    parser.add_argument("--json", type=Path, help="rows; what is there is not run again")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--laws", nargs="+", default=list(LAWS), choices=list(LAWS))
    parser.add_argument("--sigmas", nargs="+", type=float, default=list(SIGMAS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    heads = ("diagonal", "low_rank", "local", "local_low_rank", "dense")
    parser.add_argument("--heads", nargs="+", default=list(heads), choices=heads)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--evaluations", type=int, default=384)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    options = parser.parse_args(argv)
    if options.quick:
        options.laws, options.sigmas, options.heads = ["mixture10"], [0.1], ["low_rank"]
        options.steps, options.points = 1000, 10_000
    return options


if __name__ == "__main__":
    arguments = parse()
    every_row = run(arguments)
    print("\n" + table(every_row))
    print(f"\n{CHOSEN}:\n\n" + best(every_row))
    if any(row["method"] in THIRD for row in every_row):
        print("\n" + table(every_row, order=3))
    if arguments.figure:
        figure(every_row, arguments.figure)
