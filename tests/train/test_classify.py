"""The classifier that judges samples: it learns digits, and knows what it has not seen."""

import dataclasses

import numpy as np
import pytest

from benchmarks.classify import class_change_rate, frechet_distance, train_classifier
from hos_jax.data import load, to_float
from hos_jax.errors import UserError


def test_classifier_learns_digits_and_counts_classes():
    data = load("digits")
    trained = train_classifier(data, steps=600)
    assert trained.classes == 10 and trained.held_out_accuracy > 0.9
    verdict = trained.judge(to_float(data.held_out, data.value_range))
    assert verdict.classes.shape == verdict.confidence.shape == (len(data.held_out),)
    assert np.all((verdict.confidence >= 0.1) & (verdict.confidence <= 1.0))
    assert np.mean(verdict.classes == data.held_out_labels) == trained.held_out_accuracy


def test_data_without_labels_is_refused():
    data = dataclasses.replace(load("digits"), train_labels=None, held_out_labels=None)
    with pytest.raises(UserError, match="no classes"):
        train_classifier(data)


def test_class_change_rate():
    classes = np.array([[0, 1], [0, 2], [3, 2], [3, 2]])
    assert class_change_rate(classes) == 2 / 6
    with pytest.raises(ValueError, match="kept >= 2"):
        class_change_rate(classes[:1])


def test_frechet_distance_is_that_of_the_gaussians():
    """Of commuting covariances it is |m - m'|^2 + sum (a - b)^2 over the standard deviations."""
    rng = np.random.default_rng(0)
    whitened = rng.normal(size=(400, 4))
    whitened -= whitened.mean(axis=0)
    roots = np.linalg.cholesky(np.cov(whitened.T))
    standard = np.linalg.solve(roots, whitened.T).T  # mean 0 and covariance I
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    one, other = (standard * widths @ turn for widths in ([1, 2, 0, 3], [2, 2, 1, 0.5]))
    expected = 0.5**2 + (1 + 0 + 1 + 2.5**2)
    found = frechet_distance(one, other + np.array([0.5, 0, 0, 0]))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert abs(frechet_distance(one, one)) < 1e-6
