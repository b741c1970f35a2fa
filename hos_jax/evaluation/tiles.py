"""A large picture part by part: what its posterior says, in memory that its size does not set."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hos_jax import pointwise
from hos_jax.errors import UserError
from hos_jax.models.hessian_model import FixedScoreModel
from hos_jax.models.score_model import outputs_of
from hos_jax.noise import example_keys, stream_key
from hos_jax.training.runs import LoadedRun
from hos_jax.types import check_counts
from hos_jax.uncertainty import Posterior


class Tile(NamedTuple):
    """A part of a picture as (top, bottom, left, right), and the window that is seen for it."""

    part: tuple[int, int, int, int]
    window: tuple[int, int, int, int]


class Examined(NamedTuple):
    """Of a whole picture, (H, W, C), data units: what `picture.DenoisedPicture` has of the same
    names; `samples` (k, H, W, C)."""

    mean: np.ndarray
    deviation: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    samples: np.ndarray


def margin_of(model: Any) -> int:
    """How far a value of a local U-Net's output may look, in pixels, rounded up to a whole patch of
    its coarsest level; `model` is a config's. Two pixels for each residual block, one for each
    other convolution, at the size of their level."""
    scales = [model.patch_size * 2**level for level in range(len(model.multipliers))]
    inner = sum(scales[:-1])
    reach = 2 * model.patch_size + sum(4 * model.blocks * scale for scale in scales)
    reach += 2 * scales[-1] + inner
    coarsest = scales[-1]
    # Where a stride begins and ends, a value may see one patch more.
    return (-(-reach // coarsest) + 2) * coarsest


def tiles(shape: tuple[int, int], size: int, margin: int, step: int) -> Iterator[Tile]:
    """Parts that make up a picture (H, W), each at most `size` pixels high and wide, and windows of
    at most two heights and two widths, which begin at multiples of `step` and have `margin` more
    pixels on each side where the picture has them."""

    def along(length: int) -> list[tuple[int, int, int, int]]:
        spans = []
        # A window that begins earlier, at a multiple, has to reach as far.
        earlier = step - 1 if (size % step or margin % step) else 0
        whole = -(-(size + 2 * margin + earlier) // step) * step
        last = max(0, -(-(length - whole) // step) * step)
        for start in range(0, length, size):
            stop = min(start + size, length)
            begin = min(max(0, start - margin) // step * step, last)
            spans.append((start, stop, begin, min(length, begin + whole)))
        return spans

    for rows, columns in itertools.product(along(shape[0]), along(shape[1])):
        yield Tile((*rows[:2], *columns[:2]), (*rows[2:], *columns[2:]))


def examine(
    run: LoadedRun, noisy: np.ndarray, sigma: float, size: int, samples: int, interval: Any
) -> Examined:
    """What `picture.denoise_file` finds of a whole picture (H, W, C), tile by tile.

    The denoiser of a run that has one from outside is called on the whole picture; the network of
    the covariance sees windows so large that what it says is the same, but for rounding. White
    noise and the weights of the low-rank part belong to the picture, so that draws have no seams.

    Args:
      sigma: in data units.
      size: side of a tile, pixels.
      samples: how many draws.
      interval: `interval(posterior)`, the ends of each value's.

    Raises:
      UserError: for a model that is not local, or whose tails are not Gaussian.
      ValueError: for a size below 1, or a negative number of samples.
    """
    check_counts(size=size)
    check_counts(0, samples=samples)
    config, model = run.problem.config, run.model
    if not config.model.local:
        raise UserError("tiles need a model for images of any size: model.local=True")
    if config.model.tails != "gaussian":
        raise UserError(
            f"tiles need Gaussian tails, and this model's are {config.model.tails}: take the "
            "picture whole, by --tile 0"
        )
    margin = margin_of(config.model)
    step = config.model.patch_size * 2 ** (len(config.model.multipliers) - 1)
    key = stream_key("posterior samples", config.seed)
    white_key, weights_key = jax.random.split(key)
    weights = jax.random.normal(weights_key, (config.model.rank, samples))
    known = None
    if isinstance(model, FixedScoreModel):
        known = np.asarray(model.score_fn(jnp.asarray(noisy), jnp.asarray(sigma))).reshape(
            noisy.shape
        )

    @jax.jit
    def at(window: jax.Array, score: jax.Array | None, white: jax.Array) -> tuple:
        if isinstance(model, FixedScoreModel):
            assert score is not None
            arguments = (window[None], sigma, score.reshape(1, -1))
            outputs = outputs_of(model.hessian, run.params, *arguments)
        else:
            outputs = outputs_of(model, run.params, window[None], sigma)
        found = pointwise.posteriors(window.reshape(1, -1), outputs, sigma)
        posterior = jax.tree.map(lambda leaf: leaf[0], found)
        columns = white.reshape(window.size, samples)
        drawn = posterior.mean + _colored(posterior, columns, weights).T
        rows = (posterior.mean, posterior.standard_deviation(), *interval(posterior))
        drawn = drawn.reshape(samples, *window.shape)
        return tuple(row.reshape(window.shape) for row in rows), drawn

    maps = [np.empty(noisy.shape, np.float32) for _ in range(4)]
    draws = np.empty((samples, *noisy.shape), np.float32)
    for part, window in tiles(noisy.shape[:2], size, margin, step):
        seen = np.s_[window[0] : window[1], window[2] : window[3]]
        white = _white(white_key, window, noisy.shape[2], samples)
        score = None if known is None else known[seen]
        rows, drawn = jax.device_get(at(noisy[seen], score, white))
        whole = np.s_[part[0] : part[1], part[2] : part[3]]
        inner = np.s_[
            part[0] - window[0] : part[1] - window[0], part[2] - window[2] : part[3] - window[2]
        ]
        for target, values in zip((*maps, *draws), (*rows, *drawn), strict=True):
            target[whole] = values[inner]
    mean, deviation, lower, upper = maps
    return Examined(mean, deviation, lower, upper, draws)


def _white(key: jax.Array, window: tuple, channels: int, samples: int) -> jax.Array:
    """White noise of a window, (h, w, C, k); that of each pixel of the picture is its own."""
    top, bottom, left, right = window
    row_keys = example_keys(key, top, bottom - top)
    keys = jax.vmap(lambda key: example_keys(key, left, right - left))(row_keys)
    return jax.vmap(jax.vmap(lambda key: jax.random.normal(key, (channels, samples))))(keys)


def _colored(posterior: Posterior, white: jax.Array, weights: jax.Array) -> jax.Array:
    """Columns of the posterior's covariance, (D, k), from white ones."""
    covariance: Any = posterior.covariance
    if not hasattr(covariance, "factor"):
        return covariance.color(white)
    return covariance.base.color(white) + covariance.factor @ weights
