"""From a picture to a clip by core's own recipes: teacher, distillation, windows, on laws known in closed form."""

from __future__ import annotations

import pytest
import torch
from core.recipe_bed import QuickRng, descend
from torch import nn
from torch.testing import assert_close
from video.clip_bed import discs, noise

from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import UserError
from fewstep.core.models.family import Size
from fewstep.core.models.given import ImageToVideoTeacher
from fewstep.core.models.loading import Teacher
from fewstep.core.networks.roles import RolesConfig, build_roles
from fewstep.core.prediction import Kind, Prediction
from fewstep.core.process import RectifiedFlow
from fewstep.core.recipe import Actors, Batch, StepPlan
from fewstep.core.recipes.diffusion import Diffusion, DiffusionConfig
from fewstep.core.recipes.dmd2 import DMD2, DMD2Config
from fewstep.core.rng import Rng
from fewstep.video.first_frames import WithFirstFrames, given_picture, window_sampler
from fewstep.video.windows import Windows, sample_windows

F64 = torch.float64
FLOW = RectifiedFlow()
SLOPE, SPREAD = (1.0, 0.8), (0.3, 0.6)  # of both frames on the first, and around what they are then expected to be
SHAPE = (1, 2, 1, 1)


class Continued(Denoiser, nn.Module):
    """Two frames, each N(slope y, spread^2) when the first is seen as y: posterior means, or exact flow maps."""

    def __init__(self, slope, spread, maps=False):
        nn.Module.__init__(self)
        self.process, self.maps, self.seen = FLOW, maps, []
        self.slope, self.spread = (nn.Parameter(torch.tensor(v, dtype=F64)) for v in (slope, spread))

    def predict(self, x_t, t, cond):
        slope, spread = (v[None, None, :, None, None] for v in (self.slope, self.spread))
        mean = slope * cond["given"].to(F64)
        c = self.process.coefficients(t)
        a, s = (v.to(F64)[:, None, None, None, None] for v in (c.alpha, c.sigma))
        variance = a**2 * spread**2 + s**2
        gain = spread / variance.sqrt() if self.maps else a * spread**2 / variance
        return Prediction(mean + gain * (x_t - a * mean), Kind.X0)


def pictures(rng):
    return rng.normal("picture", (1, 1, 1, 1), F64)


def clips(rng):
    y = pictures(rng)
    slope, spread = (torch.tensor(v, dtype=F64)[None, :, None, None] for v in (SLOPE, SPREAD))
    return Batch(len(rng.ids), {"given": y}, slope * y + spread * rng.normal("clip", SHAPE, F64))


def parameters(model):
    return [*model.slope.tolist(), *model.spread.abs().tolist()]


def test_plain_denoising_makes_the_teacher():
    """The recipe diffusion, its condition the first frame, finds the law of clips that begin with it."""
    student = Continued((0.0, 0.0), (1.0, 1.0))
    recipe = Diffusion(DiffusionConfig(weighting="uniform"), Actors({"student": student}, FLOW, SHAPE, dtype=F64))
    for lr in (0.1, 0.01):
        descend(recipe, {"denoise": [student.slope, student.spread]}, {"denoise": lr}, steps=60, batch=256, data=clips)
    assert parameters(student) == pytest.approx([*SLOPE, *SPREAD], abs=0.06)


def test_distribution_matching_makes_the_student_without_clips():
    """DMD2 from pictures alone: two steps, inputs simulated; every frame's dependence on the picture and its spread."""
    teacher, fake = Continued(SLOPE, SPREAD), Continued((0.0, 0.0), (1.0, 1.0))
    student = Continued((0.0, 0.0), (1.0, 1.0), maps=True)
    roles = {"student": student, "teacher": teacher, "fake_score": fake}
    recipe = DMD2(DMD2Config(student_steps=2, fake_updates=2, normalise=False), Actors(roles, FLOW, SHAPE, dtype=F64))
    trained = {"student": [student.slope, student.spread], "fake_score": [fake.slope, fake.spread]}

    def data(rng):
        return Batch(len(rng.ids), {"given": pictures(rng)})

    for lr in (0.1, 0.02):
        rates = {"student": lr / 2, "fake_score": lr}
        descend(recipe, trained, rates, steps=120, batch=256, data=data)
    assert parameters(student) == pytest.approx([*SLOPE, *SPREAD], abs=0.1)


# ---------------------------------------------------------------- where first frames come from


class Clips:
    """Latents without text."""

    def __len__(self):
        return 8

    def batch(self, rng, device):
        n = len(rng.ids)
        return Batch(n, {"prompt_embeds": torch.ones(n, 3, 2)}, noise(n, 2, 5, 2, 2).float(), device)


