"""Clips prepared once: what the teacher makes of them, the same bytes however it was interrupted, damage listed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from core.model_bed import teacher
from safetensors.torch import load_file
from torch.testing import assert_close
from video.reading_bed import flipped, inside_a_packet, numbered, truncated, write

from fewstep.core.data.cache import CacheWriter, read_index
from fewstep.core.data.damage import Damaged
from fewstep.core.data.prepare import prepare
from fewstep.core.data.prepared import Prepared
from fewstep.core.data.samples import CentreCrops, Samples
from fewstep.core.errors import TrainingError, UserError
from fewstep.core.models.family import Size
from fewstep.video.clip_source import open_clips, to_pixels
from fewstep.video.preparing import ClipSamples
from fewstep.video.reading import read_clip
from fewstep.video.reading.sampling import ClipConfig

SIZE = teacher("wan").size
CLIP = ClipConfig(frames=SIZE.frames, size=(SIZE.height, SIZE.width), interval=2, start="random", crop="random")


def fill(root, count=5):
    """Videos of their own lengths, with captions beside them."""
    root.mkdir()
    for number in range(count):
        write(root / f"{number}.mp4", numbered(20 + 3 * number), "libx264", g="6")
        (root / f"{number}.txt").write_text(f"clip {number % 3}")
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("data") / "videos")


def samples(root, per_video=2, max_bad_share=0.0, seed=0, **changes):
    return ClipSamples(open_clips(root, replace(CLIP, **changes), max_bad_share=max_bad_share), seed, per_video)


def run(root, out, per_shard=3, **given):
    return prepare(teacher("wan"), samples(root, **given), out, samples_per_shard=per_shard, batch=1)


@pytest.fixture(scope="module")
def folder(root, tmp_path_factory):
    """Ten clips of five videos, three in a shard."""
    out = tmp_path_factory.mktemp("prepared") / "out"
    run(root, out)
    return out


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_latents_are_the_means_of_the_posterior_scaled_once(root, folder):
    found, data = Prepared(folder, teacher("wan")), samples(root)
    found.verify()
    assert isinstance(data, Samples)
    assert [found.captions[row] for row in found.rows] == [f"clip {n % 3}" for n in range(5) for _ in range(2)]
    vae = teacher("wan").folder.load("vae", torch.float32)
    mean, std = (torch.tensor(each).view(1, -1, 1, 1, 1) for each in (vae.config.latents_mean, vae.config.latents_std))
    for index in (0, 1, 7):
        with torch.no_grad():
            latent = (vae.encode(data.pixels(index)[None]).latent_dist.mean - mean) / std
        assert_close(found.latents([index])[1], latent)
    # the bounds of what a clip holds, at the ends
    shown = to_pixels(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1))
    assert (float(shown.min()), float(shown.max())) == (-1.0, 1.0)


def test_clips_of_one_video_differ_and_are_where_the_draw_says(root):
    data = samples(root, per_video=3)
    assert len(data) == 15
    several = [data.pixels(index) for index in (3, 4, 5)]
    assert not torch.equal(several[0], several[1])
    assert torch.equal(several[1], samples(root, per_video=3).pixels(4))
    assert not torch.equal(several[1], samples(root, per_video=3, seed=1).pixels(4))
    first = samples(root, per_video=1, interval=1, start="first", crop="centre").pixels(2)
    whole = read_clip(root / "2.mp4", (0, SIZE.frames, 1), size=(16, 24))[..., 4:20]
    assert torch.equal(first, to_pixels(whole))


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_killed_preparation_ends_with_the_same_bytes(root, tmp_path, monkeypatch, folder, where):
    """Killed around every shard in turn: before it is written, and after it is but before the index says so."""
    whole, noted = CacheWriter.write, CacheWriter._note
    state = {"left": 0, "seen": 0, "writing": False}

    def written(self, kind, name, tensors, refused=None):
        if where == "before" and state["seen"] == state["left"]:
            raise KeyboardInterrupt
        state["writing"] = True
        whole(self, kind, name, tensors, refused)
        state["writing"] = False
        state["seen"] += 1

    def note(self, *names):
        if where == "after" and state["writing"] and state["seen"] == state["left"]:
            raise KeyboardInterrupt
        noted(self, *names)

    monkeypatch.setattr(CacheWriter, "write", written)
    monkeypatch.setattr(CacheWriter, "_note", note)
    deaths, out = 0, tmp_path / "out"
    while True:
        try:
            run(root, out)
            break
        except KeyboardInterrupt:
            deaths += 1
            assert not read_index(out).complete
            state |= {"left": 1, "seen": 0, "writing": False}
    assert deaths >= 4
    assert files(out) == files(folder)


def test_a_lost_shard_is_made_again_and_a_finished_folder_left_alone(root, tmp_path, folder):
    out = tmp_path / "out"
    run(root, out)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    run(root, out)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    (out / "latents-00001.safetensors").unlink()
    run(root, out)
    assert files(out) == files(folder)


def damage(root):
    """Cut two of five videos: one so that nothing, one so that only a clip in its beginning could be read."""
    write(root / "1.mp4", numbered(4))
    truncated(root / "3.mkv", write(root / "3.whole.mkv", numbered(26), "libx264", g="6"), 0.7)
    for name in ("3.whole.mkv", "3.mp4"):
        (root / name).unlink()


def test_damaged_videos_are_counted_and_listed_also_after_an_interruption(tmp_path, folder, monkeypatch):
    root = fill(tmp_path / "videos")
    damage(root)
    whole = run(root, tmp_path / "whole", max_bad_share=0.4)
    assert [line.split(": ")[0] for line in whole.refused] == [str(root / "1.mp4"), str(root / "3.mkv")]
    assert "4 frames, and 17 are needed" in whole.refused[0]
    assert (whole.files, whole.samples) == (5, 10)
    found = Prepared(tmp_path / "whole")
    assert [found.captions[row] for row in found.rows] == [f"clip {n % 3}" for n in (0, 2, 4) for _ in range(2)]

    shards, wrote = [], CacheWriter.write

    def written(self, kind, name, tensors, refused=None):
        if len(shards) == 3:
            raise KeyboardInterrupt
        shards.append(name)
        wrote(self, kind, name, tensors, refused)

    monkeypatch.setattr(CacheWriter, "write", written)
    with pytest.raises(KeyboardInterrupt):
        run(root, tmp_path / "out", max_bad_share=0.4)
    monkeypatch.undo()
    assert run(root, tmp_path / "out", max_bad_share=0.4).refused == whole.refused
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    # a shard that is lost afterwards keeps the samples it had, whatever was refused in the shards behind it
    (tmp_path / "out" / "latents-00000.safetensors").unlink()
    run(root, tmp_path / "out", max_bad_share=0.4)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    with pytest.raises(TrainingError, match=r"2 of 5 videos cannot be read, more than max_bad_share=0\.3"):
        run(root, tmp_path / "other", max_bad_share=0.3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": (32, 16)}, "at 16x16x9"),
        ({"frames": 5}, "at 16x16x9"),
        ({"interval": 1}, r"other clips \(9 frames of 16x16, 1 in 2, start random"),
        ({"start": "first"}, "other clips"),
        ({"short": "loop"}, "other clips"),
        ({"crop": "centre"}, "other clips"),
        ({"flip": True}, "other clips"),
        ({"seed": 1}, "other clips"),
        ({"per_video": 1}, "other clips"),
    ],
)
def test_other_clips_are_not_mixed_with_those_of_a_folder(root, folder, change, said):
    data = samples(root, **change)
    height, width = data.clips.config.size
    other = replace(teacher("wan"), size=Size(height, width, data.clips.config.frames))
    with pytest.raises(UserError, match=f"holds data prepared for .*{said}.*: give another --out") as caught:
        prepare(other, data, folder, samples_per_shard=3)
    assert "\n" not in str(caught.value)


def test_another_autoencoder_or_size_cannot_use_a_folder(folder):
    with pytest.raises(UserError, match="at 16x16x9, not for the wan teacher 'tiny:wan' at 16x16x5"):
        Prepared(folder, replace(teacher("wan"), size=Size(16, 16, 5)))
    index = read_index(folder)
    (folder / "index.json").write_text(index.dump().replace(str(index.origin.vae), "0" * 64))
    with pytest.raises(UserError, match="the weights differ"):
        Prepared(folder, teacher("wan"))
    (folder / "index.json").write_text(index.dump())


def test_data_that_moved_are_the_same_data(root, tmp_path):
    root.rename(tmp_path / "moved")
    try:
        moved = samples(tmp_path / "moved")
    finally:
        (tmp_path / "moved").rename(root)
    assert moved.identity == samples(root).identity
    assert moved.identity != samples(root, interval=3).identity


def test_a_long_clip_is_encoded_in_pieces_by_autoencoders_of_pictures_and_of_videos():
    """What an encoder sees at a time does not grow with the clip, and pieces give what the whole would."""
    for name, frames in (("modelscope", 48), ("wan", 49)):
        codec, seen = teacher(name).vae(), []
        codec.vae.encoder.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0][:, 0].numel()))
        clip = torch.linspace(-1, 1, 3 * frames * 16 * 16).view(1, 3, frames, 16, 16)
        latents = codec.encode(clip)
        assert max(seen) <= 16 * 16 * 16, name
        assert len(seen) >= 3
        first = codec.encode(clip[:, :, :9])
        assert_close(latents[:, :, : first.shape[2]], first, atol=1e-4, rtol=1e-4)


def test_the_dry_run_says_disk_and_time_and_writes_nothing(root, folder, tmp_path):
    guess = prepare(teacher("wan"), samples(root), tmp_path / "out", samples_per_shard=3, dry_run=True)
    taken = sum(len(content) for content in files(folder).values())
    assert taken / 2 < guess.bytes < 2 * taken + 2**14
    assert guess.seconds is not None
    assert guess.seconds > 0
    assert str(guess).endswith(" here")
    assert not (tmp_path / "out").exists()
    assert load_file(folder / "latents-00000.safetensors")["samples"].tolist() == [0, 1, 2]


def test_pictures_are_samples_as_before(tmp_path):
    from core.caption_bed import make_folder

    from fewstep.core.data.captioned import open_captioned

    pictures = open_captioned(make_folder(tmp_path / "data", 3))
    crops = CentreCrops(pictures, Size(8, 8))
    assert isinstance(crops, Samples)
    assert crops.identity == pictures.identity
    assert crops.pixels(1).shape == (3, 8, 8)
    assert float(crops.pixels(1).min()) < 0


def test_a_video_damaged_in_one_place_gives_its_other_clips_in_whatever_order_they_are_made(tmp_path):
    whole = write(tmp_path / "whole.mkv", numbered(90), "libx264", g="6", bf="0")
    root = tmp_path / "videos"
    root.mkdir()
    flipped(root / "0.mkv", whole, inside_a_packet(whole, 44, 0.02))
    (root / "0.txt").write_text("half of it")
    given = {"per_video": 8, "max_bad_share": 1.0}
    alone = []
    for index in range(8):
        try:
            samples(root, **given).pixels(index)
            alone.append(index)
        except Damaged:
            continue
    assert 1 < len(alone) < 8
    made = run(root, tmp_path / "out", 2, **given)
    assert len(made.refused) == 1
    kept = [load_file(file)["samples"].tolist() for file in sorted((tmp_path / "out").glob("latents-*"))]
    assert [index for shard in kept for index in shard] == alone
    before = files(tmp_path / "out")
    for lost in ("latents-00000.safetensors", "latents-00003.safetensors"):
        (tmp_path / "out" / lost).unlink()
        run(root, tmp_path / "out", 2, **given)
        assert files(tmp_path / "out") == before
