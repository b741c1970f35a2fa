"""Networks and heads: shapes, units, and the structured output against its dense formula."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_parameters import drawn

from hos_jax import losses
from hos_jax.data import to_float
from hos_jax.linops import Dense, Diagonal, DiagonalPlusLowRank
from hos_jax.models.heads import DIAGONAL_FLOOR, STRUCTURES, SecondOrderHead
from hos_jax.models.hessian_model import HessianModel
from hos_jax.models.mlp import MLP
from hos_jax.models.refinenet import RefineNet
from hos_jax.models.score_model import ScoreModel
from hos_jax.models.unet import AttentionBlock, GroupNorm, UNet, depth_to_space, space_to_depth

SIGMA = 0.4
SHAPE = (8, 8, 3)
DIM = int(np.prod(SHAPE))
small_unet = functools.partial(UNet, features=4, multipliers=(1, 2), attention_size=4)
small_mlp = functools.partial(MLP, features=8, depth=1)
small_refinenet = functools.partial(RefineNet, features=4)


def run(model, count=2, shape=SHAPE, sigma=SIGMA):
    images = jax.random.normal(jax.random.key(0), (count, *shape))
    params = drawn(model, images, sigma)
    return images, params, jax.jit(model.apply)(params, images, sigma)


@pytest.mark.parametrize(
    ("networks", "network"),
    [
        *itertools.product(
            ("shared", "per_order", "cascade", "per_output"), (small_unet, small_mlp)
        ),
        ("shared", small_refinenet),
        *(
            pytest.param(networks, small_refinenet, marks=pytest.mark.slow)
            for networks in ("per_order", "cascade", "per_output")
        ),
    ],
)
def test_every_network_gives_both_orders(network, networks):
    images, _, outputs = run(ScoreModel(network, SecondOrderHead("low_rank", 3), networks))
    assert outputs.score1.shape == (2, DIM)
    assert outputs.covariance.diag.shape == (2, DIM)
    assert outputs.covariance.factor.shape == (2, DIM, 3)
    dense = jax.vmap(lambda c: c.to_dense())(outputs.covariance)
    assert np.linalg.eigvalsh(dense).min() > 0.5 * DIAGONAL_FLOOR
    assert images.dtype == outputs.score1.dtype == jnp.float32


# A local one is part of the one with columns.
@pytest.mark.parametrize(
    "structure",
    [
        pytest.param(structure, marks=pytest.mark.slow if structure == "local" else ())
        for structure in STRUCTURES
    ],
)
def test_what_a_model_says_of_many_points_works_as_a_batch(structure):
    _, _, outputs = run(ScoreModel(small_mlp, SecondOrderHead(structure, 2)), count=3)
    covariance, residual = outputs.covariance, outputs.noise_prediction
    assert covariance.batch_shape == (3,) and covariance.dim == DIM

    @jax.jit
    def said(c, r):
        return c.trace(), c.diagonal(), jnp.stack(c.inverse_quadratic_form_and_logdet(r), -1)

    trace, diagonal, terms = said(covariance, residual)
    for i in range(3):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], (covariance, residual))
        one_trace, one_diagonal, one_terms = said(*one)
        np.testing.assert_allclose(trace[i], one_trace, rtol=1e-5)
        np.testing.assert_allclose(diagonal[i], one_diagonal, rtol=1e-5)
        np.testing.assert_allclose(terms[i], one_terms, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="vmap"):
        losses.residual_nll(residual, covariance)


def test_scores_and_covariance_are_one_statement_in_different_units():
    _, _, outputs = run(ScoreModel(small_mlp, SecondOrderHead("low_rank", 2)))
    np.testing.assert_allclose(outputs.score1, -outputs.noise_prediction / SIGMA, rtol=1e-6)

    def dense(matrices):
        return np.asarray(jax.vmap(lambda matrix: matrix.to_dense())(matrices))

    covariance, hessian = dense(outputs.covariance), dense(outputs.score2)
    np.testing.assert_allclose(dense(outputs.scaled_hessian), covariance - np.eye(DIM), atol=1e-5)
    np.testing.assert_allclose(hessian * SIGMA**2 + np.eye(DIM), covariance, atol=1e-5)


@pytest.mark.parametrize("positive_definite", [True, False])
@pytest.mark.parametrize(
    ("structure", "kind"),
    [("diagonal", Diagonal), ("low_rank", DiagonalPlusLowRank), ("dense", Dense)],
)
def test_heads_equal_their_formula(structure, kind, positive_definite):
    dim = 5
    head = SecondOrderHead(structure, 2, positive_definite)
    raw = jax.random.normal(jax.random.key(2), (head.blocks(dim), dim))
    covariance, scaled = head.covariance(raw), head.scaled_hessian(raw)
    assert isinstance(covariance, kind) and isinstance(scaled, kind)
    identity = np.eye(dim)
    np.testing.assert_allclose(covariance.to_dense() - identity, scaled.to_dense(), atol=1e-6)
    values = np.asarray(raw)
    if structure == "dense":
        root = identity + values.T
        expected = root @ root.T + DIAGONAL_FLOOR * identity - identity
        expected = expected if positive_definite else (values + values.T) / 2
    else:
        factor = values[1:].T if structure == "low_rank" else np.zeros((dim, 0))
        diag = values[0]
        if positive_definite:
            variance = DIAGONAL_FLOOR + np.log1p(np.exp(2 * values[0]))
            factor, diag = 0.3 * np.sqrt(variance)[:, None] * factor, variance - 1
        expected = np.diag(diag) + factor @ factor.T
    np.testing.assert_allclose(scaled.to_dense(), expected, atol=1e-5)


@pytest.mark.parametrize("structure", ["local", "local_low_rank"])
def test_local_heads_equal_their_formula(structure):
    """Of a vector the neighbours are the values before it."""
    dim, reach, rank = 5, 2, 3
    head = SecondOrderHead(structure, rank, reach=reach)
    assert head.blocks(dim) == 1 + reach + (rank if structure == "local_low_rank" else 0)
    # In an image of three channels, those of 4 pixels and two of its own.
    assert SecondOrderHead("local", reach=1).blocks((8, 8, 3)) == 1 + 4 * 3 + 2
    raw = jax.random.normal(jax.random.key(2), (head.blocks(dim), dim))
    values = np.asarray(raw)
    deviation = np.sqrt(DIAGONAL_FLOOR + np.log1p(np.exp(2 * values[0])))
    taps = np.eye(dim)
    for i in range(dim):
        for back in range(1, min(reach, i) + 1):
            taps[i, i - back] = 0.3 * values[1 + reach - back, i]
    factor = deviation[:, None] * taps
    expected = factor @ factor.T
    if structure == "local_low_rank":
        columns = 0.3 * deviation[:, None] * values[1 + reach :].T
        expected += columns @ columns.T
    np.testing.assert_allclose(head.covariance(raw).to_dense(), expected, atol=1e-5)
    scaled = head.scaled_hessian(raw).to_dense()
    np.testing.assert_allclose(scaled, expected - np.eye(dim), atol=1e-5)


@pytest.mark.parametrize("structure", ["local", "local_low_rank"])
def test_local_models_see_neighbours_in_images_and_between_channels(structure):
    """The network's own values, taps and columns, at a pixel of a batch, by hand."""
    head = SecondOrderHead(structure, 2, reach=1)
    _, _, outputs = run(ScoreModel(small_mlp, head))
    _, width, channels = SHAPE
    covariance = outputs.covariance
    local = covariance if structure == "local" else covariance.local
    assert local.image_shape == SHAPE and local.batch_shape == (2,)
    dense = jax.vmap(lambda c: c.to_dense())(covariance)
    assert np.linalg.eigvalsh(dense).min() > 0
    raw, place = outputs.raw_second_order[0], (3 * width + 4) * channels
    deviations = np.sqrt(DIAGONAL_FLOOR + np.log1p(np.exp(2 * np.asarray(raw[0]))))
    # A channel and the one before it in the first pixel, which has no other neighbours.
    entry = deviations[1] * 0.3 * raw[1 + 4 * channels, 1] * deviations[0]
    if structure == "local":
        np.testing.assert_allclose(dense[0][1, 0], entry, rtol=1e-4)
        far = place + 3 * width * channels
        assert np.all(dense[0][place, far:] == 0) and dense[0][place, place - channels] != 0
    outputs = outputs.at(0, 1)
    np.testing.assert_allclose(
        outputs.scaled_hessian.trace(), outputs.covariance.trace() - DIM, rtol=1e-3
    )


