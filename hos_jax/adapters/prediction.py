r"""From what a network of others predicts to the score of this library.

All predictions say the same thing in other words: the noise :math:`\hat z` that they see in
y = x + sigma z. The score is :math:`s_1(y) = -\hat z / \sigma`, in 1 / data units.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from hos_jax.adapters.black_box import BlackBox
from hos_jax.adapters.processes import Process, variance_exploding
from hos_jax.noise import is_within
from hos_jax.types import (
    Array,
    at_least_float32,
    check_floating,
    check_function,
    check_positive,
    nan_unless,
)

Prediction = Literal["noise", "residual", "clean", "velocity", "score"]
Level = Literal["argument", "channel", "none"]
Layout = Literal["HWC", "CHW", "flat"]
PREDICTIONS, LEVELS, LAYOUTS = get_args(Prediction), get_args(Level), get_args(Layout)


@dataclasses.dataclass(frozen=True, eq=False)
class AdaptedScore:
    r"""s1 of the smoothed density by a network of others; made by `score_fn`.

    Called with one noisy point and sigma, data units; gives s1 there, of the point's shape. It is a
    function of JAX arrays: `jit`, `vmap`, and derivatives where the network has them.
    """

    network: Callable[..., Any]
    prediction: Prediction
    process: Process
    mean: Any
    std: float
    shape: tuple[int, ...] | None
    level: Level
    layout: Layout
    batched: bool

    @property
    def differentiable(self) -> bool:
        """Whether the network has derivatives: no black box has."""
        return not isinstance(self.network, BlackBox)

    def __call__(self, noisy: Array, sigma: Array | float | None = None) -> Array:
        """s1 at one point, (D,) or an image (H, W, C); sigma is a positive scalar, data units.

        For a point of 16 bits the network is shown 16 bits and told the time in float32, but for a
        channel, which has the 16 bits of the image. NaN where a traced sigma is outside of what the
        process has.

        Raises:
          ValueError: for integers, a point of another shape, a sigma that is not positive or is
            outside of the process, or a network whose prediction is not of its input's shape.
          TypeError: without sigma.
        """
        if sigma is None:
            # What takes a score of one point and nothing else called it.
            raise TypeError("an adapted score needs sigma: give lambda noisy: score(noisy, sigma)")
        noisy = jnp.asarray(noisy)
        check_floating(noisy=noisy)
        check_positive(sigma=sigma)
        # The number of a step has more digits than 16 bits hold.
        image = at_least_float32(self._as_image(noisy))
        self._check_range(sigma)
        level = jnp.asarray(sigma, image.dtype) / self.std
        scale = self.process.scale(level)
        mean = jnp.broadcast_to(jnp.asarray(self.mean, image.dtype), image.shape)
        shown = scale * (image - mean) / self.std
        predicted = self._evaluate(shown.astype(noisy.dtype), self.process.time(level))
        noise = self._noise(predicted.astype(image.dtype), shown, level, scale)
        score = nan_unless(self._knows(level), -noise / sigma)
        return score.reshape(noisy.shape).astype(noisy.dtype)

    def _as_image(self, noisy: Array) -> Array:
        if self.shape is None:
            if self.layout == "CHW" and not _is_image(noisy.shape):
                raise ValueError(
                    f"expected an image (H, W, C), whatever the layout of the network, got "
                    f"{noisy.shape}; give its shape if this is one"
                )
            return noisy
        if noisy.shape not in (self.shape, (math.prod(self.shape),)):
            flat = math.prod(self.shape)
            raise ValueError(f"expected one point, {self.shape} or ({flat},), got {noisy.shape}")
        return noisy.reshape(self.shape)

    def _check_range(self, sigma: Array | float) -> None:
        if isinstance(sigma, jax.core.Tracer):
            return
        # Of NumPy: within a trace all that JAX computes is traced, of constants too.
        known = float(np.asarray(sigma))
        if not self._knows(known / self.std):
            low, high = self.process.smallest, self.process.largest
            ends = f"{low * self.std:.4g} to {high * self.std:.4g}"
            raise ValueError(
                f"sigma={known:.4g} is not a level of this network: it knows {ends}, in data units"
            )

    def _knows(self, level: Any) -> Any:
        """Whether the process has a level, but for rounding: of levels that are powers, or were
        divided by a scale, more than the last digit."""
        return is_within(level, (self.process.smallest, self.process.largest), 1e-5)

    def _evaluate(self, shown: Array, time: Array) -> Array:
        """What the network predicts, of the shape of what it is shown, in its own layout."""
        if self.layout == "flat":
            given = shown.reshape(-1)
        else:
            given = jnp.moveaxis(shown, -1, 0) if self.layout == "CHW" else shown
        wanted = given.shape
        levels: tuple[Array, ...] = ()
        if self.level == "argument":
            levels = (time,)
        elif self.level == "channel":
            axis = 0 if self.layout == "CHW" else -1
            one = jnp.take(given, jnp.array([0]), axis=axis)
            given = jnp.concatenate([given, jnp.full_like(one, time)], axis=axis)
        if self.batched:
            given, levels = given[None], tuple(value[None] for value in levels)
        try:
            predicted = self.network(given, *levels)
        except jax.errors.TracerArrayConversionError as error:
            raise TypeError("the network is of NumPy: wrap it, adapters.from_numpy") from error
        if predicted is None or isinstance(predicted, (dict, tuple)):
            kind = type(predicted).__name__
            raise TypeError(f"the network gives a {kind}: take the array of it that is predicted")
        predicted = jnp.asarray(predicted)
        predicted = predicted[0] if self.batched and predicted.ndim else predicted
        if predicted.shape != wanted:
            raise ValueError(f"the network predicts {predicted.shape} of an input of {wanted}")
        check_floating(predicted=predicted)
        if self.layout == "CHW":
            return jnp.moveaxis(predicted, 0, -1)
        return predicted.reshape(shown.shape)

    def _noise(self, predicted: Array, shown: Array, level: Array, scale: Array) -> Array:
        """The noise z that a prediction stands for, from x_t = scale (x + level z)."""
        if self.prediction == "noise":
            return predicted
        if self.prediction == "residual":
            return predicted / (scale * level)
        if self.prediction == "clean":
            return (shown / scale - predicted) / level
        if self.prediction == "score":
            return -scale * level * predicted
        of_clean, of_noise = self.process.velocity(level)
        return (scale * predicted - of_clean * shown) / (scale * (of_noise - of_clean * level))


def _is_image(shape: tuple[int, ...]) -> bool:
    """Whether a point may be (H, W, C) and does not look like (C, H, W)."""
    return len(shape) == 3 and (shape[0] not in (1, 3) or shape[-1] in (1, 3))


def score_fn(
    network: Callable[..., Any],
    prediction: Prediction,
    process: Process | None = None,
    *,
    mean: Any = 0.0,
    std: float = 1.0,
    shape: tuple[int, ...] | None = None,
    level: Level = "argument",
    layout: Layout = "HWC",
    batched: bool = False,
) -> AdaptedScore:
    r"""`score_fn(noisy, sigma)` from a network of others.

    Args:
      network: a function of one image and what it is told of the noise, `network(x_t, time)`, that
        gives its prediction, of the image's shape. JAX's functions as they are; see `from_numpy`,
        `from_torch` and `from_onnx` for others.
      prediction: "noise", z; "residual", what is to be taken off x_t, noise times its level;
        "clean", x; "velocity", see the processes; "score", the gradient of the log density of x_t.
      process: how x_t is made; `variance_exploding` unless given.
      mean, std: the network works on (x - mean) / std; see `normalization`. The mean is a number or
        one a channel; the deviation is one number, as the noise has one level.
      shape: (H, W, C) of one image, to take flat points (D,) also; unless given, points come as
        images.
      level: "argument": the second argument of the network; "channel": a further, constant channel
        of the image; "none": a network that is told nothing.
      layout: what the network takes: (H, W, C), (C, H, W) or (D,).
      batched: whether the network takes a batch of images and of times, not one.

    Raises:
      ValueError: for an unknown word, or a std that is no positive number.
    """
    words = (
        ("prediction", prediction, PREDICTIONS),
        ("level", level, LEVELS),
        ("layout", layout, LAYOUTS),
    )
    for name, word, known in words:
        if word not in known:
            raise ValueError(f"unknown {name} {word!r}; choose one of {', '.join(known)}")
    if level == "channel" and layout == "flat":
        raise ValueError("a level as a channel needs the layout HWC or CHW")
    check_function(network, "network is a function of one image", "give its call")
    check_positive(std=std)
    shape = None if shape is None else tuple(shape)
    process = variance_exploding() if process is None else process
    if not isinstance(process, Process):
        raise ValueError(f"expected a process, such as adapters.edm(), got {process!r}")
    if batched and isinstance(network, BlackBox):
        raise ValueError("a black box gets whole batches as it is: leave batched out")
    return AdaptedScore(
        network, prediction, process, mean, float(std), shape, level, layout, batched
    )


def normalization(
    data_range: tuple[float, float], network_range: tuple[float, float]
) -> dict[str, float]:
    """`mean` and `std` for data between two values and a network of images between two others.

    >>> normalization((0.0, 1.0), (-1.0, 1.0))
    {'mean': 0.5, 'std': 0.5}

    Raises:
      ValueError: for a range that does not rise.
    """
    (low, high), (first, last) = data_range, network_range
    if not (low < high and first < last):
        raise ValueError(f"expected ranges that rise, got {data_range} and {network_range}")
    std = (high - low) / (last - first)
    return {"mean": low - first * std, "std": std}