def test_clips_give_their_own_first_frames():
    n, source = 400, WithFirstFrames(Clips(), most=3, none=0.25)
    batch = source.batch(Rng(0, 0, tuple(range(n))), "cpu")
    mask, given = batch.cond["given_mask"], batch.cond["given"]
    assert len(source) == 8
    assert torch.equal(given, batch.x0 * mask[:, None, :, None, None])
    assert (mask.diff(dim=1) <= 0).all()  # leading frames
    shares = torch.bincount(mask.sum(1).long(), minlength=6) / n
    assert_close(shares[:4], torch.full((4,), 0.25), atol=0.07, rtol=0)
    assert not shares[4:].any()
    assert torch.equal(batch.cond["prompt_embeds"], torch.ones(n, 3, 2))
    part = source.batch(Rng(0, 0, tuple(range(n))).select(0, 5), "cpu")
    assert torch.equal(part.cond["given_mask"], mask[:5])


def test_first_frames_that_leave_nothing_to_make_are_refused():
    with pytest.raises(UserError, match="5 given frames leave nothing of 5"):
        WithFirstFrames(Clips(), most=5).batch(Rng(0, 0, (0, 1)), "cpu")
    with pytest.raises(UserError, match="at least one"):
        WithFirstFrames(Clips(), most=0)
    with pytest.raises(UserError, match=r"\[0, 1\)"):
        WithFirstFrames(Clips(), none=1.0)


@pytest.mark.parametrize("name", ["wan", "modelscope"])
def test_a_picture_is_the_first_frame_of_a_clip(name):
    """One picture is one latent frame: the one that starts the clip's latents, for an autoencoder causal in time."""
    found = Teacher.find(f"tiny:{name}")
    codec, size = found.vae(), found.size
    clip = discs(2, frames=size.frames, side=size.height)
    given = given_picture(clip[:, :, 0], size, codec.encode)
    assert given.shape == (2, found.shape[0], 1, *found.shape[2:])
    assert_close(given, codec.encode(clip)[:, :, :1], atol=1e-5, rtol=1e-5)
    wide = torch.nn.functional.pad(clip[:, :, 0], (8, 8), value=1.0)
    assert_close(given_picture(wide, size, codec.encode), given, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- all of it


def test_a_long_clip_of_the_exact_student_walks_as_its_law_says():
    """Windows of two frames, one shared: a walk y, 0.8 y + 0.6 n, ... of stationary variance 1."""
    student = Continued(SLOPE, SPREAD, maps=True)
    n = 4000
    rng = QuickRng(0, 0, tuple(range(n)))
    plan = StepPlan(times=(1.0, 0.5))
    sampler = window_sampler(student, plan, SHAPE, {}, rng, encode=lambda x: x, decode=lambda x: x)
    first = pictures(rng)
    clip = sample_windows(sampler, Windows(2, 1), 6, first).flatten(1)
    assert torch.equal(clip[:, :1], first.flatten(1))
    expected = 0.8 ** (torch.arange(6)[:, None] - torch.arange(6)[None]).abs().double()
    assert_close(torch.cov(clip.T), expected, atol=0.07, rtol=0)


def test_a_tiny_pipeline_trains_is_distilled_and_extends_a_clip():
    found = ImageToVideoTeacher.find("tiny:modelscope", size=Size(16, 16, 4))
    codec, encoded = found.vae(), found.encode(["a disc", "a disc"])
    latents, cond = codec.encode(discs(2, frames=4, side=16)), dict(encoded.cond)
    data = Batch(2, {**cond, "given": latents[:, :, :1]}, latents)
    rng = Rng.for_batch(0, 0, 2)
    denoiser = found.denoiser(encoded.null)
    config = RolesConfig(mode="lora", rank=2)
    learner = build_roles(
        found.denoiser(encoded.null), Diffusion.role_specs(DiffusionConfig(init="teacher")), config, 0
    )
    teaching = Diffusion(DiffusionConfig(init="teacher"), Actors(dict(learner), denoiser.process, found.shape))
    settings = DMD2Config(student_steps=2, guidance_scale=3.0, real_lora_scale=0.25)
    roles = build_roles(denoiser, DMD2.role_specs(settings), config, 0)
    distilling = DMD2(settings, Actors(dict(roles), denoiser.process, found.shape))
    pictures_only = Batch(2, data.cond)
    for recipe, phase, role, batch in (
        (teaching, "denoise", "student", data),
        (distilling, "fake_score", "fake_score", pictures_only),
        (distilling, "student", "student", pictures_only),
    ):
        recipe.loss(phase, batch, rng, 0).total().mean().backward()
        grads = {
            n: p.grad for n, p in recipe.actors.module(role).named_parameters() if "conv_in" in n and "lora_B" in n
        }
        assert all(bool(g.isfinite().all()) and g.abs().max() > 0 for g in grads.values())
        assert len(grads) == 1
    plan = DMD2.plan(settings, denoiser.process, 2)
    sampler = window_sampler(roles["student"], plan, found.shape, cond, rng, encode=codec.encode, decode=codec.decode)
    first = discs(2, frames=1, side=16)
    clip = sample_windows(sampler, Windows(4, 2), 7, first)
    assert clip.shape == (2, 3, 7, 16, 16)
    assert torch.equal(clip[:, :, :1], first)
    assert bool(clip.isfinite().all())
    untold = sample_windows(sampler, Windows(4, 2), 4)
    assert untold.shape == (2, 3, 4, 16, 16)
