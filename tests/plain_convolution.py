"""What fast convolutions are compared with."""

import jax


def plain(images, kernel, dilation=1):
    """The convolution that keeps the image size, as XLA computes it."""
    return jax.lax.conv_general_dilated(
        images,
        kernel,
        (1, 1),
        [(dilation, dilation)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def arrays(*shapes):
    """Standard normal arrays of the shapes given."""
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
