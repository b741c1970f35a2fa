"""Scores fitted in one compiled loop, against the exact ones of laws that are known."""

import functools
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

from hos_jax import autodiff, distributions, fit, pointwise
from hos_jax.errors import NonFiniteError
from hos_jax.linops import Dense, DiagonalPlusLowRank
from hos_jax.models.heads import SecondOrderHead
from hos_jax.models.hessian_model import HessianModel
from hos_jax.models.mlp import MLP
from hos_jax.models.score_model import ScoreModel

SIGMA = 0.5
NETWORK = functools.partial(MLP, features=32, depth=2)


@pytest.fixture(scope="module")
def law():
    means = jnp.asarray([[1.0, 0.0, 0.5], [-1.0, 0.5, -0.5]])
    return distributions.GaussianMixture(
        jnp.asarray([0.6, 0.4]), means, stds=jnp.asarray([0.4, 0.6])
    )


def relative_error(estimate, exact, law):
    clean_key, noise_key = jax.random.split(jax.random.key(9))
    clean = law.sample(clean_key, 2000)
    noisy = clean + SIGMA * jax.random.normal(noise_key, clean.shape)
    got, wanted = jax.vmap(estimate)(noisy), jax.vmap(exact)(noisy)
    return float(jnp.sum((got - wanted) ** 2) / jnp.sum(wanted**2))


@pytest.mark.parametrize("loss", ["d2sm_vr", "d2sm_residual", "residual_nll"])
def test_a_second_order_head_is_trained_for_a_score_that_was_not(law, loss):
    smooth = law.smooth(SIGMA)
    head = SecondOrderHead("low_rank", 2, positive_definite=loss == "residual_nll")
    hessian_fn = fit.train_second_order(
        jax.random.key(1),
        smooth.score,
        HessianModel(NETWORK, head),
        law.sample,
        SIGMA,
        dim=3,
        steps=800,
        loss=loss,
        learning_rate=5e-3,
    )
    assert isinstance(hessian_fn(jnp.zeros(3)), DiagonalPlusLowRank)
    error = relative_error(
        lambda y: hessian_fn(y).to_dense(), lambda y: smooth.hessian(y).to_dense(), law
    )
    assert error < 0.03


def test_an_s2_is_learned_from_the_derivative_of_a_score_alone(law):
    """Of a wrong score too: the target is what that score says, not the law."""
    smooth = law.smooth(SIGMA)

    def score_fn(noisy):
        return smooth.score(noisy) + 0.3 * jnp.sin(3 * noisy)

    def hessian(noisy):
        return smooth.hessian(noisy).to_dense() + jnp.diag(0.9 * jnp.cos(3 * noisy))

    hessian_fn = fit.train_second_order(
        jax.random.key(1),
        score_fn,
        HessianModel(NETWORK, SecondOrderHead("dense", positive_definite=False)),
        law.sample,
        SIGMA,
        dim=3,
        steps=800,
        loss="jacobian",
        learning_rate=5e-3,
    )
    assert relative_error(lambda y: hessian_fn(y).to_dense(), hessian, law) < 0.02


def test_held_out_losses_are_the_squared_errors_up_to_a_constant(law):
    """Of an exact s1, where C is I + sigma^2 s2: what is added to s2 costs its square."""
    smooth = law.smooth(SIGMA)
    wrong = jnp.asarray([[0.4, -0.2, 0.0], [-0.2, 0.0, 0.1], [0.0, 0.1, -0.3]])

    def judge(hessian_fn):
        key, count = jax.random.key(8), 20_000
        return fit.held_out_losses(
            key, smooth.score, hessian_fn, law.sample, SIGMA, dim=3, count=count
        )

    right = judge(smooth.hessian)
    off = judge(lambda y: Dense(smooth.hessian(y).to_dense() + wrong))
    difference = off - right
    error = difference.std() / np.sqrt(len(difference))
    # Half of it for each point of the pair.
    expected = float(jnp.sum(jnp.square(SIGMA**2 * wrong)))
    assert abs(difference.mean() - expected) < 4 * error < 0.5 * expected
    assert right.std() < 10 * difference.std()
    with pytest.raises(TypeError, match=r"s2 is an array .*linops\.Dense"):
        judge(lambda y: smooth.hessian(y).to_dense())


