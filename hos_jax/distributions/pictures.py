"""Two-dimensional pictures as fine mixtures of narrow Gaussians, so that their scores are exact.

ValueError is raised for numbers of components, and for sizes, that are not positive.
"""

import jax.numpy as jnp
import numpy as np

from hos_jax.distributions.gaussian import GaussianMixture


def _equal_mixture(centres: np.ndarray, std: float) -> GaussianMixture:
    count = len(centres)
    if not count:
        raise ValueError("there must be at least one component")
    weights = jnp.full((count,), 1.0 / count)
    return GaussianMixture(weights, jnp.asarray(centres), stds=jnp.full((count,), std))


def checkerboard(cells: int = 4, per_side: int = 12, std: float | None = None) -> GaussianMixture:
    """The black cells of a `cells` x `cells` board on [-1, 1]^2, `cells` at least 2.

    Each has `per_side`^2 components of deviation `std`, by default 0.6 of the distance between
    centres, which makes the cells flat inside.
    """
    if cells < 2:
        raise ValueError(f"cells must be at least 2, got {cells}")
    width = 2.0 / cells
    std = 0.6 * width / max(per_side, 1) if std is None else std
    inside = (np.arange(per_side) + 0.5) / per_side
    corners = [(i, j) for i in range(cells) for j in range(cells) if (i + j) % 2 == 0]
    within = np.stack(np.meshgrid(inside, inside, indexing="ij"), axis=-1).reshape(-1, 2)
    centres = np.concatenate([within + np.asarray(corner) for corner in corners])
    return _equal_mixture(centres * width - 1.0, std)


def two_moons(per_moon: int = 100, std: float = 0.06) -> GaussianMixture:
    """Two interleaved half circles of radius 1 around the origin, of `per_moon` components each.

    They look smooth while std > 3 / per_moon.
    """
    angle = np.pi * (np.arange(per_moon) + 0.5) / per_moon
    upper = np.stack([np.cos(angle) - 0.5, np.sin(angle) - 0.25], axis=1)
    # The lower moon is the upper one turned by half a circle about the origin.
    return _equal_mixture(np.concatenate([upper, -upper]), std)


def swiss_roll(components: int = 300, std: float = 0.03, turns: float = 1.5) -> GaussianMixture:
    """An Archimedean spiral from radius 1/4 to radius 1, uniform in its length."""
    if not turns > 0:
        raise ValueError(f"turns must be positive, got {turns}")
    fine = np.linspace(0.0, 1.0, 20_001)
    angle, radius = 2 * np.pi * turns * fine, 0.25 + 0.75 * fine
    curve = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    steps = np.linalg.norm(np.diff(curve, axis=0), axis=1)
    length = np.concatenate([[0.0], np.cumsum(steps)])
    wanted = length[-1] * (np.arange(components) + 0.5) / components
    centres = np.stack([np.interp(wanted, length, curve[:, i]) for i in range(2)], axis=1)
    return _equal_mixture(centres, std)
