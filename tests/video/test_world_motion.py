"""Motion measured from frames: known trajectories are found in crisp and in blurred clips, and changes are noticed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from fewstep.core.errors import TrainingError
from fewstep.video.world import (
    HIGH,
    LOW,
    DrawnWorld,
    WorldConfig,
    agreement,
    compare,
    displacements,
    measure,
    statistics,
)
from fewstep.video.world.config import CONTENT, EDGES
from fewstep.video.world.rendering import PALETTE
from fewstep.video.world.scenes import draw_scenes
from fewstep.video.world.tracking import drift, hues, track

QUALITIES = {"high": HIGH, "low": LOW}
N = range(40)


def both(config, quality):
    world, wrap = DrawnWorld(config), config.edges == "wrap"
    clips = world.clips(N, quality)
    texture = draw_scenes(config, world.seed, N).texture
    true = displacements(clips.motion, texture, config.width, config.height, wrap)
    return clips, measure(clips.frames, clips.captions, wrap), true


@pytest.mark.parametrize("quality", QUALITIES)
@pytest.mark.parametrize("edges", EDGES)
@pytest.mark.parametrize(("content", "tolerance"), [("shapes", 0.3), ("digits", 0.6), ("textures", 0.08)])
def test_a_single_thing_is_followed_within_a_fraction_of_a_pixel(content, tolerance, edges, quality):
    config = WorldConfig(content=(content,), objects=1, edges=edges, jitter=10.0)
    _, measured, true = both(config, QUALITIES[quality])
    assert torch.equal(measured.found, true.found)
    error = (measured.displacement - true.displacement).norm(dim=-1)
    assert error.max() < tolerance
    assert error.median() < tolerance / 5


@pytest.mark.parametrize("quality", QUALITIES)
@pytest.mark.parametrize("edges", EDGES)
def test_distributions_of_many_things_are_the_true_ones(edges, quality):
    config = WorldConfig(content=CONTENT, objects=3, edges=edges)
    clips, measured, true = both(config, QUALITIES[quality])
    found, known = (statistics(config, each, clips.captions) for each in (measured, true))
    assert all(value < 0.03 for value in compare(found, known).values())
    assert all(value > 0.95 for value in agreement(config, measured, clips.captions).values())
    assert agreement(config, true, clips.captions) == {"direction": 1.0, "pace": 1.0}


def test_changed_motion_is_noticed():
    config = WorldConfig(objects=1)
    clips, measured, _ = both(config, HIGH)
    teacher = statistics(config, measured, clips.captions)
    assert set(compare(teacher, teacher).values()) == {0.0}

    def student(frames):
        seen = measure(frames, clips.captions)
        return compare(statistics(config, seen, clips.captions), teacher), agreement(config, seen, clips.captions)

    still, agreed = student(clips.frames[:, :1].expand_as(clips.frames))
    assert still["speed"] == pytest.approx(1, abs=1e-6)
    assert still["moving"] > 0.9
    assert agreed["direction"] == 0
    slow, _ = student(clips.frames[:, [0, 0, 1, 1, 2, 2, 3, 3]])
    assert 0.3 < slow["speed"] < 0.6
    mirrored, agreed = student(clips.frames.flip(-1))
    assert mirrored["speed"] < 0.02
    assert 0.15 < agreed["direction"] < 0.6  # up and down stay what they were
    with pytest.raises(TrainingError, match="none of the things"):
        student(torch.full_like(clips.frames, 0.5))


def test_noise_and_a_cast_of_colour_hardly_move_centroids():
    config = WorldConfig(objects=1)
    clips, measured, _ = both(config, LOW)
    noise = torch.randn(clips.frames.shape, generator=torch.Generator().manual_seed(0))
    cast = torch.tensor([0.01, 0.0, 0.02]).view(3, 1, 1)
    seen = measure(clips.frames + 0.01 * noise + cast, clips.captions)
    error = (seen.displacement - measured.displacement).norm(dim=-1)
    assert error.quantile(0.95) < 0.3


def test_hues_of_the_palette_are_told_apart_however_pale():
    palette = torch.tensor(PALETTE).float()[:, :, None, None]
    pale = 0.5 + 0.2 * (palette - 0.5)
    assert_close(hues(palette)[:, :, 0, 0], torch.eye(6))
    assert_close(hues(pale)[:, :, 0, 0], 0.2 * torch.eye(6))
    assert hues(torch.rand(4, 1, 5, 5, generator=torch.Generator().manual_seed(0)).expand(4, 3, 5, 5)).max() < 1e-6


def test_drift_of_a_rolled_picture_is_exact_and_of_a_plain_one_zero():
    picture = torch.rand(3, 20, 27, generator=torch.Generator().manual_seed(0))
    clip = torch.stack([picture.roll((-2 * i, 3 * i), (1, 2)) for i in range(4)])[None]
    assert_close(drift(clip), torch.tensor([3.0, -2]).double().expand(1, 3, 2), atol=1e-5, rtol=0)
    assert torch.equal(drift(torch.full((1, 3, 3, 8, 8), 0.5)), torch.zeros(1, 2, 2).double())


def test_tracks_follow_a_rolled_clip_around_the_edges():
    config = replace(WorldConfig(objects=1, edges="wrap"), frames=1)
    frames = DrawnWorld(config).clips(range(6)).frames
    tracks, moved = (track(each, wrap=True) for each in (frames, frames.roll((5, -9), (3, 4))))
    size = torch.tensor([32.0, 32]).double()
    present = tracks.area > 0.004
    gone = (moved.position - tracks.position + 16).remainder(size) - 16
    assert_close(gone[present], torch.tensor([-9.0, 5]).double().expand_as(gone[present]), atol=1e-3, rtol=0)
