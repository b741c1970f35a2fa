r"""A second-order model beside a score that somebody else provides."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from hos_jax.models.heads import SecondOrderHead
from hos_jax.models.score_model import ModelOutputs, as_images, shape_of, split_blocks
from hos_jax.types import Array


class HessianModel(nn.Module):
    r"""s2 from a network of its own; s1 comes from outside.

    The network sees y / sqrt(sigma^2 + data_std^2) and sigma s1(y), as twice the channels of the
    image, and gives the raw values of the head. Where s1 changes fast s2 is large: seeing s1 spares
    the network from finding these places again. (In units of sigma: at small noise levels a larger
    multiple of a learned s1 brings in more of its errors than it helps.)

    Attributes:
      network, head: as in `ScoreModel`.
      data_std: standard deviation of the data, data units.
    """

    network: Callable[..., nn.Module]
    head: SecondOrderHead
    data_std: float = 1.0

    @nn.compact
    def __call__(self, noisy: Array, sigma: Array | float, score1: Array) -> ModelOutputs:
        """Evaluate as `ScoreModel`, with s1 at these points, (N, D), 1 / data units."""
        images, sigma = as_images(noisy, sigma)
        channels, shape = images.shape[-1], shape_of(noisy)
        blocks = self.head.blocks(shape or noisy.shape[1])
        network = self.network(out_channels=channels * blocks, name="score2")
        level = sigma[:, None, None, None]
        scaled = images / jnp.sqrt(level**2 + self.data_std**2)
        inputs = jnp.concatenate([scaled, level * score1.reshape(images.shape)], axis=-1)
        raw = split_blocks(network(inputs).astype(images.dtype), blocks)
        predicted = -sigma[:, None] * score1
        return ModelOutputs(predicted, raw, sigma, head=self.head, image_shape=shape)