@pytest.mark.parametrize("wrong", [pytest.param(False, marks=pytest.mark.slow), True])
def test_auto_takes_the_jacobian_where_it_is_right(law, wrong, monkeypatch):
    """Few steps at a small noise, where targets of the data are noisy; and a score that is wrong
    where its derivative shows it."""
    smooth, found = law.smooth(0.1), []
    learn = fit.fit_hessian

    def spy(*arguments, **options):
        found.append((options["loss"], options.get("jacobian_weight")))
        return learn(*arguments, **options)

    monkeypatch.setattr(fit, "fit_hessian", spy)

    def score_fn(noisy):
        return smooth.score(noisy) + (2.0 * jnp.sin(40 * noisy) if wrong else 0.0)

    head = SecondOrderHead("dense", positive_definite=False, scale=0.01)
    hessian_fn = fit.train_second_order(
        jax.random.key(1),
        score_fn,
        HessianModel(NETWORK, head),
        law.sample,
        0.1,
        dim=3,
        steps=300,
        jacobian_weight="auto",
        learning_rate=5e-3,
    )
    assert found == [("d2sm_residual", 0.0), ("d2sm_residual", 0.5), ("jacobian", None)]
    best = "d2sm_residual" if wrong else "jacobian"
    alone = fit.train_second_order(
        jax.random.key(1),
        score_fn,
        HessianModel(NETWORK, head),
        law.sample,
        0.1,
        dim=3,
        steps=300,
        learning_rate=5e-3,
        loss=best,
    )
    at = jnp.asarray([0.3, -0.2, 0.5])
    np.testing.assert_array_equal(hessian_fn(at).to_dense(), alone(at).to_dense())


def test_auto_judges_by_draws_that_no_fit_has_seen(law, monkeypatch):
    seen, judge = {"fits": set(), "judging": set()}, fit.held_out_losses
    where = ["fits"]

    def note(key):
        seen[where[0]].add(tuple(np.asarray(key).ravel().tolist()))

    def sample(key, count):
        jax.debug.callback(note, jax.random.key_data(key))
        return law.sample(key, count)

    def judged(*arguments, **options):
        jax.effects_barrier()
        where[0] = "judging"
        found = judge(*arguments, **options, count=16)
        jax.effects_barrier()
        return found

    monkeypatch.setattr(fit, "held_out_losses", judged)
    monkeypatch.setattr(fit, "JACOBIAN_WEIGHTS", (0.0,))
    model = HessianModel(functools.partial(MLP, features=4, depth=1), SecondOrderHead("diagonal"))
    arguments = jax.random.key(1), jnp.negative, model, sample, SIGMA
    fit.train_second_order(*arguments, jacobian_weight="auto", dim=3, steps=16)
    assert len(seen["fits"]) == len(seen["judging"]) == 16
    assert not seen["fits"] & seen["judging"]


def test_a_score_is_fitted_and_its_derivative_follows(law):
    smooth, model = law.smooth(SIGMA), ScoreModel(NETWORK, data_std=1.0)
    params = jax.jit(
        lambda key: fit.fit_score(
            key, model, law.sample, SIGMA, dim=3, steps=800, learning_rate=5e-3
        )
    )(jax.random.key(2))
    score_fn = pointwise.score_fn(model, params, SIGMA)
    assert relative_error(score_fn, smooth.score, law) < 0.02
    hessian_fn = autodiff.dense_hessian_fn(score_fn)
    error = relative_error(
        lambda y: hessian_fn(y).to_dense(), lambda y: smooth.hessian(y).to_dense(), law
    )
    assert error < 0.2


def test_what_cannot_be_fitted_is_refused(law):
    with pytest.raises(ValueError, match="steps >= 1, got 0"):
        fit.minimize(jax.random.key(0), lambda k, p: p, jnp.zeros(()), steps=0)
    model = HessianModel(NETWORK, SecondOrderHead("diagonal"))
    with pytest.raises(ValueError, match="second-order loss"):
        fit.train_second_order(
            jax.random.key(0), law.score, model, law.sample, 0.5, dim=3, steps=1, loss="none"
        )


