"""The digits classifier and the feature spaces: accurate on held-out digits, smooth, and as declared."""

from __future__ import annotations

import json

import pytest
import torch
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.core.image import classifier
from fewstep.core.image.classifier import (
    WEIGHTS,
    held_out_accuracy,
    save_classifier,
    shipped_classifier,
    train_classifier,
)
from fewstep.core.image.data import DataConfig, load_data
from fewstep.core.image.spaces import feature_space, principal_axes
from fewstep.core.metrics.frechet import frechet_distance, moments
from fewstep.core.rng import Rng


def test_shipped_classifier_knows_held_out_digits_and_its_card_says_so():
    model = shipped_classifier()
    accuracy = held_out_accuracy(model)
    assert accuracy > 0.975
    card = json.loads(WEIGHTS.with_suffix(".json").read_text())
    assert card["held_out_accuracy"] == pytest.approx(accuracy, abs=1e-3)
    assert card["made_by"].startswith("fewstep image")
    assert WEIGHTS.stat().st_size < 200_000


def test_logits_are_the_head_of_the_features():
    model = shipped_classifier()
    x = Rng.for_batch(0, 0, 4).normal("x", (1, 8, 8))
    assert_close(model(x), model.head(model.features(x)))


def test_training_is_a_function_of_its_seed(tmp_path):
    first, second, other = (train_classifier(steps=3, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.head.weight, second.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)
    file = save_classifier(first, tmp_path / "c.safetensors")
    assert json.loads(file.with_suffix(".json").read_text())["license"] == "Apache-2.0"


def test_damaged_weights_are_named(tmp_path, monkeypatch):
    broken = tmp_path / "c.safetensors"
    broken.write_bytes(WEIGHTS.read_bytes()[:1000])
    monkeypatch.setattr(classifier, "WEIGHTS", broken)
    shipped_classifier.cache_clear()
    with pytest.raises(UserError, match=r"c\.safetensors"):
        shipped_classifier()
    shipped_classifier.cache_clear()


def test_digit_space_puts_noise_far_and_held_out_digits_near():
    data = load_data(DataConfig(holdout=0.2))
    space = feature_space("digits", data)
    features = space.extract(data.reference)
    whole = moments(features)
    noise = Rng.for_batch(0, 0, len(data.reference)).normal_like("n", data.reference)
    levels = [moments(space.extract(data.reference + s * noise)) for s in (0.0, 0.1, 0.5, 2.0)]
    distances = [frechet_distance(level, whole) for level in levels]
    assert distances == sorted(distances)
    assert distances[2] > 20 * distances[1]
    # no farther than twice what the size of the held-out set alone explains
    held, kept = features[:359], features[359:]
    halves = frechet_distance(moments(kept[::2]), moments(kept[1::2]))
    expected = halves * (1 / 359 + 1 / 1438) / (2 / 719)
    assert frechet_distance(moments(held), moments(kept)) < 2.5 * expected
    assert "held out" in space.protocol


def test_principal_axes_are_orthonormal_and_carry_the_variance():
    x = Rng.for_batch(0, 0, 200).normal("x", (6,)) * torch.tensor([5.0, 3.0, 1.0, 0.1, 0.1, 0.1]) + 2
    mean, axes = principal_axes(x, most=3)
    assert_close(axes.T @ axes, torch.eye(3).double())
    assert_close(mean, x.double().mean(0))
    kept = ((x.double() - mean) @ axes).var(0).sum() / x.double().var(0).sum()
    assert kept > 0.998


def test_pixel_space_is_declared_with_its_dimension():
    data = load_data(DataConfig(source="photos", size=8, channels=3, resize=16), most=100)
    space = feature_space("photos", data)
    assert space.extract(data.reference).shape == (100, 64)
    assert "64 principal components" in space.protocol
    assert space.classify is None
