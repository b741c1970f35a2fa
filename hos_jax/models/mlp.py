"""A multilayer perceptron for vectors and very small images."""

import flax.linen as nn
import jax.numpy as jnp

from hos_jax.models.unet import NoiseEmbedding
from hos_jax.types import Array


class MLP(nn.Module):
    """Fully connected network on the flattened input: (B, H, W, C) -> (B, H, W, out_channels).

    Attributes:
      out_channels: outputs per position (H, W).
      features: width of the hidden layers.
      depth: number of hidden layers.
    """

    out_channels: int
    features: int = 256
    depth: int = 3

    @nn.compact
    def __call__(self, images: Array, sigma: Array | None = None) -> Array:
        """The outputs; of a network that is told its noise levels, (B,), every layer sees them."""
        batch, height, width, _ = images.shape
        h = images.reshape(batch, -1)
        level = None
        if sigma is not None:
            level = NoiseEmbedding(self.features, name="noise_embedding")(sigma)
        for index in range(self.depth):
            h = nn.Dense(self.features, name=f"hidden{index}")(h)
            if level is not None:
                h += nn.Dense(self.features, use_bias=False, name=f"level{index}")(level)
            h = nn.swish(h)
        small = nn.initializers.variance_scaling(0.1, "fan_in", "normal")
        h = nn.Dense(height * width * self.out_channels, kernel_init=small, name="out")(h)
        return jnp.reshape(h, (batch, height, width, self.out_channels))
