"""A DDPM-style U-Net: group norm, swish, residual blocks, attention at coarse resolutions.

The project's own default network (Ho, Jain, Abbeel 2020, arXiv 2006.11239, appendix B): small
enough for two CPU cores at `features=16`, and wide for a GPU at `features=128,
multipliers=(1, 2, 2, 2)`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hos_jax.models.winograd import conv_general_dilated
from hos_jax.types import Array

Conv3x3 = functools.partial(nn.Conv, kernel_size=(3, 3), conv_general_dilated=conv_general_dilated)


class GroupNorm(nn.Module):
    """Group normalization over space and groups of at least 4 channels: (B,H,W,C) -> (B,H,W,C).

    Single-channel groups would erase each channel's mean, which carries the image's brightness.
    Moments are taken per channel first and then averaged over the group: on CPU this is 3 times
    faster than reducing over an axis of 4 channels.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        features = x.shape[-1]
        groups = max(group for group in (32, 16, 8, 4, 2, 1) if features % (4 * group) == 0)
        scale = self.param("scale", nn.initializers.ones, (features,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (features,), jnp.float32)

        def over_group(moment: Array) -> Array:
            mean = jnp.mean(moment.reshape(-1, groups, features // groups), axis=-1)
            return jnp.repeat(mean, features // groups, axis=-1)

        wide = x.astype(jnp.float32)
        mean = over_group(jnp.mean(wide, axis=(1, 2)))
        square = over_group(jnp.mean(jnp.square(wide), axis=(1, 2)))
        variance = jnp.maximum(square - jnp.square(mean), 0.0)
        factor = scale * jax.lax.rsqrt(variance + 1e-6)
        shift = bias - mean * factor
        return (wide * factor[:, None, None] + shift[:, None, None]).astype(self.dtype)


def _norm(local: bool, dtype: Any, name: str) -> nn.Module:
    """Normalization over the image, or over the channels of each pixel by itself."""
    return nn.LayerNorm(1e-6, dtype, name=name) if local else GroupNorm(dtype, name=name)


class ResidualBlock(nn.Module):
    """Norm, swish, conv, norm, swish, conv, plus the (projected) input: (B,H,W,C) -> (B,H,W,F).

    A condition, (B, E), scales and shifts every channel after the second norm.
    """

    features: int
    dtype: Any = jnp.float32
    local: bool = False

    @nn.compact
    def __call__(self, x: Array, condition: Array | None = None) -> Array:
        h = nn.swish(_norm(self.local, self.dtype, "norm1")(x))
        h = Conv3x3(self.features, dtype=self.dtype, name="conv1")(h)
        h = _norm(self.local, self.dtype, "norm2")(h)
        if condition is not None:
            zeros = nn.initializers.zeros
            modulation = nn.Dense(2 * self.features, kernel_init=zeros, name="condition")(condition)
            scale, shift = jnp.split(modulation.astype(self.dtype)[:, None, None], 2, axis=-1)
            h = h * (1.0 + scale) + shift
        h = nn.swish(h)
        h = Conv3x3(self.features, dtype=self.dtype, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = nn.Conv(self.features, (1, 1), dtype=self.dtype, name="shortcut")(x)
        return x + h


class NoiseEmbedding(nn.Module):
    """Noise levels as features, (B,) -> (B, features): waves of log sigma, and two dense layers."""

    features: int

    @nn.compact
    def __call__(self, sigma: Array) -> Array:
        angles = jnp.log(sigma)[:, None] * jnp.geomspace(0.25, 4.0, 8)[None]
        h = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        h = nn.swish(nn.Dense(self.features, name="dense1")(h))
        return nn.swish(nn.Dense(self.features, name="dense2")(h))


class AttentionBlock(nn.Module):
    """Self-attention over all positions, added to its input: (B,H,W,C) -> (B,H,W,C)."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        features = x.shape[-1]
        h = GroupNorm(self.dtype, name="norm")(x).reshape(len(x), -1, features)
        h = nn.Dense(3 * features, dtype=self.dtype, name="qkv")(h)
        query, key, value = jnp.split(h, 3, axis=-1)
        # In float32 whatever the dtype: of weights in bfloat16 the sum is off by up to a percent.
        wide = jnp.promote_types(self.dtype, jnp.float32)
        logits = jnp.einsum("bqc,bkc->bqk", query, key, preferred_element_type=wide)
        weights = jax.nn.softmax(logits / features**0.5, axis=-1).astype(h.dtype)
        h = jnp.einsum("bqk,bkc->bqc", weights, value)
        h = nn.Dense(features, dtype=self.dtype, name="out")(h)
        return x + h.reshape(x.shape)


class UNet(nn.Module):
    """Image in, image out: (B, H, W, C) -> (B, H, W, out_channels).

    Attributes:
      out_channels: channels of the output.
      features: channels at the finest level; a multiple of 4.
      multipliers: channels of each level in units of `features`; each level halves the size.
      blocks: residual blocks per level on the way down, each with a skip connection to the way up.
      patch_size: images are cut into patches of this side, whose pixels become channels at the
        finest level, and put together again at the end. 1 is the plain U-Net; 2 moves the work from
        a few channels at full size, where processors are slow, to more channels at half of it.
      attention_size: levels whose larger side is at most this many pixels get attention.
      dtype: dtype of the computation; parameters stay float32.
      remat: recompute activations in the backward pass, for big images.
      classes: how many classes of images there are, 0 for none.
      local: for images of any size. What a pixel's values depend on ends some pixels away: there
        is no attention, and normalization is over the channels of each pixel; and where a side
        cannot be halved once per level the image is continued by its last row or column meanwhile.

    Raises:
      ValueError: if a side of the image cannot be halved once per level, unless `local`.
    """

    out_channels: int
    features: int = 16
    multipliers: Sequence[int] = (1, 2, 4)
    blocks: int = 1
    patch_size: int = 1
    attention_size: int = 8
    dtype: Any = jnp.float32
    remat: bool = False
    classes: int = 0
    local: bool = False

    @nn.compact
    def __call__(
        self, images: Array, sigma: Array | None = None, labels: Array | None = None
    ) -> Array:
        """Evaluate at images; with embeddings of noise levels, (B,), where they are given, and of
        labels, (B,), whole numbers up to `classes`, which means that the class is not known."""
        factor = self.patch_size * 2 ** (len(self.multipliers) - 1)
        size = images.shape[1:3]
        if self.local and images.ndim == 4:
            missing = ((0, -side % factor) for side in size)
            images = jnp.pad(images, ((0, 0), *missing, (0, 0)), mode="edge")
        _check_sizes(images.shape, self.features, factor)
        block: Callable = nn.remat(ResidualBlock) if self.remat else ResidualBlock
        condition = None
        if sigma is not None:
            condition = NoiseEmbedding(4 * self.features, name="noise_embedding")(sigma)
            if labels is not None:
                embed = nn.Embed(self.classes + 1, 4 * self.features, name="label_embedding")
                condition += embed(labels)

        def stage(h: Array, features: int, name: str) -> Array:
            h = block(features, self.dtype, self.local, name=name)(h, condition)
            if not self.local and max(h.shape[1:3]) <= self.attention_size:
                h = AttentionBlock(self.dtype, name=f"{name}_attention")(h)
            return h

        h = space_to_depth(images, self.patch_size)
        h = Conv3x3(self.features, dtype=self.dtype, name="begin_conv")(h)
        skips = []
        last = len(self.multipliers) - 1
        for level, multiplier in enumerate(self.multipliers):
            width = self.features * multiplier
            for index in range(self.blocks):
                h = stage(h, width, f"down{level}_{index}")
                skips.append(h)
            if level < last:
                name = f"down{level}_conv"
                h = nn.Conv(width, (3, 3), strides=(2, 2), dtype=self.dtype, name=name)(h)

        h = stage(h, h.shape[-1], "middle")

        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            width = self.features * multiplier
            if level < last:
                # Projecting before the upsampling costs a quarter of projecting after it.
                h = nn.Conv(width, (1, 1), dtype=self.dtype, name=f"up{level}_conv")(h)
                h = jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2)
            for index in range(self.blocks):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = stage(h, width, f"up{level}_{index}")

        h = nn.swish(_norm(self.local, self.dtype, "norm_out")(h))
        small = nn.initializers.variance_scaling(0.1, "fan_in", "normal")
        channels = self.out_channels * self.patch_size**2
        end = Conv3x3(channels, dtype=jnp.float32, kernel_init=small, name="end_conv")
        return depth_to_space(end(h), self.patch_size)[:, : size[0], : size[1]]


def space_to_depth(images: Array, size: int) -> Array:
    """Patches of size x size pixels as channels: (B, H, W, C) -> (B, H/size, W/size, size^2 C)."""
    batch, height, width, channels = images.shape
    x = images.reshape(batch, height // size, size, width // size, size, channels)
    return x.swapaxes(2, 3).reshape(batch, height // size, width // size, -1)


def depth_to_space(patches: Array, size: int) -> Array:
    """The inverse of `space_to_depth`."""
    batch, height, width, _ = patches.shape
    x = patches.reshape(batch, height, width, size, size, -1)
    return x.swapaxes(2, 3).reshape(batch, height * size, width * size, -1)


def _check_sizes(shape: tuple[int, ...], features: int, factor: int) -> None:
    if len(shape) != 4:
        raise ValueError(f"expected images (batch, height, width, channels), got {shape}")
    if shape[1] % factor or shape[2] % factor:
        raise ValueError(
            f"this U-Net needs sides divisible by {factor} (patch size, halved once per further "
            f"level), got {shape[1]} x {shape[2]}; use fewer multipliers or another image size"
        )
    if features % 4:
        raise ValueError(f"the U-Net's features must be a multiple of 4, got {features}")
