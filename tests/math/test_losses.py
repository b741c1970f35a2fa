"""Losses against the stored vectors of the published implementation and dense float64 oracles."""

import itertools
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from hos_jax import distributions, losses
from hos_jax.linops import Dense, Diagonal, DiagonalPlusLowRank
from hos_jax.noise import perturb

GOLDEN = Path(__file__).parents[1] / "golden"
SIGMAS = [0.1, 0.5, 1.0]


def batch_loss(name, s1, s2, noise, sigma):
    """The published scalar: the mean over examples of the loss `name` at its evaluation points."""
    if name == "dsm":
        return jnp.mean(jax.vmap(losses.dsm, (0, 0, None))(s1[0], noise, sigma))
    if name == "dsm_vr":
        per_example = jax.vmap(losses.dsm_vr, (0, 0, 0, None))(s1[0], s1[1], noise, sigma)
        return jnp.mean(per_example)
    points = [jax.tree.map(lambda leaf, k=k: leaf[k], (s1, s2)) for k in range(s1.shape[0])]
    flat = [leaf for point in points for leaf in point]
    loss = losses.d2sm if len(points) == 1 else losses.d2sm_vr
    return jnp.mean(jax.vmap(loss, (0,) * (len(flat) + 1) + (None,))(*flat, noise, sigma))


def structure(diag, factor, index):
    if diag is None:
        return None
    diag = jnp.asarray(diag[index])
    return Diagonal(diag) if factor is None else DiagonalPlusLowRank(diag, factor[index])


def relative_error(got, expected):
    return float(np.max(np.abs(got - expected)) / np.max(np.abs(expected)))


def golden_files():
    return sorted(path.stem for path in GOLDEN.glob("loss_*.npz") if "params" not in path.stem)


def test_the_stored_vectors_are_there():
    names = golden_files()
    for loss in ("dsm", "dsm_vr", "hosm_plus_vr", "hosm_plus_vr_low_rank"):
        assert f"loss_{loss}_dim5" in names
    assert "loss_dsm_vr_dim784" in names


@pytest.mark.parametrize("stem", golden_files())
@pytest.mark.parametrize("level", range(3))
def test_value_and_gradient_equal_the_published_implementation(stem, level):
    stored = dict(np.load(GOLDEN / f"{stem}.npz", allow_pickle=False))
    name = stem.removeprefix("loss_").split("_dim")[0]
    s1 = jnp.asarray(stored["s1"][level])
    factor = jnp.asarray(stored["s2_U"]) if "s2_U" in stored else None
    s2 = structure(stored.get("s2_diag"), factor, level)
    noise, sigma = jnp.asarray(stored["z"][level]), float(stored["sigma"][level])
    value, gradients = jax.value_and_grad(lambda outputs: batch_loss(name, *outputs, noise, sigma))(
        (s1, s2)
    )
    assert relative_error(value, stored["loss"][level]) < 1e-10
    assert relative_error(gradients[0], stored["grad_s1"][level]) < 1e-10
    if s2 is not None:
        assert relative_error(gradients[1].diag, stored["grad_s2_diag"][level]) < 1e-10
    if factor is not None:
        assert relative_error(gradients[1].factor, stored["grad_s2_U"][level]) < 1e-10


# Only some published vectors are stored, so every loss is also held against its closed form, in
# plain numpy, at dimensions 5 and 784.
def dense_psi(s1, s2):
    return np.asarray(s2.to_dense()) + np.outer(s1, s1)


def dense_contrast(noise, sigma):
    return (np.eye(noise.size) - np.outer(noise, noise)) / sigma**2


