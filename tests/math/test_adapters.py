"""Conventions of others against exact scores of a mixture, and networks that JAX cannot look into.

The networks here are made of exact scores, in each convention's own words, with the noise level
worked out from the time by the inverse of its schedule: none of the package's own formulas.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hos_jax import adapters, distributions
from hos_jax.errors import NotDifferentiableError, UserError
from hos_jax.types import nan_unless

MIXTURE = distributions.GaussianMixture(
    jnp.array([0.5, 0.3, 0.2]),
    jnp.array([[-1.0, 0.0, 0.5, 0.2], [1.0, 0.7, -0.5, -0.3], [0.2, -1.5, 0.0, 0.6]]),
    stds=jnp.array([0.3, 0.5, 0.2]),
)
SHAPE = (2, 2, 1)
POINT = jnp.array([0.3, -0.2, 0.1, 0.5])
SIGMAS = (0.05, 0.4, 2.0)
MEAN, STD = 0.5, 0.25
BETAS = adapters.linear_betas()
COSINE = adapters.cosine_betas(50)


def posterior_mean(image, sigma):
    """E[x | y] in a network's units of a law whose data are MEAN + STD x."""
    noisy, level = MEAN + STD * image.reshape(-1), STD * sigma
    found = noisy + level**2 * MIXTURE.smooth(level).score(noisy)
    return ((found - MEAN) / STD).reshape(image.shape)


def said_of(prediction, image, clean, share, level, velocity):
    """What a network that knows the posterior mean predicts, of x_t = share x + level z."""
    noise = (image - share * clean) / level
    return {
        "noise": noise,
        "residual": level * noise,
        "clean": clean,
        "score": -noise / level,
        "velocity": velocity(clean, noise),
    }[prediction]


def exploding(prediction, image, time):
    clean = posterior_mean(image, time)
    return said_of(prediction, image, clean, 1.0, time, lambda x, z: z)


def preserving(prediction, image, share_squared):
    share, level = jnp.sqrt(share_squared), jnp.sqrt(1.0 - share_squared)
    clean = posterior_mean(image / share, level / share)
    return said_of(prediction, image, clean, share, level, lambda x, z: share * z - level * x)


def continuous(prediction, image, time):
    return preserving(prediction, image, jnp.exp(-0.1 * time - 0.5 * 19.9 * time**2))


def discrete(betas, prediction, image, time):
    products = np.cumprod(1.0 - betas)
    logs = jnp.asarray(0.5 * np.log((1.0 - products) / products))
    start = jnp.floor(time)
    below = start.astype(int)
    above = jnp.minimum(below + 1, len(betas) - 1)
    level = jnp.exp(logs[below] + (time - start) * (logs[above] - logs[below]))
    return preserving(prediction, image, 1.0 / (1.0 + level**2))


def straight(data_at, prediction, image, time):
    share = time if data_at else 1.0 - time
    clean = posterior_mean(image / share, (1.0 - share) / share)
    sign = 1.0 if data_at else -1.0
    return said_of(prediction, image, clean, share, 1.0 - share, lambda x, z: sign * (x - z))


def inner(prediction, image, time):
    """F of D(y) = c_skip y + c_out F(c_in y), table 1 of Karras et al., with data_std 0.5."""
    sigma, std = jnp.exp(4.0 * time), 0.5
    total = sigma**2 + std**2
    noisy = image * jnp.sqrt(total)
    denoised = posterior_mean(noisy, sigma)
    return (denoised - std**2 / total * noisy) / (sigma * std / jnp.sqrt(total))


