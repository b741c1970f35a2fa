r"""Scores of orders one to three from one or more networks, converted in one place.

Networks speak in dimensionless quantities: a prediction of the noise z, the posterior covariance C
in units of sigma^2, and the diagonal of T = sigma^3 s3. `ModelOutputs` is the only place where they
become scores:

.. math:: s_1 = -\hat z / \sigma, \qquad s_2 = (C - I) / \sigma^2, \qquad
    s_{3,iii} = T_{iii} / \sigma^3
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Literal, get_args

import flax.errors
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from hos_jax.linops import SymmetricMatrix
from hos_jax.linops.local import ImageShape
from hos_jax.models.heads import SecondOrderHead
from hos_jax.types import Array, Tails, at_least_float32

Networks = Literal["shared", "per_order", "cascade", "per_output"]
NETWORKS = get_args(Networks)


def split_blocks(images: Array, blocks: int) -> Array:
    """A network's output (N, H, W, k C), k blocks of C channels, as raw values (N, k, D)."""
    split = images.reshape(*images.shape[:3], blocks, -1)
    return jnp.moveaxis(split, 3, 1).reshape(len(images), blocks, -1)


def as_images(noisy: Array, sigma: Array | float) -> tuple[Array, Array]:
    """Points as images (N, H, W, C), vectors (N, D) as (N, 1, 1, D), and a sigma for each, (N,);
    both float32 or, of such points, float64.

    Raises:
      ValueError: for points of another rank or that are not floating-point numbers, and for a
        sigma that is not one number, or one a point.
    """
    if noisy.ndim not in (2, 4):
        raise ValueError(
            "expected a batch of points, images (N, H, W, C) or vectors (N, D), got the shape "
            f"{noisy.shape}; a single point x is the batch x[None]"
        )
    if not jnp.issubdtype(noisy.dtype, jnp.floating):
        remedy = "hos_jax.data.to_float makes them of images in bytes"
        raise ValueError(
            f"expected noisy points of floating-point numbers, got {noisy.dtype}: {remedy}"
        )
    if jnp.shape(sigma) not in ((), (1,), noisy.shape[:1]):
        wanted = f"one sigma, or one for each of {len(noisy)} points"
        raise ValueError(f"expected {wanted}, got the shape {jnp.shape(sigma)}")
    images = noisy if noisy.ndim == 4 else noisy[:, None, None, :]
    # What is made of a network's output needs more digits than 16 bits have.
    images = at_least_float32(images)
    return images, jnp.broadcast_to(jnp.asarray(sigma, images.dtype), images.shape[:1])


def _as_labels(labels: Array | None, classes: int, count: int) -> Array:
    """The class of each of `count` points, `classes` where it is not known, (N,)."""
    if labels is None:
        return jnp.full(count, classes, jnp.int32)
    labels = jnp.asarray(labels)
    if labels.shape != (count,) or not jnp.issubdtype(labels.dtype, jnp.integer):
        got = f"{labels.dtype} {labels.shape}"
        raise ValueError(f"expected a whole number up to {classes} for each of {count}, got {got}")
    # Beyond the last one an embedding is NaN; before the first it would be another class.
    return jnp.where(labels < 0, classes + 1, labels)


def shape_of(noisy: Array) -> ImageShape | None:
    """(H, W, C) of a batch of images, None of a batch of vectors."""
    if noisy.ndim != 4:
        return None
    _, height, width, channels = noisy.shape
    return height, width, channels


