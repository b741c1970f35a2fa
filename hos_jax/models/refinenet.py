r"""The published image network: a dilated RefineNet with InstanceNorm++ and one noise level.

The architecture is that of Song & Ermon 2019 (arXiv 1907.05600), built on RefineNet (Lin et al.
2017, arXiv 1611.06612); Meng et al. 2021 (arXiv 2111.04726) learn second-order scores with it.

Convolutions with 2x2 mean pooling, and the 5x5 average pooling, are computed in another, equal form
than the one in which the architecture is usually described; tests compare each with the plain form.

Of every unit, `features` is the number of output channels, `dilation` the distance between the taps
of its 3x3 convolutions and `dtype` that of the computation; parameters are float32.

The activations between a normalisation and its convolution are never kept for the backward
pass: recomputing them is cheap, and they are two thirds of the memory. (On CPU, JAX 0.10.2
merges the recomputation with the forward pass again, so the memory is saved only by 0.12.)
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from hos_jax.models.winograd import convolve, filters, pays

EPSILON = 1e-5
SMALLEST_SIZE = 8


def fan_in_uniform(fan_in: int) -> Callable[..., jax.Array]:
    """Returns the initializer U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's for convolutions."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def normal_around_one(key, shape, dtype=jnp.float32) -> jax.Array:
    """The initializer N(1, 0.02^2) of the scales of InstanceNorm++."""
    return 1 + 0.02 * jax.random.normal(key, shape, dtype)


def resize_aligned_corners(x: jax.Array, height: int, width: int) -> jax.Array:
    """Bilinear resize, (B, H, W, C) -> (B, height, width, C), the corners of both grids the same.

    Along each axis output i is read at position i (size_in - 1) / (size_out - 1) of the input.
    """
    if x.shape[1:3] == (height, width):
        return x

    def interpolation(size_in: int, size_out: int) -> jax.Array:
        position = np.arange(size_out) * ((size_in - 1) / max(size_out - 1, 1))
        distance = np.abs(position[:, None] - np.arange(size_in))
        return jnp.asarray(np.clip(1 - distance, 0, None), x.dtype)

    x = jnp.einsum("oh,bhwc->bowc", interpolation(x.shape[1], height), x)
    return jnp.einsum("pw,bowc->bopc", interpolation(x.shape[2], width), x)


def sum_of_five(x: jax.Array, axis: int) -> jax.Array:
    """Sums of each value and the two on both sides along an axis, zeros outside."""

    def moved(by: int) -> jax.Array:
        ends = [(by, -by, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)]
        return lax.pad(x, jnp.zeros((), x.dtype), ends)

    return x + (moved(1) + moved(-1) + (moved(2) + moved(-2)))


def average_pool_5x5(x: jax.Array) -> jax.Array:
    """Average of 5x5 neighbourhoods, stride 1, the zero padding of 2 counted; shape unchanged."""
    # Two sums of five shifted images: on CPU a windowed reduction takes 2 to 8 times as long. The
    # barrier keeps XLA from summing the columns anew for every row.
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    columns = lax.optimization_barrier(sum_of_five(wide, axis=1))
    return (sum_of_five(columns, axis=2) / 25).astype(x.dtype)


