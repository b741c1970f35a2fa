"""A small convolutional classifier of images: the judge of generated digits."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from hos_jax.types import Array


class Classifier(nn.Module):
    """Two convolutions with pooling and two dense layers: (N, H, W, C) -> logits (N, classes).

    Attributes:
      classes: number of classes.
      features: channels of the first convolution.
    """

    classes: int
    features: int = 16

    @nn.compact
    def __call__(self, images: Array) -> Array:
        h = images
        for index in range(2):
            h = nn.relu(nn.Conv(self.features * (index + 1), (3, 3), name=f"conv{index}")(h))
            h = nn.max_pool(h, (2, 2), strides=(2, 2))
        h = nn.relu(nn.Dense(8 * self.features, name="dense")(h.reshape(len(h), -1)))
        return nn.Dense(self.classes, name="logits")(jnp.asarray(h))
