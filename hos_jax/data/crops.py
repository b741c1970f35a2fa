"""Square crops of the photographs in a folder, at their own resolution and at half of it."""

import hashlib
import logging
import os
from pathlib import Path

import numpy as np
from PIL import Image

from hos_jax.data._splits import held_out_mask
from hos_jax.data.image_data import UNIT_RANGE, ImageData
from hos_jax.data.pictures import files_below, read_all
from hos_jax.errors import UserError

logger = logging.getLogger(__name__)

HELD_OUT_FOLDER = "held_out"
# What the chosen crops of either part may take in memory.
LARGEST = 2**30
_REMEDY = "add pictures, or set a smaller --config.data.image_size"


def load_crops(
    root: str | os.PathLike | None,
    *,
    image_size: int = 64,
    grey: bool = False,
    skip_unreadable: bool = False,
) -> ImageData:
    """Every photograph below `root`, cut into squares that do not overlap; nothing is resized but
    for the copy at half resolution, whose pixels are means of four.

    Whole pictures are held out: those in a folder `root/held_out`, or else some as `held_out_mask`
    says. Training crops are in one fixed random order. Black and white are 0 and 1.

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
    kept: list[tuple[Path, np.ndarray]] = []

    def prepare(path: Path, image: Image.Image) -> np.ndarray:
        if grey:
            image = image.convert("L").convert("RGB")
        parts = [cut(np.asarray(image.reduce(factor)), image_size) for factor in (1, 2)]
        return np.concatenate(parts)

    def keep(_: int, path: Path, crops: np.ndarray) -> None:
        if len(crops):
            kept.append((path, crops))
        else:
            logger.warning("%s is smaller than a crop of %d pixels", path, image_size)

    found = read_all(folder, files, prepare, keep, skip_unreadable)
    if not kept:
        raise UserError(f"{folder} holds no picture of {image_size} pixels: {_REMEDY}")
    held_out = np.array([path.relative_to(folder).parts[0] == HELD_OUT_FOLDER for path, _ in kept])
    if not held_out.any():
        held_out = _whole_pictures(kept, str(folder))
    known = {crops.tobytes() for (_, crops), out in zip(kept, held_out, strict=True) if out}
    copies = np.array([crops.tobytes() in known for _, crops in kept]) & ~held_out
    for (path, _), copied in zip(kept, copies, strict=True):
        if copied:
            logger.warning("%s is held out too, and is not trained on", path)
    kept = [item for item, copied in zip(kept, copies, strict=True) if not copied]
    held_out = held_out[~copies]
    train = [crops for (_, crops), out in zip(kept, held_out, strict=True) if not out]
    test = [crops for (_, crops), out in zip(kept, held_out, strict=True) if out]
    channels = 1 if found.grey else 3

    def joined(crops: list[np.ndarray], what: str) -> np.ndarray:
        if not sum(map(len, crops)):
            raise UserError(f"{folder} holds no picture {what} of {image_size} pixels: {_REMEDY}")
        images = np.concatenate(crops)[..., :channels]
        order = np.random.Generator(np.random.Philox(0)).permutation(len(images))
        most = max(1, LARGEST // images[0].nbytes)
        if most < len(order):
            logger.info("%s: %d of %d crops %s are kept", folder, most, len(order), what)
        return images[order[:most]]

    parts = joined(train, "to train on"), joined(test, "held out")
    # Of the same files, another choice of what is held out is another data set.
    split = hashlib.blake2b(held_out.tobytes(), digest_size=8).hexdigest()
    checksum = f"{found.checksum}-{split}"
    return ImageData("image_crops", *parts, None, None, UNIT_RANGE, checksum)


def cut(pixels: np.ndarray, size: int, step: int | None = None) -> np.ndarray:
    """All squares of a picture (H, W, C) whose corners are `step` apart, (N, size, size, C)."""
    step = step or size
    tops, lefts = (range(0, side - size + 1, step) for side in pixels.shape[:2])
    squares = [pixels[i : i + size, j : j + size] for i in tops for j in lefts]
    return np.stack(squares) if squares else np.empty((0, size, size, pixels.shape[2]), np.uint8)


def _whole_pictures(kept: list[tuple[Path, np.ndarray]], name: str) -> np.ndarray:
    """Which of the pictures are held out, those alike on one side."""
    # A row for each: as many bytes of a checksum as tell them apart.
    known = [crops.tobytes() for _, crops in kept]
    numbers = {content: number for number, content in enumerate(dict.fromkeys(known))}
    return held_out_mask(np.array([[numbers[content]] for content in known]), name)
