"""Speed of 3x3 convolutions on this CPU: `hos_jax.models.winograd.convolution` against XLA's own.

    python benchmarks/convolution.py [--json PATH] [--quick]

One row for each kind of layer of the published networks (batch, height = width, channels in and
out, dilation), with milliseconds and the ratio XLA / ours, called in turn in one process: the
convolution, its gradient in the images, and its gradient in the kernel. As in a network, a program
has several of them, the memory that a call frees is kept for the next, and the time is that of one.
"error" is the root mean square error of the convolution in float32, relative to its own root mean
square, against float64.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from measure import Compiled, Rows, device_name, matmul_rate, seconds_side_by_side

from hos_jax.models.winograd import convolution
from hos_jax.parallel import keep_freed_memory

LINKS = 4
LAYERS = (
    (100, 28, 64, 1),
    (100, 14, 128, 1),
    (100, 14, 128, 2),
    (100, 14, 128, 4),
    (40, 28, 64, 1),
    (40, 14, 128, 1),
    (40, 32, 128, 1),
    (40, 16, 256, 1),
    (16, 14, 32, 1),
    (1, 28, 64, 1),
)
PARTS = ("convolution", "image gradient", "kernel gradient")


def own_of_xla(images: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    """The same convolution without anything of ours."""
    return jax.lax.conv_general_dilated(
        images,
        kernel,
        (1, 1),
        [(dilation, dilation)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=convolution.IMAGES,
    )


def relative_error(function, images: jax.Array, kernel: jax.Array, dilation: int) -> float:
    """Root mean square error in float32 of a few images, relative."""
    images = images[:4]
    found = np.asarray(jax.jit(function, static_argnums=2)(images, kernel, dilation), np.float64)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(array), jnp.float64) for array in (images, kernel)]
        exact = np.asarray(own_of_xla(*wide, dilation))
    return float(np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2)))


def measure(layer: tuple[int, ...], repeats: int) -> dict:
    """One row: seconds of each part, ours and XLA's."""
    batch, size, channels, dilation = layer
    keys = jax.random.split(jax.random.key(0), LINKS + 2)
    images, *cotangents = (
        jax.random.normal(key, (batch, size, size, channels)) for key in keys[: LINKS + 1]
    )
    kernel = jax.random.normal(keys[-1], (3, 3, channels, channels)) / (3 * channels**0.5)
    runs = {}
    for name, function in (("ours", convolution.convolve), ("XLA", own_of_xla)):

        def forward(images, kernel, function=function):
            for _ in range(LINKS):
                images = function(images, kernel, dilation)
            return images

        def image_gradient(images, kernel, cotangent, function=function):
            _, pull = jax.vjp(lambda x: function(x, kernel, dilation), images)
            for _ in range(LINKS):
                (cotangent,) = pull(cotangent)
            return cotangent

        def kernel_gradient(images, kernel, cotangents, function=function):
            _, pull = jax.vjp(lambda k: function(images, k, dilation), kernel)
            return sum(pull(cotangent)[0] for cotangent in cotangents)

        for part, one, *more in (
            (PARTS[0], forward),
            (PARTS[1], image_gradient, cotangents[0]),
            (PARTS[2], kernel_gradient, cotangents),
        ):
            runs[f"{name}, {part}"] = Compiled(one, images, kernel, *more).run
    keep_freed_memory()
    found = seconds_side_by_side(runs, repeats=repeats)
    return {
        "seconds": {name: float(np.median(seconds)) / LINKS for name, seconds in found.items()},
        "errors": {
            "ours": relative_error(convolution.convolve, images, kernel, dilation),
            "XLA": relative_error(own_of_xla, images, kernel, dilation),
        },
        "matmul_gflops": matmul_rate(),
        "device": device_name(),
        "jax": jax.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="the smallest two layers")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    table = Rows(options.json, ("layer",), {"repeats": options.repeats})
    print(f"{'batch, size, channels, dilation':<32}" + "".join(f"{part:>34}" for part in PARTS))
    print(f"{'':<32}" + f"{'ours, ms':>12}{'XLA, ms':>12}{'ratio':>10}" * 3 + "   error, ours, XLA")
    for layer in LAYERS[-2:] if options.quick else LAYERS:
        row = table.find(layer=list(layer)) or table.add(
            {"layer": list(layer), **measure(layer, options.repeats)}
        )
        cells = ""
        for part in PARTS:
            ours, own = row["seconds"][f"ours, {part}"], row["seconds"][f"XLA, {part}"]
            cells += f"{1e3 * ours:>12.2f}{1e3 * own:>12.2f}{own / ours:>10.2f}"
        errors = row["errors"]
        print(f"{layer!s:<32}{cells}   {errors['ours']:.1e} {errors['XLA']:.1e}", flush=True)


if __name__ == "__main__":
    main()
