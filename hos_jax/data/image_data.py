"""What every data set is once loaded, and the way between stored bytes and network values."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

UNIT_RANGE = (0.0, 1.0)
SIGNED_RANGE = (-1.0, 1.0)


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set held in memory, as bytes or, of a user's own arrays, as float32.

    Attributes:
        name: the name it is loaded by.
        train: training images, uint8 or float32 (N, H, W, C).
        held_out: images that training never sees, (M, H, W, C), of the same dtype.
        train_labels, held_out_labels: int32 (N,) and (M,), or None where there are no classes.
        value_range: (low, high), the interval that `to_float` maps 0..255 to; of float32 images,
            what is shown in black and in white.
        checksum: of what the images were made from; made from the images where it is empty.

    Raises:
        ValueError: arrays whose shapes or dtypes break the above.
    """

    name: str
    train: np.ndarray
    held_out: np.ndarray
    train_labels: np.ndarray | None
    held_out_labels: np.ndarray | None
    value_range: tuple[float, float]
    checksum: str = ""

    def __post_init__(self) -> None:
        pairs = ((self.train, self.train_labels), (self.held_out, self.held_out_labels))
        for images, labels in pairs:
            if images.dtype not in (np.uint8, np.float32) or images.ndim != 4 or not images.size:
                raise ValueError(
                    f"{self.name}: images must be uint8 or float32 (N, H, W, C) with N > 0, "
                    f"got {images.dtype} {images.shape}"
                )
            wanted = f"int32 ({len(images)},)"
            got = wanted if labels is None else f"{labels.dtype} {labels.shape}"
            if got != wanted:
                raise ValueError(f"{self.name}: labels must be {wanted}, got {got}")
        train, held_out = (f"{images.dtype} {images.shape[1:]}" for images, _ in pairs)
        if train != held_out:
            raise ValueError(f"{self.name}: train images are {train}, held-out ones {held_out}")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        return self.train.shape[1:]

    @property
    def dim(self) -> int:
        """D, the number of values of one image."""
        return math.prod(self.image_shape)

    @property
    def form(self) -> dict[str, Any]:
        """What a network for these images is made by, as JSON types: see `without_images`."""
        shape, low_and_high = list(self.image_shape), list(map(float, self.value_range))
        return {"shape": shape, "value_range": low_and_high, "dtype": str(self.train.dtype)}

    @classmethod
    def without_images(cls, name: str, form: dict[str, Any]) -> ImageData:
        """A data set of this `form` with one image of zeros in either part, where those that a
        model was trained on are not needed, or not there; ValueError for what is no form."""
        low, high = form["value_range"]
        blank = np.zeros((1, *form["shape"]), form["dtype"])
        return cls(name, blank, blank, None, None, (low, high))

    def to_float(self, images: Any) -> Any:
        """Images of this data set, of its dtype, in data units: float32, the same shape.

        Bytes are mapped onto `value_range`; float32 images are in data units as they are.
        ValueError for bytes where the data set has floating-point images, and the other way round.
        """
        if self.train.dtype == np.uint8:
            return to_float(images, self.value_range)
        if images.dtype == np.uint8:
            raise ValueError(f"to_float takes {self.train.dtype} images here, got uint8")
        return images

    def identity(self, *, labels: bool = False) -> dict[str, Any]:
        """What tells these images from others, as JSON types: their numbers and a checksum, and one
        of the labels where they are asked for."""
        found = hashlib.blake2b(digest_size=16)
        for images in () if self.checksum else (self.train, self.held_out):
            found.update(np.ascontiguousarray(images).data)
        checksum = self.checksum or found.hexdigest()
        counts = {"train": len(self.train), "held_out": len(self.held_out), "checksum": checksum}
        if not labels or self.train_labels is None or self.held_out_labels is None:
            return counts
        classes = np.concatenate([self.train_labels, self.held_out_labels])
        return {**counts, "labels": hashlib.blake2b(classes.data, digest_size=16).hexdigest()}


def to_float(images: Any, value_range: tuple[float, float]) -> Any:
    """Map bytes 0..255 affinely onto `value_range`, in float32: NumPy or JAX arrays of any shape.

    NumPy and compiled results may differ in the last bit. ValueError for `images` that are not
    uint8, so that nothing is scaled twice.
    """
    if images.dtype != np.uint8:
        raise ValueError(f"to_float takes uint8 images, got {images.dtype}")
    low, high = value_range
    return images.astype(np.float32) / 255.0 * (high - low) + low


def bin_width(value_range: tuple[float, float]) -> float:
    """The distance of two neighbouring bytes in data units."""
    low, high = value_range
    return (high - low) / 255.0


def dequantize(key: jax.Array, images: Any, value_range: tuple[float, float]) -> jax.Array:
    """Bytes as continuous data, float32: `to_float`, and uniform noise of plus or minus half a
    `bin_width`, so that a density of it bounds the probability of the bytes (Theis et al. 2016)."""
    noise = jax.random.uniform(key, images.shape, jnp.float32, -0.5, 0.5)
    return to_float(images, value_range) + bin_width(value_range) * noise


def to_uint8(images: Any, value_range: tuple[float, float]) -> Any:
    """The inverse of `to_float` for writing pictures: clip to `value_range`, round to bytes.

    NaN becomes 0: a picture of a diverged run can still be written.
    """
    xp = jnp if isinstance(images, jax.Array) else np
    low, high = value_range
    unit = (images - low) / (high - low)
    # NaN first: np.clip keeps it, and its cast to an integer is undefined.
    unit = xp.clip(xp.nan_to_num(unit, nan=0.0, posinf=1.0, neginf=0.0), 0.0, 1.0)
    return xp.rint(unit * 255.0).astype(np.uint8)
