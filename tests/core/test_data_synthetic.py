"""Latents the teacher samples itself: its own samples, whatever the batch, the same bits after a stop."""

from __future__ import annotations

import pytest
import torch
from core.model_bed import teacher
from torch.testing import assert_close

from fewstep.core.cli.main import main
from fewstep.core.data import synthetic
from fewstep.core.data.prepare import prepare
from fewstep.core.data.prepared import Prepared
from fewstep.core.data.source import TextSource
from fewstep.core.data.synthetic import Sampling
from fewstep.core.errors import UserError
from fewstep.core.guidance import Guided
from fewstep.core.models.loading import Teacher
from fewstep.core.rng import Rng
from fewstep.core.sampling import teacher_sample

PROMPTS = ["a red fox", "two boats", "a tree", "a red fox", "rain"]
HOW = Sampling(steps=3, guidance_scale=4.0, seed=5)


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("name", ["sd", "wan"])
def test_a_latent_is_the_guided_teachers_sample_for_its_prompt(name, tmp_path):
    found = teacher(name)
    prepare(found, PROMPTS, tmp_path / "out", sampling=HOW, batch=2, samples_per_shard=3)
    stored = Prepared(tmp_path / "out", found)
    texts = found.encode(PROMPTS)
    guided = Guided(found.denoiser(texts.null), HOW.guidance_scale)
    rng = Rng(HOW.seed, 0, tuple(range(len(PROMPTS))), "synthetic")
    with torch.no_grad():
        expected = teacher_sample(guided, found.shape, texts.cond, rng, steps=HOW.steps)
    order, latents = stored.latents(range(len(PROMPTS)))
    assert order == list(range(len(PROMPTS)))
    assert_close(latents, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(latents[0], latents[3]), "one prompt twice is two samples"
    batch = TextSource(stored, stored).batch(Rng.for_batch(0, 0, 2), "cpu")
    assert batch.x0 is not None
    assert batch.x0.shape == (2, *found.shape)


def test_a_stopped_preparation_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    prepare(teacher("sd"), PROMPTS, whole, sampling=HOW, samples_per_shard=2, batch=2)
    drawn = synthetic.teacher_sample

    def breaks(*args, **kwargs):
        if 4 in args[3].ids:
            raise KeyboardInterrupt
        return drawn(*args, **kwargs)

    monkeypatch.setattr(synthetic, "teacher_sample", breaks)
    with pytest.raises(KeyboardInterrupt):
        prepare(teacher("sd"), PROMPTS, halves, sampling=HOW, samples_per_shard=2, batch=2)
    monkeypatch.setattr(synthetic, "teacher_sample", drawn)
    with pytest.raises(UserError, match="holds data prepared for"):
        prepare(teacher("sd"), PROMPTS, halves, sampling=Sampling(steps=4), samples_per_shard=2, batch=2)
    prepare(teacher("sd"), PROMPTS, halves, sampling=HOW, samples_per_shard=2, batch=2)
    assert files(whole) == files(halves)


def test_frames_are_part_of_the_size(tmp_path):
    found = teacher("wan")
    prepare(found, PROMPTS[:2], tmp_path / "out", sampling=Sampling(steps=1))
    longer = Teacher(found.folder, type(found.size)(found.size.height, found.size.width, found.size.frames + 4))
    with pytest.raises(UserError, match=r"prepared for the wan teacher .* at 16x16x9, not for .* 16x16x13"):
        Prepared(tmp_path / "out", longer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sample-steps", "0"], "not a whole number of at least 1"),
        (["--guidance-scale", "3"], "belongs to --sample-steps"),
        (["--size", "16x16"], "give --sample-steps"),
    ],
)
def test_mistakes_are_one_line(options, message, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox\n", encoding="utf-8")
    out = tmp_path / "out"
    given = ["image", "prepare", "--teacher", "tiny:sd", "--data", str(prompts), "--out", str(out), *options]
    assert main(given) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_a_distilled_guidance_is_told_to_the_model(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox\n", encoding="utf-8")
    made = []
    for scale in ("1", "5"):
        out = tmp_path / scale
        given = ["--teacher", "tiny:flux", "--data", str(prompts), "--sample-steps", "2", "--guidance-scale", scale]
        assert main(["image", "prepare", *given, "--out", str(out)]) == 0
        made.append(Prepared(out, teacher("flux")).latents([0])[1])
    assert not torch.allclose(made[0], made[1])
