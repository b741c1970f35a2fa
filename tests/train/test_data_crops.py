"""Crops of the photographs in a folder: where they are cut, and which pictures are held out."""

import numpy as np
import pytest
from PIL import Image

from hos_jax import data
from hos_jax.errors import UserError


def picture(seed, height=20, width=27):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(folder, pictures):
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")


def test_the_side_may_be_a_number_of_numpy(tmp_path):
    write(tmp_path, {"a": picture(0), "b": picture(1)})
    assert data.load("image_crops", root=tmp_path, image_size=np.int64(8)).image_shape == (8, 8, 3)


def as_set(crops):
    return {crop.tobytes() for crop in crops}


def cut_by_hand(pixels, size, step=None):
    """Every square of the grid, or with corners `step` apart, at full and at half resolution."""
    found = []
    # An odd row or column at the end is averaged alone.
    odd = [(0, side % 2) for side in pixels.shape[:2]]
    even = np.pad(pixels, (*odd, (0, 0)), mode="edge").astype(float)
    half = even.reshape(len(even) // 2, 2, even.shape[1] // 2, 2, 3).mean(axis=(1, 3))
    for image in (pixels, np.floor(half + 0.5).astype(np.uint8)):
        for top in range(0, image.shape[0] - size + 1, step or size):
            for left in range(0, image.shape[1] - size + 1, step or size):
                found.append(image[top : top + size, left : left + size])
    return found


def test_every_square_at_both_resolutions_is_there_once(tmp_path):
    pictures = {"a": picture(0), "b": picture(1)}
    write(tmp_path, pictures)
    write(tmp_path / "held_out", {"c": picture(2)})
    loaded = data.load("image_crops", root=tmp_path, image_size=8)
    assert loaded.value_range == (0.0, 1.0) and loaded.image_shape == (8, 8, 3)
    # 20 x 27 has 2 x 3 squares of 8, and its half one. Those to train on are 2 pixels apart: 7 x 10
    # and 2 x 4 in each picture.
    assert len(loaded.train) == 156 and len(loaded.held_out) == 7
    wanted = [*cut_by_hand(pictures["a"], 8, 2), *cut_by_hand(pictures["b"], 8, 2)]
    # In a fixed order: that of another version would be another run.
    order = np.random.Generator(np.random.Philox(0)).permutation(len(wanted))
    np.testing.assert_array_equal(loaded.train, np.stack(wanted)[order])
    assert as_set(loaded.held_out) == as_set(cut_by_hand(picture(2), 8))
    again = data.load("image_crops", root=tmp_path, image_size=8)
    np.testing.assert_array_equal(again.train, loaded.train)


def test_whole_pictures_are_held_out_and_copies_stay_together(tmp_path):
    write(tmp_path, {f"{number:02d}": picture(number) for number in range(5)})
    write(tmp_path, {"05": picture(4)})
    loaded = data.load("image_crops", root=tmp_path, image_size=8)
    # Of fewer than twenty the last one that differs; its copy goes with it.
    assert as_set(loaded.held_out) == as_set(cut_by_hand(picture(4), 8))
    assert len(loaded.held_out) == 14 and len(loaded.train) == 4 * 78
    assert not as_set(loaded.held_out) & as_set(loaded.train)


def test_a_copy_of_a_held_out_picture_is_not_trained_on(tmp_path, caplog):
    write(tmp_path, {"a": picture(0), "b": picture(1), "c": picture(2)})
    write(tmp_path / "held_out", {"other": picture(1)})
    loaded = data.load("image_crops", root=tmp_path, image_size=8)
    assert len(loaded.train) == 156 and not as_set(loaded.held_out) & as_set(loaded.train)
    assert "b.png is held out too, and is not trained on" in caplog.text
    (tmp_path / "held_out" / "other.png").rename(tmp_path / "other.png")
    (tmp_path / "a.png").rename(tmp_path / "held_out" / "a.png")
    moved = data.load("image_crops", root=tmp_path, image_size=8)
    assert moved.identity()["checksum"] != loaded.identity()["checksum"]


def test_grey_crops_have_one_channel(tmp_path):
    write(tmp_path, {"a": picture(0), "b": picture(1)})
    loaded = data.load("image_crops", root=tmp_path, image_size=8, grey=True)
    assert loaded.image_shape == (8, 8, 1)
    luma = picture(0) @ np.array([0.299, 0.587, 0.114])
    distances = [np.abs(crop[..., 0].astype(float) - luma[:8, :8]).max() for crop in loaded.train]
    assert min(distances) < 1.0


def test_colour_anywhere_makes_colour_crops_and_what_is_left_out_none(tmp_path):
    grey = {name: np.repeat(picture(seed)[..., :1], 3, -1) for seed, name in enumerate("abc")}
    write(tmp_path, grey | {"small": picture(3, 5, 5), "tiny": picture(4, 2, 2)})
    assert data.load("image_crops", root=tmp_path, image_size=8).image_shape == (8, 8, 1)
    # In the last of 20 rows, of which squares of 8 that do not overlap have none, of neither size.
    for pixels in grey.values():
        pixels[17:, :, 1:] = 0
    write(tmp_path, grey)
    loaded = data.load("image_crops", root=tmp_path, image_size=8)
    assert loaded.image_shape == (8, 8, 3)
    # Of what is held out there are the squares of the grid alone.
    held_out = {name: grey.pop(name) for name in ("b", "c")}
    (tmp_path / "b.png").unlink()
    (tmp_path / "c.png").unlink()
    write(tmp_path, {"a": np.repeat(picture(0)[..., :1], 3, -1)})
    write(tmp_path / "held_out", held_out)
    assert data.load("image_crops", root=tmp_path, image_size=8).image_shape == (8, 8, 1)


def test_small_pictures_are_no_crops_and_none_at_all_is_an_error(tmp_path):
    write(tmp_path, {"a": picture(0), "b": picture(1), "small": picture(2, 5, 5)})
    loaded = data.load("image_crops", root=tmp_path, image_size=16)
    # Corners are 4 pixels apart: at (0 or 4, 0, 4 or 8) in the picture to train on.
    assert len(loaded.train) == 6 and len(loaded.held_out) == 1
    with pytest.raises(UserError, match="no picture of 64 pixels: add pictures"):
        data.load("image_crops", root=tmp_path, image_size=64)
    write(tmp_path / "held_out", {"c": picture(2)})
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.png").unlink()
    with pytest.raises(UserError, match="no picture to train on of 16 pixels: add pictures"):
        data.load("image_crops", root=tmp_path, image_size=16)
    for size in (0, (8, 8)):
        with pytest.raises(UserError, match="must be one positive number"):
            data.load("image_crops", root=tmp_path, image_size=size)


def test_crops_beyond_the_bound_of_memory_are_an_even_choice(tmp_path, monkeypatch):
    from hos_jax.data import crops

    pictures = {"a": picture(0), "b": picture(1)}
    # Three files: five squares of each.
    monkeypatch.setattr(crops, "LARGEST", 15 * 8 * 8 * 3)
    write(tmp_path, pictures)
    write(tmp_path / "held_out", {"c": picture(2)})
    loaded = data.load("image_crops", root=tmp_path, image_size=8)
    for pixels in pictures.values():
        assert len(as_set(loaded.train) & as_set(cut_by_hand(pixels, 8, 2))) == 5
    assert len(loaded.train) == 10 and len(loaded.held_out) == 5
    assert as_set(loaded.held_out) < as_set(cut_by_hand(picture(2), 8))
    # What is chosen of a picture depends on it alone.
    (tmp_path / "a.png").rename(tmp_path / "z.png")
    again = data.load("image_crops", root=tmp_path, image_size=8)
    assert as_set(again.train) == as_set(loaded.train)


def test_the_room_for_crops_is_used_whatever_else_is_in_the_folder(tmp_path, monkeypatch, caplog):
    from hos_jax.data import crops

    # 78, 78 and 3 + 0 squares: small pictures leave their share to the others.
    monkeypatch.setattr(crops, "LARGEST", 43 * 8 * 8 * 3)
    write(tmp_path, {"a": picture(0), "b": picture(1), "strip": picture(3, 8, 12)})
    write(tmp_path / "held_out", {"c": picture(2, 8, 8)})
    with caplog.at_level("INFO"):
        loaded = data.load("image_crops", root=tmp_path, image_size=8)
    assert len(loaded.train) == 19 + 19 + 3 and len(loaded.held_out) == 1
    assert "at most 19 squares of a picture are taken, chosen at random: all 160" in caplog.text
    for number in range(30):
        (tmp_path / f"{number}.txt").write_text("a note")
    again = data.load("image_crops", root=tmp_path, image_size=8)
    np.testing.assert_array_equal(again.train, loaded.train)


def test_a_folder_of_held_out_pictures_is_never_replaced(tmp_path, caplog):
    write(tmp_path, {name: picture(number) for number, name in enumerate("abc")})
    write(tmp_path / "held_out", {"d": picture(3, 5, 5), "e": picture(4, 5, 5)})
    with pytest.raises(UserError, match="no picture held out of 8 pixels: add pictures"):
        data.load("image_crops", root=tmp_path, image_size=8)
    assert "d.png; " in caplog.text and caplog.text.count("smaller than a crop of 8 pixels") == 1


def test_one_picture_or_its_copies_are_no_data_set(tmp_path, caplog):
    write(tmp_path, {"a": picture(0), "b": picture(0), "small": picture(1, 5, 5)})
    with pytest.raises(UserError, match="fewer than two different pictures of 8 pixels: add"):
        data.load("image_crops", root=tmp_path, image_size=8)
    assert "all images are equal" not in caplog.text


def test_options_belong_to_data_sets(tmp_path):
    write(tmp_path, {"a": picture(0), "b": picture(1)})
    with pytest.raises(
        UserError,
        match=r"crop is an option of image_folder, not of image_crops: .*, data\.crop=None",
    ):
        data.load("image_crops", root=tmp_path, crop=3)
    with pytest.raises(UserError, match="grey is an option of image_crops and photos"):
        data.load("digits", grey=True)


@pytest.mark.parametrize("name", data.NAMES)
def test_black_and_white_are_known_before_loading(name):
    known = data.value_range_of(name)
    assert known is None if name == "arrays" else known in ((0.0, 1.0), (-1.0, 1.0))
    if name == "digits":
        pytest.importorskip("sklearn")
        assert known == data.load(name).value_range


def test_a_root_of_images_that_come_in_a_package_is_named(caplog):
    data.load("digits", root="/nowhere")
    assert "data.root=/nowhere is not used: digits comes in a package" in caplog.text


def test_photos_in_grey():
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    colour, grey = (data.load("photos", image_size=64, grey=grey) for grey in (False, True))
    assert grey.image_shape == (64, 64, 1) and len(grey.train) == len(colour.train)
    assert data.value_range_of("photos") == grey.value_range
    luma = colour.held_out[0] @ np.array([0.299, 0.587, 0.114])
    assert np.abs(luma - grey.held_out[0, ..., 0]).max() < 1.5
