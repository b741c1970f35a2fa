r"""The causal order of the variables of a table, causes first, from learned second-order scores.

In an additive noise model every variable is x_j = f_j(parents of j) + n_j, with independent n_j. A
leaf, a variable that causes none of the others, appears in one factor of the density only. If n_j
is Gaussian with variance v_j then

.. math:: \frac{\partial^2 \log p}{\partial x_j^2} = -\frac{1}{v_j}

is the same everywhere; for a variable that has effects it changes from place to place, where the
mechanisms of these are nonlinear. Find the variable whose second derivative varies least, remove
it, and repeat (Rolland et al., "Score matching enables causal discovery of nonlinear additive noise
models", ICML 2022, Lemma 1 and Algorithm 1).

Learned by denoising, this needs no small noise. With noise of deviation sigma on x_j *alone*, and
all others clean, the second derivative of the smoothed density along y_j is

.. math:: s_{2,jj} = \frac{C_j - 1}{\sigma^2}, \qquad
          C_j(y_j, x_{-j}) = \operatorname{Var}[x_j \mid y_j, x_{-j}] / \sigma^2,

and of a leaf with Gaussian noise C_j = v_j / (v_j + sigma^2): constant at *every* sigma. With noise
on all variables at once it would be constant in the limit of small sigma only, where s2 is hard to
learn. And the law of the variables that remain is what a network learns for which the removed ones
are unknown. So a `Conditionals` is trained once and asked in every step: a variable is clean, or
noisy, or unknown, at random in training. Several are trained, and what they say is averaged.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hos_jax import losses
from hos_jax.errors import UserError
from hos_jax.fit import minimize
from hos_jax.linops import Diagonal
from hos_jax.models.heads import SecondOrderHead
from hos_jax.models.mlp import MLP
from hos_jax.types import (
    Array,
    PRNGKey,
    check_counts,
    check_floating,
    check_positive,
    check_unmasked,
)

logger = logging.getLogger(__name__)

# Noise levels, deviations of the data, at which orders were held against the truth.
MEASURED = (0.5, 2.0)
# Shares of the known variables that are noisy in an example, drawn at random.
_NOISY_SHARES = (0.05, 0.2, 0.5)


class CausalOrder(NamedTuple):
    """An order of D variables, and why.

    Attributes:
      order: numbers of the variables, causes first, (D,).
      evidence: `evidence[t, j]`, (D, D), how much the second derivative of variable j varies before
        step t; NaN for removed variables. The leaf of step t, `order[D - 1 - t]`, has the smallest
        of its row.
    """

    order: np.ndarray
    evidence: np.ndarray

    def table(self, names: Sequence[str] | None = None, digits: int = 4) -> list[list[str]]:
        """Rows of text: a header; then for each step its number, the leaf, and each statistic.

        ValueError unless there is a name for each variable.
        """
        names = [str(j) for j in range(len(self.order))] if names is None else list(names)
        if len(names) != len(self.order):
            raise ValueError(f"expected {len(self.order)} names, got {len(names)}")
        rows = [["step", "leaf", *names]]
        for step, found in enumerate(self.evidence):
            leaf = names[int(self.order[len(self.order) - 1 - step])]
            shown = ["" if np.isnan(value) else f"{value:.{digits}g}" for value in found]
            rows.append([str(step + 1), leaf, *shown])
        return rows


def dispersion(values: Array) -> Array:
    """Var / |mean| of each column, (N, D) -> (D,): of the second derivatives of one variable at N
    points, in units of 1 / x_j^2 as these. It is 0 for a leaf with Gaussian noise, if they are
    exact.

    Each effect of x_j adds a term to its second derivative. Of n such terms, equally large and
    independent, variance and mean both grow with n, so that the dispersion hardly depends on n once
    they outweigh the variable's own 1 / v_j; var / mean^2 falls with n, as if a variable with many
    effects had none.
    """
    return jnp.var(values, axis=0) / jnp.abs(jnp.mean(values, axis=0))


def conditional_precisions(covariances: Array, sigma: Array | float) -> Array:
    """1 / Var[x_j | the others] from C_j = Var[x_j | y_j, the others] / sigma^2 elementwise: the
    noise is taken out again, exactly where the conditional law is Gaussian, as that of a leaf is.

    (1 / C - 1) / sigma^2, with C at most 0.99: a variance above 99 sigma^2 is not told apart.
    """
    return (1.0 / jnp.minimum(covariances, 0.99) - 1.0) / sigma**2


def peel(statistics_fn: Callable[[np.ndarray], Any], dim: int) -> CausalOrder:
    """Remove the variable of the smallest statistic, until none is left.

    Args:
      statistics_fn: `statistics_fn(known)`, known a mask (D,) of the variables that remain: (D,)
        numbers, those of the removed variables are not read.
      dim: D.

    Raises:
      ValueError: for a statistic that is not a number.
    """
    check_counts(dim=dim)
    known, leaves = np.ones(dim, bool), []
    evidence = np.full((dim, dim), np.nan)
    for step in range(dim):
        found = np.asarray(statistics_fn(known.copy()), dtype=float)
        if found.shape != (dim,) or not np.isfinite(found[known]).all():
            raise ValueError(f"expected {dim} finite statistics, got {found}")
        evidence[step, known] = found[known]
        leaves.append(int(np.nanargmin(evidence[step])))
        known[leaves[-1]] = False
    return CausalOrder(np.array(leaves[::-1]), evidence)


class Conditionals(nn.Module):
    r"""Mean and variance of each noisy variable, given all that is known, for data of variance 1.

    Attributes:
      features, depth: of the network, an MLP that sees each variable as three numbers: its value
        (0 if unknown), whether it is known, whether it is noisy.
    """

    features: int = 128
    depth: int = 2

    @nn.compact
    def __call__(
        self, points: Array, known: Array, noisy: Array, sigma: Array | float
    ) -> tuple[Array, Array]:
        """s1 and C at points, (N, D) each; only those of noisy variables mean anything.

        Args:
          points: values, with noise of deviation sigma on the noisy ones, (N, D).
          known, noisy: 1.0 or 0.0, (N, D); what is noisy is known too.
        """
        unit = 1.0 / (1.0 + sigma**2)
        values = points * known * jnp.where(noisy > 0, unit**0.5, 1.0)
        inputs = jnp.stack([values, known, noisy], axis=-1)[:, None]
        network = MLP(out_channels=2, features=self.features, depth=self.depth, name="network")
        raw = network(inputs)[:, 0]
        # The mean of a standard normal variable, and what the network adds, of order 1.
        mean = unit * points + unit**0.5 * sigma * raw[..., 0]
        head = SecondOrderHead("diagonal")
        covariance = jax.vmap(lambda value: head.covariance(value[None]).diagonal())(raw[..., 1])
        return (mean - points) / sigma**2, unit * covariance


def fit_conditionals(
    key: PRNGKey,
    model: Conditionals,
    data: Array,
    sigma: Array | float = 1.0,
    *,
    steps: int,
    batch_size: int = 128,
    jitter: float = 0.2,
    learning_rate: float = 3e-3,
) -> Any:
    """Parameters of `Conditionals`: `losses.dsm` for s1 and `losses.residual_nll` for C.

    Args:
      key: decides the initialization and every draw.
      data: (N, D), columns of mean 0 and variance 1.
      sigma: deviation of the noise on the noisy variables, deviations of the data.
      steps, batch_size, learning_rate: of `fit.minimize`.
      jitter: deviation of noise on the other known variables, against learning rows by heart.
    """
    check_counts(steps=steps, batch_size=batch_size)
    check_positive(sigma=sigma)
    data = jnp.asarray(data)
    shape = batch_size, data.shape[1]

    def example_loss(score, covariance, noise, noisy):
        # What is not noisy adds nothing: its residual is 0 and the logarithm of its variance too.
        score, noise = score * noisy, noise * noisy
        covariance = Diagonal(jnp.where(noisy > 0, covariance, 1.0))
        first = 0.5 * sigma**2 * (1.0 + sigma**2) * losses.dsm(score, noise, sigma)
        second = losses.residual_nll(losses.residual(score, noise, sigma), covariance)
        return (first + second) / jnp.maximum(jnp.sum(noisy), 1.0)

    def loss_fn(key, params):
        rows_key, known_key, noisy_key, noise_key = jax.random.split(key, 4)
        clean = data[jax.random.randint(rows_key, shape[:1], 0, len(data))]
        known, noisy = _draw_masks(known_key, noisy_key, shape, data.dtype)
        noise = jax.random.normal(noise_key, shape, data.dtype)
        points = clean + noise * jnp.where(noisy > 0, sigma, jitter)
        outputs: Any = model.apply(params, points, known, noisy, sigma)
        score, covariance = outputs
        return jnp.mean(jax.vmap(example_loss)(score, covariance, noise, noisy))

    init_key, loop_key = jax.random.split(key)
    zeros = jnp.zeros((1, shape[1]), data.dtype)
    params = model.init(init_key, zeros, zeros, zeros, sigma)
    return minimize(loop_key, loss_fn, params, steps=steps, learning_rate=learning_rate)


@functools.partial(jax.jit, static_argnames=("model", "steps"))
def fit_members(
    keys: PRNGKey, model: Conditionals, data: Array, sigma: Array | float = 1.0, *, steps: int
) -> Any:
    """Parameters of a network for each of the keys (M,), stacked, by `fit_conditionals` one after
    another; data is (N, D)."""
    return jax.lax.map(lambda key: fit_conditionals(key, model, data, sigma, steps=steps), keys)


def _draw_masks(known_key: PRNGKey, noisy_key: PRNGKey, shape: tuple[int, int], dtype: Any):
    """Which variables are known, and which of these are noisy, (N, D) each: 1.0 or 0.0.

    A fifth of the examples knows all variables, as the first step does; the others any share.
    """
    share_key, all_key, draw_key = jax.random.split(known_key, 3)
    column = shape[0], 1
    share = jnp.sqrt(jax.random.uniform(share_key, column))
    share = jnp.where(jax.random.uniform(all_key, column) < 0.2, 1.0, share)
    known = (jax.random.uniform(draw_key, shape) < share).astype(dtype)
    share_key, draw_key = jax.random.split(noisy_key)
    share = jax.random.choice(share_key, jnp.array(_NOISY_SHARES), column)
    return known, known * (jax.random.uniform(draw_key, shape) < share).astype(dtype)


def conditional_variances(
    key: PRNGKey,
    model: Conditionals,
    params: Any,
    data: Array,
    known: Array,
    sigma: Array | float,
    *,
    asked: Array | None = None,
) -> Array:
    """C_j at every row with noise on variable j alone and what is not known left out, (N, D); of
    the variables of a mask, (D,), where it is given, and 1 for the others."""
    noise = sigma * jax.random.normal(key, data.shape, data.dtype)
    every = jnp.broadcast_to(jnp.asarray(known, data.dtype), data.shape)

    def of_variable(j):
        noisy = jnp.broadcast_to(jax.nn.one_hot(j, data.shape[1], dtype=data.dtype), data.shape)
        outputs: Any = model.apply(params, data + noise * noisy, every, noisy, sigma)
        _, covariance = outputs
        return covariance[:, j]

    def of_asked(j_and_asked):
        j, is_asked = j_and_asked
        return jax.lax.cond(is_asked, of_variable, lambda _: jnp.ones_like(data[:, 0]), j)

    every_j = jnp.arange(data.shape[1])
    if asked is None:
        return jax.lax.map(of_variable, every_j).T
    return jax.lax.map(of_asked, (every_j, asked)).T


@functools.partial(jax.jit, static_argnames="model")
def mean_precisions(
    key: PRNGKey, model: Conditionals, members: Any, data: Array, known: Array, sigma: Array | float
) -> Array:
    """`conditional_precisions` at every row, means over networks, (N, D); columns that are not
    known mean nothing, and take no time. All networks see the same noise.

    Args:
      members: parameters of networks, stacked, as `fit_members` gives them.
    """

    def of_member(params: Any) -> Array:
        at = jax.random.clone(key)
        asked = jnp.asarray(known, bool)
        found = conditional_variances(at, model, params, data, known, sigma, asked=asked)
        return conditional_precisions(found, sigma)

    return jnp.mean(jax.lax.map(of_member, members), axis=0)


def standardized(data: Any, names: Sequence[str] | None = None) -> np.ndarray:
    """The columns of a table with mean 0 and variance 1, in single precision, (N, D). Errors call
    them by `names`, or by their numbers from 0.

    Raises:
      UserError: for another shape, fewer than two columns or three rows, what is no number or
        not finite, a column of one value, or two that are one, or nearly so, but for their units.
      ValueError: for a masked array of which something is masked.
    """
    check_unmasked(table=data)
    try:
        if np.iscomplexobj(data):
            raise TypeError("complex numbers")
        table = np.asarray(data, dtype=float)
    except (TypeError, ValueError) as error:
        raise UserError("the table holds what is no number: leave such columns out") from error
    if table.ndim != 2 or table.shape[0] < 3 or table.shape[1] < 2:
        raise UserError(f"a table of at least 3 rows and 2 columns is needed, got {table.shape}")
    if not np.isfinite(table).all():
        rows = np.flatnonzero(~np.isfinite(table).all(axis=1))
        raise UserError(f"row {rows[0] + 1} has a value that is not finite: leave such rows out")
    called = str if names is None else lambda j: repr(names[j])
    table, _ = _in_range(table)
    spread = table.std(axis=0)
    if not (spread > 1e-12).all():
        index = int(np.argmin(spread > 1e-12))
        column, values = called(index), table[:, index]
        if values.min() < values.max():
            what = f"column {column} varies by less than 1e-12 of its size"
            raise UserError(f"{what}: take a constant off it, or leave it out")
        raise UserError(f"column {column} has one value alone: leave it out")
    table = (table - table.mean(axis=0)) / spread
    same = np.argwhere(np.triu(np.abs(table.T @ table) > (1.0 - 1e-9) * len(table), 1))
    if len(same):
        left, right = (called(int(column)) for column in same[0])
        raise UserError(
            f"columns {left} and {right} are one, or nearly so, but for their units: leave one out"
        )
    return table.astype(np.float32)


def _in_range(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The table with 1 as the largest size of each column, so that squares are in range, and what
    the columns were divided by."""
    largest = np.abs(table).max(axis=0)
    largest = np.where(largest > 0, largest, 1.0)
    return table / largest, largest


