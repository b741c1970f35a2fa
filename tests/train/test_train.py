"""Training: it learns, it resumes bit for bit, it stops on numbers that are none."""

import json
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from hos_jax.config import load as load_config
from hos_jax.data import batch_at, to_float
from hos_jax.errors import OtherRunError, UserError
from hos_jax.noise import example_keys, stream_key
from hos_jax.training import parallel
from hos_jax.training.logs import read_history
from hos_jax.training.loop import (
    Batch,
    NonFiniteError,
    make_evaluation,
    make_train_step,
    train_and_evaluate,
)
from hos_jax.training.problem import Problem
from hos_jax.training.runs import load_run
from hos_jax.training.state import _splitting, apply_gradients, init_state, make_optimizer


def assert_same_bits(a, b):
    leaves_a, leaves_b = jax.tree.leaves(a), jax.tree.leaves(b)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(leaves_a, leaves_b, strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_training_lowers_the_held_out_losses(small_config, tmp_path):
    config = small_config(training__steps=300, training__evaluate_every=100, model__ngf=64)
    state = train_and_evaluate(config, tmp_path)
    assert int(state.step) == 300
    held_out = [row for row in read_history(tmp_path) if row["group"] == "held_out"]
    assert held_out[-1]["score1"] < 0.9 * held_out[0]["score1"]
    assert held_out[-1]["score2"] < held_out[0]["score2"] - 0.1


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_resumed_run_equals_one_never_stopped(small_config, tmp_path, ema):
    whole = train_and_evaluate(small_config(optim__ema=ema), tmp_path / "whole")
    config = small_config(optim__ema=ema, training__steps=4)
    train_and_evaluate(config, tmp_path / "parts")
    config.training.steps = 6
    parts = train_and_evaluate(config, tmp_path / "parts", resume=True)
    assert (whole.ema_params is None) == (ema == 0.0)
    assert_same_bits(whole, parts)
    # A third time there is nothing left to do.
    assert_same_bits(whole, train_and_evaluate(config, tmp_path / "parts", resume=True))


def test_history_of_a_resumed_run_has_every_step_once(small_config, tmp_path):
    config = small_config(training__steps=5)
    train_and_evaluate(config, tmp_path)
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"step": 6, "group": "train", "loss": 0.0}\n{"step": 7, "gro')
    config.training.steps = 6
    train_and_evaluate(config, tmp_path, resume=True)
    steps = [row["step"] for row in read_history(tmp_path) if row["group"] == "train"]
    assert steps == sorted(set(steps)) and steps[-1] == 6


def test_an_interruption_leaves_no_mark_in_the_history(small_config, tmp_path):
    """Averages over the steps of a window are those of all its steps."""
    config = small_config(training__log_every=4, training__evaluate_every=6, training__steps=12)
    train_and_evaluate(config, tmp_path / "whole")
    asked = iter([False] * 6 + [True] + [False] * 3 + [True])
    for resume in (False, True, True):
        train_and_evaluate(
            config, tmp_path / "parts", resume=resume, should_stop=lambda: next(asked, False)
        )

    def rows(name):
        history = read_history(tmp_path / name)
        return [{k: v for k, v in row.items() if k != "images_per_second"} for row in history]

    assert rows("parts") == rows("whole")
    assert [row["step"] for row in rows("whole") if row["group"] == "train"] == [4, 8, 12]


def test_held_out_losses_are_the_average_over_every_image(small_config, tmp_path):
    # 180 images do not divide by 32: the padded last batch must not count twice.
    config = small_config(training__batch_size=32)
    problem = Problem.from_config(config)
    state = problem.init()
    got = make_evaluation(problem)(parallel.replicate(state.params))
    clean = to_float(problem.data.held_out, problem.data.value_range)
    keys = example_keys(stream_key("held-out noise", config.seed), 0, len(clean))
    noise = jax.vmap(lambda key: jax.random.normal(key, clean.shape[1:]))(keys)
    out = problem.objective.per_example(
        lambda points, sigma: problem.model.apply(state.params, points, sigma),
        clean,
        noise,
        config.noise,
    )
    for name, values in out.items():
        np.testing.assert_allclose(got[name], jnp.mean(values), rtol=1e-4)


def test_one_step_is_adam_on_the_objective(small_config):
    config = small_config(optim__clip=0.0, optim__ema=0.5)
    problem = Problem.from_config(config)
    state = problem.init()
    images = batch_at(problem.data.train, 0, seed=config.seed, batch_size=8)
    new_state, metrics = make_train_step(problem)(
        parallel.replicate(state), parallel.shard(Batch(images))
    )
    new_state = parallel.unreplicate(new_state)
    clean = to_float(images, problem.data.value_range)
    keys = example_keys(stream_key("training noise", config.seed, 0), 0, 8)
    noise = jax.vmap(lambda key: jax.random.normal(key, clean.shape[1:]))(keys)

    def loss(params):
        out = problem.objective.per_example(
            lambda points, sigma: problem.model.apply(params, points, sigma),
            clean,
            noise,
            config.noise,
        )
        return jnp.mean(out["loss"])

    value, gradient = jax.value_and_grad(loss)(state.params)
    np.testing.assert_allclose(parallel.unreplicate(metrics)["loss"], value, rtol=1e-5)

    def check(before, g, after, ema):
        # Adam's first step moves by lr * g / (|g| + eps).
        expected = before - config.optim.lr * g / (np.abs(g) + 1e-8)
        moved = np.abs(np.asarray(g)) > 1e-5
        np.testing.assert_allclose(after[moved], expected[moved], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(ema, 0.5 * before + 0.5 * after, rtol=1e-5, atol=1e-7)

    jax.tree.map(check, state.params, gradient, new_state.params, new_state.ema_params)


def test_a_diverging_run_stops_and_keeps_its_last_good_checkpoint(small_config, tmp_path):
    good = train_and_evaluate(small_config(training__steps=2), tmp_path)
    config = load_config(tmp_path)
    config.training.steps, config.optim.lr, config.optim.clip = 40, 1e20, 0.0
    with pytest.raises(NonFiniteError, match=r"not finite at step \d+: the checkpoint of step 2"):
        train_and_evaluate(config, tmp_path, resume=True)
    config.training.steps = 2
    assert_same_bits(good, train_and_evaluate(config, tmp_path, resume=True))


def test_learning_rate_schedule_clipping_and_decay(small_config):
    config = small_config(optim__schedule="cosine", optim__warmup=2, optim__final_lr=1e-4)
    optimizer = make_optimizer(config.optim, 6)
    params = {"w": jnp.asarray([1.0])}
    state, moves = optimizer.init(params), []
    for _ in range(6):
        update, state = optimizer.update({"w": jnp.asarray([100.0])}, state, params)
        moves.append(-float(update["w"][0]) / config.optim.lr)
    np.testing.assert_allclose(moves[:2], [0.5, 1.0], rtol=1e-4)
    cosine = [0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * k / 4)) for k in range(4)]
    np.testing.assert_allclose(moves[2:], cosine, rtol=1e-4)


