"""Arrays of NumPy as a data set: shapes, ranges, labels, splits, and all that is refused."""

import numpy as np
import pytest

from hos_jax import data
from hos_jax.errors import UserError

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (50, 6, 4), dtype=np.uint8)
REAL = RNG.normal(size=(50, 6, 4, 3)) * 800 + 100
LABELS = np.arange(50) % 7


def _saved(tmp_path, array):
    """The path of an array, or of several by name."""
    path = tmp_path / ("x.npz" if isinstance(array, dict) else "x.npy")
    if isinstance(array, dict):
        np.savez(path, **array)
    else:
        np.save(path, array)
    return path


def _load(tmp_path, array):
    return data.load("arrays", root=_saved(tmp_path, array))


def test_bytes_are_kept_and_get_a_channel_axis(tmp_path):
    loaded = _load(tmp_path, BYTES)
    held_out = np.arange(1, 51) % 20 == 0
    np.testing.assert_array_equal(loaded.train, BYTES[~held_out, ..., None])
    np.testing.assert_array_equal(loaded.held_out, BYTES[held_out, ..., None])
    assert loaded.train.dtype == np.uint8 and loaded.train_labels is None
    assert loaded.value_range == (-1.0, 1.0)
    np.testing.assert_array_equal(
        loaded.to_float(loaded.train), data.to_float(loaded.train, (-1.0, 1.0))
    )
    assert data.load("arrays", root=str(tmp_path / "x.npy"), image_size=(6, 4)).name == "arrays"
    with pytest.raises(UserError, match=r"images of \(6, 4\) pixels, not 6"):
        data.load("arrays", root=tmp_path / "x.npy", image_size=6)


@pytest.mark.parametrize(
    ("scale", "shift", "value_range"),
    [
        (1.0, 0.0, (0.0, 1.0)),
        (0.6, 0.2, (0.0, 1.0)),
        (2.0, -1.0, (-1.0, 1.0)),
        (1e-3, 0.0, (0.0, 1e-3)),
        (3000.0, -1000.0, (-1000.0, 2000.0)),
    ],
)
@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16, ">f4"])
def test_numbers_stay_as_they_are_with_their_range(tmp_path, scale, shift, value_range, kind):
    unit = (BYTES - BYTES[:19].min()) / (float(BYTES[:19].max()) - BYTES[:19].min())
    values = (unit * scale + shift).astype(kind)
    loaded = _load(tmp_path, np.asfortranarray(values))
    assert loaded.train.dtype == np.float32 and loaded.train.flags.c_contiguous
    np.testing.assert_array_equal(loaded.train[:19, ..., 0], values[:19].astype(np.float32))
    assert loaded.to_float(loaded.train) is loaded.train
    with pytest.raises(ValueError, match="takes float32 images here, got uint8"):
        loaded.to_float(BYTES)
    np.testing.assert_allclose(loaded.value_range, value_range, rtol=1e-3, atol=1e-3 * scale)


def test_what_is_black_and_white_is_said_where_it_is_guessed(tmp_path, caplog):
    caplog.set_level("INFO")
    values = np.linspace(0.0, 1.0, 4 * 16).reshape(4, 4, 4)[::-1]
    _load(tmp_path, values)
    assert not caplog.text
    values = 0.4 * (values + 0.1)
    _load(tmp_path, values)
    assert "black is taken to be 0.14" in caplog.text and "and white 0.44, the" in caplog.text
    assert "same units" not in caplog.text
    _load(tmp_path, {"x_train": values, "x_test": 255 * values})
    assert "held-out values are from 10.2 to 112.2, where black is 0.04 and" in caplog.text


