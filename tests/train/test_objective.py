"""The objective is the losses at the right points, per dimension, whatever the noise level."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hos_jax import losses
from hos_jax.losses.objective import FIRST_ORDER, SECOND_ORDER, Objective
from hos_jax.models.heads import SecondOrderHead
from hos_jax.models.mlp import MLP
from hos_jax.models.score_model import ScoreModel

SIGMA, COUNT, DIM = 0.3, 6, 4
PROBES = jax.random.rademacher(jax.random.key(5), (COUNT, DIM), jnp.float32)


@pytest.fixture(scope="module")
def problem():
    def network(out_channels, name=None):
        return MLP(out_channels, features=8, depth=1, name=name)

    model = ScoreModel(network, SecondOrderHead("low_rank", 2))
    keys = jax.random.split(jax.random.key(0), 3)
    clean, noise = (jax.random.normal(key, (COUNT, DIM)) for key in keys[:2])
    params = model.init(keys[2], clean, SIGMA)
    return lambda p, s: model.apply(params, p, s), clean, noise, params, model


def score_jacobian(evaluate, point):
    return jax.jacfwd(lambda y: evaluate(y[None], SIGMA).score1[0])(point)


@pytest.mark.parametrize("second_order", SECOND_ORDER)
@pytest.mark.parametrize("first_order", ["dsm", "dsm_vr"])
def test_objective_is_the_losses_at_their_points(problem, first_order, second_order):
    evaluate, clean, noise, *_ = problem
    objective = Objective(first_order, second_order, first_order_weight=3.0)
    got = objective.per_example(evaluate, clean, noise, SIGMA, probes=PROBES)
    plus_points = clean + SIGMA * noise
    plus, minus, at = (
        evaluate(points, SIGMA) for points in (plus_points, clean - SIGMA * noise, clean)
    )
    if first_order == "dsm":
        first = [losses.dsm(plus.score1[i], noise[i], SIGMA) for i in range(COUNT)]
    else:
        first = [losses.dsm_vr(plus.score1[i], at.score1[i], noise[i], SIGMA) for i in range(COUNT)]
    first = np.asarray(first) * SIGMA**2 / DIM
    np.testing.assert_allclose(got["score1"], first, rtol=1e-4)
    if second_order == "none":
        np.testing.assert_allclose(got["loss"], first, rtol=1e-4)
        assert "score2" not in got
        return

    def pick(outputs, i):
        return outputs.score1[i], jax.tree.map(lambda leaf: leaf[i], outputs.score2)

    second = []
    terms = []
    for i in range(COUNT):
        points = [pick(outputs, i) for outputs in (plus, minus, at)]
        r_plus = losses.residual(points[0][0], noise[i], SIGMA)
        r_minus = losses.residual(points[1][0], -noise[i], SIGMA)
        scaled = [s2.scale(SIGMA**2) for _, s2 in points]
        if second_order == "d2sm":
            second.append(losses.d2sm(*points[0], noise[i], SIGMA) * SIGMA**4)
        elif second_order == "d2sm_vr":
            flat = [item for point in points for item in point]
            second.append(losses.d2sm_vr(*flat, noise[i], SIGMA) * SIGMA**4)
        elif second_order == "residual_nll":
            second.append(losses.residual_nll(r_plus, scaled[0].add_identity()))
        elif second_order == "jacobian":
            product = score_jacobian(evaluate, plus_points[i]) @ PROBES[i]
            second.append(losses.jacobian_regression(scaled[0], PROBES[i], SIGMA**2 * product))
        else:
            terms.append(
                losses.d2sm_residual_terms(
                    r_plus, scaled[0], r_minus, scaled[1], noise[i], scaled[2]
                )
            )
    if terms:
        terms = jax.tree.map(lambda *leaves: jnp.stack(leaves), *terms)
        coefficient = 0.0
        if second_order == "d2sm_residual":
            coefficient = losses.control_coefficients(terms)
        second = losses.d2sm_residual(terms, coefficient)
    second = np.asarray(second) / DIM
    np.testing.assert_allclose(got["score2"], second, rtol=2e-3, atol=1e-5)
    np.testing.assert_allclose(got["loss"], second + 3.0 * first, rtol=2e-3, atol=1e-5)


APART = [(first, second, "none", True) for first in FIRST_ORDER for second in SECOND_ORDER]
APART += [("dsm", second, "none", False) for second in ("d2sm", "d2sm_vr")]
APART += [("dsm", second, "d3sm_diagonal", True) for second in ("none", "residual_nll")]


@pytest.mark.parametrize(("first_order", "second_order", "third_order", "stop"), APART)
def test_each_order_at_its_own_points_gives_the_same_losses_and_gradients(
    problem, first_order, second_order, third_order, stop
):
    _, clean, noise, params, model = problem
    if third_order != "none":
        model = model.clone(third_order=True)
        params = model.init(jax.random.key(7), clean, SIGMA)
    objective = Objective(
        first_order, second_order, third_order=third_order, stop_gradient_score1=stop
    )

    def value_and_gradient(apart):
        def loss(params):
            def evaluate(points, sigma, **orders):
                return model.apply(params, points, sigma, **orders)

            values = objective.per_example(
                evaluate, clean, noise, SIGMA, probes=PROBES, apart=apart
            )
            return jnp.mean(values["loss"]), values

        return jax.grad(loss, has_aux=True)(params)

    chex.assert_trees_all_close(
        value_and_gradient(True), value_and_gradient(False), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("first_order", "second_order", "score1_passes", "score2_passes"),
    [
        # A pass of the network at one point, forward 1, with its gradient 3.
        ("dsm", "residual_nll", 3, 3),
        ("dsm_vr", "residual_nll", 6, 3),
        ("dsm", "d2sm_residual", 4, 9),
        ("dsm_vr", "d2sm_vr", 7, 9),
        ("dsm", "d2sm_vr", 5, 9),
    ],
)
def test_s1_is_evaluated_and_differentiated_only_where_it_is_used(
    problem, first_order, second_order, score1_passes, score2_passes
):
    _, clean, noise, params, model = problem
    objective = Objective(first_order, second_order)
    seen = []

    def evaluate(points, sigma, orders):
        outputs = model.apply(params, points, sigma, orders=orders)
        seen.append((orders, len(points) // COUNT, outputs))
        return outputs

    def passes(which):
        return [count for orders, count, _ in seen if (1 in orders) == (which == 1)]

    objective.per_example(evaluate, clean, noise, SIGMA, apart=True)
    trained, *constant = passes(1)
    assert 3 * trained + sum(constant) == score1_passes
    assert [3 * count for count in passes(2)] == [score2_passes]
    for orders, _, outputs in seen:
        assert (outputs.noise_prediction is None) == (1 not in orders)
        assert (outputs.raw_second_order is None) == (2 not in orders)
        if 1 not in orders:
            with pytest.raises(ValueError, match="no first order"):
                _ = outputs.score1


def test_a_head_with_students_tails_is_fitted_by_their_likelihood(problem):
    _, clean, noise, params, model = problem
    heavy = model.clone(head=dataclasses.replace(model.head, tails="student"))

    def evaluate(points, sigma):
        return heavy.apply(params, points, sigma)

    got = Objective("dsm", "residual_nll").per_example(evaluate, clean, noise, SIGMA)
    outputs = evaluate(clean + SIGMA * noise, SIGMA)
    residuals = jax.vmap(losses.residual, (0, 0, None))(outputs.score1, noise, SIGMA)
    expected = jax.vmap(losses.residual_student_nll)(residuals, outputs.covariance) / DIM
    np.testing.assert_allclose(got["score2"], expected, rtol=1e-4)


@pytest.mark.parametrize("second_order", [name for name in SECOND_ORDER if name != "none"])
@pytest.mark.parametrize("stop", [True, False])
def test_only_the_published_losses_can_train_score1_through_the_second_order(
    problem, second_order, stop
):
    _, clean, noise, params, model = problem

    def second(params):
        objective = Objective("dsm", second_order, stop_gradient_score1=stop)
        out = objective.per_example(
            lambda p, s: model.apply(params, p, s), clean, noise, SIGMA, probes=PROBES
        )
        return jnp.mean(out["score2"])

    gradients = jax.grad(second)(params)["params"]
    flows = any(bool(jnp.any(leaf)) for leaf in jax.tree.leaves(gradients["score1"]))
    assert flows == (not stop and second_order in ("d2sm", "d2sm_vr"))
    assert any(bool(jnp.any(leaf)) for leaf in jax.tree.leaves(gradients["score2"]))


@pytest.mark.parametrize("second_order", ["d2sm_residual", "residual_nll"])
def test_the_jacobian_can_be_a_part_of_the_target(problem, second_order):
    evaluate, clean, noise, *_ = problem

    def second(objective):
        return objective.per_example(evaluate, clean, noise, SIGMA, probes=PROBES)["score2"]

    alone = [second(Objective("dsm", name)) for name in (second_order, "jacobian")]
    mixed = second(Objective("dsm", second_order, jacobian_weight=0.3))
    np.testing.assert_allclose(mixed, 0.7 * alone[0] + 0.3 * alone[1], rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="expected probes of shape"):
        Objective("dsm", "jacobian").per_example(evaluate, clean, noise, SIGMA)
    with pytest.raises(ValueError, match="jacobian_weight needs one of"):
        Objective("dsm", "d2sm", jacobian_weight=0.3)
    with pytest.raises(ValueError, match="0 <= jacobian_weight < 1, got 1"):
        Objective("dsm", second_order, jacobian_weight=1)


def test_likelihoods_of_single_values_can_be_a_part(problem):
    evaluate, clean, noise, *_ = problem

    def second(**settings):
        objective = Objective("dsm", "residual_nll", **settings)
        return objective.per_example(evaluate, clean, noise, SIGMA)["score2"]

    outputs = evaluate(clean + SIGMA * noise, SIGMA)
    residuals = jax.vmap(losses.residual, (0, 0, None))(
        outputs.score1, noise.reshape(COUNT, -1), SIGMA
    )
    single = jax.vmap(losses.marginal_nll)(residuals, outputs.covariance) / DIM
    mixed = second(marginal_weight=0.3)
    np.testing.assert_allclose(mixed, 0.7 * second() + 0.3 * single, rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="marginal_weight needs residual_nll"):
        Objective("dsm", "d2sm", marginal_weight=0.3)
    with pytest.raises(ValueError, match="0 <= marginal_weight < 1, got 1"):
        Objective("dsm", "residual_nll", marginal_weight=1)


def test_the_residual_can_be_the_probe(problem):
    """In units of its length, and a constant: nothing flows into s1."""
    evaluate, clean, noise, params, model = problem
    objective = Objective("dsm", "jacobian", jacobian_probe="residual")
    assert not objective.needs_probes
    got = objective.per_example(evaluate, clean, noise, SIGMA)["score2"]
    points = clean + SIGMA * noise
    outputs = evaluate(points, SIGMA)
    for i in range(COUNT):
        r = losses.residual(outputs.score1[i], noise[i], SIGMA)
        probe = r * np.sqrt(DIM) / np.linalg.norm(r)
        product = score_jacobian(evaluate, points[i]) @ probe
        hessian = jax.tree.map(lambda leaf, i=i: leaf[i], outputs.scaled_hessian)
        expected = losses.jacobian_regression(hessian, probe, SIGMA**2 * product) / DIM
        np.testing.assert_allclose(got[i], expected, rtol=1e-3, atol=1e-6)

    def second(params):
        values = objective.per_example(lambda p, s: model.apply(params, p, s), clean, noise, SIGMA)
        return jnp.mean(values["score2"])

    gradients = jax.grad(second)(params)["params"]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients["score1"]))
    with pytest.raises(ValueError, match="unknown probe 'sign'"):
        Objective("dsm", "jacobian", jacobian_probe="sign")


def test_the_jacobian_is_of_the_score_given_apart(problem):
    """The same losses, and the same gradients, however much of the model it leaves out."""
    _, clean, noise, params, model = problem
    objective = Objective("dsm", "residual_nll", jacobian_weight=0.3, jacobian_probe="residual")

    def loss(params, alone, factor=1.0):
        def score_fn(points, sigma):
            constant = jax.lax.stop_gradient(params)
            return factor * model.apply(constant, points, sigma, orders=(1,)).score1

        values = objective.per_example(
            lambda points, sigma: model.apply(params, points, sigma),
            *(clean, noise, SIGMA),
            score_fn=score_fn if alone else None,
        )
        return jnp.mean(values["loss"])

    expected, got = (jax.value_and_grad(loss)(params, alone) for alone in (False, True))
    chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-7)
    assert abs(loss(params, True, 1.5) - expected[0]) > 1e-3


def test_unknown_losses_are_refused():
    with pytest.raises(ValueError, match="unknown loss 'ssm'"):
        Objective("ssm")
    with pytest.raises(ValueError, match="unknown loss 'x'"):
        Objective("dsm", "x")


@pytest.mark.parametrize("networks", ["shared", "per_order", "per_output"])
@pytest.mark.parametrize("second_order", ["none", "residual_nll"])
def test_third_order_is_added_over_the_pair_and_centred_where_it_can_be(networks, second_order):
    def network(out_channels, name=None):
        return MLP(out_channels, features=8, depth=1, name=name)

    head = None if second_order == "none" else SecondOrderHead("low_rank", 2)
    model = ScoreModel(network, head, networks=networks, third_order=True)
    keys = jax.random.split(jax.random.key(3), 3)
    clean, noise = (jax.random.normal(key, (COUNT, DIM)) for key in keys[:2])
    params = model.init(keys[2], clean, SIGMA)
    objective = Objective(
        "dsm", second_order, 2.0, third_order="d3sm_diagonal", third_order_weight=5
    )
    got = objective.per_example(
        lambda points, sigma: model.apply(params, points, sigma), clean, noise, SIGMA
    )
    expected = np.zeros(COUNT)
    for drawn in (noise, -noise):
        at = model.apply(params, clean + SIGMA * drawn, SIGMA)
        assert at.scaled_third_diagonal.shape == (COUNT, DIM)
        np.testing.assert_allclose(at.score3_diagonal * SIGMA**3, at.raw_third_order, rtol=1e-5)
        r = drawn + SIGMA * at.score1
        target = r**3
        if head is not None:
            target -= 3 * jax.vmap(lambda c: c.diagonal())(at.covariance) * r
        t = at.scaled_third_diagonal
        expected += np.sum(0.5 * t**2 + t * target, axis=1) / DIM
    np.testing.assert_allclose(got["score3"], expected, rtol=1e-4, atol=1e-6)
    total = 2.0 * got["score1"] + got.get("score2", 0.0) + 5.0 * got["score3"]
    np.testing.assert_allclose(got["loss"], total, rtol=1e-5)


@pytest.mark.parametrize("second_order", [name for name in SECOND_ORDER if name != "none"])
def test_losses_and_gradients_are_numbers_at_every_sigma(problem, second_order):
    _, clean, noise, params, model = problem
    objective = Objective("dsm_vr", second_order)

    @jax.jit
    def evaluate(params, sigma):
        def loss(params):
            values = objective.per_example(
                lambda points, s: model.apply(params, points, s), clean, noise, sigma, probes=PROBES
            )
            return jnp.mean(values["loss"]), values

        return jax.grad(loss, has_aux=True)(params)

    for sigma in 10.0 ** np.arange(-6, 7, 2):
        gradients, values = evaluate(params, np.float32(sigma))
        chex.assert_tree_all_finite((gradients, values))
        assert np.all(values["score2"] != 0) and np.all(values["score1"] != 0)
        assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(gradients["params"]["score2"]))


def test_what_is_no_batch_is_refused(problem):
    evaluate, clean, noise, *_ = problem
    for x, z in ((clean, noise[:2]), (clean[0], noise[0]), (clean, noise.astype(int))):
        with pytest.raises(ValueError, match=r"floating|clean and noise of one shape"):
            Objective().per_example(evaluate, x, z, SIGMA)
