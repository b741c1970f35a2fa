r"""The training objective: which points a loss needs, and its value from the outputs there.

The points y+ = x + sigma z, y- = x - sigma z and x that the chosen losses need go through the
network as one batch, or through the network of each order those that it needs. Everything is
reported per dimension and dimensionless (sigma^2 times a first-order loss, sigma^4 times a
published second-order one), so that noise levels and image sizes compare, and so that Adam's
epsilon does not freeze a head at small sigma.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp

from hos_jax.losses.first_order import dsm, dsm_vr, residual
from hos_jax.losses.second_order import (
    control_coefficients,
    d2sm,
    d2sm_residual,
    d2sm_residual_terms,
    d2sm_vr,
    jacobian_regression,
    marginal_nll,
    residual_nll,
    residual_student_nll,
)
from hos_jax.losses.third_order import d3sm_diagonal
from hos_jax.noise import perturb
from hos_jax.types import Array, at_least_float32, check_floating

FIRST_ORDER = {"dsm": ("plus",), "dsm_vr": ("plus", "clean")}
SECOND_ORDER = {
    "none": (),
    "d2sm": ("plus",),
    "d2sm_vr": ("plus", "minus", "clean"),
    "d2sm_residual": ("plus", "minus", "clean"),
    "d2sm_residual_plain": ("plus", "minus"),
    "residual_nll": ("plus",),
    "jacobian": ("plus",),
}
PUBLISHED = ("d2sm", "d2sm_vr")
RESIDUAL = ("d2sm_residual", "d2sm_residual_plain", "residual_nll")
JACOBIAN_PROBES = ("signs", "residual")
THIRD_ORDER = {"none": (), "d3sm_diagonal": ("plus", "minus")}


@dataclasses.dataclass(frozen=True)
class Objective:
    """Which losses are trained together: L_2 + first_order_weight L_1 + third_order_weight L_3,
    dimensionless; L_1 itself where it is alone.

    Attributes:
      first_order: "dsm" or "dsm_vr".
      second_order: "none", "d2sm", "d2sm_vr", "d2sm_residual" (adaptive control variates),
        "d2sm_residual_plain", "residual_nll" (`residual_student_nll` for a head of such tails) or
        "jacobian" (regression on the derivative of s1).
      first_order_weight: gamma sigma^2; published: 1 (diagonal model), 10 (low-rank model).
      jacobian_weight: w in [0, 1) beside a residual loss, L_2 = (1 - w) L_residual + w L_jacobian;
        of "d2sm_residual" the minimizer is then (1 - w) E[r r^T | y] + w C_J, with the covariance
        C_J that the derivative of s1 implies.
      marginal_weight: m in [0, 1) beside "residual_nll" of Gaussian tails, which becomes
        (1 - m) `residual_nll` + m `marginal_nll`.
      jacobian_probe: what the Jacobian is multiplied by: random "signs", which see every direction
        alike, or the "residual" itself in units of its length, which has covariance C: directions
        count by their variance, so that the leading ones are learned first.
      stop_gradient_score1: whether s1 is a constant in the published second-order losses; in the
        residual losses it always is.
      third_order: "none" or "d3sm_diagonal", centred by the model's covariance where a second-order
        loss trains it.
      third_order_weight: the weight of L_3.
      balance_std: for a range of noise levels, the data's standard deviation s: L_1 is multiplied
        by 1 + sigma^2 / s^2, so that large sigma counts, where the noise is all there is to see and
        the error of its prediction vanishes (Karras et al. 2022, table 1).

    Raises:
      ValueError: for an unknown loss or probe, a weight outside [0, 1), or one without the loss
        that it stands beside.
    """

    first_order: str = "dsm"
    second_order: str = "none"
    first_order_weight: float = 1.0
    stop_gradient_score1: bool = True
    third_order: str = "none"
    third_order_weight: float = 1.0
    balance_std: float | None = None
    jacobian_weight: float = 0.0
    jacobian_probe: str = "signs"
    marginal_weight: float = 0.0

    def __post_init__(self):
        for name, known in (
            (self.first_order, FIRST_ORDER),
            (self.second_order, SECOND_ORDER),
            (self.third_order, THIRD_ORDER),
        ):
            if name not in known:
                raise ValueError(f"unknown loss {name!r}; choose one of {', '.join(known)}")
        if self.jacobian_probe not in JACOBIAN_PROBES:
            probes = ", ".join(JACOBIAN_PROBES)
            raise ValueError(f"unknown probe {self.jacobian_probe!r}; choose one of {probes}")
        if not 0 <= self.jacobian_weight < 1:
            raise ValueError(f"expected 0 <= jacobian_weight < 1, got {self.jacobian_weight}")
        if not 0 <= self.marginal_weight < 1:
            raise ValueError(f"expected 0 <= marginal_weight < 1, got {self.marginal_weight}")
        if self.marginal_weight and self.second_order != "residual_nll":
            raise ValueError("marginal_weight needs residual_nll beside it")
        if self.jacobian_weight and self.second_order not in RESIDUAL:
            raise ValueError(f"jacobian_weight needs one of {', '.join(RESIDUAL)} beside it")

    @property
    def _has_jacobian(self) -> bool:
        return self.second_order == "jacobian" or self.jacobian_weight > 0

    @property
    def needs_probes(self) -> bool:
        """Whether `per_example` needs random directions of its own."""
        return self._has_jacobian and self.jacobian_probe == "signs"

    @property
    def points(self) -> tuple[str, ...]:
        """The evaluation points needed, a subset of plus, minus, clean in this order."""
        needed = FIRST_ORDER[self.first_order] + SECOND_ORDER[self.second_order]
        needed += THIRD_ORDER[self.third_order]
        return tuple(point for point in ("plus", "minus", "clean") if point in needed)

    def per_example(
        self,
        model: Callable,
        clean: Array,
        noise: Array,
        sigma: Array | float,
        *,
        probes: Array | None = None,
        mean: Callable[[Array], Array] = jnp.mean,
        apart: bool = False,
        score_fn: Callable | None = None,
    ) -> dict[str, Array]:
        """The losses of a batch, each (N,): "loss", the weighted sum, and "score1" to "score3".

        Args:
          model: `model(points, sigma)` gives `ModelOutputs` at a batch of points.
          clean: x, (N, H, W, C) or (N, D), data units.
          noise: z, of the shape of `clean`.
          sigma: scalar or one per example, (N,), data units.
          probes: random signs of the shape of `clean`, drawn apart from it and the noise, where
            `needs_probes` says so.
          mean: the batch mean that the control variates' coefficients use.
          apart: that s1 does not share a network with the other orders, and `model` takes
            `orders`, which to evaluate. Then s1 is evaluated only where a loss uses it, and
            differentiated only where it is trained. The losses are the same.
          score_fn: `score_fn(points, sigma)`, s1 alone, (N, D), for the Jacobian where that is less
            work than `model`; gradients in its parameters are not needed.

        Raises:
          ValueError: for shapes that do not belong together, integers, or probes that are missing.
        """
        check_floating(clean=clean, noise=noise)
        if clean.shape != noise.shape or clean.ndim < 2:
            raise ValueError(
                f"expected clean and noise of one shape (N, ...), got {clean.shape}, {noise.shape}"
            )
        # Sums of D squares are beyond 16 bits.
        clean, noise = at_least_float32(clean), at_least_float32(noise)
        count = clean.shape[0]
        flat_clean, flat_noise = clean.reshape(count, -1), noise.reshape(count, -1)
        sigma = jnp.broadcast_to(jnp.asarray(sigma, clean.dtype), (count,))
        pair = jax.vmap(perturb)(flat_clean, flat_noise, sigma)
        locations = {"plus": pair.plus, "minus": pair.minus, "clean": flat_clean}
        locations = {name: at.reshape(clean.shape) for name, at in locations.items()}
        if apart:
            at = self._evaluate_apart(model, locations, sigma)
        else:
            at = _outputs_at(model, self.points, locations, sigma)
        dim = flat_clean.shape[1]
        first = self._first_order(at, flat_noise, sigma) * (sigma**2 / dim)
        if self.balance_std is not None:
            first = first * (1.0 + jnp.square(sigma / self.balance_std))
        values = {"score1": first}
        if self.second_order == "none" and self.third_order == "none":
            return {"loss": first, **values}
        total = self.first_order_weight * first
        if self.second_order != "none":
            second = jnp.zeros_like(first)
            if self.second_order != "jacobian":
                denoised = self._second_order(at, flat_noise, sigma, mean)
                second += (1.0 - self.jacobian_weight) * denoised
            if self._has_jacobian:
                score_fn = score_fn or (lambda y, sigma: model(y, sigma).score1)
                place = locations["plus"], at["plus"]
                derived = self._jacobian(score_fn, *place, flat_noise, sigma, probes)
                second += derived * (self.jacobian_weight or 1.0)
            values["score2"] = second / dim
            total = total + values["score2"]
        if self.third_order != "none":
            values["score3"] = self._third_order(at, flat_noise, sigma) / dim
            total = total + self.third_order_weight * values["score3"]
        return {"loss": total, **values}

    def _evaluate_apart(self, model: Callable, locations: dict, sigma: Array) -> dict[str, Any]:
        """The outputs of each order where a loss uses them."""
        first, second = FIRST_ORDER[self.first_order], SECOND_ORDER[self.second_order]
        third = THIRD_ORDER[self.third_order]
        # What the adaptive residual loss takes at the clean point is s2 alone.
        adaptive = self.second_order == "d2sm_residual"
        with_score1 = ("plus", "minus") if adaptive else second
        bends = self.second_order in PUBLISHED and not self.stop_gradient_score1
        trained = {*first, *(with_score1 if bends else ())}
        constant = {*with_score1, *third} - trained
        ask = functools.partial(_outputs_at, model, locations=locations, sigma=sigma)
        score1 = ask(trained, orders=(1,))
        score1 |= jax.lax.stop_gradient(ask(constant, orders=(1,)))
        higher = ask({*second, *third}, orders=(2, 3))
        known = {point: outputs.noise_prediction for point, outputs in score1.items()}
        return score1 | {
            point: dataclasses.replace(outputs, noise_prediction=known.get(point))
            for point, outputs in higher.items()
        }

    def _first_order(self, at: dict, noise: Array, sigma: Array | float) -> Array:
        loss: Callable[..., Array] = dsm if self.first_order == "dsm" else dsm_vr
        scores = [at[point].score1 for point in FIRST_ORDER[self.first_order]]
        return jax.vmap(loss)(*scores, noise, sigma)

    def _second_order(self, at: dict, noise: Array, sigma, mean: Callable) -> Array:
        name = self.second_order
        if name in PUBLISHED:
            detach = jax.lax.stop_gradient if self.stop_gradient_score1 else lambda s1: s1
            points = [at[point] for point in SECOND_ORDER[name]]
            scores = [item for point in points for item in (detach(point.score1), point.score2)]
            published: Callable[..., Array] = d2sm if name == "d2sm" else d2sm_vr
            return jax.vmap(published)(*scores, noise, sigma) * sigma**4
        residuals = jax.vmap(residual)
        plus = residuals(at["plus"].score1, noise, sigma)
        if name == "residual_nll":
            student = at["plus"].tails == "student"
            likelihood = residual_student_nll if student else residual_nll
            joint = jax.vmap(likelihood)(plus, at["plus"].covariance)
            weight = self.marginal_weight
            if not weight:
                return joint
            if student:
                raise ValueError("marginal_weight needs Gaussian tails")
            single = jax.vmap(marginal_nll)(plus, at["plus"].covariance)
            return (1.0 - weight) * joint + weight * single
        minus = residuals(at["minus"].score1, -noise, sigma)
        pair = plus, at["plus"].scaled_hessian, minus, at["minus"].scaled_hessian, noise
        if name == "d2sm_residual_plain":
            return d2sm_residual(jax.vmap(d2sm_residual_terms)(*pair))
        terms = jax.vmap(d2sm_residual_terms)(*pair, at["clean"].scaled_hessian)
        return d2sm_residual(terms, control_coefficients(terms, mean=mean))

    def _jacobian(
        self, score_fn, points: Array, outputs, noise: Array, sigma: Array, probes: Array | None
    ) -> Array:
        """`jacobian_regression` at the points y+, (N,)."""
        if not self.needs_probes:
            probes = _along_residual(outputs.score1, noise, sigma).reshape(points.shape)
        if probes is None or probes.shape != points.shape:
            found = None if probes is None else probes.shape
            raise ValueError(f"expected probes of shape {points.shape}, got {found}")
        flat = probes.reshape(len(points), -1)
        _, products = jax.jvp(lambda y: score_fn(y, sigma), (points,), (probes,))
        scaled = jax.lax.stop_gradient(jnp.square(sigma)[:, None] * products)
        return jax.vmap(jacobian_regression)(outputs.scaled_hessian, flat, scaled)

    def _third_order(self, at: dict, noise: Array, sigma: Array | float) -> Array:
        """The third-order loss summed over the antithetic pair, (N,)."""

        def loss(point: str, drawn: Array) -> Array:
            residuals = jax.vmap(residual)(at[point].score1, drawn, sigma)
            known = () if self.second_order == "none" else (at[point].covariance,)
            return jax.vmap(d3sm_diagonal)(at[point].scaled_third_diagonal, residuals, *known)

        return loss("plus", noise) + loss("minus", -noise)


def _outputs_at(
    model: Callable, points: Collection[str], locations: dict, sigma: Array, **options
) -> dict[str, Any]:
    """What a model says at these points of N examples each, as one batch in `locations`' order."""
    if not points:
        return {}
    count, places = len(sigma), [name for name in locations if name in points]
    batch = jnp.concatenate([locations[name] for name in places])
    outputs = model(batch, jnp.tile(sigma, len(places)), **options)
    return {name: outputs.at(i * count, (i + 1) * count) for i, name in enumerate(places)}


def _along_residual(score1: Array, noise: Array, sigma: Array) -> Array:
    """The residuals as constants of root mean square 1, (N, D)."""
    vectors = jax.lax.stop_gradient(jax.vmap(residual)(score1, noise, sigma))
    sizes = jnp.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors * (math.sqrt(noise.shape[1]) / jnp.maximum(sizes, jnp.finfo(sizes.dtype).tiny))
