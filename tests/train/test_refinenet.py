"""The published network: equal to stored outputs, operation by operation and as a whole.

The stored vectors (tests/golden) are outputs of the published PyTorch implementation in float64,
with weights and inputs that float16 represents exactly.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_parameters import drawn
from flax import linen as nn

from hos_jax.errors import UserError
from hos_jax.migrate.refinenet_weights import refinenet_params
from hos_jax.models import refinenet
from hos_jax.models.refinenet import RefineNet

GOLDEN = Path(__file__).parents[1] / "golden"


def load(name):
    with np.load(GOLDEN / f"{name}.npz") as stored:
        arrays = dict(stored)
    state = {
        name.removeprefix("state/"): value
        for name, value in arrays.items()
        if name.startswith("state/")
    }
    return arrays, state


@pytest.fixture(scope="module")
def mnist():
    return load("refinenet_mnist_ngf16")


@pytest.fixture(scope="module")
def low_rank():
    return load("lowranks2_mnist_ngf8_rank3")


def to_nhwc(images):
    return jnp.asarray(np.transpose(images, (0, 2, 3, 1)))


def to_nchw(images):
    return np.transpose(np.asarray(images), (0, 3, 1, 2))


def relative_error(value, reference):
    value, reference = np.asarray(value), np.asarray(reference)
    assert value.shape == reference.shape
    return np.abs(value - reference).max() / np.abs(reference).max()


def random(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def parameter_count(net, images):
    tree = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(images))
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def low_rank_outputs(arrays, state, rank, dtype):
    """Factor (B, D, rank) and diagonal (B, D) of the stored pair of networks."""
    images = to_nhwc(arrays["x"])

    def output(name, channels):
        params = refinenet_params(state, prefix=f"{name}.")
        return RefineNet(8, channels, dtype=dtype).apply({"params": params}, images)

    factor, diagonal = output("low_rank_model", rank), output("diagonal", 1)
    return factor.reshape(len(images), -1, rank), diagonal.reshape(len(images), -1)


# The whole network


def test_output_is_the_stored_output(mnist):
    arrays, state = mnist
    variables = {"params": refinenet_params(state)}
    output = RefineNet(16, 1).apply(variables, to_nhwc(arrays["x"]))
    assert output.dtype == jnp.float32
    assert relative_error(to_nchw(output).reshape(2, -1), arrays["out_f64"]) < 1e-5


@pytest.mark.slow
def test_output_is_the_stored_output_in_float64(mnist):
    arrays, state = mnist
    with jax.enable_x64(True):
        net = RefineNet(16, 1, dtype=jnp.float64)
        output = net.apply({"params": refinenet_params(state)}, to_nhwc(arrays["x"]))
        assert output.dtype == jnp.float64
        assert relative_error(to_nchw(output).reshape(2, -1), arrays["out_f64"]) < 1e-10


def test_every_stage_is_the_stored_stage(mnist):
    arrays, state = mnist
    variables = {"params": refinenet_params(state)}
    _, captured = RefineNet(16, 1).apply(
        variables, to_nhwc(arrays["x"]), capture_intermediates=True
    )
    captured = captured["intermediates"]
    stages = {
        "begin_conv": captured["begin_conv"],
        **{f"layer{i}": captured[f"res{i}_1"] for i in range(1, 5)},
        **{f"ref{i}": captured[f"refine{i}"] for i in range(1, 5)},
        "normalizer": captured["end"]["norm"],
    }
    for name, stage in stages.items():
        value = to_nchw(stage["__call__"][0])
        assert relative_error(value[:, :4], arrays[f"inter/{name}"]) < 1e-5, name
        assert np.abs(value).mean() == pytest.approx(arrays[f"inter_absmean/{name}"], rel=1e-5)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("float32", 1e-5), pytest.param("float64", 1e-10, marks=pytest.mark.slow)],
)
def test_low_rank_pair_is_the_stored_pair(low_rank, dtype, tolerance):
    arrays, state = low_rank
    with jax.enable_x64(dtype == "float64"):
        factor, diagonal = low_rank_outputs(arrays, state, rank=3, dtype=jnp.dtype(dtype))
        gram = jnp.einsum("bdr,bds->brs", factor, factor)
        square = jnp.square(factor).sum(-1)
        h_diagonal = square + diagonal
        fro = jnp.sqrt(jnp.square(gram).sum((1, 2)) + (diagonal * (diagonal + 2 * square)).sum(-1))
        assert relative_error(factor, arrays["U_f64"]) < tolerance
        assert relative_error(diagonal, arrays["diag_f64"]) < tolerance
        assert relative_error(h_diagonal, arrays["h_diagonal_f64"]) < tolerance
        assert relative_error(h_diagonal.sum(-1), arrays["h_trace_f64"]) < tolerance
        assert relative_error(fro, arrays["h_fro_f64"]) < tolerance
        rows = jnp.einsum("bir,bjr->bij", factor[:, :8], factor)
        rows = rows.at[:, jnp.arange(8), jnp.arange(8)].add(diagonal[:, :8])
        assert relative_error(rows, arrays["h_rows0to8_f64"]) < tolerance


@pytest.mark.parametrize(
    ("features", "out_channels", "images", "count"),
    [(64, 1, (1, 28, 28, 1), 7_443_393), (128, 3, (1, 32, 32, 3), 29_727_107)],
)
def test_parameter_count_is_the_published_one(features, out_channels, images, count):
    assert parameter_count(RefineNet(features, out_channels), images) == count


def test_parameter_count_of_the_low_rank_pair_is_the_published_one():
    pair = [parameter_count(RefineNet(64, channels), (1, 28, 28, 1)) for channels in (50, 1)]
    assert sum(pair) == 14_915_059


def colour_gradient(net):
    images = random(2, 32, 32, 3)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        params = drawn(net, images, mean=0.3, std=0.3)
        loss_and_gradient = jax.value_and_grad(lambda p: jnp.square(net.apply(p, images)).mean())
        return jax.jit(loss_and_gradient)(params)


@pytest.mark.slow
def test_colour_images_give_a_finite_gradient_that_recomputation_keeps():
    loss, gradient = colour_gradient(RefineNet(4, 3))
    assert bool(jnp.isfinite(loss))
    for leaf in jax.tree.leaves(gradient):
        assert bool(jnp.isfinite(leaf).all())
        assert bool((leaf != 0).any())
    _, recomputed = colour_gradient(RefineNet(4, 3, remat=True))
    scale = max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(gradient))
    difference = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), gradient, recomputed)
    assert max(jax.tree.leaves(difference)) < 1e-5 * scale


def test_forward_and_backward_derivatives_agree():
    inputs = [random(1, 8, 8, 4), random(1, 4, 4, 4, seed=1)]
    block = refinenet.RefineBlock(3)
    params = drawn(block, inputs, mean=0.3, std=0.3)

    def apply(x):
        return block.apply(params, [x, inputs[1]])

    direction = random(1, 8, 8, 4, seed=2)
    out, forward = jax.jvp(apply, (inputs[0],), (direction,))
    weights = random(*out.shape, seed=3)
    (backward,) = jax.vjp(apply, inputs[0])[1](weights)
    product = float(jnp.vdot(direction, backward))
    assert float(jnp.vdot(weights, forward)) == pytest.approx(product, rel=1e-3)


def test_computation_in_bfloat16_keeps_float32_parameters(mnist):
    arrays, state = mnist
    images = to_nhwc(arrays["x"])
    net = RefineNet(16, 1, dtype=jnp.bfloat16)
    shapes = jax.eval_shape(net.init, jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    output = net.apply({"params": refinenet_params(state)}, images)
    assert output.dtype == jnp.bfloat16
    assert relative_error(to_nchw(output).reshape(2, -1).astype(float), arrays["out_f64"]) < 0.1


@pytest.mark.parametrize("shape", [(2, 28, 28), (1, 6, 8, 1), (1, 28, 27, 1)])
def test_images_of_an_unfit_shape_are_refused(shape):
    with pytest.raises(ValueError, match="even and at least 8"):
        jax.eval_shape(RefineNet(4, 1).init, jax.random.key(0), jnp.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 8, 8, 1), (1, 10, 12, 2)])
def test_other_even_sizes_work(shape):
    output, _ = jax.eval_shape(RefineNet(4, 5).init_with_output, jax.random.key(0), jnp.ones(shape))
    assert output.shape == (*shape[:3], 5)


def test_initial_parameters_have_the_published_law():
    unit = refinenet.NormConvolution(16)
    params = unit.init(jax.random.key(0), jnp.zeros((1, 8, 8, 512)))["params"]
    params = jax.tree.map(np.asarray, params)
    bound = (9 * 512) ** -0.5
    for leaf in params["conv"].values():
        assert 0.7 * bound < np.abs(leaf).max() <= bound
    assert params["conv"]["kernel"].std() == pytest.approx(bound / 3**0.5, rel=0.02)
    for name in ("gamma", "alpha"):
        values = params["norm"][name]
        assert values.mean() == pytest.approx(1, abs=4 * 0.02 / 512**0.5)
        assert values.std() == pytest.approx(0.02, rel=0.15)
    assert (params["norm"]["gamma"] != params["norm"]["alpha"]).any()
    assert not params["norm"]["beta"].any()


# Conversion


def test_converted_weights_have_the_networks_tree(mnist):
    _, state = mnist
    expected = jax.eval_shape(RefineNet(16, 1).init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    converted = refinenet_params(state)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), converted) == jax.tree.map(
        lambda a: (a.shape, a.dtype), expected["params"]
    )


def test_a_missing_array_is_refused(mnist):
    state = dict(mnist[1])
    del state["refine2.crp.convs.1.weight"]
    with pytest.raises(UserError, match=r"^stored weights lack 'refine2\.crp\.convs\.1\.weight'$"):
        refinenet_params(state)


def test_an_unexpected_array_is_refused(mnist):
    state = {**mnist[1], "refine2.extra": np.zeros(3)}
    with pytest.raises(UserError, match=r"unexpected array 'refine2\.extra'$"):
        refinenet_params(state)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("res3.0.conv1.weight", (32, 32, 1, 1)),
        ("begin_conv.weight", (16, 9)),
        ("end_conv.bias", ()),
    ],
)
def test_an_array_of_the_wrong_shape_is_refused(mnist, name, shape):
    state = {**mnist[1], name: np.zeros(shape)}
    with pytest.raises(UserError, match=rf"^stored weight '{name}' has shape .*$") as caught:
        refinenet_params(state)
    assert "\n" not in str(caught.value)


def test_another_networks_prefix_is_refused(low_rank):
    with pytest.raises(UserError, match=r"^stored weights lack 'begin_conv\.weight'$"):
        refinenet_params(low_rank[1])


# Single operations, each against its plain form


def resized_by_loops(image, height, width):
    """Aligned-corner bilinear resize of one (H, W) image, written out."""
    result = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            y = i * (image.shape[0] - 1) / (height - 1)
            x = j * (image.shape[1] - 1) / (width - 1)
            top, left = min(int(y), image.shape[0] - 2), min(int(x), image.shape[1] - 2)
            v, u = y - top, x - left
            result[i, j] = (
                (1 - v) * (1 - u) * image[top, left]
                + (1 - v) * u * image[top, left + 1]
                + v * (1 - u) * image[top + 1, left]
                + v * u * image[top + 1, left + 1]
            )
    return result


@pytest.mark.parametrize(("size_in", "size_out"), [((4, 6), (8, 12)), ((7, 5), (4, 9))])
def test_resize_is_bilinear_with_aligned_corners(size_in, size_out):
    x = random(1, *size_in, 1)
    value = refinenet.resize_aligned_corners(x, *size_out)[0, :, :, 0]
    np.testing.assert_allclose(
        value, resized_by_loops(np.asarray(x[0, :, :, 0]), *size_out), atol=1e-6
    )


def test_resize_to_the_same_size_is_the_identity():
    x = random(1, 4, 6, 2)
    assert refinenet.resize_aligned_corners(x, 4, 6) is x


def equal_values_and_gradients(fast, plain, *args):
    for value, reference in zip(
        jax.tree.leaves((fast(*args), jax.grad(lambda *a: jnp.sin(fast(*a)).sum())(*args))),
        jax.tree.leaves((plain(*args), jax.grad(lambda *a: jnp.sin(plain(*a)).sum())(*args))),
        strict=True,
    ):
        np.testing.assert_allclose(value, reference, rtol=1e-5, atol=1e-5)


def test_average_pool_is_the_windowed_average():
    def plain(x):
        return nn.avg_pool(x, (5, 5), (1, 1), ((2, 2), (2, 2)), count_include_pad=True)

    equal_values_and_gradients(refinenet.average_pool_5x5, plain, random(2, 8, 10, 3))


def test_mean_pool_is_the_windowed_mean():
    equal_values_and_gradients(
        refinenet.mean_pool_2x2, lambda x: nn.avg_pool(x, (2, 2), (2, 2)), random(2, 8, 10, 3)
    )


def test_halving_convolution_is_convolution_then_pooling():
    def plain(kernel, x):
        return nn.avg_pool(refinenet.convolve(x, kernel), (2, 2), (2, 2))

    equal_values_and_gradients(
        lambda kernel, x: refinenet.convolve_and_halve(x, kernel),
        plain,
        random(3, 3, 4, 5),
        random(2, 8, 10, 4, seed=1),
    )


def test_a_halving_convolution_of_another_size_is_refused():
    with pytest.raises(ValueError, match="size 3 and dilation 1"):
        refinenet.Convolution(2, size=1, halve=True).init(jax.random.key(0), random(1, 8, 8, 2))


def test_norm_is_its_definition_channel_by_channel():
    x = np.asarray(3 + 2 * random(2, 5, 6, 4), np.float64)
    gamma, alpha, beta = (np.asarray(random(4, seed=i), np.float64) for i in (1, 2, 3))
    mean = x.mean((1, 2))
    level = (mean - mean.mean(1, keepdims=True)) / np.sqrt(mean.var(1, ddof=1)[:, None] + 1e-5)
    expected = np.empty_like(x)
    for b in range(2):
        for c in range(4):
            h = (x[b, :, :, c] - mean[b, c]) / np.sqrt(x[b, :, :, c].var() + 1e-5)
            expected[b, :, :, c] = gamma[c] * (h + alpha[c] * level[b, c]) + beta[c]
    params = {"gamma": gamma, "alpha": alpha, "beta": beta}
    params = jax.tree.map(lambda a: a.astype(np.float32), params)
    value = refinenet.InstanceNormPlus().apply({"params": params}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(value, expected, atol=2e-5)


def test_gradients_of_the_norm_are_those_of_its_definition():
    x, weights, direction = (random(2, 4, 6, 3, seed=seed) for seed in range(3))
    x = 1.0 + 2.0 * x
    scale, shift = (random(1, 1, 1, 3, seed=seed) for seed in (3, 4))

    def definition(x, mean, scale, shift):
        del mean  # part of the definition, here
        centred = x - x.mean((1, 2), keepdims=True)
        variance = jnp.square(centred).mean((1, 2), keepdims=True)
        return centred / jnp.sqrt(variance + refinenet.EPSILON) * scale + shift

    def derivatives(standardize):
        def value(x, scale, shift):
            return standardize(x, x.mean((1, 2), keepdims=True), scale, shift)

        def product(x, scale, shift):
            return jnp.vdot(weights, jnp.sin(value(x, scale, shift)))

        gradient = jax.grad(product, argnums=(0, 1, 2))(x, scale, shift)
        slope = jax.jvp(lambda x: jax.grad(product)(x, scale, shift), (x,), (direction,))[1]
        return value(x, scale, shift), gradient, slope

    found = jax.jit(lambda: derivatives(refinenet.standardize))()
    expected = jax.jit(lambda: derivatives(definition))()
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert relative_error(one, other) < 2e-5
