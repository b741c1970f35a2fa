"""A folder of image files, prepared the way CelebA is in the published experiments."""

import logging
import os
from pathlib import Path

import numpy as np
from PIL import Image

from hos_jax.data._splits import digests, held_out_mask
from hos_jax.data.image_data import SIGNED_RANGE, ImageData
from hos_jax.data.pictures import all_grey, files_below, read_all
from hos_jax.errors import UserError

logger = logging.getLogger(__name__)


def load_folder(
    root: str | os.PathLike | None,
    *,
    crop: int = 140,
    image_size: int | tuple[int, int] = 32,
    skip_unreadable: bool = False,
) -> ImageData:
    """Every image below `root`: central part, resized by a bilinear filter with antialiasing.

    The defaults are those published for CelebA (178 x 218 pixels). What is an image and how it is
    read is said in `pictures.read_all`. Images are taken in the order of their path and held out as
    `held_out_mask` says. They are RGB, or one channel where all of them are grey. Those that are
    enlarged are counted in a warning.

    Args:
        crop: height of the central part that is kept, whose sides have the ratio of those of the
            result; 0 for the largest part that fits.
        image_size: side of the result, or (height, width).
        skip_unreadable: see `pictures.read_all`.

    Raises:
        UserError: `root` holds fewer than two images; a file is not one readable 8-bit image, or
            smaller than `crop`; sizes that are not positive.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if crop < 0 or min(size) < 1:
        raise UserError(f"image_folder: crop {crop} and image_size {image_size} must be positive")
    folder, files = files_below(root, "image_folder")
    images = np.empty((len(files), *size, 3), np.uint8)
    enlarged: list[Path] = []

    def prepare(path: Path, image: Image.Image) -> tuple[np.ndarray, bool]:
        part = _central_part(path, image, crop, size)
        if part.height < size[0] or part.width < size[1]:
            enlarged.append(path)
        # Not resize(box=...): its filter would look beyond the edge of the box.
        pixels = np.asarray(part.resize(size[::-1], Image.Resampling.BILINEAR))
        return pixels, all_grey(pixels)

    def keep(number: int, path: Path, pixels: np.ndarray) -> None:
        images[number] = pixels

    found = read_all(folder, files, prepare, keep, skip_unreadable)
    if enlarged:
        logger.warning(
            "%d of %d images are enlarged to %d x %d, and have no detail that small, as %s: set a "
            "smaller data.image_size",
            *(len(enlarged), found.images, *size[::-1], min(enlarged)),
        )
    images = images[: found.images, ..., : 1 if found.grey else 3]
    held_out = held_out_mask(digests(images), str(folder))
    parts = images[~held_out], images[held_out]
    return ImageData("image_folder", *parts, None, None, SIGNED_RANGE, found.checksum)


def _central_part(path: Path, image: Image.Image, crop: int, size: tuple[int, int]) -> Image.Image:
    (width, height), (rows, columns) = image.size, size
    # The largest part of the ratio that fits, in whole numbers.
    part_height = crop or max(1, min(height, width * rows // columns))
    part_width = part_height * columns // rows if crop else min(width, height * columns // rows)
    part_width = max(1, part_width)
    if part_height > height or part_width > width:
        remedy = "lower --config.data.crop, or set it to 0 for the largest part that fits"
        what = f"is {width} x {height}, smaller than the crop of {crop} pixels"
        raise UserError(f"{path} {what}: {remedy}")
    left, top = (width - part_width) // 2, (height - part_height) // 2
    return image.crop((left, top, left + part_width, top + part_height))