def mean_pool_2x2(x: jax.Array) -> jax.Array:
    """Means of disjoint 2x2 squares, (B, H, W, C) -> (B, H/2, W/2, C), for even H and W."""
    batch, height, width, channels = x.shape
    # The gradient of a reshape and a mean is a broadcast; that of a windowed mean is slow on CPU.
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def convolve_and_halve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`mean_pool_2x2(convolve(x, kernel))` for a kernel (3, 3, I, O), in one convolution.

    The mean of four neighbouring outputs is linear in a 4x4 neighbourhood of the input: 16
    products where the two steps take 36, and the full-size result never exists.
    """
    shifted = [
        jnp.pad(kernel, ((i, 1 - i), (j, 1 - j), (0, 0), (0, 0))) for i in (0, 1) for j in (0, 1)
    ]
    return lax.conv_general_dilated(
        x,
        sum(shifted[1:], shifted[0]) / 4,
        window_strides=(2, 2),
        padding=((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


class Convolution(nn.Module):
    """A square convolution with zero padding, initialized as PyTorch does.

    Attributes:
        size: side of the kernel, odd.
        use_bias: whether a bias is added.
        halve: whether 2x2 mean pooling follows; needs size 3 and dilation 1.
    """

    features: int
    size: int = 3
    dilation: int = 1
    use_bias: bool = True
    halve: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, H, W, I) to (B, H, W, features), or half of H and W where `halve` is set."""
        if self.halve and (self.size, self.dilation) != (3, 1):
            raise ValueError("a convolution that halves the image has size 3 and dilation 1")
        x = x.astype(self.dtype)
        shape = (self.size, self.size, x.shape[-1], self.features)
        init = fan_in_uniform(self.size**2 * x.shape[-1])
        kernel = self.param("kernel", init, shape).astype(self.dtype)
        if self.size == 1:
            # As a product, whose gradient in the kernel is one too.
            y = x @ kernel[0, 0]
        elif not self.halve:
            y = convolve(x, kernel, self.dilation)
        elif filters(kernel, self.dtype) and pays(x.shape, self.features):
            y = mean_pool_2x2(convolve(x, kernel))
        else:
            y = convolve_and_halve(x, kernel)
        if self.use_bias:
            bias = self.param("bias", init, (self.features,)).astype(self.dtype)
            y = y + bias.reshape(1, 1, 1, -1)
        return y


@jax.custom_jvp
def elu(x: jax.Array) -> jax.Array:
    """x where it is positive, else exp(x) - 1, by the exponential itself.

    The usual form takes expm1, at twice the time, for digits that are lost in the next sum.
    """
    return jnp.where(x > 0, x, jnp.exp(jnp.minimum(x, 0)) - 1)


@elu.defjvp
def _elu_jvp(primals, tangents):
    (x,), (x_dot,) = primals, tangents
    return elu(x), x_dot * jnp.exp(jnp.minimum(x, 0))


