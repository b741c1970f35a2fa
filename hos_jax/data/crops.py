"""Square crops of the photographs in a folder, at their own resolution and at half of it."""

import functools
import hashlib
import itertools
import logging
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from hos_jax.data._splits import held_out_mask
from hos_jax.data.image_data import UNIT_RANGE, ImageData
from hos_jax.data.pictures import all_grey, files_below, named, read_all, sizes_of
from hos_jax.errors import UserError

logger = logging.getLogger(__name__)

HELD_OUT_FOLDER = "held_out"
# What all crops may take in memory, in bytes; twice that until they are in order.
LARGEST = 2**30
# The corners of the squares to train on are this part of a side apart.
OVERLAP = 4
_REMEDY = "add pictures, or set a smaller --config.data.image_size"


def load_crops(
    root: str | os.PathLike | None,
    *,
    image_size: int = 64,
    grey: bool = False,
    skip_unreadable: bool = False,
) -> ImageData:
    """Every photograph below `root`, cut into squares; nothing is resized but for the copy at half
    resolution, whose pixels are means of four.

    Whole pictures are held out: those in a folder `root/held_out`, or else some as `held_out_mask`
    says. Their squares do not overlap; those to train on do, by three quarters, or a network would
    know them by heart after a few rounds. Where they would take more than `LARGEST`, the pictures
    with the most squares have some of theirs chosen at random, as many of each. Training crops are
    in one fixed random order. Black and white are 0 and 1.

    Args:
        image_size: side of a crop.
        grey: make one channel of three, as ITU-R 601 has it; it is one anyway where all pictures
            are grey.
        skip_unreadable: see `pictures.read_all`.

    Raises:
        UserError: as `pictures.read_all`; a size that is not positive; fewer than two pictures as
            large as a crop that differ, or none in either part.
    """
    if not isinstance(image_size, int) or image_size < 1:
        raise UserError(f"image_crops: image_size {image_size} must be one positive number")
    folder, files = files_below(root, "image_crops")
    sizes = sizes_of(path for path, trouble in files if trouble is None)
    most = _most_of_a_picture(folder, list(sizes.values()), image_size)
    pictures, checksum = _read(folder, files, image_size, most, skip_unreadable, grey)
    # A folder of pictures of which none can be used is not the same as no folder.
    is_given = any(_is_held_out(path, folder) for path in sizes)
    pictures, held_out = _split(folder, pictures, is_given, image_size)
    train = [each.overlapping for each, out in zip(pictures, held_out, strict=True) if not out]
    test = [each.apart for each, out in zip(pictures, held_out, strict=True) if out]
    del pictures  # with what else there is of each
    for crops, what in ((train, "to train on"), (test, "held out")):
        if not sum(map(len, crops)):
            raise UserError(f"{folder} holds no picture {what} of {image_size} pixels: {_REMEDY}")
    channels = 1 if all(map(all_grey, [*train, *test])) else 3
    parts = _joined(train, channels), _joined(test, channels)
    # Of the same files, another choice of what is held out is another data set.
    split = hashlib.blake2b(held_out.tobytes(), digest_size=8).hexdigest()
    return ImageData("image_crops", *parts, None, None, UNIT_RANGE, f"{checksum}-{split}")


class _Picture(NamedTuple):
    """The squares of one picture (N, size, size, 3), those of a grid and more, and its checksum."""

    path: Path
    apart: np.ndarray
    overlapping: np.ndarray
    digest: bytes


def _read(
    folder: Path, files: list, size: int, most: int, skip_unreadable: bool, grey: bool
) -> tuple[list[_Picture], str]:
    """All pictures that are large enough, in the order of their paths, and a checksum of all."""
    pictures: dict[Path, _Picture] = {}
    small: list[Path] = []

    def prepare(path: Path, image: Image.Image) -> tuple[np.ndarray, bool]:
        found = _squares(path, np.asarray(image), np.asarray(image.reduce(2)), size, most)
        pictures[path] = found
        return found.apart, all_grey(found.apart)

    def keep(_: int, path: Path, crops: np.ndarray) -> None:
        if not len(crops):
            small.append(path)
            del pictures[path]

    found = read_all(folder, files, prepare, keep, skip_unreadable, grey=grey)
    if small:
        what = "%s is smaller" if len(small) == 1 else "%s are smaller"
        logger.warning(what + " than a crop of %d pixels", named(small), size)
    if not pictures:
        raise UserError(f"{folder} holds no picture of {size} pixels: {_REMEDY}")
    return [pictures[path] for path, _ in files if path in pictures], found.checksum