def test_seeds_run_together_and_agree_with_one_alone(law):
    model = ScoreModel(NETWORK, data_std=1.0)

    def train(key):
        return fit.fit_score(key, model, law.sample, SIGMA, dim=3, steps=5, batch_size=16)

    keys = jax.random.split(jax.random.key(4), 2)
    together = jax.jit(jax.vmap(train))(keys)
    alone = jax.jit(train)(jax.random.clone(keys)[1])
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a[1], b, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64, np.uint8, ">f4", np.longdouble])
def test_rows_of_an_array_are_drawn_at_random(kind):
    data = np.arange(12).reshape(6, 2).astype(kind)
    sample = fit.rows(data)
    drawn = jax.jit(sample, static_argnums=1)(jax.random.key(0), 600)
    assert drawn.shape == (600, 2) and jnp.issubdtype(drawn.dtype, jnp.floating)
    rows, counts = np.unique(np.asarray(drawn), axis=0, return_counts=True)
    np.testing.assert_array_equal(rows, data)
    assert counts.min() > 60


def test_rows_of_an_array_are_fitted():
    model = ScoreModel(functools.partial(MLP, features=4, depth=1))
    sample = fit.rows(np.random.default_rng(0).normal(size=(20, 2)))
    params = fit.fit_score(jax.random.key(0), model, sample, SIGMA, dim=2, steps=300)
    # Far from the rows a score leads back.
    far = jnp.array([3.0, -3.0])
    assert jnp.all(pointwise.score_fn(model, params, SIGMA)(far) * far < 0)


@pytest.mark.parametrize(
    "data",
    [
        np.zeros(3),
        np.zeros((0, 3)),
        np.full((3, 2), np.nan),
        np.full((3, 2), 1 + 2j),
        np.ma.masked_equal([[1.0, 2.0], [9.0, 3.0]], 9.0),
        np.array([["1", "high"]]),
        [[1.0, 2.0], [3.0]],
        np.full((3, 2), 1e300),
    ],
)
def test_rows_refuse_what_is_no_data(data):
    known = r"shape \(N, D\)|not finite|stack its real|masked|no number|values beyond float32"
    with pytest.raises(ValueError, match=known):
        fit.rows(data)


def test_tables_of_16_bits_are_fitted_in_float32():
    table = np.random.default_rng(0).normal(size=(9, 300)).astype(np.float16)
    drawn = fit.rows(table)(jax.random.key(0), 5)
    assert drawn.dtype == jnp.float32 and np.isin(drawn, table.astype(np.float32)).all()
    model = ScoreModel(functools.partial(MLP, features=4, depth=1))
    low = lambda key, count: jax.random.normal(key, (count, 300), jnp.bfloat16)  # noqa: E731
    wide = lambda key, count: low(key, count).astype(jnp.float32)  # noqa: E731
    same = [
        fit.fit_score(jax.random.key(1), model, sample, 0.5, dim=300, steps=2, batch_size=4)
        for sample in (low, wide)
    ]
    chex.assert_trees_all_equal(*same)


@pytest.mark.parametrize(
    ("scales", "offset", "warns"),
    [
        ((1.0, 1.0), 0.0, False),
        ((1.0, 1.0), 5.0, False),
        ((1.0, 1.0), 30.0, True),
        ((10.0, 1.0), 30.0, False),
        ((1e9, 1e3), 1.7e9, True),
        ((1.0, 0.0), 30.0, False),
    ],
)
def test_a_column_far_from_zero_is_named(caplog, scales, offset, warns):
    data = scales * np.random.default_rng(0).normal(size=(50, 2)) + np.array([0.0, offset])
    for given in (data, jnp.asarray(data)):
        caplog.clear()
        fit.rows(given)
        assert ("column 1 varies by" in caplog.text) == warns


def test_a_diverged_fit_is_said(law, monkeypatch):
    monkeypatch.setattr(fit, "fit_hessian", lambda *_, **__: {"kernel": jnp.array([1.0, jnp.nan])})
    monkeypatch.setattr(fit.pointwise, "hessian_fn", lambda *_, **__: None)
    with pytest.raises(NonFiniteError, match="the fit of s2 diverged"):
        fit.train_second_order(
            jax.random.key(1), law.score, None, law.sample, SIGMA, dim=3, steps=1
        )