def random_outputs(dim, kind, seed):
    rng = np.random.default_rng(seed)
    s1 = jnp.asarray(rng.normal(size=(3, dim)))
    diag = jnp.asarray(rng.normal(size=(3, dim)))
    factor = jnp.asarray(rng.normal(size=(3, dim, 3)))
    s2 = Diagonal(diag) if kind == "diagonal" else DiagonalPlusLowRank(diag, factor)
    if kind == "dense":
        s2 = Dense(jax.vmap(DiagonalPlusLowRank.to_dense)(s2))
    s2 = [jax.tree.map(lambda leaf, k=k: leaf[k], s2) for k in range(3)]
    return s1, s2, jnp.asarray(rng.normal(size=dim))


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("dim", [5, 784])
@pytest.mark.parametrize("kind", ["diagonal", "low_rank", "dense"])
def test_second_order_losses_equal_their_dense_formula(kind, dim, sigma):
    s1, s2, noise = random_outputs(dim, kind, seed=dim)
    psi = [dense_psi(s1[k], s2[k]) for k in range(3)]
    contrast = dense_contrast(np.asarray(noise), sigma)
    expected = 0.5 * np.sum(psi[0] ** 2 + 2 * contrast * psi[0])
    got = losses.d2sm(s1[0], s2[0], noise, sigma)
    np.testing.assert_allclose(got, expected, rtol=1e-10)

    combined = psi[0] + psi[1] - 2 * psi[2]
    expected = 0.5 * np.sum(psi[0] ** 2 + psi[1] ** 2 + 2 * contrast * combined)
    arguments = [item for k in range(3) for item in (s1[k], s2[k])]
    got = losses.d2sm_vr(*arguments, noise, sigma)
    np.testing.assert_allclose(got, expected, rtol=1e-10)

    plus = losses.residual(s1[0], noise, sigma)
    minus = losses.residual(s1[1], -noise, sigma)
    np.testing.assert_allclose(plus, noise + sigma * s1[0])
    np.testing.assert_allclose(minus, -noise + sigma * s1[1])
    terms = losses.d2sm_residual_terms(plus, s2[0], minus, s2[1], noise, s2[2])
    dense = [np.asarray(matrix.to_dense()) for matrix in s2]
    identity = np.eye(dim)
    correlation = np.sum(dense[0] * (np.outer(plus, plus) - identity))
    correlation += np.sum(dense[1] * (np.outer(minus, minus) - identity))
    white = np.outer(noise, noise) - identity
    matrices = [white, dense[2] @ white + white @ dense[2]]
    controls = [np.sum(dense[2] * matrix) for matrix in matrices]
    wrong = np.outer(plus, plus) + np.outer(minus, minus) - 2 * identity - dense[0] - dense[1]
    fit = 0.5 * np.sum(dense[0] ** 2 + dense[1] ** 2)
    np.testing.assert_allclose(terms.fit, fit, rtol=1e-10)
    np.testing.assert_allclose(terms.correlation, correlation, rtol=1e-10)
    np.testing.assert_allclose(terms.controls, controls, rtol=1e-10)
    slopes = [np.sum(wrong * matrix) for matrix in matrices]
    np.testing.assert_allclose(terms.slopes, slopes, rtol=1e-9)
    gram = [[np.sum(a * b) for b in matrices] for a in matrices]
    np.testing.assert_allclose(terms.gram, gram, rtol=1e-10)
    got = losses.d2sm_residual(terms, jnp.array([0.7, 0.3]))
    expected = fit - correlation + 0.7 * controls[0] + 0.3 * controls[1]
    np.testing.assert_allclose(got, expected, rtol=1e-10)
    plain = losses.d2sm_residual_terms(plus, s2[0], minus, s2[1], noise)
    np.testing.assert_allclose(losses.d2sm_residual(plain, 1.0), fit - correlation, rtol=1e-10)


