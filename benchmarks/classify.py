"""Classes of images by a classifier trained here: is a sample a digit, and which one?"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from hos_jax.data.image_data import ImageData, to_float
from hos_jax.errors import UserError
from hos_jax.types import Array


class Classifier(nn.Module):
    """Two convolutions with pooling and two dense layers: (N, H, W, C) -> logits (N, classes), and
    what the last layer sees, (N, 8 features).

    Attributes:
      classes: number of classes.
      features: channels of the first convolution.
    """

    classes: int
    features: int = 16

    @nn.compact
    def __call__(self, images: Array) -> tuple[Array, Array]:
        h = images
        for index in range(2):
            h = nn.relu(nn.Conv(self.features * (index + 1), (3, 3), name=f"conv{index}")(h))
            h = nn.max_pool(h, (2, 2), strides=(2, 2))
        h = nn.relu(nn.Dense(8 * self.features, name="dense")(h.reshape(len(h), -1)))
        return nn.Dense(self.classes, name="logits")(jnp.asarray(h)), jnp.asarray(h)


class Verdict(NamedTuple):
    """What the classifier says of N images.

    Attributes:
      classes: the most probable class, int (N,).
      confidence: its probability, (N,).
      features: what its last layer sees, (N, F).
    """

    classes: np.ndarray
    confidence: np.ndarray
    features: np.ndarray


class TrainedClassifier(NamedTuple):
    """A classifier and how well it does.

    Attributes:
      judge: `judge(images)` for float images (N, H, W, C) in data units gives a `Verdict`.
      held_out_accuracy: on images that it never saw.
      classes: number of classes.
    """

    judge: Callable[[Array], Verdict]
    held_out_accuracy: float
    classes: int


def _shift(key: jax.Array, image: Array) -> Array:
    """Move an image by up to two pixels, repeating its edge."""
    padded = jnp.pad(image, ((2, 2), (2, 2), (0, 0)), mode="edge")
    row, column = jax.random.randint(key, (2,), 0, 5)
    return jax.lax.dynamic_slice(padded, (row, column, 0), image.shape)


def train_classifier(
    data: ImageData, *, seed: int = 0, steps: int = 600, batch_size: int = 64
) -> TrainedClassifier:
    """Train a classifier on the labels of a data set, with images moved by up to two pixels.

    Args:
      data: with labels.
      seed: decides the initialization and every draw.
      steps, batch_size: of Adam at 2e-3 with a cosine schedule.

    Raises:
      UserError: if the data has no labels.
    """
    if data.train_labels is None:
        raise UserError(f"{data.name} has no classes: a classifier needs labels")
    classes = int(data.train_labels.max()) + 1
    model = Classifier(classes)
    init_key, loop_key = jax.random.split(jax.random.key(seed))

    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))

    def logits_of(params, images) -> Any:
        return model.apply(params, images)

    def loss_fn(params, images, labels, key):
        moved = jax.vmap(_shift)(
            jax.random.split(key, batch_size), to_float(images, data.value_range)
        )
        logits, _ = logits_of(params, moved)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    # A loop in Python: inside a compiled one these gradients take four times as long on a CPU.
    @jax.jit
    def step(params, state, index):
        index_key, shift_key = jax.random.split(jax.random.fold_in(loop_key, index))
        chosen = jax.random.randint(index_key, (batch_size,), 0, len(images))
        gradients = jax.grad(loss_fn)(params, images[chosen], labels[chosen], shift_key)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    images, labels = jnp.asarray(data.train), jnp.asarray(data.train_labels)
    params = jax.jit(model.init)(init_key, jnp.zeros((1, *data.image_shape)))
    state = optimizer.init(params)
    for index in range(steps):
        params, state = step(params, state, index)
    evaluate = jax.jit(functools.partial(logits_of, params))

    def judge(images: Array) -> Verdict:
        logits, features = evaluate(images)
        found = np.asarray(jax.nn.softmax(logits))
        return Verdict(found.argmax(axis=1), found.max(axis=1), np.asarray(features))

    verdict = judge(data.to_float(data.held_out))
    accuracy = float(np.mean(verdict.classes == data.held_out_labels))
    return TrainedClassifier(judge, accuracy, classes)


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    r"""Of the Gaussians with the moments of two sets of features, (N, F) and (M, F).

    |m - m'|^2 + tr(S + S' - 2 (S^(1/2) S' S^(1/2))^(1/2)): see Heusel et al. 2017.
    """
    gap = one.mean(axis=0, dtype=float) - other.mean(axis=0, dtype=float)
    first, second = (np.cov(features.T.astype(float)) for features in (one, other))
    values, vectors = np.linalg.eigh(first)
    root = vectors * np.sqrt(np.maximum(values, 0.0)) @ vectors.T
    common = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0.0))
    return float(gap @ gap + np.trace(first) + np.trace(second) - 2.0 * common.sum())


def class_change_rate(classes: np.ndarray) -> float:
    """How often a chain's class differs from the one kept before it.

    Args:
      classes: (kept, chains), at least two kept.

    Raises:
      ValueError: for another shape.
    """
    if classes.ndim != 2 or len(classes) < 2:
        raise ValueError(f"expected classes (kept >= 2, chains), got {classes.shape}")
    return float(np.mean(classes[1:] != classes[:-1]))
