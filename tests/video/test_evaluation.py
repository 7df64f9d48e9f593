"""Measuring a student: itself against itself, stills, the truth of a drawn world, and what cannot be measured."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from video.clip_bed import still

from fewstep.core.data.shown import Shown
from fewstep.core.errors import UserError
from fewstep.core.models.family import Size
from fewstep.video.evaluation import EvaluationConfig, VideoMetrics
from fewstep.video.metrics.comparison import MotionLimits
from fewstep.video.reading.layouts import list_clips
from fewstep.video.reading.sampling import ClipConfig
from fewstep.video.reference import clip_batches, picture_batches
from fewstep.video.world import DrawnWorld, WorldConfig, write_world
from fewstep.video.world.config import HIGH
from fewstep.video.world.truth import read_truth, world_folder

CONFIG = WorldConfig(frames=8, objects=2)
SIZE = Size(32, 32, 8)


def same(latents: Tensor) -> Tensor:
    return latents


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("world") / "w"
    write_world(out, DrawnWorld(CONFIG), clips=24, images=6, video_quality=HIGH)
    return out


@cache
def drawn(seed: int = 0, config: WorldConfig = CONFIG) -> tuple[Tensor, list[str]]:
    """Clips in [-1, 1] with their captions."""
    made = DrawnWorld(config, seed).clips(range(24), HIGH)
    return made.frames.transpose(1, 2) * 2 - 1, made.captions


def metrics_of(captions=None, **changes) -> VideoMetrics:
    shown = Shown(captions, {}) if captions else None
    return VideoMetrics(EvaluationConfig(**changes), SIZE, same, shown=shown)


def test_alone_it_measures_motion_and_a_still_has_none():
    clips, _ = drawn()
    moving, standing = (metrics_of().evaluate(x, {}) for x in (clips, still(clips)))
    names = ["contrast", "motion_energy", "speed", "dynamic_degree", "flicker", "brightness_flicker"]
    assert list(moving) == list(standing) == names
    assert [standing[name] for name in names[1:]] == [0.0] * 5
    assert moving["dynamic_degree"] > 0.5
    assert "frechet" not in metrics_of().protocol


def test_the_reference_itself_is_nearest_and_a_still_is_seen(world):
    metrics = metrics_of(clips=str(world), images=str(world / "images"))
    clips = torch.cat(list(clip_batches(str(world), metrics.clip, 99, same)))
    assert clips.shape == (24, 3, 8, 32, 32)
    own = metrics.evaluate(clips, {})
    assert_close(own["frechet_video"], 0.0, atol=1e-4, rtol=0)
    assert own["motion_ratio"] == own["motion_kept"] == 1.0
    frozen = metrics.evaluate(still(clips), {})
    assert frozen["frechet_video"] > 100 * abs(own["frechet_video"])
    assert frozen["motion_kept"] == frozen["motion_ratio"] == 0.0
    assert own["frechet_frame"] > 0
    assert f"at most 256 pictures of {world}" in metrics.protocol


def test_motion_is_judged_by_the_teacher_where_there_is_one(world):
    clips, _ = drawn()
    calls = []

    def teacher() -> Tensor:
        calls.append(1)
        return still(clips) + 0.01 * clips

    metrics = VideoMetrics(EvaluationConfig(clips=str(world), count=4), SIZE, same, teacher)
    assert metrics.evaluate(clips, {})["motion_ratio"] > 100
    assert metrics.evaluate(teacher(), {})["motion_kept"] == 1.0
    assert metrics.verdict(still(clips), clips).mark == "frozen"
    assert len(calls) == 2  # once for the metrics, which remember, and once here


def test_references_are_read_once_and_are_the_same_each_time(world, monkeypatch):
    metrics = metrics_of(clips=str(world), images=str(world / "images"), count=4)
    first = metrics.evaluate(drawn()[0], {})
    monkeypatch.setattr("fewstep.video.evaluation.clip_batches", None)
    monkeypatch.setattr("fewstep.video.evaluation.picture_batches", None)
    assert metrics.evaluate(drawn()[0], {}) == first


def test_a_drawn_world_knows_the_truth(world):
    clips, captions = drawn()
    found = metrics_of(captions, clips=str(world)).evaluate(clips, {})
    assert_close(found["speed_ratio"], 1.0, atol=0.05, rtol=0)
    assert found["direction_distance"] < 0.05
    assert found["speed_distance"] < 0.05
    assert min(found["found"], found["caption_direction"], found["caption_pace"]) > 0.9


def test_a_mirrored_world_moves_the_wrong_way_at_the_right_speed(world):
    clips, captions = drawn()
    found = metrics_of(captions, clips=str(world)).evaluate(clips.flip(-1), {})
    assert_close(found["speed_ratio"], 1.0, atol=0.05, rtol=0)
    assert found["caption_direction"] < 0.5


def test_stills_and_nothing_at_all_have_no_speed(world):
    clips, captions = drawn()
    metrics = metrics_of(captions, clips=str(world))
    assert metrics.evaluate(still(clips), {})["speed_ratio"] < 0.05
    empty = metrics.evaluate(torch.full_like(clips, -1.0), {})
    assert empty["found"] == empty["caption_direction"] == 0.0
    assert "speed_ratio" not in empty


def test_truth_follows_size_and_interval(world):
    truth = read_truth(world)
    clip = ClipConfig(frames=8, size=(32, 32), start="centre")
    base, config = truth.statistics(clip)
    assert config == CONFIG
    larger, config = truth.statistics(ClipConfig(frames=8, size=(64, 64), start="centre"))
    assert_close(larger.mean_speed, 2 * base.mean_speed)
    assert config.unit == 2 * CONFIG.unit
    wide, _ = truth.statistics(ClipConfig(frames=4, interval=2, size=(32, 32), start="centre"))
    assert base.mean_speed < wide.mean_speed <= 2 * base.mean_speed
    some, _ = truth.statistics(clip, truth.captions[:1])
    assert len(some.speeds) < len(base.speeds)
    foreign, _ = truth.statistics(clip, ["unknown", truth.captions[0]])
    assert len(foreign.speeds) == len(base.speeds)


def test_captions_of_ones_own_leave_the_truth_out(world):
    metrics = metrics_of(["a red fox"], clips=str(world), count=4)
    assert metrics.world is None
    assert "speed_ratio" not in metrics.evaluate(drawn()[0], {})
    assert "drawn world" not in metrics.protocol


def test_a_world_is_found_from_its_folder_and_from_its_videos(world, tmp_path):
    assert world_folder(world) == world_folder(world / "videos") == world
    assert world_folder(tmp_path) is None
    pieces = [list(clip_batches(str(path), metrics_of().clip, 3, same)) for path in (world, world / "videos")]
    assert torch.equal(pieces[0][0], pieces[1][0])
    assert pieces[0][0].shape[0] == 3


def test_pictures_are_cropped_to_the_clips(world):
    (batch,) = picture_batches(str(world / "images"), Size(16, 24), 99)
    assert batch.shape == (6, 3, 16, 24)
    assert -1 <= float(batch.min()) < 0 < float(batch.max()) <= 1
    (some,) = picture_batches(str(world / "images"), Size(16, 24), 2)
    assert torch.equal(some, batch[:2])


def test_damaged_references_are_passed_over(world, tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    for source in sorted((world / "videos").iterdir())[:8]:
        (folder / source.name).write_bytes(source.read_bytes())
    list_clips(folder)[0].source.path.write_bytes(b"not a video")
    assert len(torch.cat(list(clip_batches(str(folder), metrics_of().clip, 9, same)))) == 3
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "a.png").write_bytes(b"not a picture")
    (pictures / "b.png").write_bytes((world / "images" / "00000.png").read_bytes())
    assert len(torch.cat(list(picture_batches(str(pictures), Size(8, 8), 9)))) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 1}, "count"),
        ({"frames": 0}, "frames"),
        ({"fps": -1.0}, "fps"),
        ({"fps": 8.0, "interval": 2}, "not both"),
        ({"interval": 0}, "interval"),
        ({"clips": "/nowhere"}, "domain.evaluation.clips: /nowhere"),
        ({"images": "/nowhere"}, "domain.evaluation.images"),
        ({"i3d": "x.safetensors"}, "give clips"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(UserError, match=message):
        EvaluationConfig(**changes)


@pytest.mark.parametrize("changes", [{"still": -0.1}, {"still": 0.6, "slow": 0.5}, {"restless": 0.2}])
def test_limits_that_cannot_be(changes):
    with pytest.raises(UserError, match="limits"):
        MotionLimits(**changes)


def test_what_cannot_be_measured_is_said(world, tmp_path):
    clips, captions = drawn()
    one = clips.clone()
    one[0, 0, 0, 0, 0] = torch.nan
    assert metrics_of().evaluate(one, {}) == {"refused": pytest.approx(1 / len(clips))}
    assert metrics_of().evaluate(clips / 0, {}) == {"refused": 1.0}
    assert "refused" not in metrics_of().evaluate(clips, {})
    with pytest.raises(UserError, match="I3D needs"):
        metrics_of(clips=str(world), i3d=str(world / "world.json"))
    with pytest.raises(UserError, match=r"config\.json"):
        metrics_of(captions, clip=str(tmp_path))
    broken = tmp_path / "w"
    broken.mkdir()
    card = json.loads((world / "world.json").read_text())
    (broken / "world.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=r"motion.safetensors is damaged.*write the world again"):
        read_truth(broken)
    (broken / "motion.safetensors").write_bytes((world / "motion.safetensors").read_bytes())
    (broken / "world.json").write_text(json.dumps(card | {"clips": 23}))
    with pytest.raises(UserError, match=r"world\.json says"):
        read_truth(broken)