def test_parameters_are_drawn_as_by_flax_however_many(small_config):
    problem = Problem.from_config(small_config())
    key = stream_key("parameters", problem.config.seed)
    image = jnp.zeros((1, *problem.data.image_shape))
    expected = problem.model.init(key, image, problem.config.noise)
    # One by one, as where they are hundreds, and as one program, which rounds otherwise.
    assert_same_bits(problem._init_params(key), expected)
    chex.assert_trees_all_close(problem.init().params, expected, atol=1e-6)


def test_a_network_is_traced_once_for_its_parameters(small_config, monkeypatch):
    problem, calls = Problem.from_config(small_config()), []
    model = type(problem.model)
    traced = model.lazy_init

    def counted(self, *arguments):
        calls.append(arguments)
        return traced(self, *arguments)

    monkeypatch.setattr(model, "lazy_init", counted)
    problem.abstract_state()
    problem.init()
    assert len(calls) == 1


@pytest.mark.skipif(not parallel.on_cpu(), reason="elsewhere the places are constants")
def test_arrays_of_one_shape_are_cut_out_by_equal_loops():
    """As XLA compiles equal loops once; hundreds that differ take as long as the network."""
    tree = {f"{n}": jnp.full((3, n % 2 + 1), float(n)) for n in range(40)}

    def cut(vector, step):
        return _splitting(tree, step)(vector)

    vector = ravel_pytree(tree)[0]
    compiled = jax.jit(cut).lower(vector, jnp.int32(5)).compile()
    chex.assert_trees_all_equal(compiled(vector, jnp.int32(5)), tree)
    bodies = re.findall(r"^%\S+ \(.*?^}", compiled.as_text(), re.MULTILINE | re.DOTALL)
    loops = [re.sub(r", metadata=\{[^}]*\}|%?[a-z_-]+[.\d]+", "", body) for body in bodies]
    assert len(loops) >= 30 and len(set(loops)) <= 10


def test_only_kernels_decay_and_the_state_stays_one_vector(small_config):
    optim = small_config(optim__weight_decay=0.1).optim
    optimizer = make_optimizer(optim, 6)
    params = {"Conv": {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.ones(3)}, "scale": jnp.ones(2)}
    state = init_state(params, optimizer, 0.0)
    # Of the form that checkpoints have had since version 0.1.
    shapes = [leaf.shape for leaf in jax.tree.leaves(state.opt_state)]
    assert shapes == [(), (11,), (11,), ()]
    nothing = jax.tree.map(jnp.zeros_like, params)
    after = apply_gradients(state, nothing, jnp.zeros(()), optimizer, 0.0)[0].params
    expected = 2.0 * (1 - 0.1 * optim.lr)
    np.testing.assert_allclose(after["Conv"]["kernel"], expected, rtol=1e-6)
    assert np.all(after["Conv"]["bias"] == 1) and np.all(after["scale"] == 1)


