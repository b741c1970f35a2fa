"""The laws of `batch_at`: a pure function of seed and step, for any number of processes."""

from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest

from hos_jax.data import batch_at
from hos_jax.errors import UserError

N = 25


@pytest.fixture(name="images")
def _images():
    """Image i holds i in its left column and 100 + i in its right: order and flips are visible."""
    columns = np.stack([np.arange(N), 50 + np.arange(N), 100 + np.arange(N)], -1)
    return np.broadcast_to(columns[:, None, :, None], (N, 2, 3, 1)).astype(np.uint8)


def _ids(batch):
    return batch[:, 0, :, 0].min(1).tolist()


@pytest.mark.parametrize("batch_size", [1, 5, 7, 10, 25])
def test_every_image_once_an_epoch(images, batch_size):
    epochs = 6
    steps = -(-epochs * N // batch_size)
    stream = [
        i for t in range(steps) for i in _ids(batch_at(images, t, seed=3, batch_size=batch_size))
    ]
    passes = [stream[e * N : (e + 1) * N] for e in range(epochs)]
    assert all(sorted(once) == list(range(N)) for once in passes)
    assert len({tuple(once) for once in passes}) == epochs  # a fresh order each epoch


def test_batches_depend_on_the_arguments_alone(images):
    steps = [7, 0, 3, 7, 11]
    first = [batch_at(images, t, seed=1, batch_size=7, random_flip=True) for t in steps]
    again = [batch_at(images, t, seed=1, batch_size=7, random_flip=True) for t in steps[::-1]][::-1]
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    other = batch_at(images, 7, seed=2, batch_size=7, random_flip=True)
    assert not np.array_equal(first[0], other)
    numpy_step = batch_at(images, np.int32(7), seed=1, batch_size=7, random_flip=True)
    np.testing.assert_array_equal(first[0], numpy_step)


@pytest.mark.parametrize("random_flip", [False, True])
@pytest.mark.parametrize("process_count", [1, 2, 3, 4, 12])
def test_slices_of_the_processes_make_the_one_process_batch(images, process_count, random_flip):
    for step in range(6):  # steps 2 and 4 cross an epoch
        options = {"seed": 0, "batch_size": 12, "random_flip": random_flip}
        whole = batch_at(images, step, **options)
        parts = [
            batch_at(images, step, **options, process_index=p, process_count=process_count)
            for p in range(process_count)
        ]
        assert all(len(part) == 12 // process_count for part in parts)
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_flips_mirror_half_of_the_images_and_nothing_else(images):
    flipped = 0
    for step in range(200):
        plain = batch_at(images, step, seed=5, batch_size=10)
        mixed = batch_at(images, step, seed=5, batch_size=10, random_flip=True)
        mirrored = mixed[:, 0, 0, 0] != plain[:, 0, 0, 0]
        np.testing.assert_array_equal(mixed[mirrored], plain[mirrored][:, :, ::-1])
        np.testing.assert_array_equal(mixed[~mirrored], plain[~mirrored])
        flipped += mirrored.sum()
    assert abs(flipped - 1000) < 4 * np.sqrt(2000 / 4)  # four standard errors


def test_flips_change_from_epoch_to_epoch(images):
    counts = Counter()
    for epoch in range(40):
        batch = batch_at(images, epoch, seed=0, batch_size=N, random_flip=True)
        counts.update(i for i, row in zip(_ids(batch), batch, strict=True) if row[0, 0, 0] >= 100)
    assert all(5 <= counts[i] <= 35 for i in range(N))


def test_orders_are_uniform():
    """Over seeds, each image is equally likely to come first."""
    images = np.arange(5)[:, None].astype(np.float32)
    first = Counter(int(batch_at(images, 0, seed=s, batch_size=1)[0, 0]) for s in range(1000))
    assert all(abs(first[i] - 200) < 4 * np.sqrt(1000 * 0.2 * 0.8) for i in range(5))


def test_vectors_and_their_dtype_pass_through():
    vectors = np.random.default_rng(0).normal(size=(N, 4))
    batch = batch_at(vectors, 3, seed=0, batch_size=8)
    assert batch.shape == (8, 4) and batch.dtype == vectors.dtype
    assert all((row == vectors).all(1).any() for row in batch)


def test_the_data_is_left_alone(images):
    before = images.copy()
    images.setflags(write=False)
    batch = batch_at(images, 0, seed=0, batch_size=N, random_flip=True)
    batch[:] = 0
    np.testing.assert_array_equal(images, before)
    assert _ids(batch_at(images, 0, seed=0, batch_size=N)) != [0] * N


def test_images_may_be_arrays_of_jax(images):
    options = {"seed": 0, "batch_size": N, "random_flip": True}
    batch = batch_at(jnp.asarray(images), 0, **options)
    assert isinstance(batch, np.ndarray) and batch.flags.writeable
    np.testing.assert_array_equal(batch, batch_at(images, 0, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 26}, "exceeds the 25"),
        ({"batch_size": 0}, "at least 1"),
        ({"batch_size": 10, "process_count": 3}, "not divisible by the 3 processes: use 9"),
        ({"batch_size": 2, "process_count": 4}, "use 4"),
    ],
)
def test_sizes_that_the_user_must_mend(images, options, message):
    with pytest.raises(UserError, match=message):
        batch_at(images, 0, seed=0, **options)


def test_flipping_vectors_is_refused():
    with pytest.raises(UserError, match="random_flip"):
        batch_at(np.zeros((9, 4)), 0, seed=0, batch_size=2, random_flip=True)


@pytest.mark.parametrize(
    "options",
    [{"step": -1}, {"seed": -1}, {"process_index": 2, "process_count": 2}, {"process_index": -1}],
)
def test_calls_that_make_no_sense(images, options):
    with pytest.raises(ValueError, match=r"must not be negative|is not in"):
        batch_at(images, **{"step": 0, "seed": 0, "batch_size": 4, **options})


def test_turns_are_those_of_whole_quarters_in_equal_shares():
    square = np.random.default_rng(0).integers(0, 256, (N, 5, 5, 2), np.uint8)
    options = {"seed": 4, "batch_size": N}
    counts = Counter()
    for step in range(40):
        plain = batch_at(square, step, **options)
        turned = batch_at(square, step, **options, random_turn=True)
        for before, after in zip(plain, turned, strict=True):
            found = [k for k in range(4) if np.array_equal(np.rot90(before, k), after)]
            assert len(found) == 1
            counts[found[0]] += 1
        both = batch_at(square, step, **options, random_turn=True, random_flip=True)
        flipped = batch_at(square, step, **options, random_flip=True)
        for before, after in zip(flipped, both, strict=True):
            assert any(np.array_equal(np.rot90(before, k), after) for k in range(4))
    # 1,000 turns, each kind with a standard deviation of 13.7.
    assert sorted(counts) == [0, 1, 2, 3] and all(abs(n - 250) < 55 for n in counts.values())


def test_turns_need_images_as_high_as_wide(images):
    with pytest.raises(UserError, match="random_turn needs images as high as wide"):
        batch_at(images, 0, seed=0, batch_size=2, random_turn=True)
