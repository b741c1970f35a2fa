"""Images in a file of NumPy: `.npy`, or `.npz` with labels and a held-out part of its own."""

import logging
import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hos_jax.data._splits import digests, held_out_mask
from hos_jax.data.image_data import SIGNED_RANGE, UNIT_RANGE, ImageData
from hos_jax.errors import UserError, reason

logger = logging.getLogger(__name__)


def load_arrays(root: str | os.PathLike | None) -> ImageData:
    """The images in a `.npy` or `.npz` file; nothing in it is ever unpickled.

    A file has one array of images, (N, H, W) or (N, H, W, C) with C 1 or 3; three axes of which the
    last is 3 or 4 may be one picture in colour, and are refused. A second one is held
    out if its name says `test` or `held` (`test_images`, `x_test`, `held_out`); otherwise the
    20th, 40th, ... image is, as in a folder. Labels, (N,) or (N, 1), are called `labels`,
    `targets` or `y` (`train_labels`, `y_test`), or come second without a name. Arrays that are
    not used, such as those called `val`, are named in a warning.

    Floating-point numbers are data units as they are, so that sigma and `model.data_std` are in
    these units too; black and white are the ends of [0, 1] or [-1, 1] where they fill at least half
    of it, and else their smallest and largest value, which is said. Bytes are mapped onto [-1, 1].

    Raises:
        UserError: `root` is not given or cannot be read, or its arrays are not as above: other
            dtypes, NaN or infinite values, fewer than two images.
    """
    if root is None:
        raise UserError("arrays needs a .npy or .npz file: set --config.data.root=FILE")
    path = Path(root).expanduser()
    images: dict[str, np.ndarray] = {}
    labels: dict[str, np.ndarray] = {}
    names: dict[str, str] = {}  # of the labels
    unused = []
    for name, array in _read(path).items():
        words = set(re.split("[^a-z]+", name.lower()))
        part = "held_out" if words & {"test", "held"} else "train"
        is_labels = words & {"label", "labels", "target", "targets", "y"} or name == "arr_1"
        chosen = labels if is_labels else images
        if words & {"val", "valid", "validation"} or (not is_labels and array.ndim < 3):
            unused.append(name)
        elif part in chosen:
            raise UserError(f"{path}: {name} is a second array of {part}: leave one of them out")
        else:
            chosen[part] = array
            names |= {part: name} if is_labels else {}
    unused += [f"{names[part]} (without images)" for part in labels if part not in images]
    if unused and images:
        logger.warning("%s: not used: %s", path, ", ".join(unused))
    if "train" not in images:
        remedy = "reshape it; for vectors there is hos_jax.fit.rows"
        remedy += ", and a table of N rows of D values is one of images as rows[:, None, :]"
        raise UserError(f"{path} has no images, an array (N, H, W) or (N, H, W, C): {remedy}")
    found = {
        part: _part(f"{path}, {part}", array, labels.get(part)) for part, array in images.items()
    }
    train, held_out = found["train"], found.get("held_out")
    if held_out:
        held_out = held_out.take(_not_trained(path, train.images, held_out.images))
    elif len(train.images) < 2:
        raise UserError(f"{path} holds {len(train.images)} images: at least 2 are needed")
    else:
        mask = held_out_mask(digests(train.images), str(path))
        train, held_out = train.take(~mask), train.take(mask)
    parts = train.images, held_out.images, train.labels, held_out.labels
    value_range = _value_range(path, train.images)
    if train.images.dtype != np.uint8:
        _name_another_scale(path, held_out.images, value_range)
    try:
        return ImageData("arrays", *parts, value_range)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


class _Part(NamedTuple):
    images: np.ndarray
    labels: np.ndarray | None

    def take(self, mask: np.ndarray) -> "_Part":
        return _Part(self.images[mask], None if self.labels is None else self.labels[mask])


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file:
            loaded = np.load(file)  # which unpickles nothing unless it is asked to
            if isinstance(loaded, np.ndarray):
                return {"images": loaded}
            with loaded:
                return {name: loaded[name] for name in loaded.files}
    except Exception as error:  # a damaged file makes NumPy raise anything from KeyError on
        what = "cannot be read as .npy or .npz without pickles"
        said = reason(error)
        if "pickle" in said:
            said = "it holds Python objects, or is no file of NumPy"
        raise UserError(f"{path} {what}: {said}") from error


