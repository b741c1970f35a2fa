r"""How diffusion models of others make noisy images, and which number tells them how noisy.

A network is trained on :math:`x_t = a x + b z` for a clean image x in its own units and standard
normal noise z. Divided by the scale a this is an image with noise of sigma = b / a, as everywhere
in this library. A `Process` has a, the "time" that the network is given, and what its velocity is
made of, all as functions of that sigma.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from hos_jax.types import Array, check_counts

OfLevel = Callable[[Array], Array]


@dataclasses.dataclass(frozen=True)
class Process:
    """How noisy images are made, all as functions of sigma, in the network's units.

    Attributes:
      scale: a, what x + sigma z is multiplied by before the network sees it.
      time: what the network is told of the noise level.
      velocity: (a', b'), where the network's velocity is a' x + b' z.
      smallest, largest: the levels that there are; beyond them is no time.
    """

    scale: OfLevel
    time: OfLevel
    velocity: Callable[[Array], tuple[Array, Array]]
    smallest: float = 0.0
    largest: float = math.inf


def variance_exploding(time: OfLevel = lambda sigma: sigma) -> Process:
    """x + sigma z as it is; the network is told `time(sigma)`, sigma itself unless given.

    The velocity is that of dx_t / dsigma, which is z.
    """
    return Process(jnp.ones_like, time, lambda sigma: (jnp.zeros_like(sigma), jnp.ones_like(sigma)))


def variance_preserving(smallest_beta: float = 0.1, largest_beta: float = 20.0) -> Process:
    r"""The continuous process of Song et al. 2021 (arXiv 2011.13456, eq. 33), t from 0 to 1.

    .. math:: \log(1 + \sigma^2) = \beta_{\min} t + \tfrac{1}{2} (\beta_{\max} - \beta_{\min}) t^2

    Raises:
      ValueError: unless 0 < smallest_beta <= largest_beta < infinity, and for noise beyond a float.
    """
    if not 0 < smallest_beta <= largest_beta < math.inf:
        raise ValueError(f"expected 0 < beta, rising, got {smallest_beta} to {largest_beta}")
    slope = largest_beta - smallest_beta

    def time(sigma: Array) -> Array:
        # The root that stays exact where the slope is 0 or sigma is small.
        total = jnp.log1p(jnp.square(sigma))
        return 2.0 * total / (smallest_beta + jnp.sqrt(smallest_beta**2 + 2.0 * slope * total))

    total = smallest_beta + 0.5 * slope
    try:
        largest = math.sqrt(math.expm1(total))
    except OverflowError as error:
        betas = f"{smallest_beta} and {largest_beta}"
        raise ValueError(f"{betas} make noise of exp({total / 2:.4g}), beyond a float") from error
    return Process(_preserving_scale, time, _preserving_velocity, largest=largest)


def ddpm(betas: Any, *, whole_steps: bool = False) -> Process:
    r"""The steps of Ho, Jain, Abbeel 2020: :math:`a_t^2 = \prod_{i \le t} (1 - \beta_i)`.

    The network is told the number of the step, counted from 0. Between two steps it is interpolated
    linearly in log sigma, for networks that make waves of it; or rounded, for those that look it up
    in a table. The image is scaled for the exact sigma either way.

    Args:
      betas: of every step, (steps,), two or more, each in (0, 1).
      whole_steps: whether to round.

    Raises:
      ValueError: for other betas.
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or len(betas) < 2:
        raise ValueError(f"expected two or more betas, (steps,), got shape {betas.shape}")
    wrong = betas[~((betas > 0) & (betas < 1))]
    if len(wrong):
        raise ValueError(f"expected betas in (0, 1), got {wrong[0]:g} among them")
    known = 0.5 * np.log(np.expm1(-np.cumsum(np.log1p(-betas))))

    def time(sigma: Array) -> Array:
        steps = jnp.arange(len(known), dtype=sigma.dtype)
        found = jnp.interp(jnp.log(sigma), jnp.asarray(known, sigma.dtype), steps)
        return jnp.round(found) if whole_steps else found

    ends = {"smallest": math.exp(known[0]), "largest": math.exp(known[-1])}
    return Process(_preserving_scale, time, _preserving_velocity, **ends)


def linear_betas(smallest: float = 1e-4, largest: float = 0.02, steps: int = 1000) -> np.ndarray:
    """Those of Ho, Jain, Abbeel 2020, section 4, (steps,); ValueError for no steps."""
    check_counts(steps=steps)
    return np.linspace(smallest, largest, steps)


def cosine_betas(steps: int = 1000, offset: float = 0.008, largest: float = 0.999) -> np.ndarray:
    """Those of Nichol and Dhariwal 2021 (arXiv 2102.09672, eq. 17), (steps,); ValueError for no
    steps."""
    check_counts(steps=steps)
    times = (np.arange(steps + 1) / steps + offset) / (1.0 + offset)
    products = np.cos(0.5 * np.pi * times) ** 2
    return np.minimum(1.0 - products[1:] / products[:-1], largest)


def edm(data_std: float = 0.5) -> Process:
    r"""The inner network F of Karras et al. 2022 (table 1), told :math:`\tfrac14 \log\sigma`.

    Its output is a "velocity" here: with r^2 = sigma^2 + data_std^2 the denoiser is c_skip y +
    c_out F(y / r), so that F stands for (sigma / data_std x - data_std z) / r. The denoiser around
    F, which most codes have, is `variance_exploding` with the prediction "clean".

    Raises:
      ValueError: unless data_std is positive and finite.
    """
    if not 0 < data_std < math.inf:
        raise ValueError(f"expected a positive and finite data_std, got {data_std}")

    def scale(sigma: Array) -> Array:
        return 1.0 / jnp.sqrt(jnp.square(sigma) + data_std**2)

    def velocity(sigma: Array) -> tuple[Array, Array]:
        return sigma / data_std * scale(sigma), -data_std * scale(sigma)

    return Process(scale, lambda sigma: 0.25 * jnp.log(sigma), velocity)


def flow_matching(*, data_at: int = 0) -> Process:
    """The straight path between noise and data (Lipman et al. 2023; Liu et al. 2023).

    Args:
      data_at: the time at which the image is clean. 0: x_t = (1 - t) x + t z, velocity z - x;
        1: x_t = t x + (1 - t) z, velocity x - z.

    Raises:
      ValueError: for another time.
    """
    if data_at not in (0, 1):
        raise ValueError(f"expected data_at 0 or 1, got {data_at}")

    def clean_share(sigma: Array) -> Array:
        return 1.0 / (1.0 + sigma)

    def velocity(sigma: Array) -> tuple[Array, Array]:
        sign = jnp.ones_like(sigma) if data_at else -jnp.ones_like(sigma)
        return sign, -sign

    def time(sigma: Array) -> Array:
        return clean_share(sigma) if data_at else sigma * clean_share(sigma)

    return Process(clean_share, time, velocity)


def _preserving_scale(sigma: Array) -> Array:
    return 1.0 / jnp.sqrt(1.0 + jnp.square(sigma))


def _preserving_velocity(sigma: Array) -> tuple[Array, Array]:
    """v = a z - b x (Salimans and Ho 2022, appendix D)."""
    scale = _preserving_scale(sigma)
    return -sigma * scale, scale
