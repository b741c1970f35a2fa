r"""A second-order model beside a score that somebody else provides."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hos_jax.models.heads import SecondOrderHead
from hos_jax.models.score_model import ModelOutputs, as_images, outputs_of, shape_of, split_blocks
from hos_jax.types import Array


class HessianModel(nn.Module):
    r"""s2 from a network of its own; s1 comes from outside.

    The network sees y / sqrt(sigma^2 + data_std^2) and sigma s1(y), as twice the channels of the
    image, and gives the raw values of the head. Where s1 changes fast s2 is large: seeing s1 spares
    the network from finding these places again. (In units of sigma: at small noise levels a larger
    multiple of a learned s1 brings in more of its errors than it helps.)

    Attributes:
      network, head, noise_conditional: as in `ScoreModel`.
      data_std: standard deviation of the data, data units.
      precondition_covariance: whether C is multiplied by data_std^2 / (sigma^2 + data_std^2), as in
        `ScoreModel`.
    """

    network: Callable[..., nn.Module]
    head: SecondOrderHead
    data_std: float = 1.0
    noise_conditional: bool = False
    precondition_covariance: bool = False

    @nn.compact
    def __call__(self, noisy: Array, sigma: Array | float, score1: Array) -> ModelOutputs:
        """Evaluate as `ScoreModel`, with s1 at these points, (N, D), 1 / data units."""
        if self.data_std is None or not self.data_std > 0:
            raise ValueError(f"expected data_std > 0, got {self.data_std}")
        images, sigma = as_images(noisy, sigma)
        channels, shape = images.shape[-1], shape_of(noisy)
        blocks = self.head.blocks(shape or noisy.shape[1])
        network = self.network(out_channels=channels * blocks, name="score2")
        level = sigma[:, None, None, None]
        scaled = images / jnp.sqrt(level**2 + self.data_std**2)
        inputs = jnp.concatenate([scaled, level * score1.reshape(images.shape)], axis=-1)
        condition = (sigma,) if self.noise_conditional else ()
        raw = split_blocks(network(inputs, *condition).astype(images.dtype), blocks)
        predicted, unit = -sigma[:, None] * score1, None
        if self.precondition_covariance:
            unit = self.data_std**2 / (jnp.square(sigma) + self.data_std**2)
        return ModelOutputs(
            predicted, raw, sigma, head=self.head, image_shape=shape, covariance_unit=unit
        )


@dataclasses.dataclass(frozen=True, eq=False)
class FixedScoreModel:
    """A `HessianModel` together with the score beside which it is trained, as one model of both.

    It is called as a `ScoreModel` is, so that what trains and tests those takes this too. Its
    parameters are those of the Hessian model alone.

    Attributes:
      hessian: the model of s2.
      score_fn: `score_fn(noisy, sigma)`, s1 at one point (D,) or (H, W, C), of its shape.
      differentiable: whether the score has a derivative, for what needs one.
    """

    hessian: HessianModel
    score_fn: Callable[[Array, Array], Array]
    differentiable: bool = True

    # What a `ScoreModel` may be told, and may have.
    classes = 0
    has_score1_apart = False

    @property
    def head(self) -> SecondOrderHead:
        """That of the Hessian model."""
        return self.hessian.head

    def init(self, key: Array, noisy: Array, sigma: Array | float) -> Any:
        """Parameters for points of this shape; the score is not asked."""
        dtype = jax.dtypes.canonicalize_dtype(noisy.dtype)
        return self.lazy_init(key, jax.ShapeDtypeStruct(noisy.shape, dtype), sigma)

    def lazy_init(self, key: Array, noisy: jax.ShapeDtypeStruct, sigma: Any) -> Any:
        """The same by shapes and dtypes alone, as of a Flax module; sigma may be abstract too."""
        dim = math.prod(noisy.shape[1:])
        scores = jax.ShapeDtypeStruct((noisy.shape[0], dim), noisy.dtype)
        return self.hessian.lazy_init(key, noisy, sigma, scores)

    def apply(self, params: Any, noisy: Array, sigma: Array | float) -> ModelOutputs:
        """Evaluate at points (N, H, W, C) or (N, D) and noise levels, a scalar or (N,)."""
        levels = as_images(noisy, sigma)[1]
        scores = jax.vmap(self.score_fn)(noisy, levels)
        return outputs_of(self.hessian, params, noisy, levels, scores.reshape(len(noisy), -1))