@pytest.mark.parametrize("kind", ["diagonal", "low_rank", "dense"])
@pytest.mark.parametrize("dim", [5, 784])
def test_residual_nll_equals_the_gaussian_log_density(kind, dim):
    _, s2, noise = random_outputs(dim, kind, seed=1)
    # A diagonal shift makes the covariance positive definite.
    covariance = s2[0].add_identity(200.0 if kind == "dense" else 5.0)
    dense = np.asarray(covariance.to_dense())
    residual = np.asarray(noise)
    expected = 0.5 * (residual @ np.linalg.solve(dense, residual) + np.linalg.slogdet(dense)[1])
    np.testing.assert_allclose(losses.residual_nll(noise, covariance), expected, rtol=1e-10)


@pytest.mark.parametrize("kind", ["diagonal", "low_rank", "dense"])
@pytest.mark.parametrize("dim", [5, 784])
def test_residual_student_nll_equals_the_log_density(kind, dim):
    _, s2, noise = random_outputs(dim, kind, seed=1)
    covariance = s2[0].add_identity(200.0 if kind == "dense" else 5.0)
    root = np.asarray(covariance.color(jnp.eye(dim)))
    dense = np.asarray(covariance.to_dense())
    np.testing.assert_allclose(root @ root.T, dense, rtol=1e-9, atol=1e-9)
    residual = 4.0 * np.asarray(noise)
    # Student's law with 3 degrees of freedom has variance 3.
    law = scipy.stats.t(3, scale=1 / np.sqrt(3))
    density = np.sum(law.logpdf(np.linalg.solve(root, residual))) - np.linalg.slogdet(root)[1]
    found = losses.residual_student_nll(jnp.asarray(residual), covariance)
    np.testing.assert_allclose(found, -density - 0.5 * dim * np.log(2 * np.pi), rtol=1e-10)


def test_residual_student_nll_has_the_gradients_of_the_dense_formula():
    _, s2, noise = random_outputs(6, "low_rank", seed=3)
    covariance = s2[0].add_identity(5.0)

    def dense(matrix):
        # The symmetric-like root by its definition, from one Cholesky factor.
        scaled = matrix.factor / jnp.sqrt(matrix.diag)[:, None]
        eye = jnp.eye(scaled.shape[1])
        inner = jnp.linalg.cholesky(eye + scaled.T @ scaled)
        middle = jnp.eye(6) + scaled @ jnp.linalg.solve(eye + inner, scaled.T)
        root = jnp.sqrt(matrix.diag)[:, None] * middle
        white = jnp.linalg.solve(root, noise)
        return jnp.linalg.slogdet(root)[1] + 2.0 * jnp.sum(jnp.log1p(white**2))

    found = jax.grad(losses.residual_student_nll, argnums=1)(noise, covariance)
    chex.assert_trees_all_close(found, jax.grad(dense)(covariance), rtol=1e-9)


def test_the_covariance_minimizes_the_student_likelihood_where_the_law_is_right():
    draws = jax.random.t(jax.random.key(0), 3.0, (50_000, 1)) / jnp.sqrt(3.0)
    variances = jnp.array([0.9, 1.0, 1.1])

    def mean_loss(variance):
        law = Diagonal(variance[None])
        return jnp.mean(jax.vmap(losses.residual_student_nll, (0, None))(draws, law))

    assert int(jnp.argmin(jax.vmap(mean_loss)(variances))) == 1


def test_residual_losses_stop_the_gradient_at_the_residual():
    _, s2, noise = random_outputs(5, "low_rank", seed=2)
    covariance = s2[0].add_identity(5.0)
    assert not jnp.any(jax.grad(losses.residual_nll)(noise, covariance))
    assert not jnp.any(jax.grad(losses.residual_student_nll)(noise, covariance))

    def objective(residual):
        terms = losses.d2sm_residual_terms(residual, s2[0], residual, s2[1], noise, s2[2])
        return losses.d2sm_residual(terms, 1.0)

    assert not jnp.any(jax.grad(objective)(noise))