@pytest.mark.parametrize(("losses", "taken"), [([np.nan, 2.0, 1.0], 2), ([3.0, np.inf, np.nan], 0)])
def test_auto_leaves_diverged_fits_out(law, monkeypatch, losses, taken):
    made = [types.SimpleNamespace() for _ in range(3)]
    fits, judged = iter(made), iter(losses)
    monkeypatch.setattr(fit, "fit_hessian", lambda *_, **__: jnp.zeros(()))
    monkeypatch.setattr(fit.pointwise, "hessian_fn", lambda *_, **__: next(fits))
    monkeypatch.setattr(fit, "held_out_losses", lambda *_, **__: jnp.asarray(next(judged)))
    arguments = jax.random.key(1), law.score, None, law.sample, SIGMA
    learn = functools.partial(fit.train_second_order, jacobian_weight="auto", dim=3, steps=1)
    assert learn(*arguments) is made[taken]
    assert made[taken].jacobian_weight == fit.JACOBIAN_WEIGHTS[taken]
    fits, judged = iter(made), iter([np.nan] * 3)
    with pytest.raises(NonFiniteError, match="every fit of s2 diverged"):
        learn(*map(jax.random.clone, arguments[:1]), *arguments[1:])


def test_rows_may_be_asked_for_within_a_compiled_function():
    data = np.random.default_rng(0).normal(size=(20, 2))
    draw = jax.jit(lambda key: fit.rows(data)(key, 5))
    np.testing.assert_array_equal(draw(jax.random.key(0)), fit.rows(data)(jax.random.key(0), 5))
    given = jax.jit(lambda key, data: fit.rows(data)(key, 5))(jax.random.key(0), data)
    np.testing.assert_array_equal(given, fit.rows(data)(jax.random.key(0), 5))
    with pytest.raises(ValueError, match="not finite"):
        jax.jit(lambda key: fit.rows(np.full((2, 2), np.nan))(key, 5))(jax.random.key(0))


def test_rows_of_large_integers_do_not_wrap():
    drawn = fit.rows(np.full((3, 2), 2**40))(jax.random.key(0), 4)
    np.testing.assert_array_equal(drawn, np.full((4, 2), 2.0**40))


@pytest.mark.parametrize("sigma", [0.0, -0.3, float("nan"), np.inf, np.float32(0), np.ones(1)])
def test_a_sigma_that_is_none_is_refused(law, sigma):
    model = ScoreModel(NETWORK)
    for one in (sigma, jnp.asarray(sigma)):
        with pytest.raises(ValueError, match="positive and finite scalar sigma"):
            fit.fit_score(jax.random.key(0), model, law.sample, one, dim=3, steps=1)


@pytest.mark.parametrize(
    "sample",
    [
        lambda key, count: np.ones((9, 3))[jax.random.randint(key, (count,), 0, 9)],
        lambda _key, count: np.random.default_rng(0).normal(size=(count, 3)),
        lambda _key, count: jnp.asarray(np.random.default_rng(0).normal(size=(count, 3))),
        np.ones((9, 3)),
    ],
)
def test_a_sampler_in_numpy_is_told_what_to_do(sample):
    model = ScoreModel(functools.partial(MLP, features=4, depth=1))
    with pytest.raises(TypeError, match=r"fit\.rows\(data\), or jnp\.asarray\(data\)"):
        fit.fit_score(jax.random.key(0), model, sample, SIGMA, dim=3, steps=2)


def test_a_head_that_would_not_be_trained_is_refused(law):
    model = ScoreModel(NETWORK, SecondOrderHead("diagonal"))
    with pytest.raises(ValueError, match="trains s1 alone"):
        fit.fit_score(jax.random.key(0), model, law.sample, SIGMA, dim=3, steps=1)


@pytest.mark.parametrize("head", [None, SecondOrderHead("diagonal")])
def test_s2_beside_a_score_takes_a_hessian_model(law, head):
    model = ScoreModel(NETWORK, head)
    with pytest.raises(ValueError, match="take a HessianModel"):
        fit.fit_hessian(jax.random.key(0), law.score, model, law.sample, SIGMA, dim=3, steps=1)
    model = HessianModel(NETWORK, SecondOrderHead("diagonal"))
    with pytest.raises(TypeError, match="dim= is missing"):
        fit.fit_hessian(jax.random.key(0), law.score, model, law.sample, SIGMA, steps=1)


