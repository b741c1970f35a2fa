r"""Which number to measure next, when what is known of x is a mean and a covariance.

A measurement a^T x + t n, with n standard normal, takes from the covariance K of x

.. math:: \operatorname{tr} K - \operatorname{tr} K' = \frac{|K a|^2}{t^2 + a^T K a}, \qquad
    K' = K - g g^T, \quad g = \frac{K a}{\sqrt{t^2 + a^T K a}}

whatever value it will show: on a Gaussian the best one is known before it is made (Kalman's update;
for Gaussian processes it is the "active learning" of Cohn, Ghahramani, Jordan, "Active Learning
with Statistical Models", 1996). `choose` takes the best one, downdates K, and takes the next. That
costs one product with K for each candidate, and two for each choice: never a D x D array.

Elsewhere K depends on what was seen. A `Belief` is the mean and the covariance of x given that, by
the law of total variance over N chains of `hos_jax.uncertainty.inverse.descend`:

.. math:: K = \frac{1}{N} \sum_i \mathrm{Cov}[x \mid y_i, b]
    + \frac{1}{N - 1} \sum_i (m_i - \bar m)(m_i - \bar m)^T, \qquad m_i = E[x \mid y_i, b]

with y_i a noisy point at one level sigma, given what was measured, b. The first part is the
second-order score's, K_i = sigma^2 C(y_i) conditioned on b; at a small sigma it vanishes, and the
second is the covariance of samples. `reveal` goes round: believe, choose, measure.

What is measured need not be values of x: with `rows_fn` it is any inner products, as values of a
Fourier transform; and where an instrument gives many at once, as a line of it, `choose_groups`
takes the best group.
"""

from __future__ import annotations

import dataclasses
import functools
import numbers
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import numpy as np

from hos_jax.errors import NonFiniteError, reason
from hos_jax.linops import SymmetricMatrix
from hos_jax.types import (
    Array,
    PRNGKey,
    at_least_float32,
    check_counts,
    check_positive,
    check_real,
    check_unmasked,
)
from hos_jax.uncertainty import inverse
from hos_jax.uncertainty.posterior import Posterior
from hos_jax.uses.greedy import Choice as Choice
from hos_jax.uses.greedy import (
    RowsFn,
    check_places,
    choose,
    columns_of_gain,
    group_noise_variance,
)
from hos_jax.uses.greedy import choose_groups as choose_groups
from hos_jax.uses.greedy import variance_removed as variance_removed