@pytest.mark.parametrize("kind", ["diagonal", "low_rank", "dense"])
def test_jacobian_regression_is_the_distance_to_the_jacobian_without_noise_of_the_data(kind):
    """Over all sign vectors the mean is exact. A Jacobian that is not symmetric is the skewed case:
    its symmetric part is what can be learned."""
    dim = 5
    _, s2, _ = random_outputs(dim, kind, seed=3)
    jacobian = jnp.asarray(np.random.default_rng(0).normal(size=(dim, dim)))
    probes = jnp.asarray(list(itertools.product([-1.0, 1.0], repeat=dim)))

    def mean_loss(matrix):
        one = jax.vmap(lambda v: losses.jacobian_regression(matrix, v, jacobian @ v))
        return jnp.mean(one(probes))

    value, gradient = jax.value_and_grad(lambda m: mean_loss(m))(s2[0])
    distance = 0.5 * jnp.sum(jnp.square(s2[0].to_dense() - jacobian))
    np.testing.assert_allclose(value, distance, rtol=1e-12)
    symmetric = 0.5 * (jacobian + jacobian.T)
    nearest = jax.grad(lambda m: 0.5 * jnp.sum(jnp.square(m.to_dense() - symmetric)))(s2[0])
    if kind == "dense":
        gradient = Dense(0.5 * (gradient.matrix + gradient.matrix.T))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), gradient, nearest)
    assert not jnp.any(
        jax.grad(lambda j: losses.jacobian_regression(s2[0], probes[3], j @ probes[3]))(jacobian)
    )


def test_a_diagonal_jacobian_regression_is_optimal_covariance_matching():
    """Ou et al. 2024: the minimizer is the diagonal of the Jacobian of the score, here an exact
    one, and the loss is that of v * (H v) as targets of the diagonal."""
    law = distributions.GaussianMixture(
        jnp.array([0.3, 0.7]), jnp.array([[1.0, 0, 2], [0, -1, 0.5]]), stds=jnp.array([0.3, 0.6])
    ).smooth(0.4)
    noisy = jnp.array([0.2, -0.5, 0.7])
    jacobian = jax.jacfwd(law.score)(noisy)
    probes = jnp.asarray(list(itertools.product([-1.0, 1.0], repeat=3)))

    def mean_loss(diag):
        def one(probe):
            _, product = jax.jvp(law.score, (noisy,), (probe,))
            loss = losses.jacobian_regression(Diagonal(diag), probe, 0.16 * product)
            matched = 0.5 * jnp.sum(jnp.square(diag - probe * 0.16 * product))
            np.testing.assert_allclose(loss, matched, rtol=1e-12)
            return loss

        return sum(one(probe) for probe in probes) / len(probes)

    best = 0.16 * jnp.diagonal(jacobian)
    assert jnp.abs(jacobian - jnp.diag(jnp.diagonal(jacobian))).max() > 0.1
    for shift in np.eye(3) * 0.1:
        assert mean_loss(best + shift) > mean_loss(best) < mean_loss(best - shift)
    np.testing.assert_allclose(mean_loss(best + 0.1) - mean_loss(best), 0.5 * 3 * 0.01, rtol=1e-9)


class LossesInEveryForm(chex.TestCase):
    """Compiled or not, and of arrays on the device or of NumPy's, the values are the same."""

    @chex.variants(with_jit=True, without_jit=True, with_device=True, without_device=True)
    def test_values(self):
        s1, s2, noise = random_outputs(5, "low_rank", seed=4)
        positive = s2[0].add_identity(5.0)
        published = self.variant(lambda s1, s2, z: losses.d2sm(s1, s2, z, 0.5))
        np.testing.assert_allclose(
            published(s1[0], s2[0], noise), losses.d2sm(s1[0], s2[0], noise, 0.5), rtol=1e-12
        )
        likelihood = self.variant(losses.residual_nll)
        np.testing.assert_allclose(
            likelihood(noise, positive), losses.residual_nll(noise, positive), rtol=1e-12
        )


