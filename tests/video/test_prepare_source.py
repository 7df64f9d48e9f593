"""Clips encoded on the fly: a function of (seed, epoch, index), whatever the batch, the run or the damage."""

from __future__ import annotations

import pytest
import torch
from video.reading_bed import numbered, write

from fewstep.core.data.epochs import epoch_indices, epochs_of
from fewstep.core.data.source import EncodedTexts, Latents, TextSource
from fewstep.core.errors import TrainingError
from fewstep.core.rng import Rng
from fewstep.video.clip_source import EncodedClips, open_clips, to_pixels
from fewstep.video.reading.sampling import ClipConfig

CLIP = ClipConfig(frames=4, interval=2, size=(16, 16), crop="random", flip=True)
COUNT = 5


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for number in range(COUNT):
        write(folder / f"{number}.mp4", numbered(20 + number))
        (folder / f"{number}.txt").write_text(f"clip {number}")
    return folder


def pixels(clip):
    """A codec that loses nothing."""
    assert clip.shape == (1, 3, 4, 16, 16)
    return clip


def source(root, **given):
    clips = open_clips(root, CLIP, **given)
    captions = [clips.caption(index) for index in range(len(clips))]
    embeds = torch.arange(float(len(clips)))[:, None]
    texts = EncodedTexts(captions, list(range(len(clips))), {"prompt_embeds": embeds}, None)
    return TextSource(texts, EncodedClips(clips, pixels))


def at(step, batch=3, seed=0):
    return Rng.for_batch(seed, step, batch)


def test_latents_are_those_of_seed_epoch_and_index(root):
    found, clips = source(root), open_clips(root, CLIP)
    assert isinstance(EncodedClips(clips, pixels), Latents)
    seen = []
    for step in range(5):
        batch = found.batch(at(step), "cpu")
        for row, (index, epoch) in enumerate(
            zip(epoch_indices(at(step), COUNT), epochs_of(at(step), COUNT), strict=True)
        ):
            assert torch.equal(batch.x0[row], to_pixels(clips.clip(index, 0, epoch)))
            assert batch.cond["prompt_embeds"][row] == index
            seen.append((epoch, index))
    assert sorted(seen) == [(epoch, index) for epoch in range(3) for index in range(COUNT)]


def test_every_epoch_shows_other_parts_and_every_process_its_own_share(root):
    found = source(root)
    whole = found.batch(at(0, 10), "cpu").x0
    parts = [found.batch(at(0, 10).select(start, start + 5), "cpu").x0 for start in (0, 5)]
    assert torch.equal(whole, torch.cat(parts))
    order = epoch_indices(at(0, 10), COUNT)
    again = [(order.index(index), COUNT + order[COUNT:].index(index)) for index in range(COUNT)]
    assert sum(not torch.equal(whole[one], whole[two]) for one, two in again) >= COUNT - 1
    assert not torch.equal(whole, found.batch(at(0, 10, seed=1), "cpu").x0)


def test_the_place_of_a_damaged_video_is_taken_by_the_next(root, tmp_path):
    for file in root.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    write(tmp_path / "2.mp4", numbered(3))
    found = source(tmp_path, max_bad_share=0.2)
    batch = found.batch(at(0, COUNT), "cpu")
    order = epoch_indices(at(0, COUNT), COUNT)
    assert batch.cond["prompt_embeds"].flatten().tolist() == [3 if index == 2 else index for index in order]
    clips = open_clips(tmp_path, CLIP)
    assert torch.equal(batch.x0[order.index(2)], to_pixels(clips.clip(3, 0, 0)))
    for number in range(COUNT):
        write(tmp_path / f"{number}.mp4", numbered(3))
    with pytest.raises(TrainingError, match="none of the 5 videos can be read"):
        source(tmp_path, max_bad_share=1.0).batch(at(0), "cpu")
