"""Training: the compiled step, the held-out evaluation, and the loop around them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.flatten_util import ravel_pytree
from tqdm import tqdm

from hos_jax import config as run_config
from hos_jax.data import batch_at
from hos_jax.errors import NonFiniteError, StorageError, UserError
from hos_jax.files import check_run_path, expanded, locked
from hos_jax.noise import example_keys, log_normal_sigmas, log_uniform_sigmas, stream_key
from hos_jax.training import parallel
from hos_jax.training.checkpoint import Checkpoints, check_none_left
from hos_jax.training.logs import RunLog, read_history, shows_progress
from hos_jax.training.problem import (
    Problem,
    check_batch,
    check_denoiser,
    denoiser_answer,
    random_changes,
)
from hos_jax.training.state import TrainState, apply_gradients

logger = logging.getLogger(__name__)


class Batch(NamedTuple):
    """Images as they are in `Problem.data`, and their classes where the network is told them."""

    images: Any
    labels: Any = None


def _noise_levels(
    config: ml_collections.ConfigDict, count: int, key: jax.Array, first_index: int | jax.Array
) -> jax.Array:
    """sigma of `count` examples of a global batch from `first_index` on, float32 (count,).

    With a range of levels they are of the law `training.level_law`, and spread evenly over each
    batch: example i of B takes the quantile u + i / B modulo 1, with one random u per batch.
    """
    smallest, largest = config.model.smallest_noise, config.model.largest_noise
    if smallest is None:
        return jnp.full((count,), config.noise, jnp.float32)
    index = (first_index + jnp.arange(count)).astype(jnp.float32)
    offset = jax.random.uniform(key, dtype=jnp.float32)
    quantile = (offset + index / config.training.batch_size) % 1.0
    if config.training.level_law == "log_uniform":
        return log_uniform_sigmas(quantile, largest, smallest)
    law = config.training.level_mean, config.training.level_std
    return log_normal_sigmas(quantile, largest, smallest, *law)


def _draw(
    problem: Problem,
    clean: jax.Array,
    part: str,
    step: int | jax.Array,
    first_index: int | jax.Array,
    labels: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """Noise, noise levels, probes and classes for this device's part `clean` of a batch, however
    that is split.

    `part` is "training" or "held-out", each with streams of its own. In training some of the
    classes are hidden.
    """
    config, count = problem.config, len(clean)
    first = first_index + parallel.device_index() * count

    def draw(stream: str, sampler: Callable) -> jax.Array:
        keys = example_keys(stream_key(f"{part} {stream}", config.seed, step), first, count)
        return jax.vmap(lambda key: sampler(key, clean.shape[1:], clean.dtype))(keys)

    level_key = stream_key(f"{part} levels", config.seed, step)
    sigma = _noise_levels(config, count, level_key, first)
    drawn = {"noise": draw("noise", jax.random.normal), "sigma": sigma}
    if labels is not None:
        drawn["labels"] = labels
        if part == "training":
            keys = example_keys(stream_key("training labels", config.seed, step), first, count)
            hidden = jax.vmap(jax.random.uniform)(keys) < config.training.label_dropout
            drawn["labels"] = jnp.where(hidden, config.model.classes, labels)
    if problem.objective.needs_probes:
        drawn["probes"] = draw("probes", jax.random.rademacher)
    return drawn


def _one_step(problem: Problem) -> Callable:
    """`train_step(state, batch) -> (state, metrics)` of one device."""

    def train_step(state: TrainState, batch: Batch):
        clean = problem.data.to_float(batch.images)
        drawn = _draw(problem, clean, "training", state.step, 0, batch.labels)

        def mean(values):
            return parallel.mean_over_devices(jnp.mean(values))

        def loss_fn(params):
            losses = problem.losses(params, clean, **drawn, mean=mean)
            averages = jax.tree.map(jnp.mean, losses)
            return averages["loss"], averages

        gradients, losses = jax.grad(loss_fn, has_aux=True)(state.params)
        # As one vector, so that devices exchange one array and not hundreds.
        gradients, losses = parallel.mean_over_devices((ravel_pytree(gradients)[0], losses))
        state, norms = apply_gradients(
            state, gradients, losses["loss"], problem.optimizer, problem.config.optim.ema
        )
        return state, {**losses, **norms}

    return train_step


def make_train_step(problem: Problem, steps: int = 1) -> Callable:
    """`train_step(state, batch) -> (state, metrics)`, mapped over devices, state donated.

    The batch is a `Batch` whose leaves are (devices, B / devices, ...); metrics are averages over
    all devices. Several `steps` in one call are a `lax.scan` over leaves (devices, steps,
    B / devices, ...); then every metric of a device is (steps,).
    """
    step = _one_step(problem)
    several = functools.partial(jax.lax.scan, step)
    return parallel.map_over_devices(step if steps == 1 else several, donate_argnums=(0,))


def make_evaluation(problem: Problem) -> Callable[[Any], dict[str, float]]:
    """`evaluate(params)` on the whole held-out set: the training losses, on the training scale.

    `params` are replicated over devices. Every image counts once; the last batch is padded with
    images of weight 0.
    """
    config, data = problem.config, problem.data

    def evaluation_step(params, batch: Batch, weights, first_index):
        clean = data.to_float(batch.images)
        # The same noise at every evaluation, so that they compare.
        drawn = _draw(problem, clean, "held-out", 0, first_index, batch.labels)
        total = parallel.sum_over_devices(jnp.sum(weights))

        def mean(values):
            return parallel.sum_over_devices(jnp.sum(values * weights)) / total

        losses = problem.losses(params, clean, **drawn, mean=mean)
        return {name: mean(values) * total for name, values in losses.items()}

    labels = data.held_out_labels if config.model.classes else None
    mapped = parallel.map_over_devices(evaluation_step)
    # One batch never needs more memory than a training step.
    batch_size = config.training.batch_size
    per_process = batch_size // parallel.process_count()
    own = parallel.process_index() * per_process + np.arange(per_process)

    def evaluate(params) -> dict[str, float]:
        sums: dict[str, float] = {}
        for start in range(0, len(data.held_out), batch_size):
            index = start + own
            weights = (index < len(data.held_out)).astype(np.float32)
            chosen = np.minimum(index, len(data.held_out) - 1)
            batch = Batch(data.held_out[chosen], None if labels is None else labels[chosen])
            first = parallel.replicate(np.int32(start))
            out = mapped(params, *parallel.shard((batch, weights)), first)
            for name, value in parallel.unreplicate(out).items():
                sums[name] = sums.get(name, 0.0) + float(value)
        return {name: value / len(data.held_out) for name, value in sums.items()}

    return evaluate


class RunFiles(NamedTuple):
    """What the first process writes to, the seconds that the run has trained before, and what
    `_Averages` kept of its last window."""

    checkpoints: Checkpoints
    log: RunLog
    seconds: float
    window: dict[str, Any] | None


def _check_finite(problem, state: TrainState, workdir: Path, files: RunFiles | None) -> None:
    if (step := int(parallel.unreplicate(state.first_nonfinite_step))) >= 0:
        operation = _first_nonfinite_operation(problem, parallel.unreplicate(state), step)
        _stop_nonfinite(f"the loss or its gradient{operation}", step + 1, workdir, files)


def _first_nonfinite_operation(problem: Problem, state: TrainState, step: int) -> str:
    """In words, where JAX is asked to look for NaN: the step once more, operation by operation.

    To JAX a mapped function is one operation. The parameters are still those of that step.
    """
    options: Any = jax.config
    if not (options.jax_debug_nans or options.jax_debug_infs) or parallel.process_count() > 1:
        return ""
    state = dataclasses.replace(state, step=jnp.int32(step), first_nonfinite_step=jnp.int32(-1))
    state = jax.tree.map(lambda leaf: np.stack([leaf] * parallel.device_count()), state)
    train_step = jax.vmap(_one_step(problem), axis_name=parallel.AXIS)
    for check in (jax.debug_nans, jax.debug_infs):
        try:
            with jax.disable_jit(), check(True):
                train_step(state, _batches(problem, step, 1))
        except FloatingPointError as error:
            frames = traceback.extract_tb(error.__traceback__)
            ours = [frame for frame in frames if "hos_jax" in frame.filename][-1]
            return f" ({error} in {Path(ours.filename).name}, line {ours.lineno})"
    return ""


def _stop_nonfinite(what: str, step: int, workdir: Path, files: RunFiles | None) -> None:
    kept = "the first process says what is kept"
    if files is not None:
        files.checkpoints.wait()
        kept = f"{files.checkpoints.kept()} in {workdir}"
    raise NonFiniteError(f"{what} is not finite at step {step}: {kept}")


class _Averages:
    """Metrics averaged over steps; the last stay on the devices: the host need not wait.

    `kept` is what `keep` gave in a process that was interrupted.
    """

    def __init__(self, kept: dict[str, Any] | None = None) -> None:
        self._recent: list[dict] = []
        self._sums: dict[str, float] = {} if kept is None else dict(kept["sums"])
        self.steps = 0 if kept is None else kept["steps"]

    def add(self, metrics: dict) -> None:
        """Those of one call of the train step, of one step or several."""
        self._recent.append(metrics)
        if len(self._recent) > 16:
            self._fetch()

    def _fetch(self) -> None:
        for name, values in parallel.unreplicate(self._recent.pop(0)).items():
            self._sums[name] = self._sums.get(name, 0.0) + float(np.sum(values, dtype=float))
        self.steps += np.size(values)

    def values(self) -> dict[str, float]:
        """The averages."""
        return {name: value / self.steps for name, value in self.keep()["sums"].items()}

    def keep(self) -> dict[str, Any]:
        """What goes on after an interruption, of JSON types."""
        while self._recent:
            self._fetch()
        # A copy: what saves it works in the background.
        return {"sums": dict(self._sums), "steps": self.steps}


def train_and_evaluate(
    config: ml_collections.ConfigDict,
    workdir: Path | str,
    *,
    resume: bool = False,
    on_evaluation: Callable[[Problem, Any, int, RunLog], None] | None = None,
    make_room: Callable[[], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_compiled: Callable[[], None] = lambda: None,
) -> TrainState:
    """Train a run to `config.training.steps` and evaluate it along the way.

    Args:
      config: see `hos_jax.config.default_config`.
      workdir: the run folder; made if it is missing.
      resume: go on from the newest readable checkpoint, or from step 0 if none was saved yet.
      on_evaluation: called as `(problem, parameters, step, log)` after every evaluation, with
        parameters on the host: for pictures.
      make_room: called once the config is known to work, before anything is written.
      should_stop: asked before every call of the step, by several processes before the first one
        after every tenth step; where it says so, the state is saved and returned as it is.
      on_compiled: called whenever a training step has been compiled.

    Returns:
      The final state, on the host.

    Raises:
      UserError: for a config that cannot work, a run that does not fit, that another process
        works on or of which the checkpoints are gone, a folder that cannot be written to, or a
        non-finite loss.
    """
    workdir = expanded(workdir)
    problem = Problem.from_config(config)
    check_batch(problem)
    check_denoiser(problem)
    settings = run_config.to_plain(config)
    settings["data"]["root"] = None  # every host may have the images elsewhere
    parallel.check_agreement("the config", settings)
    parallel.check_agreement("the images", problem.identity())
    files: RunFiles | None = None
    try:
        with contextlib.ExitStack() as open_files:

            def begin() -> TrainState:
                nonlocal files
                state, files = _begin(problem, workdir, resume, make_room, open_files)
                return state

            state = parallel.from_first_process(begin, problem.abstract_state)
            return _loop(problem, state, workdir, files, on_evaluation, should_stop, on_compiled)
    except OSError as error:
        what = _refused(error, workdir)
        raise StorageError(f"{what}: the checkpoints that were saved are kept") from error


def _refused(error: OSError, workdir: Path) -> str:
    return f"cannot write to {error.filename or workdir} ({error.strerror or error})"


def _begin(
    problem: Problem,
    workdir: Path,
    resume: bool,
    make_room: Callable[[], None] | None,
    open_files: contextlib.ExitStack,
) -> tuple[TrainState, RunFiles]:
    """The state to go on from and the files of the run folder; in the first process only."""
    config, answer = problem.config, denoiser_answer(problem)
    check_run_path(workdir)
    if resume:
        begun = run_config.load(workdir)
        run_config.check_same_run(begun, config)
        _check_none_is_lost(workdir, begun.training.checkpoint_every)
        run_config.check_same_images(workdir, problem.identity(), problem.data.form)
        saved = run_config.saved_denoiser_answer(workdir)
        run_config.check_same_denoiser(workdir, saved, answer)
        # What it said when the run was begun, so that a change is told of every time.
        answer = answer if saved is None else saved
    state, seconds, window = None if resume else problem.init(), 0.0, None
    try:
        if make_room is not None:
            make_room()
        workdir.mkdir(parents=True, exist_ok=True)
        open_files.enter_context(locked(workdir))
        if not resume and (workdir / run_config.CONFIG_FILE).exists():
            raise UserError(f"{workdir} already holds a run: resume it or choose another folder")
        if not resume:
            check_none_left(workdir / "checkpoints")
            # The first file of a run: from here on it can be resumed, however the process ends.
            run_config.save(config, workdir, problem.identity(), problem.data.form, answer)
    except OSError as error:
        if resume:
            raise
        raise UserError(f"{_refused(error, workdir)}: the run was not begun") from error
    checkpoints = Checkpoints(
        workdir / "checkpoints", config.training.keep_checkpoints, discard_unfinished=True
    )
    open_files.callback(checkpoints.close)
    if state is None and not checkpoints.steps():
        logger.warning("%s has no checkpoint yet: starting from step 0", workdir)
        state = problem.init()
    elif state is None:
        step, state, details = checkpoints.restore(problem.abstract_state(), move_unreadable=True)
        logger.info("resumed from step %d", step)
        seconds, window = details["seconds"], details.get("window")
    if resume and int(state.step) < config.training.steps:
        # Not sooner: settings with which no step is taken are not those of the run.
        images = run_config.image_identity(workdir)
        run_config.save(config, workdir, images, problem.data.form, answer)
    log = RunLog(workdir, int(state.step))
    open_files.callback(log.close)
    return state, RunFiles(checkpoints, log, seconds, window)


def _check_none_is_lost(workdir: Path, checkpoint_every: int) -> None:
    """Raise UserError for a run without checkpoints whose history goes on beyond its first ones: to
    start over would drop what is left of it."""
    if any((workdir / "checkpoints").glob("*")):
        return
    reached = max((row["step"] for row in read_history(workdir)), default=0)
    # One is complete before the next is begun.
    if reached > 2 * checkpoint_every:
        raise UserError(
            f"{workdir} was trained to step {reached} and has no checkpoint: put its folder "
            "'checkpoints' back, or begin a new run"
        )


def _batches(problem: Problem, step: int, count: int) -> Batch:
    """Sharded batches as `make_train_step` takes them."""
    config, data = problem.config, problem.data
    labels = data.train_labels if config.model.classes else None
    rows = functools.partial(
        batch_at,
        seed=config.seed,
        batch_size=config.training.batch_size,
        process_index=parallel.process_index(),
        process_count=parallel.process_count(),
    )

    def batch(step: int) -> Batch:
        images = rows(data.train, step, **random_changes(config))
        # Rows of one step are the same ones whatever they are of.
        return Batch(images, None if labels is None else rows(labels, step))

    if count == 1:
        return parallel.shard(batch(step))
    several = [batch(step + i) for i in range(count)]
    return parallel.shard(jax.tree.map(lambda *leaves: np.stack(leaves), *several), axis=1)


def _is_stopped(should_stop: Callable[[], bool], step: int, stride: int) -> bool:
    # To ask other processes is to wait for the step that is running.
    if parallel.process_count() > 1 and step % 10 >= stride:
        return False
    return parallel.any_process(should_stop())


def _loop(problem, state, workdir, files, on_evaluation, should_stop, on_compiled) -> TrainState:
    """Train from `state` on; `files` is None in all processes but the first."""
    training = problem.config.training
    first = step = int(state.step)
    total = training.steps
    if step >= total:
        logger.info("the run already has %d of %d steps: it stays as it is", step, total)
        return jax.device_get(state)
    state = parallel.replicate(state)
    compiled: dict[int, Callable] = {}
    evaluate = make_evaluation(problem)
    averages = _Averages(files.window if files is not None else None)
    begun, window_begun, window_step = time.monotonic(), time.monotonic(), step
    shown = files is not None and shows_progress()
    bar = tqdm(total=total, initial=step, unit="step", disable=not shown, dynamic_ncols=True)
    stride = training.steps_per_dispatch
    while step < total and not _is_stopped(should_stop, step, stride):
        count = min(stride - step % stride, total - step)
        batch = _batches(problem, step, count)
        if count not in compiled:
            train_step = make_train_step(problem, count)
            compiled[count] = parallel.compile_for(train_step, state, batch)
            on_compiled()
        # Where JAX is asked to look for NaN, the step is looked at when it is known which.
        with jax.debug_nans(False), jax.debug_infs(False):
            state, metrics = compiled[count](state, batch)
        step += count
        averages.add(metrics)
        if step % training.log_every == 0 or step == total:
            values = averages.values()
            _check_finite(problem, state, workdir, files)
            elapsed = time.monotonic() - window_begun
            values["images_per_second"] = (step - window_step) * training.batch_size / elapsed
            parallel.in_first_process(_log, files, step, values)
            speed = f"{values['images_per_second']:.0f}"
            bar.set_postfix(loss=f"{values['loss']:.4g}", images_s=speed)
            averages, window_begun, window_step = _Averages(), time.monotonic(), step
        bar.update(count)
        evaluated = step % training.evaluate_every == 0 or step == total
        saved = step % training.checkpoint_every == 0 or step == total
        if evaluated or saved:
            paused = time.monotonic()
            _check_finite(problem, state, workdir, files)
            held_out = evaluate(state.best_params)
            if not np.isfinite(held_out["loss"]):
                _stop_nonfinite("the held-out loss", step, workdir, files)
            parallel.in_first_process(_log, files, step, held_out, "held_out")
            if saved:
                parallel.in_first_process(
                    _save, files, step, state, held_out["loss"], begun, averages
                )
            if evaluated and on_evaluation is not None:
                parallel.in_first_process(_show, files, step, state, problem, on_evaluation)
            window_begun += time.monotonic() - paused
    bar.close()
    if first < step < total and not saved:
        _check_finite(problem, state, workdir, files)
        # Without the held-out loss: who asks to stop may not wait for it.
        parallel.in_first_process(_save, files, step, state, None, begun, averages)
    return parallel.unreplicate(state)


def _log(files: RunFiles, step: int, values: dict[str, float], kind: str = "train") -> None:
    files.checkpoints.check()
    files.log.scalars(step, values, kind)


def _show(files: RunFiles, step: int, state: TrainState, problem: Problem, draw: Callable) -> None:
    draw(problem, parallel.unreplicate(state.best_params), step, files.log)


def _save(files, step, state, held_out_loss: float | None, begun: float, averages) -> None:
    seconds = files.seconds + time.monotonic() - begun
    details = {"seconds": seconds, "window": averages.keep()}
    state = parallel.unreplicate(state)
    files.checkpoints.save(step, state, held_out_loss=held_out_loss, details=details)