def test_what_was_trained_is_traced_once(law):
    traces = []

    def score_fn(noisy):
        traces.append(noisy.shape)
        return law.score(noisy)

    model = HessianModel(NETWORK, SecondOrderHead("diagonal"))
    hessian_fn = fit.train_second_order(
        jax.random.key(0), score_fn, model, law.sample, SIGMA, dim=3, steps=1, batch_size=4
    )
    first = hessian_fn(jnp.zeros(3)).to_dense()
    traces.clear()
    assert np.any(hessian_fn(jnp.ones(3)).to_dense() != first) and not traces


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (
            lambda key, count: jax.random.normal(key, (count, 4)),
            r"shape \(128, 3\), got \(128, 4\)",
        ),
        (lambda key, count: jax.random.normal(key, (3,)), r"shape \(128, 3\), got \(3,\)"),
        (lambda key, count: jax.random.randint(key, (count, 3), 0, 9), "got sample of int32"),
    ],
)
def test_samples_of_another_form_are_refused(sample, message):
    model = ScoreModel(NETWORK)
    with pytest.raises(ValueError, match=message):
        fit.fit_score(jax.random.key(0), model, sample, SIGMA, dim=3, steps=1)
    with pytest.raises(ValueError, match=r"whole number steps >= 1, got 1\.5"):
        fit.fit_score(jax.random.key(0), model, fit.rows(np.ones((2, 3))), SIGMA, dim=3, steps=1.5)


def test_the_order_of_version_0_1_works_with_a_warning():
    model, sample = ScoreModel(functools.partial(MLP, features=4, depth=1)), fit.rows(np.eye(3))
    new = fit.fit_score(jax.random.key(0), model, sample, SIGMA, dim=3, steps=1)
    with pytest.warns(DeprecationWarning, match="fit_score takes its key first"):
        old = fit.fit_score(model, sample, SIGMA, jax.random.key(0), dim=3, steps=1)
    chex.assert_trees_all_equal(new, old)


def test_a_network_of_s2_begins_with_the_layers_of_that_of_s1(law):
    """Where names and shapes agree; the score beside the noisy point, which only s2 sees, has
    weight 0 at first."""
    score_params = fit.fit_score(
        jax.random.key(0), ScoreModel(NETWORK, data_std=1.0), law.sample, SIGMA, dim=3, steps=2
    )
    model = HessianModel(NETWORK, SecondOrderHead("dense"))
    # A step so small that it changes no parameter.
    still = {"dim": 3, "steps": 1, "learning_rate": 1e-30, "loss": "jacobian"}

    def fit_hessian(**settings):
        score_fn = law.smooth(SIGMA).score
        return fit.fit_hessian(jax.random.key(1), score_fn, model, law.sample, SIGMA, **settings)

    begun = fit_hessian(start_from=score_params, **still)["params"]["score2"]
    alone = fit_hessian(**still)["params"]["score2"]
    known = score_params["params"]["score1"]
    first = begun["hidden0"]["kernel"]
    np.testing.assert_array_equal(first[:3], known["hidden0"]["kernel"])
    assert first.shape[0] == 6 and np.abs(first[3:]).max() < 1e-20
    chex.assert_trees_all_close(begun["hidden1"], known["hidden1"], rtol=0, atol=1e-20)
    again = fit_hessian(start_from=score_params["params"], **still)["params"]["score2"]
    chex.assert_trees_all_equal(again, begun)
    with pytest.raises(TypeError, match=r"start_from are parameters, .* got a function"):
        fit_hessian(start_from=lambda noisy: noisy, **still)

    chex.assert_trees_all_close(begun["out"], alone["out"], rtol=0, atol=1e-20)
    with pytest.raises(ValueError, match="no layer in common"):
        fit_hessian(start_from={"params": {"score1": {"other": {"bias": jnp.ones(3)}}}}, **still)


def test_what_chooses_the_jacobian_is_checked_before_anything_is_fitted(law):
    model = HessianModel(NETWORK, SecondOrderHead("dense"))
    learn = functools.partial(
        fit.train_second_order, jax.random.key(0), law.score, model, law.sample, SIGMA, dim=3
    )
    with pytest.raises(TypeError, match=r"fit\.rows\(data\)"):
        learn(steps=10**9, jacobian_weight="auto", held_out=np.zeros((5, 3)))
    with pytest.raises(ValueError, match=r"a number from 0 to 1, got 2\.0"):
        learn(steps=1, jacobian_weight=2.0)
    with pytest.raises(ValueError, match='expected jacobian_weight "auto" or a number'):
        learn(steps=1, jacobian_weight="Auto")


