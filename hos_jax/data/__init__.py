"""Data: images in memory as uint8, and batches that are a pure function of the step.

Importing this package imports neither TensorFlow nor any of the optional packages; each is imported
when a data set that needs it is asked for.
"""

from hos_jax.data.batches import batch_at as batch_at
from hos_jax.data.image_data import ImageData as ImageData
from hos_jax.data.image_data import bin_width as bin_width
from hos_jax.data.image_data import dequantize as dequantize
from hos_jax.data.image_data import to_float as to_float
from hos_jax.data.image_data import to_uint8 as to_uint8
from hos_jax.data.registry import NAMES as NAMES
from hos_jax.data.registry import load as load
from hos_jax.data.registry import value_range_of as value_range_of
