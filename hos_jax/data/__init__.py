"""Data: images in memory as uint8, and batches that are a pure function of the step.

Importing this package imports neither TensorFlow nor any of the optional packages; each is imported
when a data set that needs it is asked for.
"""

from hos_jax.data.batches import batch_at
from hos_jax.data.image_data import ImageData, to_float, to_uint8
from hos_jax.data.registry import NAMES, load

__all__ = ["NAMES", "ImageData", "batch_at", "load", "to_float", "to_uint8"]