CONDITIONAL = ScoreModel(
    NETWORK,
    SecondOrderHead("dense"),
    data_std=1.0,
    noise_conditional=True,
    precondition_covariance=True,
)
RANGE = 0.1, 10.0


def test_scores_of_a_range_of_levels_are_those_of_a_correlated_gaussian():
    covariance = jnp.asarray([[1.0, 0.8], [0.8, 1.0]])
    law = distributions.Gaussian(jnp.zeros(2), covariance)
    train = jax.jit(
        lambda key: fit.fit_scores(key, CONDITIONAL, law.sample, RANGE, dim=2, steps=800)
    )
    derivatives_fn = pointwise.derivatives_fn(CONDITIONAL, train(jax.random.key(0)))
    for sigma in (0.3, 1.0, 10.0):
        smooth = law.smooth(sigma)
        points = smooth.sample(jax.random.key(1), 200)
        score1, score2 = jax.vmap(lambda y, s=sigma: derivatives_fn(y, s))(points)
        exact = jax.vmap(smooth.score)(points)
        # What a network with output 0 says: the data without the correlation.
        start = -points / (1.0 + sigma**2)
        error = jnp.linalg.norm(score1 - exact)
        if sigma < 5:
            assert error < 0.4 * jnp.linalg.norm(start - exact)
        assert error < 0.3 * jnp.linalg.norm(exact)
        found = np.eye(2) + sigma**2 * np.asarray(score2.to_dense())
        wanted = np.eye(2) + sigma**2 * np.asarray(smooth.hessian(points[0]).to_dense())
        independent = np.eye(2) / (1.0 + sigma**2)
        errors = np.linalg.norm(found - wanted, axis=(1, 2)).mean()
        assert errors < 0.5 * np.linalg.norm(independent - wanted)


@pytest.mark.parametrize("networks", ["per_order", "shared"])
def test_all_orders_of_a_model_are_fitted_together(law, networks):
    model = CONDITIONAL.clone(networks=networks, third_order=True)
    settings = {"dim": 3, "steps": 2, "jacobian_weight": 0.5}
    begun = []
    start = model.init

    def spy(*arguments, **options):
        begun.append(start(*arguments, **options))
        return begun[0]

    object.__setattr__(model, "init", spy)
    params = fit.fit_scores(jax.random.key(0), model, law.sample, RANGE, **settings)
    for before, after in zip(jax.tree.leaves(begun[0]), jax.tree.leaves(params), strict=True):
        assert before.shape == after.shape and np.any(np.asarray(before) != np.asarray(after))


def test_a_model_of_a_range_is_told_its_level(law):
    # Without a skip connection only what the network is told tells the levels apart.
    model = ScoreModel(NETWORK, data_std=None, noise_conditional=True)
    params = fit.fit_score(jax.random.key(0), model, law.sample, SIGMA, dim=3, steps=2)
    score_fn = pointwise.score_fn(model, params)
    told = [sigma * score_fn(jnp.ones(3), sigma) for sigma in (0.1, 1.0)]
    assert not np.allclose(*told, rtol=1e-2)