CONVENTIONS = {
    "exploding": (adapters.variance_exploding(), exploding, adapters.PREDICTIONS),
    "continuous": (adapters.variance_preserving(), continuous, adapters.PREDICTIONS),
    "linear steps": (adapters.ddpm(BETAS), functools.partial(discrete, BETAS), ("noise",)),
    "cosine steps": (
        adapters.ddpm(COSINE),
        functools.partial(discrete, COSINE),
        adapters.PREDICTIONS,
    ),
    "straight": (
        adapters.flow_matching(),
        functools.partial(straight, 0),
        adapters.PREDICTIONS,
    ),
    "straight, backwards": (
        adapters.flow_matching(data_at=1),
        functools.partial(straight, 1),
        adapters.PREDICTIONS,
    ),
    "edm": (adapters.edm(), inner, ("velocity",)),
}
CASES = [(name, word) for name, (_, _, words) in CONVENTIONS.items() for word in words]


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize(("name", "prediction"), CASES)
def test_every_convention_gives_the_exact_score(name, prediction, sigma):
    process, network, _ = CONVENTIONS[name]
    score_fn = adapters.score_fn(
        functools.partial(network, prediction), prediction, process, mean=MEAN, std=STD, shape=SHAPE
    )
    level = STD * sigma
    exact = MIXTURE.smooth(level).score(POINT)
    np.testing.assert_allclose(score_fn(POINT, level), exact, rtol=1e-8, atol=1e-8)
    image = score_fn(POINT.reshape(SHAPE), level)
    assert image.shape == SHAPE
    np.testing.assert_allclose(image.reshape(-1), exact, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_score_of_a_convention_can_be_differentiated_in_the_point_and_batched(sigma):
    process, network, _ = CONVENTIONS["continuous"]
    score_fn = adapters.score_fn(
        functools.partial(network, "noise"), "noise", process, mean=MEAN, std=STD, shape=SHAPE
    )
    points = jnp.stack([POINT, -POINT, 2.0 * POINT])
    levels = STD * jnp.array([sigma, 0.3, 1.1])
    found = jax.jit(jax.vmap(score_fn))(points, levels)
    for value, point, level in zip(found, points, levels, strict=True):
        exact = MIXTURE.smooth(level)
        np.testing.assert_allclose(value, exact.score(point), rtol=1e-8, atol=1e-8)
        jacobian = jax.jacfwd(lambda y, s=level: score_fn(y, s))(point)
        np.testing.assert_allclose(jacobian, exact.hessian(point).to_dense(), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("whole", [False, True])
def test_steps_are_numbered_from_zero_and_rounded_where_asked(whole):
    process = adapters.ddpm(BETAS, whole_steps=whole)
    products = np.cumprod(1.0 - BETAS)
    sigmas = np.sqrt((1.0 - products) / products)
    np.testing.assert_allclose(process.time(jnp.asarray(sigmas)), np.arange(1000), atol=1e-6)
    between = jnp.asarray(sigmas[10] ** 0.6 * sigmas[11] ** 0.4)
    assert float(process.time(between)) == pytest.approx(10.0 if whole else 10.4, abs=1e-6)


def test_betas_of_the_papers():
    assert BETAS[[0, -1]].tolist() == [1e-4, 0.02] and len(BETAS) == 1000
    times = np.arange(51) / 50
    wanted = np.cos((times + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(np.cumprod(1.0 - COSINE)[:-1], wanted[1:-1] / wanted[0], rtol=1e-12)
    assert COSINE.max() == 0.999


def test_a_level_beyond_the_schedule_is_refused_or_nan():
    score_fn = adapters.score_fn(lambda x, t: x, "noise", adapters.ddpm(BETAS), std=2.0)
    for sigma in (1e-3, 1e4):
        with pytest.raises(ValueError, match=r"is not a level of this network: it knows 0\.02"):
            jax.jit(lambda noisy, sigma=sigma: score_fn(noisy, sigma))(jnp.ones(2))
        with pytest.raises(ValueError, match=r"is not a level of this network: it knows 0\.02"):
            score_fn(POINT, sigma)
        assert jnp.isnan(jax.jit(score_fn)(POINT, sigma)).all()
    assert jnp.isfinite(jax.jit(score_fn)(POINT, 0.5)).all()
    with pytest.raises(TypeError, match=r"needs sigma: give lambda noisy: score\(noisy, sigma\)"):
        score_fn(POINT)


def test_ends_of_a_ladder_in_float32_are_levels_of_the_network():
    process = adapters.ddpm(COSINE)
    score_fn = jax.jit(adapters.score_fn(lambda x, t: x, "noise", process, std=0.5))
    for end in (process.largest * 0.5 * (1.0 + 3e-6), process.smallest * 0.5 * (1.0 - 3e-6)):
        assert jnp.isfinite(score_fn(POINT, end)).all()
    assert jnp.isnan(score_fn(POINT, process.largest * 0.5 * 1.0001)).all()


def test_a_search_for_nan_finds_none_where_nothing_is_wrong():
    score_fn = adapters.score_fn(lambda x, t: x, "noise", adapters.ddpm(BETAS))
    points, levels = jnp.stack([POINT, POINT]), jnp.array([0.5, 2.0])
    with jax.debug_nans(True), jax.disable_jit():
        found = jax.vmap(score_fn)(points, levels)
        with pytest.raises(FloatingPointError):
            jax.vmap(score_fn)(points, 1e9 * levels)
    np.testing.assert_allclose(found, jax.vmap(score_fn)(points, levels), rtol=1e-12)


@pytest.mark.parametrize("value", [0.5, 2, np.ones(3, jnp.bfloat16)])
def test_what_may_be_nan_has_the_dtype_that_it_had(value):
    point = jnp.ones(3, jnp.bfloat16)
    times = jax.jit(lambda known, value: point * nan_unless(known, value))
    for known in (True, jnp.ones((), bool)):
        found = times(known, value)
        assert found.dtype == point.dtype and jnp.array_equal(found, point * value)
    assert jnp.isnan(times(False, value)).all()


@pytest.mark.parametrize("layout", adapters.LAYOUTS)
@pytest.mark.parametrize("level", adapters.LEVELS)
@pytest.mark.parametrize("batched", [False, True])
def test_layouts_and_ways_to_tell_the_level(layout, level, batched):
    if (layout, level) == ("flat", "channel"):
        with pytest.raises(ValueError, match="channel needs the layout"):
            adapters.score_fn(lambda x: x, "noise", level=level, layout=layout)
        return
    shape, sigma = (2, 3, 2), 0.7
    point = jnp.arange(12.0).reshape(shape)
    seen = []

    def network(image, *time):
        seen.append((image, time))
        if level != "channel":
            return 2.0 * image
        channels = image.ndim - 1 if layout == "HWC" else image.ndim - 3
        return 2.0 * jnp.take(image, jnp.arange(2), axis=channels)

    score_fn = adapters.score_fn(
        network, "residual", level=level, layout=layout, batched=batched, shape=shape
    )
    np.testing.assert_allclose(score_fn(point, sigma), -2.0 * point / sigma**2)
    image, time = seen[0]
    assert (len(time) == 1) == (level == "argument")
    wanted = {"HWC": (2, 3, 2), "CHW": (2, 2, 3), "flat": (12,)}[layout]
    if level == "channel":
        place = 2 if layout == "HWC" else 0
        wanted = tuple(size + (axis == place) for axis, size in enumerate(wanted))
        last = jnp.take(image, jnp.array([-1]), axis=place + batched)
        np.testing.assert_allclose(last, sigma)
    assert image.shape == ((1, *wanted) if batched else wanted)
    if level == "argument":
        assert time[0].shape == ((1,) if batched else ()) and float(time[0].sum()) == sigma


@pytest.mark.parametrize("kind", [jnp.array, np.array, list])
def test_a_mean_of_each_channel(kind):
    mean = kind([0.1, 0.2, 0.3])
    image = jnp.ones((2, 2, 3))
    score_fn = adapters.score_fn(
        lambda x: jnp.zeros_like(x), "clean", mean=mean, std=0.5, level="none"
    )
    wanted = jnp.broadcast_to(-(1.0 - jnp.asarray(mean)) / 0.3**2, image.shape)
    np.testing.assert_allclose(score_fn(image, 0.3), wanted)
    np.testing.assert_allclose(jax.jit(score_fn)(image, 0.3), wanted)


def test_points_have_their_channels_last_whatever_the_layout_of_the_network():
    score_fn = adapters.score_fn(lambda x: 0.5 * x, "clean", level="none", layout="CHW")
    for shape in ((3, 6, 6), (1, 6, 6), (4, 6), (2, 6, 6, 3), (6,)):
        with pytest.raises(ValueError, match=r"expected an image \(H, W, C\), whatever"):
            score_fn(jnp.ones(shape), 0.1)
    for shape in ((6, 5, 3), (6, 5, 4), (1, 5, 1), (3, 5, 3)):
        assert score_fn(jnp.ones(shape), 0.1).shape == shape
    spectra = adapters.score_fn(
        lambda x: 0.5 * x, "clean", level="none", layout="CHW", shape=(1, 5, 6)
    )
    assert spectra(jnp.ones((1, 5, 6)), 0.1).shape == (1, 5, 6)


def test_normalization_maps_the_ends():
    found = adapters.normalization((-1.0, 1.0), (0.0, 1.0))
    for value, wanted in ((-1.0, 0.0), (1.0, 1.0), (0.0, 0.5)):
        assert (value - found["mean"]) / found["std"] == pytest.approx(wanted)
    with pytest.raises(ValueError, match="that rise"):
        adapters.normalization((1.0, 0.0), (0.0, 1.0))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="unknown prediction 'eps'; choose one of noise"):
        adapters.score_fn(lambda x: x, "eps")
    for std in (0.0, -1.0, jnp.ones(3)):
        with pytest.raises(ValueError, match="positive and finite scalar std"):
            adapters.score_fn(lambda x: x, "noise", std=std)
    score_fn = adapters.score_fn(lambda x, t: x[:-1], "noise", shape=SHAPE)
    with pytest.raises(ValueError, match="the network predicts"):
        score_fn(POINT, 0.5)
    with pytest.raises(ValueError, match="expected one point"):
        score_fn(POINT[:3], 0.5)
    with pytest.raises(ValueError, match=r"expected a process, such as adapters\.edm\(\)"):
        adapters.score_fn(lambda x: x, "noise", adapters.flow_matching)
    with pytest.raises(ValueError, match="leave batched out"):
        adapters.score_fn(adapters.from_numpy(lambda x: x), "noise", batched=True)
    with pytest.raises(ValueError, match="floating-point"):
        score_fn(jnp.arange(4), 0.5)
    with pytest.raises(ValueError, match="positive and finite"):
        score_fn(POINT, -0.5)
    for betas in (np.array([0.1]), np.zeros((2, 2))):
        with pytest.raises(ValueError, match="two or more betas"):
            adapters.ddpm(betas)
    with pytest.raises(ValueError, match=r"betas in \(0, 1\), got 1 among them"):
        adapters.ddpm(np.array([0.1, 1.0]))
    with pytest.raises(ValueError, match=r"make noise of exp\(500\.2\), beyond a float"):
        adapters.variance_preserving(1.0, 2000.0)
    for make_betas in (adapters.cosine_betas, adapters.linear_betas):
        with pytest.raises(ValueError, match="steps >= 1, got 0"):
            make_betas(steps=0)
    with pytest.raises(ValueError, match="floating-point numbers, got predicted of int"):
        adapters.score_fn(lambda x, t: jnp.round(x).astype(int), "noise")(POINT, 0.5)
    for gives, kind in (({"sample": POINT}, "dict"), ((POINT, POINT), "tuple"), (None, "NoneType")):
        with pytest.raises(TypeError, match=f"the network gives a {kind}: take the array"):
            adapters.score_fn(lambda x, t, gives=gives: gives, "noise")(POINT, 0.5)
    with pytest.raises(TypeError, match=r"of NumPy: wrap it, adapters\.from_numpy"):
        jax.jit(adapters.score_fn(lambda x, t: np.asarray(x), "noise"))(POINT, 0.5)
    with pytest.raises(TypeError, match="network is a function of one image, got a NoneType"):
        adapters.score_fn(None, "noise")
    with pytest.raises(TypeError, match=r"function is f\(images\), got a ndarray"):
        adapters.from_numpy(np.ones(3))
    for wrong in (
        lambda: adapters.variance_preserving(0.0, 1.0),
        lambda: adapters.flow_matching(data_at=2),
        lambda: adapters.edm(0.0),
    ):
        with pytest.raises(ValueError, match="expected"):
            wrong()


def counting(function):
    """A NumPy function that remembers what shapes it got."""
    calls = []

    def called(images, *times):
        assert isinstance(images, np.ndarray)
        calls.append((images.shape, *(time.shape for time in times)))
        return function(images, *times)

    return called, calls


def test_a_numpy_function_is_called_once_a_batch():
    called, calls = counting(lambda images, sigma: images * sigma[:, None, None, None])
    network = adapters.from_numpy(called)
    images, times = jnp.arange(24.0).reshape(6, *SHAPE), jnp.arange(1.0, 7.0)
    found = jax.jit(jax.vmap(network))(images, times)
    np.testing.assert_allclose(found, images * times[:, None, None, None])
    assert calls == [((6, *SHAPE), (6,))]
    pairs = jax.vmap(jax.vmap(network))(images.reshape(2, 3, *SHAPE), times.reshape(2, 3))
    np.testing.assert_allclose(pairs.reshape(found.shape), found)
    assert calls[-1] == ((6, *SHAPE), (6,))
    shared = jax.vmap(network, (0, None))(images, jnp.float64(2.0))
    np.testing.assert_allclose(shared, 2.0 * images)


def test_a_black_box_has_values_and_no_derivative():
    score_fn = adapters.score_fn(
        adapters.from_numpy(lambda images: 0.5 * images), "clean", level="none", shape=SHAPE
    )
    assert not score_fn.differentiable
    assert adapters.score_fn(lambda x: x, "clean", level="none").differentiable
    np.testing.assert_allclose(score_fn(POINT, 0.5), -0.5 * POINT / 0.25)
    for derivative in (
        lambda: jax.jacfwd(lambda y: score_fn(y, 0.5))(POINT),
        lambda: jax.grad(lambda y: jnp.sum(score_fn(y, 0.5)))(POINT),
        lambda: jax.jvp(jax.jit(lambda y: score_fn(y, 0.5)), (POINT,), (POINT,)),
    ):
        with pytest.raises(NotDifferentiableError, match="has values and no derivative"):
            derivative()


def test_a_function_may_write_into_what_it_gets():
    def halved(images, times):
        images *= 0.5
        times *= 0.0
        return images

    network = adapters.from_numpy(halved)
    point, time = jnp.ones(SHAPE), jnp.float64(2.0)
    for call in (network, jax.jit(network)):
        np.testing.assert_array_equal(call(point, time), 0.5 * np.ones(SHAPE))
        np.testing.assert_array_equal(point, np.ones(SHAPE))
        assert float(time) == 2.0


def test_the_ends_of_a_schedule_belong_to_it():
    process = adapters.ddpm(BETAS)
    score_fn = adapters.score_fn(lambda x, t: x, "noise", process)
    for sigma in (process.smallest, process.largest):
        assert jnp.isfinite(score_fn(POINT.astype(jnp.float32), jnp.float32(sigma))).all()


def test_what_a_black_box_does_wrong_is_said():
    def raises(images):
        raise OSError("the licence server is down")

    for function, said in (
        (lambda images: images[:, :1], r"gives \(1, 1, 2, 1\) of images \(1, 2, 2, 1\)"),
        (lambda images: images.astype(int), "gives int64, not floating-point numbers"),
        (raises, "the licence server is down"),
        (lambda images: None, "the function gives a NoneType, not an array of images"),
        (lambda images: (images, 1), "the function gives a tuple, not an array of images"),
    ):
        network = adapters.from_numpy(function)
        with pytest.raises(jax.errors.JaxRuntimeError, match=said):
            jax.block_until_ready(network(POINT.reshape(SHAPE)))


def test_a_torch_module():
    torch = pytest.importorskip("torch")
    module = torch.nn.Conv2d(1, 1, 3, padding=1)
    with pytest.raises(ValueError, match=r"module\.eval\(\)"):
        adapters.from_torch(module)
    network = adapters.from_torch(module.eval())
    score_fn = adapters.score_fn(network, "residual", level="none", layout="CHW")
    images = np.random.default_rng(0).normal(size=(5, 6, 7, 1)).astype(np.float32)
    with torch.no_grad():
        wanted = module(torch.tensor(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    found = jax.vmap(lambda image: score_fn(image, 0.5))(jnp.asarray(images))
    np.testing.assert_allclose(found, -wanted / np.float32(0.25), rtol=1e-5, atol=1e-6)


def test_an_onnx_file(tmp_path):
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    assert onnxruntime
    value = functools.partial(onnx.helper.make_tensor_value_info, elem_type=onnx.TensorProto.FLOAT)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Mul", ["image", "time"], ["noise"])],
        "scaled",
        [value("image", shape=["N", 4]), value("time", shape=[1])],
        [value("noise", shape=["N", 4])],
    )
    path = tmp_path / "scaled.onnx"
    opset = [onnx.helper.make_opsetid("", 13)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    score_fn = adapters.score_fn(adapters.from_onnx(path), "noise")
    np.testing.assert_allclose(score_fn(POINT, 0.5), -POINT, rtol=1e-6)
    path.write_bytes(b"no such thing")
    with pytest.raises(UserError, match="onnxruntime cannot read it"):
        adapters.from_onnx(path)


@pytest.mark.parametrize("name", ["torch", "onnx"])
def test_a_missing_package_is_named(name, monkeypatch):
    package = {"torch": "torch", "onnx": "onnxruntime"}[name]
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(UserError, match=rf"pip install \"hos_jax\[{name}\]\""):
        getattr(adapters, f"from_{name}")("x")


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_points_of_16_bits_are_told_the_step_that_they_are_at(dtype):
    told = []

    def network(image, time):
        told.append(time)
        return image

    for whole_steps in (False, True):
        process = adapters.ddpm(BETAS, whole_steps=whole_steps)
        score_fn = adapters.score_fn(network, "noise", process)
        for sigma in (0.5, 5.0):
            found = score_fn(jnp.ones(4, dtype), sigma)
            exact = score_fn(jnp.ones(4, jnp.float32), sigma)
            assert found.dtype == dtype and told[-2].dtype == told[-1].dtype == jnp.float32
            assert told[-2] == told[-1]
            np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=2e-2)