@pytest.mark.parametrize("noise_conditional", [pytest.param(False, marks=pytest.mark.slow), True])
def test_in_a_cascade_s2_sees_s1_and_does_not_bend_it(noise_conditional):
    """Losses of s2 leave the parameters of s1 alone; s2 changes with them all the same; its slope
    in the point is that of all it depends on."""
    network = functools.partial(UNet, features=8, multipliers=(1,))
    options = {"networks": "cascade", "noise_conditional": noise_conditional, "third_order": True}
    model = ScoreModel(network, SecondOrderHead("diagonal"), **options)
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
    params = drawn(model, images, 0.5, std=0.3)

    def higher(params, images):
        outputs = model.apply(params, images, 0.5)
        return jnp.mean(outputs.raw_second_order[:, 0] + outputs.raw_third_order)

    value_and_slopes = jax.jit(jax.value_and_grad(higher, argnums=(0, 1)))

    def value(params, images):
        return value_and_slopes(params, images)[0]

    # Operation by operation: two programs would round differently.
    alone, whole = model.apply(params, images, 0.5, orders=(1,)), model.apply(params, images, 0.5)
    np.testing.assert_array_equal(alone.score1, whole.score1)
    value_here, (gradient, slopes) = value_and_slopes(params, images)
    assert alone.raw_second_order is None and alone.raw_third_order is None
    gradient = gradient["params"]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient["score1"]))
    assert all(np.any(gradient[name]["end_conv"]["kernel"]) for name in ("score2", "score3"))
    larger = jax.tree.map(lambda leaf: 1.1 * leaf, params["params"]["score1"])
    other = {"params": {**params["params"], "score1": larger}}
    assert abs(value(other, images) - value_here) > 1e-4
    direction = jax.random.normal(jax.random.key(2), images.shape)
    step = 1e-2 * direction
    difference = (value(params, images + step) - value(params, images - step)) / 2e-2
    np.testing.assert_allclose(jnp.vdot(slopes, direction), difference, rtol=0.02)


