"""Conversion of stored weights of the published network to parameters of `RefineNet`.

Stored: PyTorch's state dictionary, convolutions OIHW, each InstanceNorm++ one embedding row
[1, 3 features] = gamma | alpha | beta. Here: convolutions HWIO, three vectors per norm.
"""

import functools
import itertools
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from hos_jax.errors import UserError
from hos_jax.models.refinenet import RefineNet

# Layers here, and what they are called in the file; the first row that fits holds.
STORED_NAMES = (
    # The published convolutions with pooling wrap an inner convolution.
    (r"res2_0/stage_2/conv", r"res2.0.conv2.conv"),
    (r"res2_0/shortcut", r"res2.0.shortcut.conv"),
    (r"res(\d)_(\d)/stage_(\d)/conv", r"res\1.\2.conv\3"),
    (r"res(\d)_(\d)/stage_(\d)/norm", r"res\1.\2.normalize\3"),
    (r"res(\d)_(\d)/shortcut", r"res\1.\2.shortcut"),
    (r"(refine\d)/adapt_(\d)/block_(\d)_stage_(\d)/(norm|conv)", r"\1.adapt_convs.\2.\3_\4_\5"),
    (r"(refine\d)/fusion/input_(\d)/(norm|conv)", r"\1.msf.\3s.\2"),
    (r"(refine\d)/pooling/stage_1/(norm|conv)", r"\1.crp.\2s.0"),
    (r"(refine\d)/pooling/stage_2/(norm|conv)", r"\1.crp.\2s.1"),
    (r"(refine\d)/output/block_(\d)_stage_(\d)/(norm|conv)", r"\1.output_convs.\2_\3_\4"),
    (r"end/norm", r"normalizer"),
    (r"end/conv", r"end_conv"),
    (r"begin_conv", r"begin_conv"),
)
NORM_PARTS = ("gamma", "alpha", "beta")


def _stored_name(layer: str) -> str:
    found = ((re.fullmatch(row, layer), name) for row, name in STORED_NAMES)
    return next(match.expand(name) for match, name in found if match)


@functools.lru_cache(maxsize=8)
def _shapes(width: int, in_channels: int, out_channels: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters of the network, by their path."""
    network, images = RefineNet(width, out_channels), jnp.zeros((1, 8, 8, in_channels))
    params = jax.eval_shape(network.init, jax.random.key(0), images)["params"]
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(params, sep="/").items()}


def refinenet_params(state: Mapping[str, np.ndarray], prefix: str = "") -> dict:
    """Converts stored arrays to the parameter tree of `RefineNet`, float32 NumPy arrays.

    `RefineNet(features, out_channels).apply({"params": tree}, images)`, both widths those of the
    stored arrays. Stored output channel k of a factor network of rank r on images of C channels is
    factor column k // C at image channel k % C.

    Args:
        state: arrays by stored name, as in the state dictionary; every name that starts with
            `prefix` must belong to the network, others are ignored.
        prefix: "low_rank_model." or "diagonal." for the two networks of the low-rank model.

    Raises:
        UserError: where an array is missing, unexpected or of the wrong shape.
    """
    names = {name.removeprefix(prefix) for name in state if name.startswith(prefix)}

    def take(name, *shape):
        names.discard(name)
        if prefix + name not in state:
            raise UserError(f"stored weights lack {prefix + name!r}")
        array = np.asarray(state[prefix + name], np.float32)
        # A width that this array itself defines may be "any".
        pairs = itertools.zip_longest(shape, array.shape)
        if any(wanted not in ("any", found) for wanted, found in pairs):
            wanted = f"({', '.join(map(str, shape))})"
            raise UserError(
                f"stored weight {prefix + name!r} has shape {array.shape}, not {wanted}"
            )
        return array

    width, in_channels = take("begin_conv.weight", "any", "any", 3, 3).shape[:2]
    out_channels = take("end_conv.weight", "any", width, 3, 3).shape[0]
    flat = {}
    for path, shape in _shapes(width, in_channels, out_channels).items():
        layer, _, kind = path.rpartition("/")
        stored = _stored_name(layer)
        if kind == "kernel":
            height, breadth, inputs, outputs = shape
            array = take(f"{stored}.weight", outputs, inputs, height, breadth)
            flat[path] = array.transpose(2, 3, 1, 0)
        elif kind == "bias":
            flat[path] = take(f"{stored}.bias", *shape)
        else:
            row = take(f"{stored}.embed.weight", 1, 3 * shape[0])[0]
            flat[path] = np.split(row, 3)[NORM_PARTS.index(kind)]
    if names:
        raise UserError(f"stored weights hold an unexpected array {prefix + min(names)!r}")
    return traverse_util.unflatten_dict(flat, sep="/")
