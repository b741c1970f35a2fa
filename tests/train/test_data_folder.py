"""The folder loader, on files written here: CelebA's sizes, nesting, and files that are broken."""

import numpy as np
import pytest
from PIL import Image

from hos_jax import data
from hos_jax.errors import UserError


def _picture(seed, width=178, height=218):
    """A smooth random picture, so that JPEG keeps it nearly as it is."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(name="celeba")
def _celeba(tmp_path):
    for index in range(45):
        folder = tmp_path / f"part{index % 3}"
        folder.mkdir(exist_ok=True)
        _picture(index).save(folder / f"{index:06d}.{'png' if index % 5 == 0 else 'jpg'}")
    (tmp_path / "list_attr.txt").write_text("not an image, and not named like one")
    return tmp_path


def test_celeba_shapes_order_and_held_out_share(celeba):
    loaded = data.load("image_folder", root=str(celeba))
    assert loaded.train.shape == (43, 32, 32, 3) and loaded.held_out.shape == (2, 32, 32, 3)
    assert loaded.train.dtype == np.uint8 and loaded.value_range == (-1.0, 1.0)
    assert loaded.train_labels is None and loaded.held_out_labels is None
    again = data.load("image_folder", root=celeba)
    np.testing.assert_array_equal(loaded.train, again.train)
    # By path: part0 holds 0, 3, 6, ..., so the 20th path is part1's fifth, picture 13.
    reference = _reference(_picture(13), 140, 32)
    assert np.abs(loaded.held_out[0].astype(int) - reference).mean() < 3


def _reference(picture, crop, size):
    """Centre crop and an antialiasing (triangle) filter, written out in NumPy."""
    pixels = np.asarray(picture, float)
    top, left = (pixels.shape[0] - crop) // 2, (pixels.shape[1] - crop) // 2
    pixels = pixels[top : top + crop, left : left + crop]
    scale = crop / size
    centres = (np.arange(size) + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs(np.arange(crop) + 0.5 - centres[:, None]) / scale)
    weights /= weights.sum(1, keepdims=True)
    return np.einsum("ia,jb,abc->ijc", weights, weights, pixels)


@pytest.mark.parametrize(("crop", "size"), [(140, 32), (108, 64), (178, 16), (32, 32)])
def test_crop_and_antialiased_resize(tmp_path, crop, size):
    noise = np.random.default_rng(0).integers(0, 256, (218, 178, 3), dtype=np.uint8)
    for name in "ab":
        Image.fromarray(noise).save(tmp_path / f"{name}.png")
    loaded = data.load("image_folder", root=tmp_path, crop=crop, image_size=size)
    reference = _reference(Image.fromarray(noise), crop, size)
    assert np.abs(loaded.train[0] - reference).max() <= 1.01


def test_crop_zero_keeps_the_largest_square(tmp_path):
    for index in range(2):
        _picture(index, 60, 40).save(tmp_path / f"{index}.png")
    loaded = data.load("image_folder", root=tmp_path, crop=0, image_size=40)
    np.testing.assert_array_equal(loaded.train[0], np.asarray(_picture(0, 60, 40))[:, 10:50])


def test_every_8_bit_mode_becomes_rgb(tmp_path):
    picture = _picture(0, 40, 40)
    palette = picture.quantize(16)
    palette.save(tmp_path / "palette.png", transparency=bytes(range(16)))
    for mode in ("L", "RGBA", "LA", "1", "RGB"):
        picture.convert(mode).save(tmp_path / f"{mode}.png")
    picture.convert("CMYK").save(tmp_path / "cmyk.jpeg")
    loaded = data.load("image_folder", root=tmp_path, crop=0, image_size=8)
    assert loaded.train.shape == (6, 8, 8, 3) and loaded.held_out.shape == (1, 8, 8, 3)


def test_photographs_are_turned_upright(tmp_path):
    picture = _picture(0, 40, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways
    for name in "ab":
        picture.save(tmp_path / f"{name}.png", exif=exif)
    loaded = data.load("image_folder", root=tmp_path, crop=0, image_size=40)
    np.testing.assert_array_equal(loaded.train[0], np.rot90(np.asarray(picture), -1))


@pytest.mark.parametrize("kind", ["text", "empty", "truncated", "bad_png"])
def test_a_corrupt_file_is_named(celeba, kind):
    bad = celeba / "part1" / ("bad.png" if kind == "bad_png" else "bad.jpg")
    whole = celeba / "part1" / "000010.png" if kind == "bad_png" else celeba / "part1/000001.jpg"
    content = whole.read_bytes()
    broken = {
        "text": b"hello",
        "empty": b"",
        "truncated": content[: len(content) // 2],
        "bad_png": content[:60] + bytes(40) + content[100:],
    }
    bad.write_bytes(broken[kind])
    with pytest.raises(UserError, match="not a readable image") as error:
        data.load("image_folder", root=celeba)
    assert str(bad) in str(error.value) and "\n" not in str(error.value)


def test_corrupt_files_are_skipped_by_name_where_that_is_asked_for(celeba, caplog):
    whole = data.load("image_folder", root=celeba)
    for index in range(12):
        (celeba / "part0" / f"bad{index:02d}.jpg").write_bytes(b"hello")
    Image.fromarray(np.full((150, 150), 40000, np.uint16)).save(celeba / "part1" / "deep.png")
    with pytest.raises(UserError, match="not a readable image"):
        data.load("image_folder", root=celeba)
    loaded = data.load("image_folder", root=celeba, skip_unreadable=True)
    np.testing.assert_array_equal(loaded.train, whole.train)
    np.testing.assert_array_equal(loaded.held_out, whole.held_out)
    (said,) = caplog.messages
    assert "13 files are skipped" in said and "bad00.jpg" in said and said.endswith("and 3 more")
    _picture(0, 100, 90).save(celeba / "small.png")
    with pytest.raises(UserError, match="smaller than the crop"):
        data.load("image_folder", root=celeba, skip_unreadable=True)
    with pytest.raises(UserError, match="option of image_folder"):
        data.load("digits", skip_unreadable=True)


def test_a_folder_without_readable_images_is_refused(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(b"hello")
    with pytest.raises(UserError, match="holds 0 readable images"):
        data.load("image_folder", root=tmp_path, skip_unreadable=True)


def test_images_smaller_than_the_crop_are_named(celeba):
    _picture(0, 100, 90).save(celeba / "small.png")
    with pytest.raises(UserError, match=r"small\.png is 100 x 90, smaller than the crop of 140"):
        data.load("image_folder", root=celeba)


def test_16_bit_images_are_refused_rather_than_clipped(tmp_path):
    deep = np.full((150, 150), 40000, np.uint16)
    for name in "ab":
        Image.fromarray(deep).save(tmp_path / f"{name}.png")
    with pytest.raises(UserError, match="not an 8-bit image"):
        data.load("image_folder", root=tmp_path)


@pytest.mark.parametrize("name", ["image_folder", "image_crops"])
def test_a_run_within_the_images_is_none_of_them(tmp_path, name):
    """Its figures would be trained on, and change what the run says that its images are."""
    for seed in range(4):
        _picture(seed).save(tmp_path / f"{seed}.png")
    options = {"image_size": 64} if name == "image_crops" else {}
    before = data.load(name, root=tmp_path, **options)
    figures = tmp_path / "runs" / "mine" / "figures"
    figures.mkdir(parents=True)
    _picture(9).save(figures / "samples.png")
    assert len(data.load(name, root=tmp_path, **options).train) > len(before.train)
    (figures.parent / "checkpoints").mkdir()
    (figures.parent / "config.json").write_text("{}")
    after = data.load(name, root=tmp_path, **options)
    np.testing.assert_array_equal(after.train, before.train)
    assert after.identity() == before.identity()


def test_folders_that_hold_no_data(tmp_path):
    with pytest.raises(UserError, match="holds 0 image files"):
        data.load("image_folder", root=tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        data.load("image_folder", root=tmp_path / "absent")
    with pytest.raises(UserError, match=r"config\.data\.root"):
        data.load("image_folder")
    _picture(0).save(tmp_path / "only.png")
    with pytest.raises(UserError, match="holds 1 image files and at least 2"):
        data.load("image_folder", root=tmp_path)
    with pytest.raises(UserError, match="must be positive"):
        data.load("image_folder", root=tmp_path, image_size=0)
    for size in (8.0, "8", (8, 8, 3), np.array(8.0)):
        with pytest.raises(UserError, match="a whole number, or two"):
            data.load("image_folder", root=tmp_path, image_size=size)


@pytest.mark.parametrize("size", [(8, 12), [8, 12], np.array([8, 12]), np.int64(8), np.uint8(8)])
def test_sizes_are_whole_numbers_of_any_kind(tmp_path, size):
    for index in range(3):
        _picture(index, 20, 20).save(tmp_path / f"{index}.png")
    found = data.load("image_folder", root=tmp_path, crop=0, image_size=size)
    assert found.image_shape == (8, 12 if np.size(size) == 2 else 8, 3)


def test_pictures_that_are_enlarged_are_counted(tmp_path, caplog):
    for index, side in enumerate((8, 8, 40)):
        _picture(index, side, side).save(tmp_path / f"{index}.png")
    data.load("image_folder", root=tmp_path, crop=0, image_size=32)
    assert "2 of 3 images are enlarged to 32 x 32" in caplog.text
    assert f"{tmp_path}/0.png" in caplog.text
    caplog.clear()
    data.load("image_folder", root=tmp_path, crop=0, image_size=8)
    assert not caplog.text