def _relative_units(data: Any) -> np.ndarray:
    """The variances of the columns over their geometric mean, (D,).

    Raises:
      UserError: where their deviations are so far apart that single precision has no room for it.
    """
    table, largest = _in_range(np.asarray(data, dtype=float))
    logs = 2.0 * np.log(largest) + np.log(table.var(axis=0))
    logs -= logs.mean()
    if np.abs(logs).max() > 40.0:
        raise UserError("the units of the columns are too far apart for noises of the same size")
    return np.exp(logs)


def order_by(
    key: PRNGKey,
    model: Conditionals,
    members: Any,
    points: Array,
    sigma: float,
    *,
    variances: np.ndarray | None = None,
) -> CausalOrder:
    """The order by trained networks, from precisions at standardized points, (N, D).

    ValueError, of `peel`, where the networks give what is not finite; for fewer than two points,
    integers, sigma <= 0, or variances that are not D positive numbers.

    Args:
      members: parameters of networks trained with different keys, the first axis of each leaf being
        that of the networks. Their precisions are averaged: what one of them has wrong varies from
        row to row, as if the variable had effects.
      variances: of the columns in units in which all noises are about equally large, up to one
        factor for all, (D,), if there are such units: see `same_noise` of `causal_order`.
    """
    check_positive(sigma=sigma)
    check_floating(points=points)
    if points.ndim != 2 or len(points) < 2:
        raise ValueError(f"expected two points or more, (N, D), got {tuple(points.shape)}")
    units = None
    if variances is not None:
        known = np.asarray(variances, float)
        if known.shape != points.shape[1:] or not np.all((known > 0) & (known < np.inf)):
            raise ValueError(f"expected {points.shape[1]} positive variances, got {variances}")
        units = jnp.asarray(known, points.dtype)

    def ask(known: np.ndarray) -> Array:
        # The same noise in every step: what changes is what is known.
        at = jax.random.clone(key)
        precisions = mean_precisions(at, model, members, points, jnp.asarray(known), sigma)
        return dispersion(precisions) if units is None else precisions.var(axis=0) / units**2

    return peel(ask, points.shape[1])


