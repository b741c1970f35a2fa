r"""A second-order model beside a score that somebody else provides."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from hos_jax.models.heads import SecondOrderHead
from hos_jax.models.score_model import ModelOutputs, as_images, split_blocks
from hos_jax.types import Array


class HessianModel(nn.Module):
    r"""s2 from a network of its own; s1 comes from outside.

    The network sees y / sqrt(sigma^2 + data_std^2) and sigma s1(y), as twice the channels of the
    image, and gives the raw values of the head. Where s1 changes fast s2 is large: seeing s1 spares
    the network from finding these places again. (In units of sigma: at small noise levels a larger
    multiple of a learned s1 brings in more of its errors than it helps.)

    Attributes:
      network: `network(out_channels=..., name=...)` makes a module (N, H, W, C) ->
        (N, H, W, out_channels).
      head: the second-order head.
      data_std: standard deviation of the data, data units.
    """

    network: Callable[..., nn.Module]
    head: SecondOrderHead
    data_std: float = 1.0

    @nn.compact
    def __call__(self, noisy: Array, sigma: Array | float, score1: Array) -> ModelOutputs:
        """Evaluate at noisy points.

        Args:
          noisy: y, (N, H, W, C) images or (N, D) vectors, data units.
          sigma: standard deviation of the noise, scalar or (N,), data units.
          score1: s1 at these points, (N, D), 1 / data units.

        Raises:
          ValueError: for points of another rank or that are not floating-point numbers.
        """
        images, sigma = as_images(noisy, sigma)
        _, height, width, channels = images.shape
        blocks = self.head.blocks(height * width * channels)
        network = self.network(out_channels=channels * blocks, name="score2")
        level = sigma[:, None, None, None]
        scaled = images / jnp.sqrt(level**2 + self.data_std**2)
        inputs = jnp.concatenate([scaled, level * score1.reshape(images.shape)], axis=-1)
        raw = split_blocks(network(inputs).astype(images.dtype), blocks)
        return ModelOutputs(-sigma[:, None] * score1, raw, sigma, head=self.head)
