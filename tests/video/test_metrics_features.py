"""The fixed filters: what they must not see, what they must, and that they never change."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from video.clip_bed import discs, noise, still

from fewstep.core.errors import UserError
from fewstep.video.metrics.features import FixedFilters, clip_space, frame_space, scaled

HALF = 48  # appearance first, motion behind


def test_a_still_leaves_the_motion_half_silent_whatever_its_length():
    clips = still(discs(2))
    features = clip_space().extract(clips)
    assert features.shape == (2, 2 * HALF)
    assert float(features[:, HALF:].abs().max()) < 1e-5
    assert float(clip_space().extract(discs(2))[:, HALF:].mean()) > 1e-2
    assert_close(clip_space().extract(clips[:, :, :3]), features, atol=1e-5, rtol=1e-4)


def test_the_features_of_a_picture_are_the_appearance_of_its_still():
    clips = still(discs(2))
    assert_close(frame_space().extract(clips[:, :, 0]), clip_space().extract(clips)[:, :HALF], atol=1e-5, rtol=1e-4)


def test_features_scale_with_the_clip():
    """Filters without bias and rectifiers are positively homogeneous."""
    model = FixedFilters().double()
    x = noise(2, 3, 4, 12, 12)
    assert_close(model(3 * x), 3 * model(x))


def test_motion_responds_to_no_brightness_that_stays():
    model = FixedFilters().double()
    x = noise(1, 3, 4, 12, 12)
    assert_close(model(x + 5)[:, HALF:], model(x)[:, HALF:], atol=1e-5, rtol=1e-5)  # filters are float32
    assert float((model(x + 5) - model(x))[:, :HALF].abs().min()) > 1e-3


def test_features_of_a_clip_depend_on_no_other_clip():
    clips = discs(6)
    together = clip_space().extract(clips)
    assert_close(clip_space().extract(clips[[4]]), together[[4]], atol=1e-6, rtol=1e-5)


def test_the_filters_are_the_same_for_ever():
    """A change here moves every number ever made: give the space a new name."""
    model, ramp = FixedFilters().double(), torch.linspace(-1, 1, 3 * 4 * 64).double().reshape(1, 3, 4, 8, 8)
    assert clip_space().name == "fewstep-filters-1-clips"
    assert_close(float(model.first.abs().sum()), 151.0075, atol=1e-4, rtol=0)
    assert_close(float(model(ramp).sum()), 3.6969, atol=1e-4, rtol=0)


def test_its_name_and_protocol_cannot_be_taken_for_i3d():
    for space in (clip_space(), frame_space()):
        assert "i3d" not in space.name.lower()
        assert "not I3D" in space.protocol


def test_gray_clips_are_read_and_latents_refused():
    gray = discs(1)[:, :1]
    assert_close(clip_space().extract(gray), clip_space().extract(gray.expand(-1, 3, -1, -1, -1)))
    with pytest.raises(UserError, match="decode latents"):
        clip_space().extract(torch.zeros(1, 16, 4, 8, 8))


def test_scaling_keeps_what_has_the_size_and_constants():
    clips = discs(1)
    assert torch.equal(scaled(clips, 32, antialias=True), clips)
    assert_close(scaled(torch.full((1, 3, 2, 9, 15), 0.4), 8, antialias=True), torch.full((1, 3, 2, 8, 8), 0.4))