class Conditioned(NamedTuple):
    """x given y and b: its mean, and what b takes from K.

    Attributes:
      mean: E[x | y, b], (D,), data units.
      columns: G, (D, m): the covariance is K - G G^T.
    """

    mean: Array
    columns: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
    """What was measured, with room for more: b_j = x[places_j] + t n, or a_j^T x + t n.

    Attributes:
      places: indices of the values, (m,), each at most once.
      values: b, (m,), data units times those of a.
      valid: whether a place is taken, bool (m,); what stands in the others does not count.
      noise_std: t, positive scalar, data units.
      rows_fn: places (m,) -> a of each, (m, D), for a place in [0, D); None for values of x.
    """

    places: Array
    values: Array
    valid: Array
    noise_std: Array | float
    rows_fn: RowsFn | None = dataclasses.field(default=None, metadata={"static": True})

    def trim(self, step: int) -> Seen:
        """With room for a multiple of `step` only, the least that holds all. Not to be traced;
        ValueError for a step below 1."""
        check_counts(step=step)
        room = max(-(-int(np.sum(np.asarray(self.valid))) // step), 1) * step
        places, values, valid = self.places[:room], self.values[:room], self.valid[:room]
        return dataclasses.replace(self, places=places, values=values, valid=valid)

    @classmethod
    def none(cls, room: int, noise_std: Array | float, rows_fn: RowsFn | None = None) -> Seen:
        """Nothing measured yet, with room for so many values. ValueError unless t > 0, and for a
        negative room."""
        check_positive(noise_std=noise_std)
        check_counts(0, room=room)
        places = jnp.zeros(room, jnp.int32)
        return cls(places, jnp.zeros(room), jnp.zeros(room, bool), noise_std, rows_fn)

    def add(self, places: Array, values: Array) -> Seen:
        """With these measured too, (n,) each. Not to be traced; ValueError where there is no room,
        for places that are no whole numbers from 0 or are measured already, and for values that are
        masked, complex, no numbers, or not finite in the type of those before."""
        check_unmasked(places=places, values=values)
        given = np.asarray(values)
        check_real(values=given)
        if given.dtype.kind in "SU":
            raise ValueError(f"values are no numbers but text: {given[:3]}")
        try:
            with np.errstate(over="ignore"):
                given = given.astype(self.values.dtype)
        except (TypeError, ValueError) as error:
            raise ValueError(f"values are no numbers: {reason(error)}") from error
        known = np.asarray(places)
        if known.ndim != 1 or known.shape != np.shape(values) or known.dtype.kind not in "iu":
            raise ValueError(
                f"expected integers (n,) and as many values, got {known.dtype} {known.shape} and "
                f"{np.shape(values)}"
            )
        if (known < 0).any() or not np.isfinite(given).all():
            raise ValueError(
                f"places must not be negative, and values must be finite {given.dtype}"
            )
        check_places(known, np.iinfo(np.int32).max)
        taken = np.concatenate([np.asarray(self.places)[np.asarray(self.valid)], known])
        if len(np.unique(taken)) < len(taken):
            raise ValueError(f"each place is measured at most once, got {taken.tolist()}")
        begin = int(np.sum(np.asarray(self.valid)))
        end = begin + len(places)
        if end > len(self.places):
            raise ValueError(f"there is room for {len(self.places)} values, not for {end}")
        return dataclasses.replace(
            self,
            places=self.places.at[begin:end].set(jnp.asarray(places, jnp.int32)),
            values=self.values.at[begin:end].set(jnp.asarray(given)),
            valid=self.valid.at[begin:end].set(True),
        )

    def unseen(self, dim: int) -> Array:
        """Which of D values are not measured, bool (D,)."""
        # A place out of range is dropped.
        places = jnp.where(self.valid, self.places, dim)
        return jnp.ones(dim, bool).at[places].set(False, mode="drop")

    def astype(self, dtype: Any) -> Seen:
        """With values and noise of this type."""
        values, noise_std = (jnp.asarray(x, dtype) for x in (self.values, self.noise_std))
        return dataclasses.replace(self, values=values, noise_std=noise_std)

    def rows(self, dim: int, dtype: Any) -> Array:
        """A, (m, D); a row that does not count is zero. ValueError for a place beyond D, unless
        places are traced."""
        if not any(isinstance(x, jax.core.Tracer) for x in (self.places, self.valid)):
            check_places(np.asarray(self.places)[np.asarray(self.valid)], dim)
        if self.rows_fn is None:
            rows = jax.nn.one_hot(self.places, dim, dtype=dtype)
        else:
            rows = self.rows_fn(self.places)
            check_real(rows=rows)
            rows = rows.astype(dtype)
        return rows * self.valid[:, None].astype(dtype)


def _gain(posterior: Posterior, seen: Seen) -> tuple[Callable[[Array, Array], Array], Array]:
    """(x, b) -> x + K A^T S^-1 (b - A x), and G with G G^T = K A^T S^-1 A K, (D, m)."""
    rows = seen.rows(posterior.dim, posterior.mean.dtype)
    spread = posterior.matvec(rows.T)
    variance = group_noise_variance(rows, spread, seen.noise_std)
    columns, root = columns_of_gain(rows, spread, variance)

    def move(point: Array, values: Array) -> Array:
        expected = point[seen.places] if seen.rows_fn is None else rows @ point
        residual = jnp.where(seen.valid, values - expected, 0.0)
        return point + columns @ jsl.solve_triangular(root, residual, lower=True)

    return move, columns


def condition(posterior: Posterior, seen: Seen) -> Conditioned:
    """The Gaussian of x given y, conditioned on what was seen too. Noise of less variance than the
    rounding of A K A^T counts as that."""
    seen = seen.astype(posterior.mean.dtype)
    move, columns = _gain(posterior, seen)
    return Conditioned(move(posterior.mean, seen.values), columns)


def conditional_sample(key: PRNGKey, posterior: Posterior, seen: Seen) -> Array:
    """One draw of x given y and b, (D,), by Matheron's rule: as that of
    `hos_jax.uncertainty.inverse`, with the solve done directly, in O(m^3 + D m)."""
    draw_key, noise_key = jax.random.split(key)
    seen = seen.astype(posterior.mean.dtype)
    move, _ = _gain(posterior, seen)
    draw = posterior.sample(draw_key, 1)[0]
    noise = jax.random.normal(noise_key, seen.values.shape, draw.dtype)
    return move(draw, seen.values - seen.noise_std * noise)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Belief:
    """Mean and covariance of x given what was seen: mean_i (K_i - G_i G_i^T) + V V^T.

    Attributes:
      mean: (D,), data units.
      between: V, (D, N): the means of the chains, centred, over sqrt(N - 1).
      within: K_i of each chain, a batch of N structures, or None for none.
      removed: G_i, (N, D, m), or None.
    """

    mean: Array
    between: Array
    within: SymmetricMatrix | None = None
    removed: Array | None = None

    def matvec(self, vector: Array) -> Array:
        """K v, (D,)."""
        result = self.between @ (self.between.T @ vector)
        if self.within is None:
            return result
        each = jax.vmap(lambda matrix: matrix.matvec(vector))(self.within)
        if self.removed is not None:
            each -= jax.vmap(lambda columns: columns @ (columns.T @ vector))(self.removed)
        return result + jnp.mean(each, axis=0)

    def diagonal(self) -> Array:
        """The variance of each value, (D,), data units^2."""
        result = jnp.sum(jnp.square(self.between), axis=1)
        if self.within is None:
            return result
        each = self.within.diagonal()
        if self.removed is not None:
            each -= jnp.sum(jnp.square(self.removed), axis=-1)
        return result + jnp.mean(each, axis=0)


def belief_of_samples(samples: Array) -> Belief:
    """The mean and the covariance of samples (N, D), N >= 2; ValueError for fewer."""
    samples = jnp.asarray(samples)
    if not jnp.issubdtype(samples.dtype, jnp.floating):
        samples = samples.astype(float)
    samples = at_least_float32(samples)
    if samples.ndim != 2 or len(samples) < 2:
        raise ValueError(f"expected two or more samples, (N, D), got {samples.shape}")
    mean = jnp.mean(samples, axis=0)
    return Belief(mean, (samples - mean[None]).T / (len(samples) - 1) ** 0.5)


def chain(
    key: PRNGKey, posterior_fn: inverse.PosteriorFn, seen: Seen, start: Array, sigmas: Array
) -> Posterior:
    """The posterior of x at the end of one chain: at a noisy point drawn at the last level given
    what was seen, which `condition` and `conditional_sample` take from there.

    Arguments and errors as of `inverse.descend`; one evaluation of `posterior_fn` for each level.
    """
    sigmas = inverse.falling_levels(sigmas, jnp.asarray(start).dtype)
    if len(sigmas) == 1:
        return posterior_fn(start, sigmas[0])
    descend_key, bridge_key = jax.random.split(key)

    def draw_fn(draw_key: PRNGKey, noisy: Array, sigma: Array) -> tuple[Array, Array]:
        return conditional_sample(draw_key, posterior_fn(noisy, sigma), seen), noisy

    before = sigmas[:-1]
    clean, noisy = inverse.descend(descend_key, draw_fn, start, before, has_aux=True)
    end = inverse.bridge(bridge_key, clean, noisy[-1], sigmas[-2], sigmas[-1])
    return posterior_fn(end, sigmas[-1])


def belief_of_chains(posteriors: Posterior, seen: Seen) -> Belief:
    """The belief from the ends of N >= 2 chains given what was seen, as `chain` gives them: by the
    law of total variance, with K of the second-order score. ValueError for one chain."""
    found = jax.vmap(lambda posterior: condition(posterior, seen))(posteriors)
    belief = belief_of_samples(found.mean)
    return dataclasses.replace(belief, within=posteriors.covariance, removed=found.columns)


class Revealed(NamedTuple):
    """What `reveal` found.

    Attributes:
      seen: what was measured, in the order of measuring.
      means: the mean before each round and after the last, (rounds + 1, D), data units.
      expected: tr K / D that was believed at the same times, (rounds + 1,), data units^2.
    """

    seen: Seen
    means: Array
    expected: Array


@functools.partial(jax.jit, static_argnums=3)
def greedy(_: PRNGKey, belief: Belief, seen: Seen, count: int) -> Array:
    """Places by `choose`, (count,): the usual `choose_fn` of `reveal`."""
    dim = len(belief.mean)
    return choose(
        belief.matvec,
        dim,
        seen.noise_std,
        count,
        candidates=seen.rows_fn,
        allowed=seen.unseen(dim),
        dtype=belief.mean.dtype,
    ).places


def reveal(
    key: PRNGKey,
    belief_fn: Callable[[PRNGKey, Seen], Belief],
    read_fn: Callable[[Array], Array],
    noise_std: Array | float,
    rounds: Sequence[int],
    *,
    choose_fn: Callable[[PRNGKey, Belief, Seen, int], Array] = greedy,
    room: int = 40,
    rows_fn: RowsFn | None = None,
) -> Revealed:
    """Measure x round by round: believe, choose the next values, read them, and again.

    Args:
      key: of the chains, and of choices at random.
      belief_fn: `(key, seen) -> Belief`, compiled (`jax.jit`).
      read_fn: places (n,) -> what is measured there, (n,): x + t n, or a^T x + t n.
      noise_std: t.
      rounds: how many values are measured in each round, before the belief is renewed; ValueError
        unless each is positive and all together are at most D.
      choose_fn: `(key, belief, seen, count) -> places`; a place below 0 is none, and there may be
        none at all. ValueError for one beyond D, or one that is measured already.
      room: what was seen has room for a multiple of so many values, as another shape is another
        compilation.
      rows_fn: see `Seen`; `greedy` chooses among all D places.

    Raises NonFiniteError where a belief's mean or expected variance is not finite.
    """
    if isinstance(rounds, numbers.Integral):
        raise TypeError(f"rounds are a count for each, [8] * 5 say, got a {type(rounds).__name__}")
    rounds = list(map(operator.index, rounds))
    if not rounds or min(rounds) < 1:
        raise ValueError(f"expected rounds of one value or more, got {rounds}")
    seen = Seen.none(sum(rounds), noise_std, rows_fn)
    means, expected = [], []
    for number in range(len(rounds) + 1):
        belief_key, choose_key = jax.random.split(jax.random.fold_in(key, number))
        known = seen.trim(room)
        belief = belief_fn(belief_key, known)
        if sum(rounds) > len(belief.mean):
            raise ValueError(
                f"{sum(rounds)} values to measure, of {len(belief.mean)} that are there"
            )
        means.append(belief.mean)
        expected.append(jnp.mean(belief.diagonal()))
        if not all(np.isfinite(np.asarray(found[-1])).all() for found in (means, expected)):
            raise NonFiniteError("the belief is not finite: look at the chains behind it")
        if number < len(rounds):
            chosen = np.asarray(choose_fn(choose_key, belief, known, rounds[number]))
            if not chosen.size:
                chosen = chosen.astype(np.int32)  # an empty list is of floating type
            check_places(chosen, len(belief.mean))
            places = jnp.asarray(chosen[chosen >= 0])
            seen = seen.add(places, read_fn(places))
    return Revealed(seen, jnp.stack(means), jnp.stack(expected))
