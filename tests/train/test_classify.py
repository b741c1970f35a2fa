"""The classifier that judges samples: it learns digits, and knows what it has not seen."""

import dataclasses

import numpy as np
import pytest

from benchmarks.classify import class_change_rate, train_classifier
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
