"""The small pipeline of the drawn world: words it knows, frames its autoencoder learns, parts stock diffusers reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fewstep.core.image.autoencoder import restoration_error
from fewstep.core.models.family import Size
from fewstep.core.models.loading import Teacher
from fewstep.video.world import DrawnWorld
from fewstep.video.world import pipeline as made


def test_every_word_of_the_world_is_one_token_of_its_own() -> None:
    tokenizer = made._tokenizer()
    tokens = {word: tokenizer(word).input_ids for word in made.words()}
    assert all(len(ids) == 3 for ids in tokens.values())  # its start and end around it
    assert len({ids[1] for ids in tokens.values()}) == len(tokens)
    captions = DrawnWorld(made.TEACHER_WORLD, 0).clips(range(300)).captions
    lengths = [len(ids) for ids in tokenizer(captions).input_ids]
    assert max(lengths) <= made.TEXT_LENGTH
    assert len({tuple(ids) for ids in tokenizer(captions).input_ids}) == len(set(captions))


def test_frames_are_filmed_badly_and_well_in_turn() -> None:
    x = made.frames(0, range(64))
    low, high = x.chunk(2)
    assert x.shape == (64, 3, 32, 32)
    assert high.std() > 1.5 * low.std()
    assert torch.equal(made.frames(0, range(0, 64, 1)), x)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pipeline") / "world"
    made.world_pipeline(out, steps=2)
    return out


def test_the_pipeline_is_read_as_a_teacher_of_the_worlds_clips(folder: Path) -> None:
    config = made.TEACHER_WORLD
    teacher = Teacher.find(str(folder), size=Size(config.height, config.width, config.frames))
    assert teacher.shape == (made.LATENT_CHANNELS, config.frames, config.height // 4, config.width // 4)
    clips = DrawnWorld(config, 0).clips(range(2)).frames.transpose(1, 2) * 2 - 1
    latents = teacher.vae().encode(clips)
    assert latents.shape == (2, *teacher.shape)
    assert teacher.vae().decode(latents).shape == clips.shape


@pytest.mark.slow
def test_an_autoencoder_that_trains_longer_restores_better(folder: Path) -> None:
    held_out = made.frames(0, range(made.HELD_OUT, made.HELD_OUT + 64))
    short = restoration_error(made.train_autoencoder(0, 2), held_out)
    longer = restoration_error(made.train_autoencoder(0, 200, batch=8), held_out)
    assert longer < 0.5 * short