@jax.custom_jvp
def standardize(x: jax.Array, mean: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    r"""Instance normalisation of images (B, H, W, C), scaled and shifted.

    .. math:: y = (x - \mu) \frac{\mathrm{scale}}{\sqrt{v + \epsilon}} + \mathrm{shift}, \qquad
              \epsilon = 10^{-5}

    Args:
        x: images, (B, H, W, C).
        mean: mu, the means of x over the pixels, (B, 1, 1, C); its derivatives are those of x.
        scale, shift: (1 or B, 1, 1, C).
    """
    centred = x - mean
    return centred * (scale * inverse_deviation(centred)) + shift


def inverse_deviation(centred: jax.Array) -> jax.Array:
    """1 / sqrt(v + epsilon), v the biased variance over pixels: (B, H, W, C) -> (B, 1, 1, C)."""
    variance = jnp.square(centred).mean((1, 2), keepdims=True)
    return checkpoint_name(lax.rsqrt(variance + EPSILON), "moments")


@standardize.defjvp
def _standardize_jvp(primals, tangents):
    # Written so that its transpose sums over the pixels twice only. Autodiff of the plain form
    # takes five sums, and these passes over memory are as slow as a convolution's products.
    x, mean, scale, shift = primals
    x_dot, _, scale_dot, shift_dot = tangents
    centred = x - mean
    inverse = inverse_deviation(centred)
    slope = scale * inverse
    offset = shift_dot - slope * x_dot.mean((1, 2), keepdims=True)
    correlation = (centred * x_dot).mean((1, 2), keepdims=True)
    tilt = inverse * scale_dot - slope * jnp.square(inverse) * correlation
    tangent = x_dot * slope + centred * to_pixels(tilt, x.shape) + to_pixels(offset, x.shape)
    return centred * slope + shift, tangent


def to_pixels(channels: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A value per channel, (B, 1, 1, C) or (1, 1, 1, C), at every pixel of images (B, H, W, C).

    In two steps, so that gradients are summed along one axis at a time: on CPU the sum of a product
    over both makes the product as an array first, in memory that is new every time.
    """
    columns = jnp.broadcast_to(channels, (*shape[:2], 1, shape[3]))
    return jnp.broadcast_to(lax.optimization_barrier(columns), shape)


class InstanceNormPlus(nn.Module):
    r"""InstanceNorm++ (Song & Ermon 2019, appendix A).

    With mu_c, v_c the mean and biased variance of channel c over one image's pixels, and m_c the
    means mu_c normalised across channels (unbiased variance),

    .. math:: y_c = \gamma_c \Big(\frac{x_c - \mu_c}{\sqrt{v_c + \epsilon}} + \alpha_c m_c\Big)
              + \beta_c, \qquad \epsilon = 10^{-5}.

    Needs at least two channels. Statistics are at least float32 whatever the dtype of x.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        wide = jnp.promote_types(x.dtype, jnp.float32)

        def parameter(name, init):
            return self.param(name, init, (channels,), jnp.float32).astype(wide)[None, None, None]

        gamma = parameter("gamma", normal_around_one)
        alpha = parameter("alpha", normal_around_one)
        beta = parameter("beta", nn.initializers.zeros)

        values = x.astype(wide)
        mean = checkpoint_name(values.mean((1, 2), keepdims=True), "moments")
        level = mean - mean.mean(-1, keepdims=True)
        spread = jnp.square(level).sum(-1, keepdims=True) / (channels - 1)
        level = level * lax.rsqrt(spread + EPSILON)
        shift = gamma * alpha * level + beta
        return standardize(values, mean, gamma, shift).astype(x.dtype)


class NormConvolution(Convolution):
    """InstanceNorm++, a function of the image (`between`, if any), then a convolution."""

    between: Callable[[jax.Array], jax.Array] | None = elu

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = InstanceNormPlus(name="norm")(x)
        if self.between is not None:
            x = self.between(x)
        sizes = self.features, self.size, self.dilation, self.use_bias, self.halve
        return Convolution(*sizes, self.dtype, name="conv")(x)


# The backward pass of this unit needs the convolution's input, not its output: the recomputation
# is the normalisation, by moments that are kept, and the function after it.
LeanNormConvolution = nn.remat(
    NormConvolution, policy=jax.checkpoint_policies.save_only_these_names("moments")
)


class ResidualBlock(nn.Module):
    """Two ELU convolutions beside a shortcut; `features` are the input's channels unless `down`.

    A block with `down` and dilation 1 halves the image; with `down` and a dilation it only
    dilates, and its shortcut is a dilated 3x3 convolution, as published.
    """

    features: int
    down: bool = False
    dilation: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        halve = self.down and self.dilation == 1
        common = {"dilation": self.dilation, "dtype": self.dtype}
        h = LeanNormConvolution(x.shape[-1], **common, name="stage_1")(x)
        h = LeanNormConvolution(self.features, halve=halve, **common, name="stage_2")(h)
        if halve:
            # Pooling first is the same linear map with a quarter of the products.
            x = mean_pool_2x2(x)
            x = Convolution(self.features, size=1, dtype=self.dtype, name="shortcut")(x)
        elif self.down:
            x = Convolution(self.features, **common, name="shortcut")(x)
        return x + h


class ResidualConvUnit(nn.Module):
    """So many residual blocks of two ELU convolutions without bias."""

    blocks: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for block in range(1, self.blocks + 1):
            h = x
            for stage in (1, 2):
                options = {"dtype": self.dtype, "name": f"block_{block}_stage_{stage}"}
                h = LeanNormConvolution(x.shape[-1], use_bias=False, **options)(h)
            x = x + h
        return x


class MultiResolutionFusion(nn.Module):
    """Sum of normalised, convolved inputs (B, H_i, W_i, C_i) at the size of the first."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: Sequence[jax.Array]) -> jax.Array:
        height, width = inputs[0].shape[1:3]
        parts = [
            LeanNormConvolution(self.features, between=None, dtype=self.dtype, name=f"input_{i}")(x)
            for i, x in enumerate(inputs)
        ]
        parts = [resize_aligned_corners(x, height, width) for x in parts]
        return sum(parts[1:], parts[0])


class ChainedResidualPooling(nn.Module):
    """ELU, then two chained stages of average pooling and convolution, each added to the sum."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # It keeps its input alone, in place of input, exponential and the choice between them.
        total = path = jax.checkpoint(elu)(x)
        common = {"between": average_pool_5x5, "use_bias": False, "dtype": self.dtype}
        for stage in (1, 2):
            path = LeanNormConvolution(x.shape[-1], **common, name=f"stage_{stage}")(path)
            total = total + path
        return total


class RefineBlock(nn.Module):
    """One refinement: adapt inputs (B, H_i, W_i, C_i), fuse them, pool, convolve.

    With one input, its channels are `features`; `output_blocks` are those of the output unit.
    """

    features: int
    output_blocks: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: Sequence[jax.Array]) -> jax.Array:
        adapted = [
            ResidualConvUnit(2, self.dtype, name=f"adapt_{i}")(x) for i, x in enumerate(inputs)
        ]
        x = adapted[0]
        if len(adapted) > 1:
            x = MultiResolutionFusion(self.features, dtype=self.dtype, name="fusion")(adapted)
        x = ChainedResidualPooling(dtype=self.dtype, name="pooling")(x)
        return ResidualConvUnit(self.output_blocks, dtype=self.dtype, name="output")(x)


class RefineNet(nn.Module):
    """The published image network.

    The first downsampling halves the image, everything after it keeps the size. There is no
    noise-level input.

    Draw its parameters by `lazy_init`, which does not evaluate it, and outside `jit`: as one
    program two hundred random arrays take XLA minutes to optimize on a CPU.

    Example::

        net = RefineNet(features=64, out_channels=1)
        shape = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)
        params = net.lazy_init(key, shape)      # {"params": ...}
        scores = net.apply(params, images)      # (B, 28, 28, 1) for MNIST

    Attributes:
        features: channels of the first stage; 64 for MNIST and 128 for CIFAR-10 as published.
        out_channels: channels of the output.
        dtype: of the computation and of the output.
        remat: whether the backward pass recomputes every block from its inputs, which lowers
            memory further (by 45 percent on CPU) and costs one more forward pass.
    """

    features: int
    out_channels: int
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images (B, H, W, C) to (B, H, W, out_channels).

        Raises:
            ValueError: where the images are not (B, H, W, C) with H and W even and at least 8.
        """
        if images.ndim != 4 or any(n < SMALLEST_SIZE or n % 2 for n in images.shape[1:3]):
            wanted = f"images (B, H, W, C) with H and W even and at least {SMALLEST_SIZE}"
            raise ValueError(f"RefineNet takes {wanted}, not {images.shape}")
        narrow, broad = self.features, 2 * self.features
        residual_block = nn.remat(ResidualBlock) if self.remat else ResidualBlock
        refine_block = nn.remat(RefineBlock) if self.remat else RefineBlock

        x = Convolution(narrow, dtype=self.dtype, name="begin_conv")(images)
        skips = []
        stages = ((narrow, False, 1), (broad, True, 1), (broad, True, 2), (broad, True, 4))
        for i, (features, down, dilation) in enumerate(stages, start=1):
            for block, first in enumerate((down, False)):
                x = residual_block(features, first, dilation, self.dtype, name=f"res{i}_{block}")(x)
            skips.append(x)
        coarser: list[jax.Array] = []
        for i, (features, blocks) in enumerate(((broad, 1), (broad, 1), (narrow, 1), (narrow, 3))):
            inputs = [skips.pop(), *coarser]
            x = refine_block(features, blocks, self.dtype, name=f"refine{i + 1}")(inputs)
            coarser = [x]
        return LeanNormConvolution(self.out_channels, dtype=self.dtype, name="end")(x)
