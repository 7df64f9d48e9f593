"""First frames as a condition: what joins the noisy latents, networks widened for it without a change."""

from __future__ import annotations

import pytest
import torch
from core.model_bed import encoded, teacher
from diffusers import UNet3DConditionModel
from torch import nn
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.core.models.given import GivenFramesBackbone, ImageToVideoTeacher
from fewstep.core.models.table import FAMILIES
from fewstep.core.networks.given import drop_frames, first_frames, join_given, told_channels
from fewstep.core.networks.roles import RolesConfig, build_roles
from fewstep.core.networks.widening import widen_input, widened
from fewstep.core.process import times
from fewstep.core.recipe import RoleSpec
from fewstep.core.rng import Rng

F64 = torch.float64
VIDEO = [family.name for family in FAMILIES if family.media == "video"]


def noise(*shape, seed=0, dtype=torch.float32):
    return Rng(seed, 0, tuple(range(shape[0]))).normal("noise", shape[1:], dtype)


# ---------------------------------------------------------------- what joins


@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_channels_mask_and_padding(count):
    """2c+1 channels; the mask sums to g h w per sample; padding is zero, and no encoded black."""
    x, given = noise(2, 4, 5, 3, 2, dtype=F64), noise(2, 4, count, 3, 2, seed=1, dtype=F64) if count else None
    given = torch.zeros(2, 4, 0, 3, 2, dtype=F64) if given is None else given
    joined = join_given(x, {"given": given}, "it")
    assert joined.shape == (2, told_channels(4), 5, 3, 2) == (2, 9, 5, 3, 2)
    assert joined[:, 8].sum((1, 2, 3)).tolist() == [count * 6.0] * 2
    assert torch.equal(joined[:, :4], x)
    assert torch.equal(joined[:, 4:8, :count], given)
    assert not joined[:, 4:, count:].any()


def test_samples_of_one_batch_may_be_given_different_numbers_of_frames():
    x, clips = noise(3, 2, 4, 2, 2), noise(3, 2, 4, 2, 2, seed=1)
    counts = torch.tensor([0, 1, 3])
    joined = join_given(x, drop_frames(clips, counts), "it")
    for i, count in enumerate(counts.tolist()):
        alone = join_given(x[i : i + 1], {"given": clips[i : i + 1, :, :count]}, "it")
        assert torch.equal(joined[i : i + 1], alone)
    # what lies outside the mask is never seen
    told = drop_frames(clips, counts)
    assert torch.equal(join_given(x, told | {"given": clips}, "it"), joined)
    assert torch.equal(join_given(x, told | {"given": clips / 0 * 0}, "it").isnan().any((1, 2, 3, 4)), counts > 0)


