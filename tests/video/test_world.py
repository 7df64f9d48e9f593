"""The drawn world: determinism, motion in closed form, drawings centred where they should be, captions read back."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.video.world import HIGH, LOW, DrawnWorld, Quality, WorldConfig
from fewstep.video.world.captions import Caption, Thing, describe, read
from fewstep.video.world.config import CONTENT, DIGITS, EDGES, SHAPES
from fewstep.video.world.rendering import blur_matrix, film
from fewstep.video.world.scenes import draw_scenes, trace
from fewstep.video.world.shapes import COVERAGE, digit, drawings
from fewstep.video.world.textures import WAVES, cover

ALL = WorldConfig(content=CONTENT, objects=3)
N = range(200)


@pytest.mark.parametrize("edges", EDGES)
def test_a_clip_is_a_function_of_seed_and_index_alone(edges):
    world = DrawnWorld(replace(ALL, edges=edges), seed=3)
    whole, part = world.clips(range(12)), world.clips([7, 2])
    assert torch.equal(whole.frames[[7, 2]], part.frames)
    assert [whole.captions[7], whole.captions[2]] == part.captions
    assert torch.equal(whole.motion.position[[7, 2]], part.motion.position)
    assert not torch.equal(DrawnWorld(world.config, seed=4).clips([7, 2]).frames, part.frames)
    images, captions = world.images(range(12))
    again, said = world.images([5])
    assert torch.equal(images[5], again[0])
    assert captions[5] == said[0]


def test_bounces_keep_speeds_and_stay_inside():
    config = replace(ALL, content=("shapes",), frames=60, width=48)
    scenes = draw_scenes(config, 0, N)
    motion = trace(config, scenes)
    assert_close(motion.speed, motion.speed[:, :, :1].expand_as(motion.speed))
    wall, size = scenes.radius[:, :, None, None], torch.tensor([48.0, 32.0])
    assert (motion.position >= wall - 1e-9).all()
    assert (motion.position <= size - wall + 1e-9).all()
    steps = motion.position.diff(dim=2)
    assert (steps.norm(dim=-1) <= motion.speed[:, :, 1:] + 1e-9).all()
    free = (motion.velocity[:, :, 1:] == motion.velocity[:, :, :-1]).all(-1)
    assert 0.5 < free.double().mean() < 0.999  # some bounce, most do not
    assert_close(steps[free], motion.velocity[:, :, 1:][free])


def test_wrapping_is_a_straight_line_modulo_the_size():
    config = replace(ALL, edges="wrap", frames=20, height=24)
    scenes = draw_scenes(config, 0, N)
    motion = trace(config, scenes)
    size = torch.tensor([32.0, 24.0]).double()
    ahead = (motion.position[:, :, 1:] - motion.position[:, :, :-1] - motion.velocity[:, :, 1:]) / size
    assert_close(ahead, ahead.round(), atol=1e-9, rtol=0)
    assert (motion.position >= 0).all()
    assert (motion.position < size).all()


def test_captions_tell_the_direction_of_the_first_half_of_a_clip():
    for edges in EDGES:
        config = replace(ALL, edges=edges, jitter=20.0)
        scenes = draw_scenes(config, 0, N)
        motion = trace(config, scenes)
        angle = scenes.direction[..., None] * math.tau / 8
        off = (motion.direction[..., : config.frames // 2] - angle + math.pi).remainder(math.tau) - math.pi
        assert off.abs().max() <= math.radians(20) + 1e-9
        fast = motion.speed[:, :, 0] > 1.4
        assert torch.equal(fast, scenes.pace == 1)


def centroid(share):
    share = share.double()
    x = torch.arange(share.shape[-1]) + 0.5
    y = torch.arange(share.shape[-2]) + 0.5
    total = share.sum((-2, -1))
    return torch.stack((share.sum(-2) @ x.double(), share.sum(-1) @ y.double()), -1) / total[..., None], total


def shifts(radius, name, n=64):
    """Shares of a thing at sub-pixel positions around the middle of a 32x32 picture."""
    at = 16 + torch.rand(n, 2, generator=torch.Generator().manual_seed(0))
    x = torch.arange(32) + 0.5 - at[:, None, :1]
    y = torch.arange(32)[:, None] + 0.5 - at[:, 1:, None]
    r = torch.full((n, 1, 1), radius)
    if name in COVERAGE:
        return at, COVERAGE[name](x, y, r)
    images, rows = drawings()
    return at, digit(x, y, r, images[rows[int(name)][0]].expand(n, 8, 8))


@pytest.mark.parametrize("name", [*SHAPES, *DIGITS[::3]])
def test_a_drawing_is_centred_on_its_position_and_keeps_its_area(name):
    at, share = shifts(5.3, name)
    found, area = centroid(share)
    tolerance = 0.15 if name in DIGITS else 0.1
    assert (found - at).norm(dim=-1).max() < tolerance
    assert area.std() / area.mean() < 0.04
    assert share.min() >= 0
    assert share.max() <= 1


def test_areas_are_those_of_geometry():
    r = 5.3
    known = {
        "disc": math.pi * r * r,
        "ring": math.pi * r * r * (1 - 0.4**2),
        "square": math.pi * r * r,
        "diamond": 2 * r * r,
        "triangle": 0.75 * math.sqrt(3) * r * r,
        "cross": r * r * 4 * (2 * 0.36 - 0.36**2),
    }
    for name, area in known.items():
        assert centroid(shifts(r, name)[1])[1].mean().item() == pytest.approx(area, rel=0.02)


def test_textures_translate_and_wrap():
    waves = torch.rand(2, 2 * WAVES * WAVES, generator=torch.Generator().manual_seed(0)).double()
    offset = torch.tensor([[0.0, 0], [5, 0], [0, -3], [32, 24]]).double().expand(2, 4, 2)
    share = cover(waves, torch.tensor([0, 1]), offset, 24, 32)
    for frame, (down, right) in enumerate([(0, 0), (0, 5), (-3, 0), (0, 0)]):
        assert_close(share[:, frame], share[:, 0].roll((down, right), (1, 2)), atol=1e-4, rtol=0)
    assert (share[:, 0].mean((1, 2)) - 0.5).abs().max() < 0.15


def test_a_wrapping_world_has_no_border():
    config = WorldConfig(edges="wrap", objects=1, slow=(1.0, 1.0), fast=(2.0, 2.0), frames=33)
    scenes = draw_scenes(config, 0, N)
    rows = scenes.direction[:, 0] % 2 == 0  # along an axis: back where it began after 32 frames
    frames = DrawnWorld(config).clips(rows.nonzero()[:20, 0].tolist()).frames
    assert_close(frames[:, 0], frames[:, 32], atol=1e-4, rtol=0)


def test_filming_is_linear_keeps_the_mean_and_pales():
    frames = DrawnWorld(ALL).clips(range(8), HIGH).frames.double()
    for wrap in (False, True):
        for size in (7, 32):
            matrix = blur_matrix(size, 1.3, wrap)
            assert_close(matrix.sum(0), torch.ones(size))
            assert_close(matrix.sum(1), torch.ones(size))
    assert torch.equal(film(frames, HIGH), frames)
    blurred = film(frames.float(), Quality(blur=1.5))
    assert_close(blurred.mean((-2, -1)), frames.float().mean((-2, -1)))
    pale = film(frames, Quality(contrast=0.5, saturation=0.4, haze=0.6))
    gray = frames.mean(2, keepdim=True)
    assert_close(pale, 0.6 + 0.5 * (gray + 0.4 * (frames - gray) - 0.6))
    low = DrawnWorld(ALL).clips(range(8), LOW).frames
    assert low.std() < 0.6 * frames.std()
    assert low.min() >= 0
    assert low.max() <= 1


def test_captions_are_read_back():
    scenes = draw_scenes(ALL, 0, N)
    assert scenes.count.unique().tolist() == [1, 2, 3]
    for motion in (True, False):
        told = describe(scenes, motion=motion)
        assert [read(str(caption)) for caption in told] == told
        assert all(len({thing.colour for thing in caption.things}) == len(caption.things) for caption in told)
    two = Caption((Thing("red", "disc", "up left", "slowly"), Thing("blue", "7", "right", "fast")), "black")
    assert str(two) == "a red disc moves up left slowly and a blue 7 moves right fast, on black"
    assert str(Caption((Thing("green", "clouds"),), "white")) == "green clouds, on white"


@pytest.mark.parametrize(
    "text",
    ["", "a red disc", "a mauve disc, on black", "a red disc moves, on black", "a red disc , on black", "on black"],
)
def test_other_captions_are_refused(text):
    with pytest.raises(UserError, match="is no caption of the drawn world; write it like 'a red disc"):
        read(text)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"frames": 0}, "frames=0 must be a whole number"),
        ({"height": 8}, "height=8"),
        ({"frames": 4096, "height": 4096}, "more than"),
        ({"content": ()}, "content names nothing"),
        ({"content": ("shape",)}, "did you mean 'shapes'"),
        ({"edges": "bounces"}, "did you mean 'bounce'"),
        ({"slow": (1.0, 2.0)}, "must end below fast"),
        ({"radius": (0.2, 0.1)}, "a least and a most"),
        ({"jitter": math.nan}, "jitter"),
        ({"objects": 7}, "objects=7"),
    ],
)
def test_values_out_of_range_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        WorldConfig(**wrong)
    with pytest.raises(UserError, match="blur"):
        Quality(blur=math.inf)