def test_networks_that_give_scores_are_taken_at_their_word():
    head = SecondOrderHead("low_rank", 2, positive_definite=False)
    model = ScoreModel(small_mlp, head, "per_output", data_std=None, output_units="score")
    images, params, outputs = run(model)

    def raw(name, channels):
        network = small_mlp(channels)
        out = network.apply({"params": params["params"][name]}, images)
        return np.asarray(out).reshape(2, 8, 8, channels // 3, 3)

    flat = (2, DIM)
    np.testing.assert_allclose(outputs.score1, raw("score1", 3).reshape(flat), rtol=1e-5)
    diag = raw("diagonal", 3).reshape(flat)
    factor = np.stack([raw("factor", 6)[..., k, :].reshape(flat) for k in range(2)], axis=-1)
    np.testing.assert_allclose(outputs.score2.diag, diag, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(outputs.score2.factor, factor, rtol=1e-4, atol=1e-6)
    low_rank = factor @ factor.transpose(0, 2, 1)
    expected = np.eye(DIM) + SIGMA**2 * (low_rank + np.stack([np.diag(d) for d in diag]))
    got = jax.vmap(lambda c: c.to_dense())(outputs.covariance)
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data_std": 0.0}, "expected data_std > 0, or None, got 0.0"),
        ({"data_std": 0.5, "output_units": "score"}, "needs data_std=None"),
    ],
)
def test_a_scale_of_the_data_that_no_network_can_have_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        run(ScoreModel(small_mlp, None, **settings))


def test_zero_network_is_the_best_linear_denoiser():
    model = ScoreModel(small_mlp, None, data_std=0.5)
    images, params, _ = run(model)
    zeros = jax.tree.map(jnp.zeros_like, params)
    score = model.apply(zeros, images, SIGMA).score1
    expected = -images.reshape(2, -1) / (SIGMA**2 + 0.25)
    np.testing.assert_allclose(score, expected, rtol=1e-5)