def test_every_row_of_a_batch_meets_every_level():
    """Of a sampler whose first rows are of one law and the last of another both are learned."""

    def sample(key, count):
        means = jnp.where(jnp.arange(count) < count // 2, -2.0, 2.0)
        return means[:, None] + 0.25 * jax.random.normal(key, (count, 1))

    model = ScoreModel(NETWORK, noise_conditional=True)
    train = jax.jit(lambda key: fit.fit_score(key, model, sample, RANGE, dim=1, steps=800))
    score_fn = pointwise.score_fn(model, train(jax.random.key(0)))
    at_means = jnp.asarray([score_fn(jnp.full(1, mean), 0.2)[0] for mean in (-2.0, 2.0)])
    assert np.all(np.abs(at_means) < 0.5)


def test_levels_of_16_bits_are_those_that_they_stand_for(law):
    model = ScoreModel(NETWORK)
    params = fit.fit_score(jax.random.key(0), model, law.sample, 0.3, dim=3, steps=1)
    short, point = jnp.bfloat16(0.3), jnp.ones(3)
    assert abs(float(short) / 0.3 - 1) > 1e-3
    for default, level in ((0.3, short), (short, 0.3), (short, short)):
        score_fn = pointwise.score_fn(model, params, default)
        assert np.isfinite(score_fn(point, level)).all()
        assert np.isfinite(jax.jit(score_fn)(point, level)).all()


@pytest.mark.parametrize(
    ("model", "sigma", "error", "message"),
    [
        (CONDITIONAL.clone(noise_conditional=False), RANGE, ValueError, "noise_conditional"),
        (CONDITIONAL, (1.0, 0.1), ValueError, "smallest < largest"),
        (CONDITIONAL, (0.0, 0.1), ValueError, "positive and finite"),
        (CONDITIONAL, (0.1, 1.0, 2.0), ValueError, r"\(smallest, largest\)"),
        (ScoreModel(NETWORK), 0.5, ValueError, "with a head"),
        (NETWORK, 0.5, TypeError, "expected a ScoreModel with the network in it"),
        (CONDITIONAL.clone(classes=3), RANGE, ValueError, "take classes=0 in place of 3"),
    ],
)
def test_what_cannot_be_fitted_together_is_refused(law, model, sigma, error, message):
    with pytest.raises(error, match=message):
        fit.fit_scores(jax.random.key(0), model, law.sample, sigma, dim=3, steps=1)


@pytest.mark.parametrize("sigma", [RANGE, (0.1,), [0.1, 10.0]])
def test_s2_of_a_given_score_is_of_one_level(law, sigma):
    model = HessianModel(NETWORK, SecondOrderHead("dense"), noise_conditional=True)
    with pytest.raises(ValueError, match="positive and finite scalar sigma"):
        fit.fit_hessian(jax.random.key(0), law.score, model, law.sample, sigma, dim=3, steps=1)


def test_a_range_is_fitted_with_strict_types(law):
    model = ScoreModel(NETWORK, noise_conditional=True)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        fit.fit_score(jax.random.key(0), model, fit.rows(np.ones((5, 3))), RANGE, dim=3, steps=1)


@pytest.mark.parametrize("ends", [tuple, list, jnp.stack])
def test_a_range_that_is_traced_is_named(law, ends):
    def train(largest):
        sigma = ends([jnp.float32(0.1), largest])
        return fit.fit_scores(jax.random.key(0), CONDITIONAL, law.sample, sigma, dim=3, steps=1)

    with pytest.raises(ValueError, match="two known numbers, none of them traced"):
        jax.jit(train)(1.0)


def test_a_diverged_fit_of_a_score_is_said(law):
    with pytest.raises(NonFiniteError, match="the fit diverged"):
        fit.fit_score(
            jax.random.key(0),
            ScoreModel(NETWORK),
            law.sample,
            SIGMA,
            dim=3,
            steps=3,
            learning_rate=1e30,
            clip=1e30,
        )


def test_a_fit_at_one_level_is_of_no_other(law):
    model = ScoreModel(NETWORK)
    params = fit.fit_score(jax.random.key(0), model, law.sample, SIGMA, dim=3, steps=1)
    score_fn = pointwise.score_fn(model, params, SIGMA)
    np.testing.assert_array_equal(score_fn(jnp.ones(3), SIGMA), score_fn(jnp.ones(3)))
    with pytest.raises(ValueError, match=r"told no noise level, and its sigma here is 0\.5.*not 1"):
        score_fn(jnp.ones(3), 1.0)
    assert np.isnan(jax.jit(score_fn)(jnp.ones(3), 1.0)).all()


def test_what_was_learned_of_s2_can_be_kept(law, tmp_path):
    model = HessianModel(NETWORK, SecondOrderHead("dense"))
    learned = fit.train_second_order(
        jax.random.key(0), law.score, model, law.sample, SIGMA, dim=3, steps=1, jacobian_weight=0.5
    )
    assert learned.jacobian_weight == 0.5
    file = tmp_path / "fit.msgpack"
    file.write_bytes(serialization.msgpack_serialize(jax.device_get(learned.params)))
    params = serialization.msgpack_restore(file.read_bytes())
    again = pointwise.hessian_fn(model, params, SIGMA, score_fn=law.score)
    point = jnp.ones(3)
    np.testing.assert_array_equal(again(point).to_dense(), learned(point).to_dense())


@pytest.mark.parametrize("kind", ["M8[D]", "m8[s]"])
def test_rows_of_dates_are_refused(kind):
    with pytest.raises(ValueError, match="what is no number"):
        fit.rows(np.ones((4, 1), int).astype(kind))
