"""Distances of clips and frames: laws of the distance, and that it sees what a student does wrong."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from video.clip_bed import discs, noise, still

from fewstep.core.errors import UserError
from fewstep.core.metrics.frechet import frechet_distance, moments
from fewstep.core.metrics.measure import FeatureSpace
from fewstep.video.metrics.features import clip_space, frame_space
from fewstep.video.metrics.frechet import ClipSet, PictureSet, features, frames_of

N = 24  # fewer than features: the bias is large, and the same for all
PLAIN = FeatureSpace("means", "mean of each channel", lambda x: x.flatten(2).mean(2))


@pytest.fixture(scope="module")
def world():
    return ClipSet(clip_space(), discs(N, 0))


def distance(reference, clips) -> float:
    return reference.measure(clips)[0].value


def test_distance_of_a_set_to_itself_is_zero_and_between_sets_symmetric():
    a, b = noise(20, 3, 4, 6, 6, seed=1), noise(20, 3, 4, 6, 6, seed=2) + 1
    assert distance(ClipSet(PLAIN, a), a) == pytest.approx(0, abs=1e-9)
    assert distance(ClipSet(PLAIN, a), b) == pytest.approx(distance(ClipSet(PLAIN, b), a), rel=1e-9)


def test_a_shift_of_every_feature_is_its_square():
    clips = noise(20, 3, 4, 6, 6)
    assert distance(ClipSet(PLAIN, clips), clips + 2) == pytest.approx(3 * 4, rel=1e-9)


def test_order_and_batches_change_nothing():
    clips, reference = noise(20, 3, 4, 6, 6), ClipSet(PLAIN, noise(9, 3, 4, 6, 6, seed=3))
    value = distance(reference, clips)
    assert distance(reference, clips.flip(0)) == pytest.approx(value, rel=1e-9)
    assert distance(reference, (batch for batch in clips.split(7))) == pytest.approx(value, rel=1e-12)


def test_it_sees_frozen_slowed_shuffled_and_noisy_clips(world):
    clips = discs(N, 1)
    same = distance(world, clips)
    order = torch.tensor([9, 3, 14, 0, 7, 12, 5, 1, 15, 8, 2, 11, 6, 13, 4, 10])
    wrong = {
        "frozen": still(clips),
        "slow": discs(N, 1, speed=0.5),
        "shuffled": clips[:, :, order],
        "blurred": discs(N, 1, soft=30),
        "noisy": clips + 0.2 * noise(*clips.shape).float(),
    }
    assert {name: distance(world, x) > 3 * same for name, x in wrong.items()} == dict.fromkeys(wrong, True)


def test_it_grows_with_noise(world):
    clips = discs(N, 1)
    found = [distance(world, clips + level * noise(*clips.shape).float()) for level in (0.1, 0.3)]
    assert found == sorted(found)


def test_a_number_carries_its_space_and_sizes(world):
    frechet, kernel = world.measure(discs(10, 2))
    assert (frechet.name, kernel.name) == ("frechet_video", "kernel_video")
    assert (frechet.samples, frechet.reference, frechet.better) == (10, N, "lower")
    assert "fewstep-filters-1-clips" in frechet.protocol
    assert "bias" in frechet.protocol
    assert "not I3D" in kernel.protocol


def test_frames_are_compared_with_pictures_and_motion_does_not_matter():
    pictures = discs(60, 5, frames=1)[:, :, 0]
    reference = PictureSet(frame_space(), pictures, frames=2)
    clips = discs(20, 6)
    frozen, kept = reference.measure(still(clips))[0], reference.measure(clips)[0]
    assert (kept.name, kept.samples, kept.reference) == ("frechet_frame", 40, 60)
    assert distance(reference, 0.5 * clips) > 3 * max(frozen.value, kept.value)
    expected = frechet_distance(moments(features(frame_space(), frames_of(clips, 2))), moments(reference.features))
    assert kept.value == pytest.approx(expected, rel=1e-12)


def test_frames_are_spread_over_the_clip():
    clips = torch.arange(8.0).reshape(1, 1, 8, 1, 1).expand(2, 3, -1, 2, 2)
    assert frames_of(clips, 2)[:, 0, 0, 0].tolist() == [2.0, 6.0, 2.0, 6.0]
    assert frames_of(clips, 99)[:, 0, 0, 0].tolist() == [*range(8), *range(8)]
    assert_close(frames_of(clips, 1)[:, 0, 0, 0], torch.tensor([4.0, 4.0]))


def test_what_cannot_be_measured_is_refused(world):
    bad = discs(3)
    bad[1, 0, 0, 0, 0] = float("nan")
    for clips, message in ((bad, "not finite"), (discs(1), "at least 2"), ([], "no samples")):
        with pytest.raises(UserError, match=message):
            world.measure(clips)
    with pytest.raises(UserError, match="at least 2"):
        ClipSet(clip_space(), discs(1))
    with pytest.raises(UserError, match="at least 1"):
        PictureSet(frame_space(), discs(3, frames=1)[:, :, 0], frames=0)
