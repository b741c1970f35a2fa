"""Crops of the colour photographs that ship inside scikit-learn and scikit-image: no download."""

from pathlib import Path

import numpy as np
from PIL import Image

from hos_jax.data._optional import package_folder
from hos_jax.data.image_data import SIGNED_RANGE, ImageData
from hos_jax.errors import UserError

# Photographs only: not the drawings, charts, micrographs and the almost black sky survey beside
# them, and of the stereo pair one picture. `skimage.data` would download what it does not ship;
# reading the files themselves cannot.
_PHOTOGRAPHS = {
    "sklearn": ("datasets/images", ("china.jpg", "flower.jpg")),
    "skimage": (
        "data",
        ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg"),
    ),
}

# The held-out columns of every photograph, in sixteenths of its width. Inside the picture rather
# than at a side, so that they show subjects as well as background.
_HELD_OUT_BAND = (9, 12)

# (pixels of the photograph a pixel of the crop averages, steps between crops per crop width).
_SCALES = ((1, 2), (2, 4))


def load_photos(*, image_size: int = 32) -> ImageData:
    """Square RGB crops of seven photographs, at full and at half resolution.

    The split is by region: of every photograph the columns from 9/16 to 12/16 of its width are
    held out, and each region is cut from the picture before it is reduced and cropped, so no pixel
    contributes to both a training and a held-out crop. Crops within a split do overlap: steps
    are half a crop at full resolution and a quarter at half resolution. With 32 pixels this gives
    several thousand training crops. The order is shuffled once, with a fixed seed.

    Args:
        image_size: side of a crop, a multiple of 4.

    Raises:
        UserError: scikit-learn or scikit-image is not installed or lacks a photograph; an
            `image_size` that is no multiple of 4 or larger than the held-out regions.
    """
    if not isinstance(image_size, int) or image_size < 4 or image_size % 4:
        raise UserError(f"photos: image_size {image_size} must be a positive multiple of 4")
    crops: dict[str, list[np.ndarray]] = {"train": [], "held_out": []}
    for path in _paths():
        for region, split in _regions(_read(path)):
            crops[split] += _crops(region, image_size)
    if not all(crops.values()):
        raise UserError(
            f"photos: image_size {image_size} is larger than the held-out part of every photograph:"
            " use 32 or 64"
        )
    train, held_out = map(_shuffled, crops.values())
    return ImageData("photos", train, held_out, None, None, SIGNED_RANGE)


def _paths() -> list[Path]:
    paths: list[Path] = []
    for package, (folder, names) in _PHOTOGRAPHS.items():
        root = package_folder(package, dataset="photos", extra="packaged-data")
        paths.extend(root / folder / name for name in names)
    return paths


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise UserError(
            f'photos: cannot read {path}: reinstall it with pip install "hos_jax[packaged-data]"'
        ) from error


def _regions(photograph: Image.Image) -> list[tuple[Image.Image, str]]:
    """The photograph as three side-by-side regions, each with the name of its split."""
    width, height = photograph.size
    left, right = (width * sixteenths // 16 for sixteenths in _HELD_OUT_BAND)
    return [
        (photograph.crop((0, 0, left, height)), "train"),
        (photograph.crop((left, 0, right, height)), "held_out"),
        (photograph.crop((right, 0, width, height)), "train"),
    ]


def _crops(region: Image.Image, size: int) -> list[np.ndarray]:
    """All crops of one region at both scales, each uint8 (size, size, 3)."""
    crops = []
    for factor, steps_per_crop in _SCALES:
        # Image.reduce averages disjoint blocks: nothing from outside the region enters.
        pixels = np.asarray(region.reduce(factor))
        stride = size // steps_per_crop
        for top in range(0, pixels.shape[0] - size + 1, stride):
            for left in range(0, pixels.shape[1] - size + 1, stride):
                crops.append(pixels[top : top + size, left : left + size])
    return crops


def _shuffled(crops: list[np.ndarray]) -> np.ndarray:
    order = np.random.Generator(np.random.Philox(0)).permutation(len(crops))
    return np.stack(crops)[order]