def causal_order(
    key: PRNGKey,
    data: Any,
    *,
    same_noise: bool = False,
    sigma: float = 1.0,
    steps: int = 6000,
    networks: int = 8,
    features: int = 128,
    rows: int = 1000,
) -> CausalOrder:
    """The order of the variables of a table, causes first, by the method of this module.

    Args:
      key: decides the initialization and every draw.
      data: (N, D), one row per observation; standardized here for training.
      same_noise: whether the noises of all variables are about equally large in the units of the
        table. If so the variances of their precisions are compared in these units, as the
        published method does, in place of `dispersion` of standardized columns. It is wrong for
        units that have nothing to do with one another.
      sigma: the noise level, deviations of the data; far from 1 a warning says so.
      steps: of training, which is done once for each network.
      networks: how many are trained; their precisions are averaged.
      features: width of a network.
      rows: at how many rows, drawn at random without replacement, the precisions are compared.

    Raises:
      UserError: for a table that is none, see `standardized`; with `same_noise` for columns whose
        units are too far apart.
      ValueError: for masked values; for steps, networks or features that are no positive whole
        numbers, fewer than two rows, or sigma <= 0.
    """
    check_counts(steps=steps, networks=networks, features=features)
    check_counts(2, rows=rows)
    check_positive(sigma=sigma)
    if not MEASURED[0] / 2 <= sigma <= 2 * MEASURED[1]:
        logger.warning(
            "sigma=%g: of noise that is so %s the data little is learned, and an order may be one "
            "of chance; %g to %g were measured",
            *(sigma, "small beside" if sigma < 1 else "large beside", *MEASURED),
        )
    table = jnp.asarray(standardized(data))
    variances = _relative_units(data) if same_noise else None
    model = Conditionals(features)
    fit_key, noise_key, row_key = jax.random.split(key, 3)
    members = fit_members(jax.random.split(fit_key, networks), model, table, sigma, steps=steps)
    points = jax.random.permutation(row_key, table)[:rows]
    return order_by(noise_key, model, members, points, sigma, variances=variances)
