"""Square crops of the photographs in a folder, at their own resolution and at half of it."""

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
from hos_jax.data.pictures import all_grey, files_below, read_all
from hos_jax.errors import UserError

logger = logging.getLogger(__name__)

HELD_OUT_FOLDER = "held_out"
# What the crops of either part may take in memory.
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
    know them by heart after a few rounds. Where they are more than a share of `LARGEST`, some of
    each picture are chosen at random. Training crops are in one fixed random order. Black and white
    are 0 and 1.

    Args:
        image_size: side of a crop.
        grey: make one channel of three, as ITU-R 601 has it; it is one anyway where all pictures
            are grey.
        skip_unreadable: see `pictures.read_all`.

    Raises:
        UserError: as `pictures.read_all`; a size that is not positive; no picture as large as a
            crop in either part.
    """
    if not isinstance(image_size, int) or image_size < 1:
        raise UserError(f"image_crops: image_size {image_size} must be one positive number")
    folder, files = files_below(root, "image_crops")
    share = max(1, LARGEST // (3 * image_size**2 * max(1, len(files))))
    pictures: dict[Path, _Picture] = {}

    def prepare(path: Path, image: Image.Image) -> tuple[np.ndarray, bool]:
        pictures[path] = _squares(np.asarray(image), np.asarray(image.reduce(2)), image_size, share)
        return pictures[path].apart, all_grey(pictures[path].apart)

    def keep(_: int, path: Path, crops: np.ndarray) -> None:
        if not len(crops):
            logger.warning("%s is smaller than a crop of %d pixels", path, image_size)
            del pictures[path]

    found = read_all(folder, files, prepare, keep, skip_unreadable, grey=grey)
    if not pictures:
        raise UserError(f"{folder} holds no picture of {image_size} pixels: {_REMEDY}")
    # In the order of their paths, and not in that in which they were read.
    kept = [(path, pictures[path]) for path, _ in files if path in pictures]
    held_out = np.array([path.relative_to(folder).parts[0] == HELD_OUT_FOLDER for path, _ in kept])
    if not held_out.any():
        # A row for each: its checksum, so that pictures that are alike stay on one side.
        rows = np.stack([np.frombuffer(each.digest, np.uint8) for _, each in kept])
        held_out = held_out_mask(rows, str(folder))
    known = {each.digest for (_, each), out in zip(kept, held_out, strict=True) if out}
    copies = np.array([each.digest in known for _, each in kept]) & ~held_out
    for (path, _), copied in zip(kept, copies, strict=True):
        if copied:
            logger.warning("%s is held out too, and is not trained on", path)
    kept = [item for item, copied in zip(kept, copies, strict=True) if not copied]
    held_out = held_out[~copies]
    train = [each.overlapping for (_, each), out in zip(kept, held_out, strict=True) if not out]
    test = [each.apart for (_, each), out in zip(kept, held_out, strict=True) if out]
    channels = 1 if all(map(all_grey, [*train, *test])) else 3

    def joined(crops: list[np.ndarray], what: str) -> np.ndarray:
        if not sum(map(len, crops)):
            raise UserError(f"{folder} holds no picture {what} of {image_size} pixels: {_REMEDY}")
        images = np.concatenate([each[..., :channels] for each in crops])
        return images[np.random.Generator(np.random.Philox(0)).permutation(len(images))]

    parts = joined(train, "to train on"), joined(test, "held out")
    # Of the same files, another choice of what is held out is another data set.
    split = hashlib.blake2b(held_out.tobytes(), digest_size=8).hexdigest()
    checksum = f"{found.checksum}-{split}"
    return ImageData("image_crops", *parts, None, None, UNIT_RANGE, checksum)


class _Picture(NamedTuple):
    """The squares of one picture (N, size, size, 3), those of a grid and more, and its checksum."""

    apart: np.ndarray
    overlapping: np.ndarray
    digest: bytes


def _squares(pixels: np.ndarray, half: np.ndarray, size: int, most: int) -> _Picture:
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

    return _Picture(chosen(size), chosen(max(1, size // OVERLAP)), digest)


def cut(pixels: np.ndarray, size: int, step: int | None = None) -> np.ndarray:
    """All squares of a picture (H, W, C) whose corners are `step` apart, (N, size, size, C)."""
    corners = _corners(pixels, size, step or size)
    squares = [pixels[i : i + size, j : j + size] for i, j in corners]
    return np.stack(squares) if squares else np.empty((0, size, size, pixels.shape[2]), np.uint8)


def _corners(pixels: np.ndarray, size: int, step: int) -> list[tuple[int, int]]:
    """The upper left corners of all squares of a picture."""
    tops, lefts = (range(0, side - size + 1, step) for side in pixels.shape[:2])
    return list(itertools.product(tops, lefts))