@flax.struct.dataclass
class ModelOutputs:
    """What a model says at a batch of N points; flattened in (H, W, C) order to D values.

    Attributes:
      noise_prediction: prediction of z = (y - x) / sigma, (N, D), or None if not asked for.
      raw_second_order: input of the head, (N, k, D), or None for a first-order model.
      sigma: noise level at each point, (N,), data units.
      raw_third_order: T_iii = sigma^3 s3_iii, (N, D), or None without a third-order model.
      head: the second-order head, or None.
      output_units: "score" if what the head gives is s2 itself.
      image_shape: (H, W, C) of the points; None for vectors.
      covariance_unit: what the head's C is multiplied by, (N,), dimensionless, or None for 1.

    Raises:
      ValueError: where an order is asked for that the model has not.
    """

    noise_prediction: Array | None
    raw_second_order: Array | None
    sigma: Array
    raw_third_order: Array | None = None
    head: SecondOrderHead | None = flax.struct.field(pytree_node=False, default=None)
    output_units: str = flax.struct.field(pytree_node=False, default="dimensionless")
    image_shape: ImageShape | None = flax.struct.field(pytree_node=False, default=None)
    covariance_unit: Array | None = None

    @property
    def score1(self) -> Array:
        """s1, (N, D), in 1 / data units."""
        if self.noise_prediction is None:
            raise ValueError("these outputs have no first order")
        return -self.noise_prediction / self.sigma[:, None]

    @property
    def scaled_hessian(self) -> SymmetricMatrix:
        """S = sigma^2 s2, dimensionless, a batch of structured matrices."""
        hessian = self._second_order("scaled_hessian")
        return hessian.scale(self.sigma**2) if self.output_units == "score" else hessian

    @property
    def score2(self) -> SymmetricMatrix:
        """s2, in 1 / data units^2, a batch of structured matrices."""
        return self.scaled_hessian.scale(1.0 / self.sigma**2)

    @property
    def covariance(self) -> SymmetricMatrix:
        """C, the posterior covariance in units of sigma^2, a batch of structured matrices."""
        if self.output_units == "score":
            return self.scaled_hessian.add_identity(1.0)
        return self._second_order("covariance")

    @property
    def scaled_third_diagonal(self) -> Array:
        """T_iii = sigma^3 s3_iii, (N, D), dimensionless."""
        if self.raw_third_order is None:
            raise ValueError("this model has no third order")
        return self.raw_third_order

    @property
    def score3_diagonal(self) -> Array:
        """s3_iii, the third derivatives of log q along each value, (N, D), 1 / data units^3."""
        return self.scaled_third_diagonal / self.sigma[:, None] ** 3

    @property
    def tails(self) -> Tails:
        """Those of the law of the residual, Gaussian or Student's, as the head says."""
        return "gaussian" if self.head is None else self.head.tails

    def at(self, start: int, stop: int) -> ModelOutputs:
        """The outputs at points start ... stop - 1."""
        return jax.tree.map(lambda leaf: leaf[start:stop], self)

    def _second_order(self, matrix: str) -> SymmetricMatrix:
        """What the head makes of its input, dimensionless."""
        if self.head is None or self.raw_second_order is None:
            raise ValueError("this model has no second order")
        asked = matrix if self.covariance_unit is None else "covariance"
        make = getattr(self.head, asked)
        made = jax.vmap(lambda raw: make(raw, self.image_shape))(self.raw_second_order)
        if self.covariance_unit is None:
            return made
        covariance = made.scale(self.covariance_unit)
        return covariance if matrix == asked else covariance.add_identity(-1.0)


def outputs_of(model: Any, params: Any, *inputs: Array | float, **options: Any) -> ModelOutputs:
    """What one of the models here says of its inputs: `apply` with the type it has.

    ValueError where the parameters are those of another model, or of points of another shape, and
    something of them is missing or of another shape.
    """
    try:
        outputs: Any = model.apply(params, *inputs, **options)
    except flax.errors.ScopeParamShapeError as error:
        shape = jnp.shape(inputs[0])[1:]
        raise ValueError(
            f"these parameters are not of points of the shape {shape}, or of another model: "
            f"{str(error).partition(' (http')[0]}"
        ) from error
    except (flax.errors.ScopeCollectionNotFound, flax.errors.ScopeParamNotFoundError) as error:
        raise ValueError(
            "these are not the parameters of this model, {'params': {...}} as init gives them: "
            f"{str(error).partition(' (http')[0]}"
        ) from error
    return outputs