@pytest.mark.parametrize(
    ("cond", "word"),
    [
        ({}, "needs"),
        ({"given": torch.zeros(2, 4, 9, 3, 2)}, "9 given frames for a clip of 5"),
        ({"given": torch.zeros(2, 4, 1, 3, 3)}, "cannot be the first frames"),
        ({"given": torch.zeros(1, 4, 1, 3, 2)}, "cannot be the first frames"),
        ({"given": torch.zeros(2, 4, 3, 2)}, "cannot be the first frames"),
        ({"given": torch.zeros(2, 4, 1, 3, 2), "given_mask": torch.ones(2, 5)}, "as long as the clip"),
        ({"given": torch.zeros(2, 4, 5, 3, 2), "given_mask": torch.ones(2, 4)}, "as long as the clip"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(cond, word):
    with pytest.raises(UserError, match=word):
        join_given(torch.zeros(2, 4, 5, 3, 2), cond, "it")


def test_padding_is_differentiable_in_the_given_frames():
    given = noise(1, 2, 1, 2, 2).requires_grad_()
    padded, _ = first_frames(given, 3)
    padded.sum().backward()
    assert torch.equal(given.grad, torch.ones_like(given))


# ---------------------------------------------------------------- widening


@pytest.mark.parametrize(
    ("layer", "shape", "channels"),
    [
        (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 5, 5), 4),
        (nn.Conv3d(4, 6, (1, 2, 2), stride=(1, 2, 2), bias=False), (2, 4, 3, 4, 4), 4),
        (nn.Linear(4, 6), (2, 7, 4), 4),
        (nn.Linear(4 * 8, 6), (2, 7, 32), 4),  # patches, a channel's pixels side by side
    ],
)
def test_new_inputs_change_nothing_and_learn(layer, shape, channels):
    layer = layer.double()
    made, x = widened(layer, (channels, 9)), noise(*shape, dtype=F64)
    axis = -1 if isinstance(layer, nn.Linear) else 1
    more = noise(*(n * 5 // 4 if i == axis % x.ndim else n for i, n in enumerate(shape)), seed=1, dtype=F64)
    out = made(torch.cat([x, more], axis))
    assert_close(out, layer(x), rtol=0, atol=1e-15)
    assert made.weight.requires_grad
    assert made.bias is layer.bias
    out.square().sum().backward()
    assert made.weight.grad[:, layer.weight.shape[1] :].abs().min() > 0


def test_what_cannot_be_widened_is_refused():
    with pytest.raises(UserError, match="BatchNorm2d"):
        widened(nn.BatchNorm2d(4), (4, 9))
    with pytest.raises(UserError, match="Conv2d cannot"):
        widened(nn.Conv2d(4, 4, 3, groups=2), (4, 9))
    with pytest.raises(UserError, match="7 inputs"):
        widened(nn.Linear(7, 2), (4, 9))
    with pytest.raises(UserError, match="takes 4 channels: neither 5 nor 11"):
        widen_input(teacher("modelscope").folder.load("unet"), "conv_in", 11, 5)


# ---------------------------------------------------------------- families


def told(name):
    """The tiny teacher of a family, told its first frames; two prompts and two samples."""
    found = ImageToVideoTeacher.find(f"tiny:{name}")
    return found, dict(encoded(name).cond), noise(2, *found.shape), noise(2, *found.shape, seed=1)


@pytest.mark.parametrize("name", VIDEO)
def test_a_family_predicts_what_it_did_until_its_new_weights_are_trained(name):
    found, cond, x, clips = told(name)
    plain, wide = teacher(name).denoiser(encoded(name).null), found.denoiser(encoded(name).null)
    t = times(plain.process.t_max / 2, 2)
    with torch.no_grad():
        expected = plain.predict(x, t, cond).value
        for count in (0, 1, found.shape[1]):
            assert torch.equal(wide.predict(x, t, {**cond, "given": clips[:, :, :count]}).value, expected)
    model = wide.backbone.model
    layer = model.get_submodule(found.family.input_layer)
    assert model.config.in_channels == told_channels(found.shape[0])
    wide.predict(x, t, {**cond, "given": clips[:, :, :1]}).value.square().mean().backward()
    assert layer.weight.grad[:, layer.weight.shape[1] * found.shape[0] // model.config.in_channels :].abs().max() > 0
    with torch.no_grad():
        layer.weight.sub_(layer.weight.grad * 0.1 / layer.weight.grad.abs().max())
        one, other = (wide.predict(x, t, {**cond, "given": given[:, :, :1]}).value for given in (clips, -clips))
    assert not torch.allclose(one, other, atol=1e-6)


def test_guidance_is_between_texts_and_keeps_the_frames():
    found, cond, _, clips = told("modelscope")
    wide = found.denoiser(encoded("modelscope").null)
    null = wide.null({**cond, "given": clips[:, :, :1]})
    assert torch.equal(null["given"], clips[:, :, :1])
    assert not torch.equal(null["prompt_embeds"], cond["prompt_embeds"])


def test_factors_of_lora_reach_the_frames():
    found, cond, x, clips = told("wan")
    roles = build_roles(
        found.denoiser(encoded("wan").null), (RoleSpec("student"),), RolesConfig(mode="lora", rank=2), seed=0
    )
    student, t = roles["student"], times(0.5, 2)
    factor = next(p for n, p in student.backbone.named_parameters() if "patch_embedding" in n and "lora_B" in n)
    with torch.no_grad():
        factor.copy_(noise(*factor.shape, seed=4))
        one, other = (student.x0(x, t, {**cond, "given": given[:, :, :1]}) for given in (clips, -clips))
    assert not torch.allclose(one, other, atol=1e-5)


def test_a_widened_network_is_read_back_as_it_was_saved(tmp_path):
    found, cond, x, clips = told("modelscope")
    wide = found.denoiser(encoded("modelscope").null)
    with torch.no_grad():
        wide.backbone.model.conv_in.weight[:, 4:] = 0.1 * noise(16, 5, 3, 3, seed=3)
    wide.backbone.save(tmp_path)
    again = UNet3DConditionModel.from_pretrained(tmp_path, local_files_only=True)
    weight = again.conv_in.weight
    read = found.reads(again, None)
    assert isinstance(read.backbone, GivenFramesBackbone)
    assert read.backbone.model.conv_in.weight is weight
    assert found.family.channels(again.config) == 4
    given = {**cond, "given": clips[:, :, :1]}
    with torch.no_grad():
        assert torch.equal(read.x0(x, times(500.0, 2), given), wide.x0(x, times(500.0, 2), given))


def test_families_of_pictures_are_not_told_frames():
    with pytest.raises(UserError, match="cannot be told"):
        ImageToVideoTeacher.find("tiny:flux").denoiser(None)
