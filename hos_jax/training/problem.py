"""What a config describes: the data, the model, the losses and the optimizer."""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
import traceback
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from hos_jax import config as run_config
from hos_jax.adapters import AdaptedScore
from hos_jax.config.denoiser import NOT_FINITE, load_denoiser
from hos_jax.config.networks import make_hessian_model, make_model
from hos_jax.data import ImageData, load
from hos_jax.data.batches import check_changes
from hos_jax.errors import NotDifferentiableError, UserError
from hos_jax.losses.objective import Objective
from hos_jax.models.hessian_model import FixedScoreModel
from hos_jax.models.score_model import ModelOutputs, ScoreModel, outputs_of
from hos_jax.noise import stream_key
from hos_jax.training import parallel
from hos_jax.training.state import TrainState, init_state, make_optimizer

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """What a config describes, built once; equal to itself alone, as key of compiled functions."""

    config: ml_collections.ConfigDict
    data: ImageData
    model: ScoreModel | FixedScoreModel
    objective: Objective
    optimizer: optax.GradientTransformation

    @classmethod
    def from_config(
        cls, config: ml_collections.ConfigDict, data: ImageData | None = None
    ) -> Problem:
        """Load the data, unless given, and build the rest; UserError for a config that cannot work,
        or that does not fit the data that it names."""
        run_config.validate(config)
        given, data = data is not None, _load(config.data) if data is None else data
        model = _make_model(config, data)
        dim = data.dim
        if model.head is not None and model.head.has_columns and config.model.rank > dim:
            what = f"model.rank={config.model.rank} exceeds the {dim} values of an image"
            raise UserError(f"{what}: lower it, or set --config.model.head=dense or diagonal")
        if not given:
            _check_scale(config.model.data_std, data)
            _check_classes(config.model.classes, data)
        balance = config.model.data_std if config.model.smallest_noise is not None else None
        chosen = config.loss.to_dict()
        if chosen["first_order_weight"] is None:
            chosen["first_order_weight"] = 1.0
        objective = Objective(**chosen, balance_std=balance)
        optimizer = make_optimizer(config.optim, config.training.steps)
        return cls(config, data, model, objective, optimizer)

    def identity(self) -> dict[str, Any]:
        """What tells the images from others, and their classes where the network is told them."""
        return self.data.identity(labels=self.config.model.classes is not None)

    def init(self) -> TrainState:
        """The state before the first step; UserError if the network does not fit the image size."""
        # With hundreds of draws it is quicker to run them one by one, as most share a shape.
        many = len(jax.tree.leaves(self._abstract_params)) > 300
        draw = self._init_params if many else self._init_params_at_once
        params = draw(stream_key("parameters", self.config.seed))
        return jax.jit(self._init_state)(params)

    def abstract_state(self) -> TrainState:
        """Shapes and dtypes of the state, which a checkpoint must have; raises as `init`."""
        return jax.eval_shape(self._init_state, self._abstract_params)

    def losses(
        self,
        params: Any,
        clean: jax.Array,
        *drawn: Any,
        labels: jax.Array | None = None,
        **options: Any,
    ) -> dict:
        """The losses of a batch, each (N,), of these classes if any; see `Objective.per_example`.

        At several points of each example the network is told the class at each of them.
        """

        def evaluate(
            params: Any, points: jax.Array, sigma: jax.Array, **orders: Any
        ) -> ModelOutputs:
            known = () if labels is None else (jnp.tile(labels, len(points) // len(labels)),)
            return outputs_of(self.model, params, points, sigma, *known, **orders)

        def score_fn(points: jax.Array, sigma: jax.Array) -> jax.Array:
            return evaluate(jax.lax.stop_gradient(params), points, sigma, orders=(1,)).score1

        options["apart"] = self.model.has_score1_apart
        if isinstance(self.model, ScoreModel):
            options["score_fn"] = score_fn
        model = functools.partial(evaluate, params)
        return self.objective.per_example(model, clean, *drawn, **options)

    def _init_state(self, params: Any) -> TrainState:
        return init_state(params, self.optimizer, self.config.optim.ema)

    @functools.cached_property
    def _init_params_at_once(self) -> Any:
        """`_init_params`, compiled as a whole.

        Random draws are much code and little work: XLA's CPU back end takes 5 times longer to
        optimize them than to run them unoptimized, and the time grows faster than their number.
        """
        options = {"xla_backend_optimization_level": 0} if parallel.on_cpu() else None
        return jax.jit(self._init_params, compiler_options=options)

    @functools.cached_property
    def _abstract_params(self) -> Any:
        try:
            # By what `init` calls for fewer than hundreds: JAX keeps what it has traced.
            return self._init_params_at_once.eval_shape(jax.random.key(0))
        except ValueError as error:
            raise UserError(str(error)) from error

    def _init_params(self, key: jax.Array) -> Any:
        # The key is an argument: as a constant, XLA would fold every random draw while compiling.
        shapes = (1, *self.data.image_shape), ()
        inputs = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
        return self.model.lazy_init(key, *inputs)


def _load(options: ml_collections.ConfigDict) -> ImageData:
    """The data that a config's `data` names."""
    size, width = options.image_size, options.image_width
    return load(
        options.name,
        root=options.root,
        image_size=size if width is None else (size, width),
        crop=options.crop,
        skip_unreadable=options.skip_unreadable,
        grey=options.grey,
    )


def _make_model(config: ml_collections.ConfigDict, data: ImageData) -> ScoreModel | FixedScoreModel:
    """The model of the config, beside the denoiser from outside if it names one."""
    if config.model.denoiser is None:
        return make_model(config.model)
    score_fn = load_denoiser(config.model.denoiser, data.value_range)
    hessian = make_hessian_model(config.model)
    return FixedScoreModel(hessian, score_fn, _has_derivative(score_fn, data.image_shape))


def _has_derivative(score_fn: AdaptedScore, shape: tuple[int, ...]) -> bool:
    """Whether a score can be differentiated; a network may hide a black box inside."""

    def derivative(noisy: jax.Array, sigma: jax.Array) -> Any:
        return jax.jvp(lambda y: score_fn(y, sigma), (noisy,), (noisy,))

    point, level = (jax.ShapeDtypeStruct(each, jnp.float32) for each in (shape, ()))
    try:
        jax.eval_shape(derivative, point, level)
    except NotDifferentiableError:
        return False
    # Whatever else is wrong with it, `check_denoiser` says.
    except Exception:
        return score_fn.differentiable
    return True


def _check_scale(data_std: float, data: ImageData) -> None:
    """Warn of a user's own numbers for which the network's scale was not set."""
    if not data_std:
        return
    # Of large data some will do.
    some = data.train[:: max(1, len(data.train) // 1000)]
    whole = some.dtype == np.uint8
    found = float(np.std(data.to_float(some), dtype=np.float64))
    if not 0.1 < found / data_std < 10:
        taken = ", where whole numbers of 8 bits are taken as 0 to 255," if whole else ""
        remedy = "save the images as floats, or set it" if whole else "set it"
        logger.warning(
            f"the standard deviation of the data{taken} is {found:.3g} and model.data_std is "
            f"{data_std:.3g}: {remedy}, and a noise in the same units"
        )


def _check_classes(classes: int | None, data: ImageData) -> None:
    """UserError where the network is to be told classes that the data does not have."""
    if classes is None:
        return
    if data.train_labels is None or data.held_out_labels is None:
        raise UserError(f"model.classes={classes}, but {data.name} has no labels: leave it unset")
    found = np.unique(data.train_labels)
    everywhere = np.append(found, data.held_out_labels)
    if len(found) != classes or everywhere.min() < 0 or everywhere.max() >= classes:
        raise UserError(
            f"model.classes={classes}, but the labels of {data.name} are {everywhere.min()} to "
            f"{everywhere.max()}, {len(found)} of them in training: classes are counted from 0, "
            "and there must be images of each"
        )


def check_denoiser(problem: Problem) -> None:
    """Ask a denoiser from outside once, before anything is written.

    UserError for what it raises, values that are not finite, noise levels that it does not know, or
    another answer for an image among others than for it alone; a warning where it takes no noise
    away.
    """
    if not isinstance(problem.model, FixedScoreModel):
        return
    config, name = problem.config, f"model.denoiser={problem.config.model.denoiser}"
    clean = problem.data.to_float(problem.data.held_out[:4])
    key = stream_key("denoiser check", config.seed)
    noise = np.asarray(jax.random.normal(key, clean.shape))
    levels = {config.noise, config.model.smallest_noise, config.model.largest_noise} - {None}
    for sigma in sorted(levels):
        noisy = clean + np.float32(sigma) * noise
        score = np.stack([_ask_denoiser(problem, one, sigma) for one in noisy])
        if not np.isfinite(score).all():
            raise UserError(f"{name} {NOT_FINITE} at {_level(problem, sigma)}")
        _check_images_apart(problem, noisy, score, sigma)
        left = float(np.mean(np.square(noisy + sigma**2 * score - clean)))
        if left >= sigma**2:
            logger.warning(
                f"{name} takes no noise away at {_level(problem, sigma)}: the mean squared error "
                f"is {left:.3g} of {sigma**2:.3g}; is the range of its values another one?"
            )


def _check_images_apart(problem: Problem, noisy: Any, alone: np.ndarray, sigma: float) -> None:
    """UserError for a denoiser that mixes the images of a batch, as a filter of a whole array does:
    training would learn of other errors than those that it makes of a picture.

    A few hundredths of sigma are the rounding of a network, and a function that gives another
    answer at every call is held against that.
    """
    others = noisy if len(noisy) > 1 else np.concatenate([noisy, noisy[:, ::-1]])
    together = _ask_denoiser(problem, others, sigma)[: len(noisy)]
    apart = sigma * float(np.sqrt(np.mean(np.square(together - alone))))
    again = _ask_denoiser(problem, noisy[0], sigma)
    repeated = sigma * float(np.sqrt(np.mean(np.square(again - alone[0]))))
    name = f"model.denoiser={problem.config.model.denoiser}"
    if repeated > run_config.SAME_ANSWER:
        logger.warning(
            f"{name} gives another answer at every call, by {repeated:.2g} sigma: its covariance "
            "has what is random in it too"
        )
    if apart > max(0.03, 5.0 * repeated):
        raise UserError(
            f"{name} gives another answer for an image "
            f"among others than for it alone, by {apart:.2g} sigma: it gets a batch, (N, H, W, C), "
            "and has to filter each of the N images by itself, as it would alone"
        )


def denoiser_answer(problem: Problem) -> list[float] | None:
    """Sixteen values, in units of sigma, of what a denoiser from outside takes off an image that is
    half grey and half white, with noise; None without one, and for one that gives another answer at
    every call. UserError for what it raises."""
    if not isinstance(problem.model, FixedScoreModel):
        return None
    config, shape = problem.config, problem.data.image_shape
    low, high = problem.data.value_range
    clean = np.full(shape, 0.5 * (low + high), np.float32)
    clean[:, shape[1] // 2 :] = high
    noise = jax.random.normal(stream_key("denoiser answer", config.seed), shape)
    noisy = clean + config.noise * noise
    score, again = (_ask_denoiser(problem, noisy, config.noise).ravel() for _ in range(2))
    if config.noise * np.abs(again - score).max() > run_config.SAME_ANSWER:
        return None
    chosen = np.linspace(0, score.size - 1, 16).astype(int)
    return [round(float(value), 5) for value in config.noise * score[chosen]]


def _ask_denoiser(problem: Problem, noisy: Any, sigma: float) -> np.ndarray:
    """What a denoiser from outside says of an image, or of a batch at once, as a score; UserError
    for what it raises."""
    assert isinstance(problem.model, FixedScoreModel)
    score_fn = problem.model.score_fn
    if noisy.ndim > len(problem.data.image_shape):
        score_fn = jax.vmap(score_fn, (0, None))
    try:
        return np.asarray(score_fn(noisy, jnp.asarray(sigma)))
    # The user's own code, whatever it raises.
    except Exception as error:
        # Of an error within a callback the last line is its cause.
        said = [line for line in str(error).splitlines() if line.strip()] or [repr(error)]
        name = problem.config.model.denoiser
        if said[-1].endswith(NOT_FINITE):
            level = _level(problem, sigma)
            raise UserError(f"model.denoiser={name} {NOT_FINITE} at {level}") from error
        what = f"model.denoiser={name} fails at {_level(problem, sigma)}"
        raise UserError(f"{what}: {said[-1].strip()}{_line_in(name, error)}") from error


def _level(problem: Problem, sigma: float) -> str:
    """A noise level in words, in data units and in those of --sigma where these are others."""
    low, high = problem.data.value_range
    white = "" if high - low == 1 else f", {sigma / (high - low):.4g} of black to white"
    return f"sigma {sigma:.4g}{white}"


def _line_in(denoiser: str, error: Exception) -> str:
    """The last line of the denoiser's own file that an error came through, in brackets."""
    file = denoiser.rpartition(":")[0]
    # Of an error within a callback there is the text of its traceback alone.
    lines = re.findall(rf'File "{re.escape(file)}", line (\d+)', str(error))
    frames = traceback.extract_tb(error.__traceback__)
    lines += [str(frame.lineno) for frame in frames if frame.filename == file]
    return f" (line {lines[-1]} of it)" if lines else ""


def check_batch(problem: Problem) -> None:
    """Raise UserError for a batch that these devices or images cannot make; for training alone."""
    batch_size, devices = problem.config.training.batch_size, parallel.device_count()
    setting, available = f"training.batch_size={batch_size}", len(problem.data.train)
    if batch_size % devices:
        raise UserError(f"{setting} does not divide over {devices} devices: choose a multiple")
    if batch_size > available:
        raise UserError(f"{setting} exceeds the {available} training images")
    check_changes(problem.data.train, **random_changes(problem.config))


def random_changes(config: ml_collections.ConfigDict) -> dict[str, bool]:
    """How `batch_at` changes training images at random."""
    return {name: config.data[name] for name in ("random_flip", "random_turn")}
