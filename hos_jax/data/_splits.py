"""Which images are held out: the two rules, for data with classes and for a user's own."""

import hashlib
import logging

import numpy as np

logger = logging.getLogger(__name__)

# One image in this many is held out.
_HELD_OUT_EVERY = 20


def digests(images: np.ndarray) -> list[bytes]:
    """A checksum of each image of (N, ...): equal for equal images."""
    contiguous = np.ascontiguousarray(images)
    return [hashlib.blake2b(image.data, digest_size=16).digest() for image in contiguous]


def held_out_mask(found: list[bytes], name: str) -> np.ndarray:
    """Which of N > 1 images are held out, bool (N,), by their `digests`: the 20th, 40th, ... of
    those that differ.

    Where fewer differ, the last one. Copies of an image go where their first goes, so that no
    held-out image is one to train on; of images that are all equal, the last is held out, with a
    warning. The log calls the data by its name.
    """
    ranks = {digest: rank for rank, digest in enumerate(dict.fromkeys(found))}
    different = len(ranks)
    if different < len(found):
        copies = "%s: %d of %d images are copies of others, and stay on their side of the split"
        logger.info(copies, name, len(found) - different, len(found))
    if different == 1:
        logger.warning("%s: all images are equal: the held-out one is one to train on", name)
        return np.arange(len(found)) == len(found) - 1
    held_out = np.arange(1, different + 1) % _HELD_OUT_EVERY == 0
    held_out[-1] |= not held_out.any()
    return held_out[[ranks[digest] for digest in found]]


def stratified_split(labels: np.ndarray, held_out_per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (train, held_out) that partition 0..N-1, in a fixed random order, so many of each
    class in the held-out part; labels are integers (N,)."""
    rng = np.random.Generator(np.random.Philox(0))
    order = rng.permutation(len(labels))
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        held_out[order[labels[order] == label][:held_out_per_class]] = True
    return order[~held_out[order]], order[held_out[order]]
