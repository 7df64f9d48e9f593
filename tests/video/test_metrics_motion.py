"""Motion statistics against closed forms: stills, translating stripes, alternating frames, noise, ramps."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close
from video.clip_bed import alternating, discs, noise, still, stripes

from fewstep.core.errors import UserError
from fewstep.video.metrics.motion import (
    brightness_flicker,
    flicker,
    motion,
    motion_energy,
    motion_ratio,
    moving,
    pattern_speed,
    vbench_flickering,
)

STATISTICS = (motion_energy, pattern_speed, flicker, brightness_flicker)


@pytest.mark.parametrize("clips", [still(discs(2)), torch.full((2, 3, 5, 4, 4), 0.3), discs(2)[:, :, :1]])
def test_a_still_and_a_single_frame_have_no_motion(clips):
    assert all(statistic(clips).tolist() == [0.0, 0.0] for statistic in STATISTICS)
    assert vbench_flickering(clips).tolist() == [1.0, 1.0]
    assert moving(clips).tolist() == [False, False]
    assert set(motion(clips).means().values()) == {0.0}


@pytest.mark.parametrize("speed", [0.25, 1.0, 3.0])
def test_energy_of_stripes_is_the_closed_form(speed):
    """E (sin a - sin(a - d))^2 = 2 sin^2(d / 2) for phases d apart."""
    clip, k = stripes(speed)[..., :-1], 2 * math.pi / 16
    assert_close(motion_energy(clip)[0], torch.tensor(0.25 * 2 * math.sin(k * speed / 2) ** 2).double())


@pytest.mark.parametrize("speed", [0.25, 1.0, 3.0])
def test_speed_of_stripes_is_the_closed_form_and_exact_at_one_pixel_per_frame(speed):
    k = 2 * math.pi / 16
    expected = math.sin(k * speed / 2) / math.sin(k / 2)
    assert_close(pattern_speed(stripes(speed))[0], torch.tensor(expected).double())
    assert expected == pytest.approx(speed, rel=0.1 if speed > 1 else 0.02)


def test_speed_and_flicker_are_blind_to_contrast_and_brightness_and_energy_scales_with_the_square():
    clips = discs(3).double()
    washed = 0.3 * clips + 0.2
    assert_close(pattern_speed(washed), pattern_speed(clips))
    assert_close(flicker(washed), flicker(clips))
    assert_close(motion_energy(washed), 0.09 * motion_energy(clips))


def test_no_statistic_changes_when_clips_are_mirrored_or_played_backwards():
    clips = discs(3).double()
    for statistic in (motion_energy, flicker, brightness_flicker, vbench_flickering, moving):
        for other in (clips.flip(-1), clips.transpose(-1, -2), clips.flip(2)):
            assert_close(statistic(other), statistic(clips))


def test_alternating_frames_are_all_flicker():
    clip = alternating()
    assert [float(f(clip)) for f in (flicker, brightness_flicker, vbench_flickering)] == [1.0, 1.0, 0.0]
    assert float(motion_energy(clip)) == 4.0
    assert not bool(moving(clip))  # brightness alone is no motion


def test_flicker_of_a_ramp_is_zero_and_of_independent_frames_three_quarters():
    ramp = torch.linspace(-1, 1, 9).double().reshape(1, 1, 9, 1, 1).expand(1, 3, -1, 4, 4)
    assert float(flicker(ramp)) == pytest.approx(0, abs=1e-20)
    assert float(flicker(noise(1, 3, 40, 32, 32))) == pytest.approx(0.75, abs=0.01)
    assert float(flicker(alternating(2))) == 0.0  # two frames: nothing can be undone


def test_vbench_flickering_is_measured_on_eight_bits():
    clip = torch.zeros(1, 3, 2, 4, 4)
    clip[:, :, 1] = 2 * 51 / 255 + 1e-4  # a fifth of the range
    assert float(vbench_flickering(clip)) == pytest.approx(1 - 51 / 255, abs=1e-6)


def test_brightness_does_not_see_what_moves_inside_the_frame():
    clips = discs(4)
    changed = 1 - vbench_flickering(clips)
    assert float((brightness_flicker(clips) / changed).max()) < 0.01 < float(changed.min() / changed.max())


def test_ratio_is_one_for_the_teacher_zero_for_a_still_and_the_square_of_a_gain():
    clips = discs(4)
    assert motion_ratio(clips, clips) == 1.0
    assert motion_ratio(still(clips), clips) == 0.0
    assert motion_ratio(0.5 * clips, clips) == pytest.approx(0.25)
    with pytest.raises(UserError, match="stills"):
        motion_ratio(clips, still(clips))


def test_dynamic_degree_counts_the_clips_that_move():
    clips = torch.cat([discs(6), still(discs(2))])
    assert float(moving(clips[:6]).double().mean()) > 0.6
    assert motion(clips).means()["dynamic_degree"] == pytest.approx(float(moving(clips[:6]).double().sum()) / 8)


def test_one_cut_between_stills_is_no_motion_and_four_moves_of_sixteen_frames_are():
    clip = torch.zeros(1, 3, 16, 8, 8)
    for moves in (1, 3, 4):
        cut = clip.clone()
        for start in range(4, 4 + moves):
            cut[:, :, start:, start % 2 :: 2] = (-1.0) ** (start // 2)
        assert bool(moving(cut)) == (moves == 4)


def test_a_faster_clip_is_looked_at_in_longer_steps():
    clips = discs(3, frames=8)
    assert_close(moving(clips.repeat_interleave(3, 2), fps=24.0), moving(clips, fps=8.0))
    with pytest.raises(UserError, match="positive"):
        moving(clips, fps=0.0)