def test_a_run_whose_checkpoints_were_taken_away_is_not_begun_anew(small_config, tmp_path):
    every = {"training__log_every": 1, "training__checkpoint_every": 1}
    config = small_config(**every, training__evaluate_every=1, training__steps=3)
    train_and_evaluate(config, tmp_path)
    history = (tmp_path / "history.jsonl").read_text()
    (tmp_path / "checkpoints").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="was trained to step 3 and has no checkpoint: put its"):
        train_and_evaluate(config, tmp_path, resume=True)
    assert (tmp_path / "history.jsonl").read_text() == history
    (tmp_path / "elsewhere").rename(tmp_path / "checkpoints")
    config.training.steps = 4
    assert int(train_and_evaluate(config, tmp_path, resume=True).step) == 4


def test_a_run_is_trained_under_strict_promotion(small_config, tmp_path):
    with jax.numpy_dtype_promotion("strict"):
        state = train_and_evaluate(small_config(training__steps=1), tmp_path)
    assert int(state.step) == 1


def test_the_run_folder_holds_everything_that_made_it(small_config, tmp_path):
    config = small_config(noise=0.7)
    train_and_evaluate(config, tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["noise"] == 0.7 and saved["model"]["rank"] == 3 and saved["seed"] == 1234
    assert saved["versions"]["jax"] == jax.__version__
    assert load_config(tmp_path).to_dict() == config.to_dict()
    assert any((tmp_path / "tensorboard").iterdir())


def test_another_model_noise_or_data_is_refused(small_config, tmp_path):
    train_and_evaluate(small_config(training__steps=1), tmp_path)
    for change in ({"noise": 0.1}, {"model__ngf": 8}, {"data__random_flip": True}):
        with pytest.raises(UserError, match="other settings") as error:
            train_and_evaluate(small_config(**change), tmp_path, resume=True)
        assert next(iter(change)).replace("__", ".") in str(error.value)
    with pytest.raises(UserError, match="already holds a run"):
        train_and_evaluate(small_config(), tmp_path)
    with pytest.raises(UserError, match="no run in"):
        train_and_evaluate(small_config(), tmp_path / "nothing", resume=True)


def test_a_run_whose_images_have_another_shape_now_is_refused_by_name(small_config, tmp_path):
    config = small_config(training__steps=1)
    train_and_evaluate(config, tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    saved["image_form"]["shape"] = [8, 8, 3]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    for call in (load_run, lambda folder: train_and_evaluate(config, folder, resume=True)):
        with pytest.raises(OtherRunError, match=r"were \[8, 8, 3\] when .* are \[8, 8, 1\] now"):
            call(tmp_path)


def test_parameters_from_elsewhere_have_the_learning_rate_of_their_step(small_config):
    optimizer = make_optimizer(small_config(optim__warmup=10, optim__lr=1e-3).optim, 100)
    state = init_state({"w": jnp.ones(3)}, optimizer, 0.0, step=4)
    assert state.step == 4
    updates, _ = optimizer.update(jnp.ones(3), state.opt_state, jnp.zeros(3))
    # The first step of Adam is as long as the learning rate, here 5 tenths of the whole.
    np.testing.assert_allclose(updates, -0.5e-3, rtol=1e-4)


def test_nothing_is_trained_beside_the_checkpoints_of_a_run_without_config(small_config, tmp_path):
    train_and_evaluate(small_config(training__steps=2), tmp_path)
    (tmp_path / "config.json").rename(tmp_path / "elsewhere")
    with pytest.raises(
        UserError, match=r"has the checkpoints .* config\.json is gone: put it back"
    ):
        train_and_evaluate(small_config(training__steps=1), tmp_path)
    assert not (tmp_path / "config.json").exists()
    (tmp_path / "elsewhere").rename(tmp_path / "config.json")
    assert load_run(tmp_path).step == 2


def test_unusable_configs_are_refused_before_any_work(small_config, tmp_path):
    cases = {
        "noise": (0.0, "noise must be positive"),
        "model__rank": (65, "exceeds the 64 values"),
        "model__name": ("vgg", "choose one of unet"),
        "training__batch_size": (5000, "exceeds the 1617 training images"),
        "loss__second_order": ("none", "do not fit"),
        "model__positive_definite": (False, "needs model.positive_definite=True"),
        "optim__ema": (1.0, r"must be in \[0, 1\)"),
        "data__name": ("imagenet", "choose one of mnist"),
    }
    for key, (value, message) in cases.items():
        with pytest.raises(UserError, match=message):
            train_and_evaluate(small_config(**{key: value}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    config = small_config(model__name="unet", model__multipliers=(1, 1, 1, 1, 1))
    with pytest.raises(UserError, match="sides divisible by 16"):
        train_and_evaluate(config, tmp_path / "run")