def test_vectors_and_per_example_noise_levels():
    model = ScoreModel(small_mlp, SecondOrderHead("dense"))
    vectors = jax.random.normal(jax.random.key(3), (2, 4))
    params = drawn(model, vectors, 0.1, std=0.3)
    sigmas = jnp.asarray([0.1, 2.0])
    together = model.apply(params, vectors, sigmas)
    for index in range(2):
        alone = model.apply(params, vectors[index : index + 1], float(sigmas[index]))
        np.testing.assert_allclose(together.score1[index], alone.score1[0], rtol=1e-5)
        np.testing.assert_allclose(
            together.score2.matrix[index], alone.score2.matrix[0], rtol=1e-4, atol=1e-4
        )


def test_unet_computes_in_bfloat16_and_rematerializes_to_the_same_values():
    images = jax.random.normal(jax.random.key(5), (2, 8, 8, 1))
    plain = small_unet(2)
    params = drawn(plain, images, std=0.2)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    out = jax.jit(plain.apply)(params, images)
    again = jax.jit(small_unet(2, remat=True).apply)(params, images)
    np.testing.assert_allclose(again, out, atol=1e-5)
    low = jax.jit(small_unet(2, dtype=jnp.bfloat16).apply)(params, images)
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, out, atol=0.05)


@pytest.mark.parametrize(("features", "groups"), [(4, 1), (24, 2), (64, 16)])
def test_group_norm_equals_flax(features, groups):
    images = 2.0 + jax.random.normal(jax.random.key(0), (3, 6, 8, features))
    params = {"params": {"scale": jnp.linspace(0.5, 2, features), "bias": jnp.arange(features) / 9}}
    expected = nn.GroupNorm(groups, epsilon=1e-6).apply(params, images)
    np.testing.assert_allclose(GroupNorm().apply(params, images), expected, atol=2e-5)


def test_patches_are_cut_and_put_together_again():
    images = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    patches = space_to_depth(images, 2)
    assert patches.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(patches[1, 1, 2].reshape(2, 2, 3), images[1, 2:4, 4:6])
    np.testing.assert_array_equal(depth_to_space(patches, 2), images)
    patched, images = small_unet(5, patch_size=2), jnp.zeros((1, 8, 8, 3))
    out = jax.jit(patched.apply)(drawn(patched, images), images)
    assert out.shape == (1, 8, 8, 5)


def test_unusable_sizes_and_settings_are_refused():
    with pytest.raises(ValueError, match="sides divisible by 2"):
        small_unet(1).init(jax.random.key(0), jnp.zeros((1, 7, 8, 1)))
    with pytest.raises(ValueError, match="multiple of 4"):
        UNet(1, features=6).init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    with pytest.raises(ValueError, match="rank must be at least 1"):
        SecondOrderHead("low_rank", 0)
    with pytest.raises(ValueError, match="unknown structure"):
        SecondOrderHead("sparse")
    with pytest.raises(ValueError, match="reach must be at least 1"):
        SecondOrderHead("local", reach=0)
    for settings in ({"rank": 2.5}, {"structure": "local", "reach": 1.5}):
        with pytest.raises(ValueError, match="must be at least 1, a whole number"):
            SecondOrderHead(**settings)
    for floor in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="floor is a variance"):
            SecondOrderHead(floor=floor)
    with pytest.raises(ValueError, match="unknown tails"):
        SecondOrderHead(tails="heavy")
    with pytest.raises(ValueError, match="need a positive definite structure"):
        SecondOrderHead(tails="student", positive_definite=False)
    with pytest.raises(ValueError, match="positive definite by its form"):
        SecondOrderHead("local_low_rank", positive_definite=False)
    with pytest.raises(ValueError, match="unknown networks"):
        run(ScoreModel(small_mlp, SecondOrderHead(), "alone"))


