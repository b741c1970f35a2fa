"""Batches as a pure function of the step: no iterator, so no iterator state to save."""

import operator
from functools import lru_cache

import numpy as np

from hos_jax.errors import UserError

# The first word of every key, so that permutations, flips and turns never share a random stream.
_PERMUTATION, _FLIP, _TURN = 0, 1, 2


def check_changes(images: np.ndarray, *, random_flip: bool, random_turn: bool) -> None:
    """UserError for images, (N, ...), of a shape that cannot be flipped or turned."""
    what = f"got shape {images.shape}: turn it off"
    if random_flip and images.ndim != 4:
        raise UserError(f"random_flip needs images (N, H, W, C), {what}")
    if random_turn and (images.ndim != 4 or images.shape[1] != images.shape[2]):
        raise UserError(f"random_turn needs images as high as wide, (N, H, H, C), {what}")


def batch_at(
    images: np.ndarray,
    step: int,
    *,
    seed: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    random_flip: bool = False,
    random_turn: bool = False,
) -> np.ndarray:
    """The batch of one step, for one process; a pure function of its arguments.

    Step t covers positions t * batch_size ... (t + 1) * batch_size - 1 of an endless stream that
    runs through the data once per epoch, each epoch in a fresh order derived from (seed, epoch): a
    run resumed at step t sees what an uninterrupted one would have seen.

    Process p takes the p-th contiguous slice of the global batch, which does not depend on
    `process_count`. Flips and turns are decided by (seed, step, position in the global batch). The
    random streams are NumPy's Philox; they are the same as NumPy's `permutation`, `random` and
    `integers` are.

    Args:
        images: (N, ...), images (N, H, W, C) or vectors (N, D), any dtype.
        step, seed: not negative; steps are counted from 0.
        batch_size: the size of the global batch, at most N and divisible by `process_count`.
        process_index, process_count: which slice, and of how many.
        random_flip: mirror each image left to right with probability 1/2.
        random_turn: turn each image, as high as wide, by 0 to 3 quarters of a circle.

    Returns:
        (batch_size // process_count, ...), a new array with the dtype of `images`.

    Raises:
        UserError: a batch size as it may not be; `random_flip` on data that is not images, and
            `random_turn` on what is not square.
        ValueError: a negative step or seed, or a process index out of range.
    """
    step, seed, images = operator.index(step), operator.index(seed), np.asarray(images)
    check_changes(images, random_flip=random_flip, random_turn=random_turn)
    _check(images, step, seed, batch_size, process_index, process_count)
    share = batch_size // process_count
    local = slice(process_index * share, (process_index + 1) * share)
    epoch, start = divmod(step * batch_size, len(images))
    indices = _permutation(seed, epoch, len(images))[start : start + batch_size]
    missing = batch_size - len(indices)
    if missing:
        indices = np.append(indices, _permutation(seed, epoch + 1, len(images))[:missing])
    batch = images[indices[local]]
    if random_flip:
        flips = (_generator(seed, _FLIP, step).random(batch_size) < 0.5)[local]
        batch[flips] = batch[flips, :, ::-1]
    if random_turn:
        turns = _generator(seed, _TURN, step).integers(4, size=batch_size)[local]
        for quarters in (1, 2, 3):
            chosen = turns == quarters
            batch[chosen] = np.rot90(batch[chosen], quarters, axes=(1, 2))
    return batch


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    order = _generator(seed, _PERMUTATION, epoch).permutation(n)
    order.setflags(write=False)  # it is shared through the cache
    return order


def _generator(seed: int, purpose: int, number: int) -> np.random.Generator:
    sequence = np.random.SeedSequence(seed, spawn_key=(purpose, number))
    return np.random.Generator(np.random.Philox(sequence))


def _check(images, step, seed, batch_size, process_index, process_count) -> None:
    if step < 0 or seed < 0:
        raise ValueError(f"step and seed must not be negative, got step {step}, seed {seed}")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index {process_index} is not in 0..{process_count - 1}")
    if batch_size < 1:
        raise UserError(f"batch size {batch_size} must be at least 1")
    if batch_size > len(images):
        what = f"exceeds the {len(images)} training examples: make it smaller"
        raise UserError(f"batch size {batch_size} {what}")
    if batch_size % process_count:
        nearest = batch_size // process_count * process_count or process_count
        what = f"is not divisible by the {process_count} processes: use {nearest}"
        raise UserError(f"batch size {batch_size} {what}")