def terms_of(slopes, gram):
    """A batch of terms of which only what the regression needs is there."""
    nothing = jnp.zeros(len(slopes))
    return losses.ResidualTerms(nothing, nothing, slopes, jnp.asarray(slopes), jnp.asarray(gram))


def test_control_coefficients_are_the_clipped_regression_on_both():
    rng = np.random.default_rng(3)
    features = rng.normal(size=(50_000, 2, 3)) * np.array([[1.0], [0.1]])
    features[:, 1] += 0.05 * features[:, 0]
    gram = np.einsum("njp,nkp->njk", features, features)
    for true, expected in [((0.8, 1.2), (0.8, 1.2)), ((1.9, 7.0), (1.9, 2.0))]:
        target = np.einsum("k,nkp->np", np.array(true), features)
        slopes = np.einsum("nkp,np->nk", features, target + rng.normal(size=target.shape))
        got = losses.control_coefficients(terms_of(slopes, gram))
        np.testing.assert_allclose(got, expected, atol=0.1)
        solved = np.linalg.solve(gram.mean(axis=0), slopes.mean(axis=0))
        np.testing.assert_allclose(got, np.clip(solved, 0, 2), rtol=1e-10)
    got = losses.control_coefficients(terms_of(-slopes, gram))
    np.testing.assert_array_equal(got, [0.0, 0.0])


def test_control_coefficients_without_a_second_control_or_any():
    slopes, gram = np.ones((4, 2)), np.zeros((4, 2, 2))
    assert not np.any(losses.control_coefficients(terms_of(slopes, gram)))
    gram[:, 0, 0] = 2.0
    np.testing.assert_allclose(losses.control_coefficients(terms_of(slopes, gram)), [0.5, 0.0])
    gram[:] = 1.0  # collinear, as where S is a multiple of the identity
    np.testing.assert_allclose(losses.control_coefficients(terms_of(slopes, gram)), [1.0, 0.0])
    gradient = jax.grad(lambda s: jnp.sum(losses.control_coefficients(terms_of(s, gram))))
    assert not np.any(gradient(jnp.asarray(slopes)))