@pytest.mark.parametrize(
    ("structure", "positive_definite"),
    [
        *itertools.product(["diagonal", "low_rank", "dense"], [True, False]),
        ("local", True),
        ("local_low_rank", True),
    ],
)
def test_a_small_scale_puts_outputs_of_order_one_at_small_scaled_hessians(
    structure, positive_definite
):
    dim, scale = 6, 1e-4
    head = SecondOrderHead(structure, 2, positive_definite, scale=scale)
    raw = jax.random.normal(jax.random.key(0), (head.blocks(dim), dim))
    size = np.abs(head.scaled_hessian(raw).to_dense()).max()
    assert 0.1 * scale < size < 10 * scale + 2 * head.floor
    at_zero = head.covariance(jnp.zeros_like(raw)).to_dense()
    np.testing.assert_allclose(at_zero, np.eye(dim), atol=scale + 2 * head.floor)
    with pytest.raises(ValueError, match="scale must be in"):
        SecondOrderHead(structure, 2, scale=0.0)


small_patched_unet = functools.partial(small_unet, patch_size=2, remat=True)


@pytest.mark.parametrize("noise_conditional", [False, True])
@pytest.mark.parametrize("network", [small_unet, small_patched_unet, small_mlp, small_refinenet])
def test_parameters_are_float32_whatever_x64(network, noise_conditional):
    if noise_conditional and network not in (small_unet, small_patched_unet):
        return
    head = SecondOrderHead("low_rank", 2)
    model = ScoreModel(network, head, noise_conditional=noise_conditional)
    for dtype in (jnp.float32, jnp.float64):
        with jax.enable_x64(True):
            images = jnp.zeros((1, *SHAPE), dtype)
            params = jax.eval_shape(model.init, jax.random.key(0), images, SIGMA)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def all_models():
    """Every model, as a function of noisy points and sigma."""
    key, head = jax.random.key(0), SecondOrderHead("diagonal")
    score = ScoreModel(small_mlp)
    hessian = HessianModel(small_mlp, head)
    yield lambda noisy, sigma: score.init(key, noisy, sigma)
    yield lambda noisy, sigma: hessian.init(key, noisy, sigma, jnp.zeros((1, DIM)))


@pytest.mark.parametrize("model", list(all_models()))
@pytest.mark.parametrize(
    "shape", [(), (16,), (8, 8, 1), (2, 16, 3), (2, 4, 4, 4, 1)], ids=lambda shape: str(shape)
)
def test_points_of_another_rank_are_refused(model, shape):
    with pytest.raises(ValueError, match=r"\(N, H, W, C\).*\(N, D\)"):
        model(jnp.zeros(shape), SIGMA)


@pytest.mark.parametrize("model", list(all_models()))
@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int32, jnp.bool_, jnp.complex64])
def test_points_that_are_no_floats_are_refused(model, dtype):
    with pytest.raises(ValueError, match="floating-point numbers, got"):
        model(jnp.zeros((1, *SHAPE), dtype), SIGMA)


def test_images_in_bytes_are_used_as_the_message_says():
    images = np.random.default_rng(0).integers(0, 256, (1, *SHAPE), np.uint8)
    outputs = run_on(ScoreModel(small_mlp), to_float(images, (0.0, 1.0)))
    assert np.isfinite(outputs.score1).all()


@pytest.mark.parametrize("model", list(all_models()))
@pytest.mark.parametrize("shape", [(3,), (2, 1), (2, 1, 1, 1)])
def test_a_sigma_of_another_shape_is_refused(model, shape):
    with pytest.raises(ValueError, match="one sigma, or one for each of 2 points"):
        model(jnp.zeros((2, *SHAPE)), jnp.ones(shape))


def run_on(model, images, sigma=SIGMA):
    return model.init_with_output(jax.random.key(1), images, sigma)[0]


def test_attention_weighs_in_float32():
    """In bfloat16 the many small weights of a flat softmax are lost beside their sum."""
    block = AttentionBlock(jnp.bfloat16)
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 8), jnp.bfloat16)
    params = block.init(jax.random.key(1), x)
    equations = str(jax.make_jaxpr(block.apply)(params, x)).splitlines()
    exponentials = [line for line in equations if " = exp " in line]
    assert exponentials and all(":f32[" in line for line in exponentials)
    assert block.apply(params, x).dtype == jnp.bfloat16