class ScoreModel(nn.Module):
    r"""s1, and s2 and the diagonal of s3 where asked for, from networks of images to images.

    The noise prediction has a skip connection with the weights of the best linear denoiser of data
    with standard deviation `data_std` (Karras et al. 2022, table 1): with v = sigma^2 + data_std^2,

    .. math:: \hat z = y \sigma / v + f(y / \sqrt{v}) \, \mathrm{data\_std} / \sqrt{v}

    so that a network with output 0 is already a denoiser. `data_std=None` leaves the skip out. With
    `precondition_covariance` what the head gives is multiplied by data_std^2 / v, the C of Gaussian
    data, which at large sigma is small: a network with output 0 has log 2 of that.

    Attributes:
      network: `network(out_channels=..., name=...)` makes a module (N, H, W, C) ->
        (N, H, W, out_channels).
      head: the second-order head, or None for s1 alone.
      networks: "shared" (one trunk for everything), "per_order" (a network each for s1, s2, s3),
        "cascade" (the same, and those of s2 and s3 see what that of s1 says) or
        "per_output" (s1, diagonal, factor and s3 apart, as published).
      data_std: see above, in data units.
      output_units: "dimensionless", or "score" for imported networks whose outputs are s1 and s2
        themselves; the latter needs an unconstrained head and `data_std=None`.
      third_order: whether the diagonal of T = sigma^3 s3 is an output too.
      noise_conditional: whether the network is given sigma, (N,), as a second input.
      classes: how many classes it is told as a third one, 0 for none; needs noise_conditional.
      precondition_covariance: see above; needs `data_std` and a positive definite head.
    """

    network: Callable[..., nn.Module]
    head: SecondOrderHead | None = None
    networks: Networks = "per_order"
    data_std: float | None = 0.5
    output_units: Literal["dimensionless", "score"] = "dimensionless"
    third_order: bool = False
    noise_conditional: bool = False
    classes: int = 0
    precondition_covariance: bool = False

    # No field, as it has no type: whether s1 has a derivative, which a `FixedScoreModel` may lack.
    differentiable = True

    @property
    def has_score1_apart(self) -> bool:
        """Whether s1 has a network that no other order needs."""
        return self.networks in ("per_order", "per_output")

    @nn.compact
    def __call__(
        self,
        noisy: Array,
        sigma: Array | float,
        labels: Array | None = None,
        *,
        orders: Collection[int] = (1, 2, 3),
    ) -> ModelOutputs:
        """Evaluate at noisy points y and noise levels sigma, data units, as `as_images` takes them.

        y is (N, H, W, C) images or (N, D) vectors, sigma a scalar or (N,), labels whole numbers
        below `classes`, (N,), or `classes` itself where the class is not known, as without labels.
        Of networks apart, or in a cascade, only those that `orders` need are evaluated.
        ValueError for labels that the model does not take; those out of this range give NaN.
        """
        images, sigma = as_images(noisy, sigma)
        condition: tuple[Array, ...] = (sigma,) if self.noise_conditional else ()
        if self.classes and not self.noise_conditional:
            raise ValueError(f"classes={self.classes} need noise_conditional=True")
        if self.classes:
            condition += (_as_labels(labels, self.classes, len(images)),)
        elif labels is not None:
            raise ValueError("this model is not told the class: leave the labels out")
        if self.data_std is not None and not self.data_std > 0:
            raise ValueError(f"expected data_std > 0, or None, got {self.data_std}")
        if self.output_units == "score" and self.data_std is not None:
            raise ValueError(
                "output_units='score' needs data_std=None: the network gives s1 itself"
            )
        variance = sigma**2 + (0.0 if self.data_std is None else self.data_std**2)
        scale = jnp.ones_like(sigma) if self.data_std is None else 1.0 / jnp.sqrt(variance)
        blocks = 0 if self.head is None else self.head.blocks(shape_of(noisy) or noisy.shape[1])
        scaled = images * scale[:, None, None, None]
        raw1, raw2, raw3 = self._evaluate(scaled, condition, blocks, orders)

        flat, level = images.reshape(images.shape[0], -1), sigma[:, None]
        if raw1 is not None:
            raw1 = raw1.reshape(flat.shape)
            if self.output_units == "score":
                raw1 = -raw1 * level
            elif self.data_std is not None:
                skip = level / variance[:, None] * flat
                raw1 = skip + (self.data_std * scale)[:, None] * raw1
        if raw3 is not None:
            raw3 = raw3.reshape(flat.shape)
            raw3 = raw3 * level**3 if self.output_units == "score" else raw3
        shape, unit = shape_of(noisy), None
        if self.precondition_covariance:
            if self.data_std is None or not (self.head is None or self.head.positive_definite):
                raise ValueError("precondition_covariance needs data_std and a head of covariances")
            unit = jnp.square(self.data_std * scale)
        return ModelOutputs(raw1, raw2, sigma, raw3, self.head, self.output_units, shape, unit)

    def _evaluate(
        self, images: Array, level: tuple[Array, ...], blocks: int, orders: Collection[int]
    ) -> tuple[Array | None, Array | None, Array | None]:
        """Raw values of s1 (N, H, W, C), of s2 (N, k, D) and of s3 (N, H, W, C)."""
        channels = images.shape[-1]
        if self.networks not in NETWORKS:
            raise ValueError(f"unknown networks {self.networks!r}: {', '.join(NETWORKS)}")

        def network(name, outputs):
            return self.network(out_channels=channels * outputs, name=name)

        # A network may compute in bfloat16; what scores, covariances and losses do with its output
        # needs the digits of the images' dtype.
        def evaluate(name, outputs, images=images):
            return network(name, outputs)(images, *level).astype(images.dtype)

        raw1: Any = None
        raw2: Any = None
        raw3: Any = None
        if self.networks == "shared" and (blocks or self.third_order):
            raw = evaluate("trunk", 1 + blocks + self.third_order)
            raw1, raw2, raw3 = jnp.split(raw, (channels, channels * (1 + blocks)), axis=-1)
        else:
            blocks = blocks if 2 in orders else 0
            third = self.third_order and 3 in orders
            seen = images
            if 1 in orders or not self.has_score1_apart:
                score1 = network("score1", 1)
                raw1 = score1(images, *level).astype(images.dtype)
            if self.networks == "cascade" and (blocks or third):
                # Losses of higher orders must not bend s1: its parameters are constants here, its
                # dependence on the point is not.
                constant = jax.lax.stop_gradient(score1.variables)
                known1 = score1.clone(parent=None, name=None).apply(constant, images, *level)
                seen = jnp.concatenate([images, known1.astype(images.dtype)], axis=-1)
            if blocks and self.networks == "per_output":
                parts = {"diagonal": 1, "factor": blocks - 1}
                found = [evaluate(name, size) for name, size in parts.items() if size]
                raw2 = jnp.concatenate(found, axis=-1)
            elif blocks:
                raw2 = evaluate("score2", blocks, seen)
            if third:
                raw3 = evaluate("score3", 1, seen)
        raw2 = split_blocks(raw2, blocks) if blocks else None
        return raw1, raw2, raw3 if self.third_order else None