def _split(
    folder: Path, pictures: list[_Picture], is_given: bool, size: int
) -> tuple[list[_Picture], np.ndarray]:
    """The pictures without those to train on that are held out too, and which are held out: those
    in the folder for it, if there is one."""
    if is_given:
        held_out = np.array([_is_held_out(each.path, folder) for each in pictures])
    else:
        digests = [each.digest for each in pictures]
        if len(set(digests)) < 2:
            what = f"fewer than two different pictures of {size} pixels"
            raise UserError(f"{folder} holds {what}: {_REMEDY}")
        held_out = held_out_mask(digests, str(folder))
    known = {each.digest for each, out in zip(pictures, held_out, strict=True) if out}
    copies = np.array([each.digest in known for each in pictures]) & ~held_out
    for each, copied in zip(pictures, copies, strict=True):
        if copied:
            logger.warning("%s is held out too, and is not trained on", each.path)
    kept = [each for each, copied in zip(pictures, copies, strict=True) if not copied]
    return kept, held_out[~copies]


def _joined(crops: list[np.ndarray], channels: int) -> np.ndarray:
    """All in one array and in a fixed random order; the list is empty afterwards, or all of it
    would be there twice."""
    count, size = sum(map(len, crops)), crops[0].shape[1]
    images = np.empty((count, size, size, channels), np.uint8)
    places = np.argsort(np.random.Generator(np.random.Philox(0)).permutation(count))
    crops.reverse()
    while crops:
        each = crops.pop()
        images[places[: len(each)]] = each[..., :channels]
        places = places[len(each) :]
    return images


def _is_held_out(path: Path, folder: Path) -> bool:
    return path.relative_to(folder).parts[0] == HELD_OUT_FOLDER


def _most_of_a_picture(folder: Path, sizes: list[tuple[int, int]], size: int) -> int:
    """How many squares of a picture are taken at most, so that those of all fit into `LARGEST`."""
    along = functools.partial(_along, size=size, step=_step(size))
    counts = [
        len(along(w)) * len(along(h)) + len(along((w + 1) // 2)) * len(along((h + 1) // 2))
        for w, h in sizes
    ]
    left = LARGEST // (3 * size**2)
    for number, count in enumerate(sorted(counts)):
        share = max(1, left // (len(counts) - number))
        if count > share:
            logger.info(
                "%s: at most %d squares of a picture are taken, chosen at random: all %d would "
                "take more than %.3g GiB",
                *(folder, share, sum(counts), LARGEST / 2**30),
            )
            return share
        left -= count
    return max([1, *counts])


def _squares(path: Path, pixels: np.ndarray, half: np.ndarray, size: int, most: int) -> _Picture:
    """Those of the picture and of its copy at half resolution, at most so many of either kind."""
    found = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    found.update(np.ascontiguousarray(pixels).data)
    digest = found.digest()
    # Equal pictures have equal squares, wherever they stand in the folder.
    seed = np.random.SeedSequence(int.from_bytes(digest, "big"))

    def chosen(step: int) -> np.ndarray:
        places = [
            (each, corner) for each in (pixels, half) for corner in _corners(each, size, step)
        ]
        if len(places) > most:
            rng = np.random.Generator(np.random.Philox(seed))
            places = [places[row] for row in np.sort(rng.choice(len(places), most, replace=False))]
        squares = [of[i : i + size, j : j + size] for of, (i, j) in places]
        return np.stack(squares) if squares else np.empty((0, size, size, 3), np.uint8)

    return _Picture(path, chosen(size), chosen(_step(size)), digest)


def cut(pixels: np.ndarray, size: int, step: int | None = None) -> np.ndarray:
    """All squares of a picture (H, W, C) whose corners are `step` apart, (N, size, size, C)."""
    corners = _corners(pixels, size, step or size)
    squares = [pixels[i : i + size, j : j + size] for i, j in corners]
    return np.stack(squares) if squares else np.empty((0, size, size, pixels.shape[2]), np.uint8)


def _step(size: int) -> int:
    """How far apart the corners of squares to train on are."""
    return max(1, size // OVERLAP)


def _corners(pixels: np.ndarray, size: int, step: int) -> list[tuple[int, int]]:
    """The upper left corners of all squares of a picture."""
    tops, lefts = (_along(side, size, step) for side in pixels.shape[:2])
    return list(itertools.product(tops, lefts))


def _along(side: int, size: int, step: int) -> range:
    """Where squares begin along a side of the picture."""
    return range(0, side - size + 1, step)
