"""Conversion of stored weights of the published network to parameters of `RefineNet`.

Stored: PyTorch's state dictionary, convolutions OIHW, each InstanceNorm++ one embedding row
[1, 3 features] = gamma | alpha | beta. Here: convolutions HWIO, three vectors per norm.
The names correspond one to one:

====================================  ============================================
stored                                here
====================================  ============================================
begin_conv                            begin_conv
res<i>.<b>.normalize<s>, conv<s>      res<i>_<b>/stage_<s>/norm, conv
res<i>.<b>.shortcut                   res<i>_<b>/shortcut
refine<i>.adapt_convs.<j>.<b>_<s>_    refine<i>/adapt_<j>/block_<b>_stage_<s>/
refine<i>.msf.norms.<j>, convs.<j>    refine<i>/fusion/input_<j>/norm, conv
refine<i>.crp.norms.<j>, convs.<j>    refine<i>/pooling/stage_<j+1>/norm, conv
refine<i>.output_convs.<b>_<s>_       refine<i>/output/block_<b>_stage_<s>/
normalizer, end_conv                  end/norm, end/conv
====================================  ============================================
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from hos_jax.errors import UserError


class _Layer(NamedTuple):
    """One stored layer: a norm where `inputs` is 0, else a convolution."""

    stored: str
    path: tuple[str, ...]
    features: int
    inputs: int = 0
    size: int = 3
    bias: bool = True


def _residual_blocks(width: int) -> Iterator[_Layer]:
    for i, (inputs, features) in enumerate(
        ((width, width), (width, 2 * width), (2 * width, 2 * width), (2 * width, 2 * width)), 1
    ):
        for block, before in enumerate((inputs, features)):
            stored, here = f"res{i}.{block}.", f"res{i}_{block}"
            # The published convolutions with pooling wrap an inner convolution.
            halves = (i, block) == (2, 0)
            inner = ".conv" if halves else ""
            yield _Layer(f"{stored}normalize1", (here, "stage_1", "norm"), before)
            yield _Layer(f"{stored}conv1", (here, "stage_1", "conv"), before, before)
            yield _Layer(f"{stored}normalize2", (here, "stage_2", "norm"), before)
            yield _Layer(f"{stored}conv2{inner}", (here, "stage_2", "conv"), features, before)
            if i > 1 and block == 0:
                size = 1 if halves else 3
                yield _Layer(f"{stored}shortcut{inner}", (here, "shortcut"), features, before, size)


def _residual_conv_unit(
    stored: str, path: tuple[str, ...], features: int, blocks: int
) -> Iterator[_Layer]:
    for block in range(1, blocks + 1):
        for stage in (1, 2):
            here = (*path, f"block_{block}_stage_{stage}")
            name = f"{stored}.{block}_{stage}_"
            yield _Layer(f"{name}norm", (*here, "norm"), features)
            yield _Layer(f"{name}conv", (*here, "conv"), features, features, bias=False)


def _refine_block(
    stored: str, inputs: tuple[int, ...], features: int, output_blocks: int
) -> Iterator[_Layer]:
    for j, channels in enumerate(inputs):
        yield from _residual_conv_unit(
            f"{stored}.adapt_convs.{j}", (stored, f"adapt_{j}"), channels, 2
        )
        if len(inputs) > 1:
            here = (stored, "fusion", f"input_{j}")
            yield _Layer(f"{stored}.msf.norms.{j}", (*here, "norm"), channels)
            yield _Layer(f"{stored}.msf.convs.{j}", (*here, "conv"), features, channels)
    for j in range(2):
        here = (stored, "pooling", f"stage_{j + 1}")
        yield _Layer(f"{stored}.crp.norms.{j}", (*here, "norm"), features)
        yield _Layer(f"{stored}.crp.convs.{j}", (*here, "conv"), features, features, bias=False)
    yield from _residual_conv_unit(
        f"{stored}.output_convs", (stored, "output"), features, output_blocks
    )


def _layers(width: int, in_channels: int, out_channels: int) -> Iterator[_Layer]:
    yield _Layer("begin_conv", ("begin_conv",), width, in_channels)
    yield from _residual_blocks(width)
    yield from _refine_block("refine1", (2 * width,), 2 * width, 1)
    yield from _refine_block("refine2", (2 * width, 2 * width), 2 * width, 1)
    yield from _refine_block("refine3", (2 * width, 2 * width), width, 1)
    yield from _refine_block("refine4", (width, width), width, 3)
    yield _Layer("normalizer", ("end", "norm"), width)
    yield _Layer("end_conv", ("end", "conv"), out_channels, width)


def refinenet_params(state: Mapping[str, np.ndarray], prefix: str = "") -> dict:
    """Converts stored arrays to the parameter tree of `RefineNet`.

    Args:
        state: arrays by stored name, as in the state dictionary; every name that starts with
            `prefix` must belong to the network, others are ignored.
        prefix: what precedes the network's names, with its dot, such as "low_rank_model." or
            "diagonal." for the two networks of the low-rank model.

    Returns:
        Nested dictionary of float32 NumPy arrays:
        `RefineNet(features, out_channels).apply({"params": tree}, images)`.
        Both widths are those of the stored arrays. Stored output channel k of a factor network
        of rank r on images of C channels is factor column k // C at image channel k % C.

    Raises:
        UserError: where an array is missing, unexpected or of the wrong shape.
    """
    names = {name.removeprefix(prefix) for name in state if name.startswith(prefix)}

    def take(name, shape):
        names.discard(name)
        if prefix + name not in state:
            raise UserError(f"stored weights lack {prefix + name!r}")
        array = np.asarray(state[prefix + name])
        # None stands for a width that this array itself defines.
        if array.ndim != len(shape) or any(
            wanted not in (None, found) for wanted, found in zip(shape, array.shape, strict=True)
        ):
            raise UserError(
                f"stored weight {prefix + name!r} has shape {array.shape}, not "
                f"({', '.join('any' if n is None else str(n) for n in shape)})"
            )
        return np.asarray(array, np.float32)

    width, in_channels = take("begin_conv.weight", (None, None, 3, 3)).shape[:2]
    out_channels = take("end_conv.weight", (None, width, 3, 3)).shape[0]

    tree: dict = {}
    for layer in _layers(width, in_channels, out_channels):
        leaf = tree
        for part in layer.path:
            leaf = leaf.setdefault(part, {})
        if layer.inputs == 0:
            row = take(f"{layer.stored}.embed.weight", (1, 3 * layer.features))[0]
            leaf["gamma"], leaf["alpha"], leaf["beta"] = np.split(row, 3)
            continue
        shape = (layer.features, layer.inputs, layer.size, layer.size)
        leaf["kernel"] = take(f"{layer.stored}.weight", shape).transpose(2, 3, 1, 0)
        if layer.bias:
            leaf["bias"] = take(f"{layer.stored}.bias", (layer.features,))
    if names:
        raise UserError(f"stored weights hold an unexpected array {prefix + min(names)!r}")
    return tree
