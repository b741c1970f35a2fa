"""Every image below a folder is read as it is, or named: its form, its place, its damage."""

import logging
import os
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hos_jax import data
from hos_jax.data.pictures import read_picture
from hos_jax.errors import UserError

SIZE = 12


def _pixels(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(name="folder")
def _folder(tmp_path):
    """Three colour images, and room for a fourth."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(3):
        Image.fromarray(_pixels(index, SIZE, SIZE, 3)).save(folder / f"{index}.png")
    return folder


def _load(folder, **options):
    return data.load("image_folder", root=folder, **{"image_size": SIZE, "crop": 0, **options})


def _last(folder):
    """The image that is last by its path: with fewer than 20, the held-out one."""
    return _load(folder).held_out[0]


COLOUR = Image.fromarray(_pixels(9, SIZE, SIZE, 3))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("z.PNG", {}),
        ("z.JPG", {"quality": 95, "subsampling": 0}),
        ("z.jfif", {"format": "JPEG"}),
        ("z.gif", {}),
        ("z.bmp", {}),
        ("z.ppm", {}),
        ("z.TIFF", {"compression": "tiff_lzw"}),
        ("z.webp", {"lossless": True}),
        ("z without a suffix", {"format": "PNG"}),
        ("z.wrong_suffix", {"format": "JPEG"}),
        ("z.png", {"format": "BMP"}),
        ("z/.hidden.png", {}),
        ("z/.hidden folder/a b \N{GRINNING FACE}.png", {}),
    ],
)
def test_an_image_is_known_by_its_name_or_its_content(folder, name, options):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    COLOUR.save(path, **options)
    with Image.open(path) as image:
        np.testing.assert_array_equal(_last(folder), np.asarray(image.convert("RGB")))


def test_other_files_are_left_alone_and_reported(folder, caplog):
    before = _load(folder)
    (folder / "list.txt").write_text("a list")
    (folder / "gone").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    with caplog.at_level(logging.INFO, "hos_jax.data"):
        after = _load(folder)
    np.testing.assert_array_equal(before.train, after.train)
    (said,) = caplog.messages
    assert "3 files are left alone" in said and said.endswith("gone; list.txt; pipe")


def test_links_are_followed(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    COLOUR.save(elsewhere / "a.png")
    (folder / "z").symlink_to(elsewhere)
    np.testing.assert_array_equal(_last(folder), np.asarray(COLOUR))
    (folder / "zz.png").symlink_to(folder / "1.png")
    assert len(_load(folder).train) + len(_load(folder).held_out) == 5


def _png(depth, colour_type, values):
    """A PNG of one row that holds `values`, bytes."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour_type]
    width = len(values) * 8 // (depth * channels)
    header = struct.pack(">IIBBBBB", width, 1, depth, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" + values)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def _tiff(kind, bits, samples=1):
    """An uncompressed TIFF of 2 x 2 values of that SampleFormat, in the order of Intel."""
    size = 4 * samples * bits // 8
    shorts = [(256, 2), (257, 2), (258, bits), (259, 1), (262, 2 if samples > 1 else 1)]
    shorts += [(277, samples), (278, 2), (339, kind)]
    entries = [struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in shorts]
    end = 8 + 2 + 12 * (len(shorts) + 2) + 4
    if samples > 1:
        entries[2] = struct.pack("<HHII", 258, 3, samples, end + size)
    entries += [struct.pack("<HHII", 273, 4, 1, end), struct.pack("<HHII", 279, 4, 1, size)]
    entries.sort(key=lambda entry: struct.unpack("<H", entry[:2]))
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    header = b"II*\0" + struct.pack("<I", 8) + directory
    return header + bytes(range(size)) + struct.pack("<H", bits) * samples


DEEP = {
    "grey.png": _png(16, 0, bytes(range(48))),
    "colour.png": _png(16, 2, bytes(range(48))),
    "grey with alpha.png": _png(16, 4, bytes(range(48))),
    "colour with alpha.png": _png(16, 6, bytes(range(48))),
    "grey.pgm": b"P5 2 2 65535\n" + bytes(8),
    "12 bits.pgm": b"P5 2 2 4095\n" + bytes(8),
    "colour.ppm": b"P6 2 2 65535\n" + bytes(24),
    "text.ppm": b"P3 1 1 1023 5 6 7\n",
    "real.pfm": b"Pf 2 2 -1.0\n" + bytes(16),
    "grey.tif": _tiff(1, 16),
    "signed.tif": _tiff(2, 8),
    "signed 16.tif": _tiff(2, 16),
    "integers.tif": _tiff(1, 32),
    "colour.tif": _tiff(1, 16, 3),
    "real.tif": _tiff(3, 32),
}


@pytest.mark.parametrize("name", DEEP)
def test_what_has_no_8_bits_is_refused_rather_than_scaled(folder, name):
    (folder / name).write_bytes(DEEP[name])
    with pytest.raises(UserError, match="not an 8-bit image") as error:
        _load(folder, image_size=1)
    assert str(folder / name) in str(error.value)


def test_the_hand_made_files_are_sound(folder):
    (folder / "a.png").write_bytes(_png(8, 2, bytes(range(48))))
    (folder / "b.tif").write_bytes(_tiff(1, 8, 3))
    (folder / "c.ppm").write_bytes(b"P6 2 2 255\n" + bytes(12))
    assert len(_load(folder, image_size=1).train) == 5


FRAMES = [Image.fromarray(_pixels(seed, SIZE, SIZE, 3)) for seed in (5, 6, 7)]


@pytest.mark.parametrize("name", ["a.gif", "a.tif", "a.webp", "a.png"])
def test_several_images_in_a_file_are_refused(folder, name):
    FRAMES[0].save(folder / name, save_all=True, append_images=FRAMES[1:])
    with pytest.raises(UserError, match="holds 3 images: save each") as error:
        _load(folder)
    assert str(folder / name) in str(error.value)


def test_of_a_camera_s_pictures_the_first_is_read_and_that_is_said(folder, caplog):
    FRAMES[0].save(folder / "z.jpg", format="MPO", save_all=True, append_images=FRAMES[1:])
    with caplog.at_level(logging.INFO, "hos_jax.data"):
        loaded = _load(folder)
    with Image.open(folder / "z.jpg") as image:
        np.testing.assert_array_equal(loaded.held_out[0], np.asarray(image))
    assert "the first is read: z.jpg" in caplog.text


def _denied(path):
    COLOUR.save(path)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "a folder": lambda path: path.mkdir(),
    "a broken link": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a pipe": os.mkfifo,
    "no permission": _denied,
    "zeros": lambda path: path.write_bytes(bytes(1000)),
    "only a header": lambda path: path.write_bytes(_png(8, 2, bytes(48))[:33]),
    "no size": lambda path: path.write_bytes(b"P6 0 0 255\n"),
    "other text": lambda path: path.write_text("<svg/>"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_that_file_s_error(folder, caplog, damage):
    path = folder / "bad.png"
    DAMAGE[damage](path)
    with pytest.raises(UserError, match=r"bad\.png") as error:
        _load(folder)
    assert "\n" not in str(error.value)
    assert len(_load(folder, skip_unreadable=True).train) == 2
    assert "1 files are skipped" in caplog.text and "bad.png" in caplog.text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, r"there is no picture .*x\.png: check the path"),
        (lambda path: None, r"there is no picture .*x\.png: check the path"),
        (Path.mkdir, r"x\.png is a folder: give one picture in it"),
    ],
)
def test_what_is_no_file_is_no_picture(tmp_path, make, message):
    make(tmp_path / "x.png")
    with pytest.raises(UserError, match=message):
        read_picture(tmp_path / "x.png", grey=False)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_a_file_cut_anywhere_or_with_a_broken_byte_is_read_or_named(folder, form):
    whole = folder / "whole"
    COLOUR.save(whole, format=form)
    content = whole.read_bytes()
    whole.unlink()
    rng, named = np.random.default_rng(0), []
    for trial in range(60):
        broken = bytearray(content[: 20 + (len(content) - 20) * trial // 60])
        if trial % 2:
            broken = bytearray(content)
            broken[rng.integers(4, len(broken))] = rng.integers(256)
        (folder / "bad.png").write_bytes(broken)
        try:
            # Pillow warns of some damage that it reads over.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                assert _load(folder).train.shape == (3, SIZE, SIZE, 3)
        except UserError as error:
            named.append(str(error))
    assert len(named) >= 20
    assert all("bad.png" in message and "\n" not in message for message in named)


def test_a_link_to_a_folder_above_is_named(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "loop").symlink_to(folder)
    with pytest.raises(UserError, match="loop is a link to a folder that holds it"):
        _load(folder)


def test_a_link_beyond_the_images_is_named_and_not_what_it_leads_to(folder):
    """The loop closes at the folder of images, and the advice is to remove what is named."""
    (folder / "up").symlink_to("..")
    with pytest.raises(UserError, match=rf"^{folder}/up is a link to a folder that holds it"):
        _load(folder)


def test_a_folder_that_cannot_be_opened_is_named(folder):
    (folder / "sub").mkdir(mode=0)
    if os.access(folder / "sub", os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(UserError, match=r"sub cannot be opened \(Permission denied\)"):
        _load(folder)


def test_a_large_image_is_read_up_to_pillow_s_limit(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    Image.new("RGB", (60, 60)).save(folder / "z.png")
    assert not _last(folder).any()
    Image.new("RGB", (100, 100)).save(folder / "z.png")
    with pytest.raises(UserError, match=r"z\.png is too large, at most 6000 pixels are read"):
        _load(folder)


@pytest.mark.parametrize("mode", ["L", "1", "LA", "P", "RGB", "RGBA"])
def test_grey_stays_grey_whatever_the_form(tmp_path, mode):
    grey = [Image.fromarray(_pixels(seed, SIZE, SIZE)) for seed in range(3)]
    for index, image in enumerate(grey):
        image.convert(mode).save(tmp_path / f"{index}.png")
    loaded = _load(tmp_path)
    assert loaded.image_shape == (SIZE, SIZE, 1)
    expected = grey[0].convert("1").convert("L") if mode == "1" else grey[0]
    np.testing.assert_array_equal(loaded.train[0, ..., 0], np.asarray(expected))


def test_grey_beside_colour_becomes_three_channels_and_that_is_said(folder, caplog):
    grey = Image.fromarray(_pixels(4, SIZE, SIZE))
    grey.save(folder / "z.png")
    with caplog.at_level(logging.INFO, "hos_jax.data"):
        last = _last(folder)
    np.testing.assert_array_equal(last, np.repeat(np.asarray(grey)[..., None], 3, -1))
    assert "1 files are grey and get three equal channels" in caplog.text


def test_transparent_pixels_are_white_and_that_is_said(folder, caplog):
    values = np.concatenate([np.asarray(COLOUR), np.full((SIZE, SIZE, 1), 255, np.uint8)], -1)
    Image.fromarray(values).save(folder / "z.png")
    np.testing.assert_array_equal(_last(folder), np.asarray(COLOUR))
    assert not caplog.messages
    values[:3, :, 3] = 0
    Image.fromarray(values).save(folder / "z.png")
    last = _last(folder)
    assert (last[:3] == 255).all() and (last[3:] == np.asarray(COLOUR)[3:]).all()
    assert "1 files have transparent pixels, which are shown on white: z.png" in caplog.text


@pytest.mark.parametrize(
    ("size", "options", "box"),
    [
        ((8, 16), {}, (0, 0, 60, 30)),
        ((16, 8), {}, (22, 0, 37, 30)),
        ((10, 10), {}, (15, 0, 45, 30)),
        ((8, 16), {"crop": 20}, (10, 5, 50, 25)),
    ],
)
def test_images_that_are_not_square(tmp_path, size, options, box):
    image = Image.fromarray(_pixels(0, 30, 60, 3))
    for name in "ab":
        image.save(tmp_path / f"{name}.png")
    loaded = _load(tmp_path, image_size=size, **options)
    expected = image.crop(box).resize(size[::-1], Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(loaded.train[0], np.asarray(expected))
    with pytest.raises(UserError, match="60 x 30, smaller than the crop of 31"):
        _load(tmp_path, image_size=size, crop=31)


def test_copies_stay_on_one_side_of_the_split(tmp_path, caplog):
    for index in range(60):
        Image.fromarray(_pixels(index % 45, SIZE, SIZE, 3)).save(tmp_path / f"{index:02}.png")
    with caplog.at_level(logging.INFO, "hos_jax.data"):
        loaded = _load(tmp_path)
    train, held_out = ({x.tobytes() for x in part} for part in (loaded.train, loaded.held_out))
    assert not train & held_out and len(held_out) == 2 and len(train) == 43
    assert len(loaded.train) + len(loaded.held_out) == 60
    assert "15 of 60 images are copies of others" in caplog.text


_IN_A_LOCALE = """
import os, sys
from hos_jax import data
from hos_jax.data.pictures import read_picture
from hos_jax.errors import UserError
root = sys.argv[1]
print(data.load("image_folder", root=root, image_size=12, crop=0).identity()["checksum"])
open(os.path.join(root, os.fsdecode(b"bad\\xff.png")), "w").close()
try:
    data.load("image_folder", root=root, crop=0)
except UserError as error:
    print(ascii(str(error)))
"""


@pytest.mark.parametrize("variables", [{"LC_ALL": "C", "PYTHONUTF8": "0"}, {"LC_ALL": "C.UTF-8"}])
def test_names_in_any_encoding_and_locale(tmp_path, variables):
    """The order of the files does not depend on the locale, and a bad one is named."""
    root = os.path.join(os.fsencode(tmp_path), b"caf\xe9 \xf0\x9f\x98\x80")
    os.mkdir(root)
    for index, name in enumerate([b"\xf0\x9f\x98\x80.png", b"\xc3\xa9.png", b"\xff.png", b"a.png"]):
        Image.fromarray(_pixels(index, SIZE, SIZE, 3)).save(os.path.join(root, name))
    expected = data.load("image_folder", root=os.fsdecode(root), image_size=SIZE, crop=0)
    np.testing.assert_array_equal(expected.train[0], _pixels(3, SIZE, SIZE, 3))
    np.testing.assert_array_equal(expected.held_out[0], _pixels(2, SIZE, SIZE, 3))
    done = subprocess.run(
        [sys.executable, "-c", _IN_A_LOCALE, root],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    checksum, error = done.stdout.splitlines()
    assert checksum == expected.identity()["checksum"], done.stderr
    assert "bad" in error and "is not a readable image" in error