def _part(what: str, array: np.ndarray, labels: np.ndarray | None) -> _Part:
    """Images as uint8 or float32, (N, H, W, C), and labels as int32 (N,)."""
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise UserError(f"{what}: images are {array.dtype}: save them as uint8 or as float32")
    # So narrow images are rare, and this is how one picture is kept.
    if array.ndim == 3 and array.shape[-1] in (3, 4) and min(array.shape[:2]) >= 16:
        wanted = "one picture in colour is images[None]; grey ones so narrow are images[..., None]"
        raise UserError(f"{what}: images are {array.shape}, which may be one picture: {wanted}")
    images = array[..., None] if array.ndim == 3 else array
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        wanted = "reshape them to (N, H, W) or (N, H, W, C), with 1 or 3 channels on the last axis"
        if images.ndim == 4 and images.shape[1] in (1, 3):
            wanted = "move the channels to the last axis: numpy.moveaxis(images, 1, -1)"
        raise UserError(f"{what}: images are {array.shape}: {wanted}")
    if 0 in images.shape[1:]:
        raise UserError(f"{what}: images are {array.shape}: they hold no values")
    with np.errstate(over="ignore"):
        images = np.ascontiguousarray(images, np.uint8 if array.dtype == np.uint8 else np.float32)
    if not np.isfinite(images).all():
        raise UserError(f"{what}: images have values that are not finite in float32: mend them")
    if labels is None:
        return _Part(images, None)
    count = len(images)
    if labels.size != count or labels.dtype.kind not in "iu":
        wanted = f"there must be one integer for each of the {count} images"
        raise UserError(f"{what}: labels are {labels.dtype} {labels.shape}: {wanted}")
    if (labels.astype(np.int32) != labels).any():
        raise UserError(f"{what}: labels do not fit into 32 bits: number the classes from 0")
    return _Part(images, labels.reshape(count).astype(np.int32))


def _not_trained(path: Path, train: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Which images of the held-out part are not among those to train on."""
    if not len(held_out):
        raise UserError(f"{path}: the held-out part has no images: leave it out or fill it")
    if not len(train):
        raise UserError(f"{path}: the part to train on has no images: fill it")
    trained = set(digests(train))
    new = np.array([digest not in trained for digest in digests(held_out)], bool)
    if not new.any():
        raise UserError(f"{path}: all held-out images are among those to train on: choose others")
    if not new.all():
        logger.warning("%s: %d held-out images are left out: they are trained on", path, sum(~new))
    return new


def _value_range(path: Path, images: np.ndarray) -> tuple[float, float]:
    if images.dtype == np.uint8:
        return SIGNED_RANGE
    low, high = float(images.min()), float(images.max())
    if low == high:
        raise UserError(f"{path}: all values are {low}: there is nothing to learn")
    for smallest, largest in (UNIT_RANGE, SIGNED_RANGE):
        if smallest <= low and high <= largest and 2 * (high - low) >= largest - smallest:
            return smallest, largest
    logger.info(
        "%s: black is taken to be %.4g and white %.4g, the smallest and the largest value, as they "
        "do not fill half of 0 to 1 or of -1 to 1",
        *(path, low, high),
    )
    return low, high


def _name_another_scale(path: Path, held_out: np.ndarray, value_range: tuple) -> None:
    """A warning for a held-out part in other units than what is trained on."""
    low, high = value_range
    found = float(held_out.min()), float(held_out.max())
    if found[0] < 2 * low - high or found[1] > 2 * high - low:
        logger.warning(
            "%s: held-out values are from %.4g to %.4g, where black is %.4g and white %.4g: are "
            "both parts in the same units?",
            *(path, *found, low, high),
        )