@pytest.mark.parametrize("name", ["labels", "targets", "y", "train_labels", "arr_1"])
def test_labels_go_with_their_images(tmp_path, name):
    loaded = _load(tmp_path, {"x": REAL, name: LABELS[:, None]})
    assert loaded.train_labels.dtype == np.int32
    for images, labels in (
        (loaded.train, loaded.train_labels),
        (loaded.held_out, loaded.held_out_labels),
    ):
        for image, label in zip(images, labels, strict=True):
            (index,) = np.flatnonzero((REAL.astype(np.float32) == image).all((1, 2, 3)))
            assert label == LABELS[index]


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("images", "labels", "held_out", "held_out_labels"),
    ],
)
def test_a_held_out_part_of_its_own(tmp_path, caplog, names):
    parts = dict(zip(names, (BYTES[:40], LABELS[:40], BYTES[35:], LABELS[35:]), strict=True))
    loaded = _load(tmp_path, {**parts, "val_images": BYTES[:3], "names": np.array(["a"] * 40)})
    np.testing.assert_array_equal(loaded.train[..., 0], BYTES[:40])
    np.testing.assert_array_equal(loaded.train_labels, LABELS[:40])
    # Five of them are trained on.
    np.testing.assert_array_equal(loaded.held_out[..., 0], BYTES[40:])
    np.testing.assert_array_equal(loaded.held_out_labels, LABELS[40:])
    assert "not used: val_images, names" in caplog.text
    alone = _load(tmp_path, {"images": BYTES, "test_labels": LABELS[:5]})
    assert alone.train_labels is None
    assert "not used: test_labels (without images)" in caplog.text
    assert "5 held-out images are left out: they are trained on" in caplog.text


def _with_nan(value):
    broken = REAL.copy()
    broken[3, 2, 1, 0] = value
    return broken


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (_with_nan(np.nan), "not finite"),
        (_with_nan(1e300), "not finite in float32"),
        (BYTES.astype(np.int64), "images are int64: save them as uint8 or as float32"),
        (BYTES.astype(np.uint16), "images are uint16"),
        (BYTES > 100, "images are bool"),
        (REAL + 1j, "images are complex128"),
        (np.array([None, {}]), "without pickles"),
        (REAL.reshape(50, -1), r"fit\.rows, .* rows\[:, None, :\]"),
        (np.moveaxis(REAL, -1, 1), r"numpy\.moveaxis\(images, 1, -1\)"),
        (REAL[..., :2], "channels on the last axis"),
        (REAL[..., :2], "1 or 3 channels"),
        (np.zeros((60, 50, 3), np.uint8), r"one picture in colour is images\[None\]"),
        (BYTES[:1], "at least 2"),
        (BYTES[:, :0], "they hold no values"),
        (np.zeros((40, 0, 4)), r"images are \(40, 0, 4\): they hold no values"),
        (np.zeros((9, 4, 4)), "nothing to learn"),
        ({"a": BYTES, "b": BYTES}, "b is a second array of train"),
        ({"a": BYTES, "test": REAL}, "held-out ones float32"),
        ({"a": BYTES, "test": BYTES[:3]}, "all held-out images are among"),
        ({"a": BYTES, "test": BYTES[:0]}, "the held-out part has no images"),
        ({"a": REAL[:0], "test": REAL}, "the part to train on has no images"),
        ({"a": BYTES, "labels": LABELS[:9]}, "one integer for each of the 50 images"),
        ({"a": BYTES, "labels": LABELS / 7}, "labels are float64"),
        ({"a": BYTES, "labels": LABELS + 2**40}, "labels do not fit into 32 bits"),
        ({"labels": LABELS}, "has no images"),
    ],
)
def test_what_is_refused(tmp_path, array, message):
    path = _saved(tmp_path, array)
    with pytest.raises(UserError, match=message) as error:
        data.load("arrays", root=path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_damage_is_named(tmp_path, name):
    path = _saved(tmp_path, {"x": BYTES} if name == "x.npz" else BYTES)
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[:40], whole[: len(whole) // 2], whole[:-30]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"cannot be read as \.npy") as error:
            data.load("arrays", root=path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    for missing in (tmp_path, tmp_path / "absent.npy"):
        with pytest.raises(UserError, match="cannot be read"):
            data.load("arrays", root=missing)
    with pytest.raises(UserError, match=r"set --config\.data\.root"):
        data.load("arrays")