@pytest.mark.parametrize("unit", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize(("beyond", "counts"), [(2e-3, True), (5e-4, False)])
def test_a_second_control_counts_if_it_is_no_multiple_of_the_first(unit, beyond, counts):
    """In whatever unit: what it has beyond the first is a thousandth of it or more."""
    first, second = 3.0, 2.0 * unit**2
    mixed = np.sqrt((1.0 - beyond) * first * second)
    gram = np.array([[first, mixed], [mixed, second]])
    slopes = gram @ np.array([0.5, 0.7])
    expected = [0.5, 0.7] if counts else np.clip([slopes[0] / first, 0.0], 0.0, 2.0)
    terms = terms_of(np.tile(slopes, (4, 1)), np.tile(gram, (4, 1, 1)))
    np.testing.assert_allclose(losses.control_coefficients(terms), expected, rtol=1e-9)


def test_the_plain_residual_form_has_terms_of_the_same_shapes():
    s1, s2, noise = random_outputs(5, "diagonal", seed=6)
    pair = s1[0], s2[0], s1[1], s2[1], noise
    plain, adaptive = losses.d2sm_residual_terms(*pair), losses.d2sm_residual_terms(*pair, s2[2])
    assert jax.tree.map(jnp.shape, plain) == jax.tree.map(jnp.shape, adaptive)


def gaussian_problem(dim=4, sigma=0.6, count=40_000):
    """Data N(0, Sigma): exact s1 and s2 of the smoothed law, and a batch of (x, z)."""
    rng = np.random.default_rng(4)
    root = rng.normal(size=(dim, dim)) / 2
    precision = np.linalg.inv(root @ root.T + sigma**2 * np.eye(dim))
    clean = jnp.asarray(rng.normal(size=(count, dim)) @ root.T)
    noise = jnp.asarray(rng.normal(size=(count, dim)))
    return clean, noise, jnp.asarray(-precision), sigma


def test_what_the_controls_leave_of_the_noise_on_a_gaussian():
    """There r is linear in z, and of z only a term of order S^2 is left in the gradient."""
    clean, noise, hessian, sigma = gaussian_problem(count=300)
    scaled = hessian * sigma**2

    def gradient(x, z, coefficients):
        def loss(parameter):
            s2 = Dense(parameter)
            plus, minus = (
                sign * z + sigma * hessian @ (x + sign * sigma * z) for sign in (1.0, -1.0)
            )
            terms = losses.d2sm_residual_terms(plus, s2, minus, s2, z, s2)
            return losses.d2sm_residual(terms, coefficients), terms

        return jax.grad(loss, has_aux=True)(scaled)

    batch = jax.vmap(gradient, (0, 0, None))
    found, terms = batch(clean, noise, jnp.full(2, 2.0))
    white = np.einsum("ni,nj->nij", noise, noise) - np.eye(4)
    scores = np.asarray(sigma * clean @ hessian)
    left = np.asarray(scaled + scaled @ scaled) + np.asarray(scaled) @ white @ np.asarray(scaled)
    left = left + np.einsum("ni,nj->nij", scores, scores)
    symmetric = 0.5 * (found + found.transpose(0, 2, 1))
    np.testing.assert_allclose(symmetric, -2.0 * left, atol=1e-12)
    picked = losses.control_coefficients(terms)
    chosen, plain = (
        jnp.sum(jnp.var(batch(clean, noise, value)[0], axis=0)) for value in (picked, jnp.zeros(2))
    )
    assert chosen < 0.5 * plain


def total_loss(name, parameters, clean, noise, sigma):
    """Losses of the linear model s1(y) = W y, s2 = H at exact s1 unless W is what is learned."""
    weights, hessian = parameters
    pair = perturb(clean, noise, sigma)

    def score(y):
        return weights @ y

    s2 = Dense(hessian)
    if name == "dsm":
        return losses.dsm(score(pair.plus), noise, sigma)
    if name == "dsm_vr":
        return losses.dsm_vr(score(pair.plus), score(clean), noise, sigma)
    if name == "d2sm":
        return losses.d2sm(score(pair.plus), s2, noise, sigma)
    if name == "d2sm_vr":
        scores = [score(y) for y in (pair.plus, pair.minus, clean)]
        return losses.d2sm_vr(scores[0], s2, scores[1], s2, scores[2], s2, noise, sigma)
    plus = losses.residual(score(pair.plus), noise, sigma)
    if name == "residual_nll":
        return losses.residual_nll(plus, s2.scale(sigma**2).add_identity())
    minus = losses.residual(score(pair.minus), -noise, sigma)
    scaled = s2.scale(sigma**2)
    clean_term = None if name == "residual_plain" else scaled
    terms = losses.d2sm_residual_terms(plus, scaled, minus, scaled, noise, clean_term)
    return losses.d2sm_residual(terms, 1.3)


@pytest.mark.parametrize(
    ("name", "learned"),
    [
        ("dsm", 0),
        ("dsm_vr", 0),
        ("d2sm", 1),
        ("d2sm_vr", 1),
        ("residual_plain", 1),
        ("residual_adaptive", 1),
        ("residual_nll", 1),
    ],
)
def test_mean_gradient_vanishes_at_the_exact_score_and_only_there(name, learned):
    clean, noise, exact, sigma = gaussian_problem()

    def gradients(scale):
        learned_parameter = exact * scale

        def objective(parameter, x, z):
            parameters = [exact, exact]
            parameters[learned] = parameter
            return total_loss(name, parameters, x, z, sigma)

        return jax.vmap(jax.grad(objective), (None, 0, 0))(learned_parameter, clean, noise)

    at_exact = gradients(1.0)
    error = at_exact.std(axis=0) / np.sqrt(clean.shape[0])
    assert np.all(np.abs(at_exact.mean(axis=0)) < 4.5 * error)
    wrong = gradients(0.7)
    error = wrong.std(axis=0) / np.sqrt(clean.shape[0])
    assert np.any(np.abs(wrong.mean(axis=0)) > 8 * error)


def test_single_likelihoods_see_variances_alone():
    """Where all values share an error, the best multiple of a shape of variances 1 has the right
    variances by the single likelihoods, whatever it says of what is shared. By the joint one it is
    right on average over directions, of which one has all that is shared."""
    dim, shared = 40, 2.0
    draws = jax.random.normal(jax.random.key(0), (20_000, dim + 1))
    residuals = draws[:, 1:] + shared * draws[:, :1]
    variance, covariance = 1.0 + shared**2, np.eye(dim) + shared**2

    def best(loss, shape):
        def mean(multiple):
            return jnp.mean(jax.vmap(lambda r: loss(r, shape.scale(multiple)))(residuals))

        # Of c A the loss is a / c + (D / 2) log c + const, least at c = 2 a / D.
        return 1.0 - jax.grad(mean)(1.0) / (0.5 * dim)

    np.testing.assert_allclose(best(losses.marginal_nll, Dense(jnp.eye(dim))), variance, rtol=0.03)
    # In this one half of each variance is shared, in the truth four fifths.
    close = Dense(0.5 * jnp.eye(dim) + 0.5)
    joint, single = best(losses.residual_nll, close), best(losses.marginal_nll, close)
    np.testing.assert_allclose(single, variance, rtol=0.03)
    exact = np.trace(np.linalg.solve(close.matrix, covariance)) / dim
    np.testing.assert_allclose(joint, exact, rtol=0.03)
    assert joint < 0.5 * variance

    one, matrix = residuals[0], close.scale(1.7)
    expected = -scipy.stats.norm(scale=np.sqrt(1.7)).logpdf(one) - 0.5 * np.log(2.0 * np.pi)
    np.testing.assert_allclose(losses.marginal_nll(one, matrix), expected.sum(), rtol=1e-12)


def test_numbers_of_16_bits_are_taken_as_float32():
    """Whose powers of D, from 256 on, are beyond float16."""
    dim = 300
    rng = np.random.default_rng(3)
    noise, plus, minus = (jnp.asarray(rng.normal(size=dim), jnp.float16) for _ in range(3))
    s2 = Diagonal(jnp.asarray(rng.uniform(-0.5, 0.5, dim), jnp.float16))
    covariance = s2.add_identity(1.0)

    def everything(noise, plus, minus, s2, covariance):
        terms = losses.d2sm_residual_terms(plus, s2, minus, s2, noise, s2)
        each = jax.tree.map(lambda leaf: leaf[None], terms)
        return {
            "d2sm": losses.d2sm(plus, s2, noise, 0.5),
            "d2sm_vr": losses.d2sm_vr(plus, s2, minus, s2, plus, s2, noise, 0.5),
            "residual": losses.d2sm_residual(terms, losses.control_coefficients(each)),
            "nll": losses.residual_nll(plus, covariance),
            "student": losses.residual_student_nll(plus, covariance),
            "marginal": losses.marginal_nll(plus, covariance),
        }

    given = noise, plus, minus, s2, covariance
    expected = everything(*jax.tree.map(lambda leaf: leaf.astype(jnp.float32), given))
    assert all(np.isfinite(value) for value in expected.values())
    chex.assert_trees_all_equal(everything(*given), expected)


def test_mismatched_shapes_raise():
    vector, longer = jnp.zeros(4), jnp.zeros(5)
    s2 = Diagonal(vector)
    with pytest.raises(ValueError, match="one shape"):
        losses.dsm(vector, longer, 0.5)
    with pytest.raises(ValueError, match="use vmap"):
        losses.dsm(jnp.zeros((2, 4)), jnp.zeros((2, 4)), 0.5)
    with pytest.raises(ValueError, match="one shape"):
        losses.dsm_vr(vector, longer, vector, 0.5)
    with pytest.raises(ValueError, match="one shape"):
        losses.d2sm(longer, s2, longer, 0.5)
    with pytest.raises(ValueError, match="one shape"):
        losses.d2sm_vr(vector, s2, vector, s2, longer, s2, vector, 0.5)
    with pytest.raises(ValueError, match="one shape"):
        losses.d2sm_residual_terms(vector, s2, longer, s2, vector)
    with pytest.raises(ValueError, match="one shape"):
        losses.residual_nll(longer, s2)
    with pytest.raises(ValueError, match="one shape"):
        losses.residual_student_nll(longer, s2)
    with pytest.raises(ValueError, match="one shape"):
        losses.marginal_nll(longer, s2)
    with pytest.raises(ValueError, match="one shape"):
        losses.jacobian_regression(s2, vector, longer)


def test_integers_and_plain_arrays_raise():
    vector, whole, s2 = jnp.zeros(4), jnp.zeros(4, int), Diagonal(jnp.zeros(4))
    with pytest.raises(ValueError, match="floating-point numbers, got noise of int64"):
        losses.dsm(vector, whole, 0.5)
    with pytest.raises(ValueError, match="floating-point numbers, got score1 of int64"):
        losses.d2sm(whole, s2, vector, 0.5)
    with pytest.raises(ValueError, match="floating-point numbers, got matrix of int64"):
        losses.d2sm(vector, Diagonal(whole), vector, 0.5)
    for call in (
        lambda: losses.d2sm(vector, jnp.eye(4), vector, 0.5),
        lambda: losses.residual_nll(vector, jnp.eye(4)),
        lambda: losses.jacobian_regression(jnp.eye(4), vector, vector),
        lambda: losses.d2sm_residual_terms(vector, s2, vector, jnp.eye(4), vector),
        lambda: losses.d3sm_diagonal(vector, vector, jnp.eye(4)),
    ):
        with pytest.raises(ValueError, match="expected a structured matrix"):
            call()
    with pytest.raises(ValueError, match="scaled_hessian_2"):
        losses.d2sm_residual_terms(vector, s2, vector, s2, vector, Diagonal(jnp.zeros(5)))


@pytest.mark.parametrize("sigma", [1e-6, 1e-3, 1.0, 1e3, 1e6])
def test_float32_has_the_digits_of_float64_at_every_sigma(sigma):
    """Scores of the sizes that they have: s1 of 1 / sigma, s2 of 1 / sigma^2, alike at y and x."""
    rng = np.random.default_rng(5)
    noise, at_clean, change = rng.normal(size=(3, 50)).astype(np.float32)
    diag, factor = rng.normal(size=50), rng.normal(size=(50, 3))

    def values(dtype):
        level = jnp.asarray(np.float32(sigma), dtype)
        clean = jnp.asarray(at_clean / np.float32(sigma), dtype)
        score = jnp.asarray(
            (at_clean + 1e-3 * change).astype(np.float32) / np.float32(sigma), dtype
        )
        z = jnp.asarray(noise, dtype)
        scaled = DiagonalPlusLowRank(*(jnp.asarray(np.float32(a), dtype) for a in (diag, factor)))
        s2 = scaled.scale(1 / level**2)
        units = level**2 * jnp.stack(
            [losses.dsm(score, z, level), losses.dsm_vr(score, clean, z, level)]
        )
        pair = (score, s2, -score, s2, clean, s2)
        second = jnp.stack([losses.d2sm(score, s2, z, level), losses.d2sm_vr(*pair, z, level)])
        return np.concatenate([units, second * level**4])

    np.testing.assert_allclose(values(jnp.float32), values(jnp.float64), rtol=3e-5)
