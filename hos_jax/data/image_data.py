"""What every data set is once loaded, and the way between stored bytes and network values."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

UNIT_RANGE = (0.0, 1.0)
SIGNED_RANGE = (-1.0, 1.0)


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set held in memory as bytes.

    Attributes:
        name: the name it is loaded by.
        train: training images, uint8 (N, H, W, C).
        held_out: images that training never sees, uint8 (M, H, W, C).
        train_labels: int32 (N,), or None where the data has no classes.
        held_out_labels: int32 (M,), or None.
        value_range: (low, high), the interval that `to_float` maps 0..255 to.

    Raises:
        ValueError: arrays whose shapes or dtypes break the above.
    """

    name: str
    train: np.ndarray
    held_out: np.ndarray
    train_labels: np.ndarray | None
    held_out_labels: np.ndarray | None
    value_range: tuple[float, float]

    def __post_init__(self) -> None:
        for images in (self.train, self.held_out):
            if images.dtype != np.uint8 or images.ndim != 4 or len(images) == 0:
                raise ValueError(
                    f"{self.name}: images must be uint8 (N, H, W, C) with N > 0, "
                    f"got {images.dtype} {images.shape}"
                )
        if self.train.shape[1:] != self.held_out.shape[1:]:
            raise ValueError(
                f"{self.name}: train images are {self.train.shape[1:]}, "
                f"held-out images {self.held_out.shape[1:]}"
            )
        pairs = ((self.train, self.train_labels), (self.held_out, self.held_out_labels))
        for images, labels in pairs:
            if labels is not None and (
                labels.dtype != np.int32 or labels.shape != images.shape[:1]
            ):
                raise ValueError(
                    f"{self.name}: labels must be int32 ({len(images)},), "
                    f"got {labels.dtype} {labels.shape}"
                )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        return self.train.shape[1:]


def to_float(images: Any, value_range: tuple[float, float]) -> Any:
    """Map bytes 0..255 affinely onto `value_range`, in float32.

    Works on NumPy and on JAX arrays, under `jit` as well, and gives back the same kind. NumPy and
    compiled results may differ in the last bit.

    Args:
        images: uint8, any shape.
        value_range: (low, high).

    Returns:
        float32, the same shape; 0 becomes low, 255 becomes high.

    Raises:
        ValueError: `images` is not uint8, so that nothing is scaled twice.
    """
    if images.dtype != np.uint8:
        raise ValueError(f"to_float takes uint8 images, got {images.dtype}")
    low, high = value_range
    return images.astype(np.float32) / 255.0 * (high - low) + low


def to_uint8(images: Any, value_range: tuple[float, float]) -> Any:
    """The inverse of `to_float` for writing pictures: clip to `value_range`, round to bytes.

    Args:
        images: floating point, any shape, NumPy or JAX.
        value_range: (low, high).

    Returns:
        uint8, the same shape; `to_uint8(to_float(x, r), r) == x`. Values outside the range are
        clipped and NaN becomes 0: a picture of a diverged run can still be written.
    """
    xp = jnp if isinstance(images, jax.Array) else np
    low, high = value_range
    unit = (images - low) / (high - low)
    # NaN first: np.clip keeps it, and its cast to an integer is undefined.
    unit = xp.clip(xp.nan_to_num(unit, nan=0.0, posinf=1.0, neginf=0.0), 0.0, 1.0)
    return xp.rint(unit * 255.0).astype(np.uint8)
