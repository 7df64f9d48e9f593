"""Frames and the discriminator that looks at them."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.core.losses.adversarial import discriminator_loss
from fewstep.video.appearance.augment import DRAWS, augment_frames
from fewstep.video.appearance.discriminator import (
    FrameBackbone,
    FrameDiscriminator,
    FrameDiscriminatorConfig,
    VirtualBatchNorm,
    conv_discriminator,
    feature_penalty,
)
from fewstep.video.appearance.picks import distinct_frames, pick_frames, segment_frames

SMALL = FrameDiscriminatorConfig(widths=(8, 8), head_width=8)
TOLD = FrameDiscriminatorConfig(widths=(8, 8), head_width=8, caption=5)


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def frames(n=4, side=16, seed=0, channels=3):
    return (2 * draw(n, channels, side, side, seed=seed) - 1).float()


# ---------------------------------------------------------------- frames of a clip


def test_distinct_frames_are_distinct_ordered_and_each_as_likely():
    picks = distinct_frames(draw(4000, 5), 2)
    assert bool((picks[:, 0] < picks[:, 1]).all())
    share = torch.bincount(picks.flatten(), minlength=5) / 4000
    assert_close(share, torch.full((5,), 0.4), atol=0.03, rtol=0)
    assert distinct_frames(draw(3, 5), 5).tolist() == [list(range(5))] * 3
    with pytest.raises(UserError, match="6 distinct"):
        distinct_frames(draw(3, 5), 6)


def test_each_part_of_a_clip_gives_one_of_its_frames():
    picks = segment_frames(draw(2000, 3), 8)  # parts 0-1, 2-4, 5-7
    assert [sorted(set(column.tolist())) for column in picks.T] == [[0, 1], [2, 3, 4], [5, 6, 7]]
    assert segment_frames(torch.full((1, 4), 1 - 1e-16, dtype=torch.float64), 4).tolist() == [[0, 1, 2, 3]]
    with pytest.raises(UserError, match="no 5 parts"):
        segment_frames(draw(1, 5), 4)


def test_picked_frames_are_those_of_the_clip():
    clip = torch.arange(2 * 3 * 4.0).reshape(2, 3, 4, 1, 1)
    found = pick_frames(clip, torch.tensor([[3, 0], [1, 2]]))
    assert torch.equal(found, torch.stack([clip[0, :, 3], clip[0, :, 0], clip[1, :, 1], clip[1, :, 2]]))


# ---------------------------------------------------------------- augmentation


def middle(n):
    """Draws that change nothing but for the square, which they put into a corner."""
    u = torch.full((n, DRAWS), 0.5, dtype=torch.float64)
    u[:, 5:] = 0.0
    return u


def test_the_middle_of_the_draws_changes_nothing_but_a_corner():
    x = frames(2, side=20)
    found = augment_frames(x, middle(2))
    assert not found[:, :, :2, :2].any()  # a fifth of the side is 4: half of it is in the frame
    untouched = torch.ones(20, 20, dtype=torch.bool)
    untouched[:2, :2] = False
    assert_close(found[..., untouched], x[..., untouched])


def test_each_draw_changes_what_it_says():
    x, u = frames(1, side=16), middle(1)
    u[0, 0] = 0.8
    assert_close(augment_frames(x, u)[0, :, 4:, 4:], x[0, :, 4:, 4:] + 0.3)
    u = middle(1)
    u[0, 1] = 0.0
    grey = augment_frames(x, u)[0]
    assert_close(grey[0], grey[1])
    u = middle(1)
    u[0, 2] = 0.0
    assert_close(augment_frames(x, u)[0, :, 4:, 4:], ((x + x.mean()) / 2)[0, :, 4:, 4:])
    u = middle(1)
    u[0, 3], u[0, 4] = 0.999, 0.0  # two down, two to the left
    found = augment_frames(x, u)[0]
    assert_close(found[:, 6:, 4:14], x[0, :, 4:14, 6:16])
    assert not found[:, :2].any()
    assert not found[:, :, 14:].any()


def test_augmentation_carries_gradients_and_treats_frames_alone():
    x, u = frames(3).requires_grad_(), draw(3, DRAWS)
    found = augment_frames(x, u)
    assert_close(augment_frames(x[1:2], u[1:2]), found[1:2])
    found[0].sum().backward()
    assert x.grad[0].any()
    assert not x.grad[1:].any()


# ---------------------------------------------------------------- normalisation


def test_virtual_batches_of_a_divisible_batch_are_its_blocks():
    x = torch.randn(24, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    blocks = x.reshape(3, 8, 5, 7)
    mean, var = blocks.mean((1, 3), keepdim=True), blocks.var((1, 3), correction=0, keepdim=True)
    expected = ((blocks - mean) / (var + 1e-5).sqrt()).reshape(24, 5, 7)
    assert_close(VirtualBatchNorm(5).double()(x), expected)


@pytest.mark.parametrize(("count", "groups"), [(1, [1]), (8, [8]), (9, [5, 4]), (12, [6, 6]), (17, [6, 6, 5])])
def test_virtual_batches_take_any_number_of_samples(count, groups):
    x = 3 + 2 * torch.randn(count, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = VirtualBatchNorm(5).double()(x)
    for part in torch.split(found, groups):
        assert_close(part.mean((0, 2)), torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)
        assert_close(part.var((0, 2), correction=0), torch.ones(5, dtype=torch.float64), atol=1e-4, rtol=0)


# ---------------------------------------------------------------- the discriminator


def test_the_group_norm_keeps_frames_apart_and_virtual_batches_do_not():
    x = frames()
    group = conv_discriminator(SMALL, 0).eval()
    assert_close(group(x[:2]), group(x)[:2])
    virtual = conv_discriminator(FrameDiscriminatorConfig(widths=(8, 8), norm="virtual_batch"), 0).eval()
    assert not torch.allclose(virtual(x[:2]), virtual(x)[:2], atol=1e-3)


def test_every_place_of_every_head_has_a_logit_and_one_seed_one_network():
    x, caption = frames(), draw(4, 5).float()
    made = conv_discriminator(TOLD, 0).eval()
    assert made(x, caption).shape == (4, 64 + 16)
    assert torch.equal(conv_discriminator(TOLD, 0).eval()(x, caption), made(x, caption))
    assert not torch.equal(conv_discriminator(TOLD, 1).eval()(x, caption), made(x, caption))


def test_the_caption_enters_by_projection():
    """Logits are linear in the caption's embedding."""
    made, x, caption = conv_discriminator(TOLD, 0).eval(), frames(), draw(4, 5).float()
    none = made(x, torch.zeros(4, 5))
    assert_close(made(x, 2 * caption) - none, 2 * (made(x, caption) - none), atol=1e-5, rtol=1e-4)
    with pytest.raises(UserError, match="caption"):
        made(x)


def test_places_of_the_residual_layer_go_round():
    """Shifting the places of the features shifts the logits alike: no place is at an edge."""
    head = conv_discriminator(SMALL, 0).eval().heads[0]
    x = torch.randn(2, 8, 20, generator=torch.Generator().manual_seed(0))
    assert_close(head(x.roll(7, 2), None), head(x, None).roll(7, 1))


class Flat(FrameBackbone):
    """The pixels of a frame as they are, times a weight."""

    channels: ClassVar[tuple[int, ...]] = (3,)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, frames):
        return [self.weight * frames.flatten(2)]


def test_a_frozen_backbone_passes_gradients_and_gets_none():
    backbone = Flat()
    made = FrameDiscriminator(backbone, SMALL, frozen=True, seed=0)
    assert backbone.weight not in set(made.parameters())
    x = frames().requires_grad_()
    made(x).sum().backward()
    assert x.grad.any()
    assert backbone.weight.grad is None
    assert all(p.grad is not None for p in made.parameters())
    learning = FrameDiscriminator(Flat(), SMALL, frozen=False, seed=0)
    assert "trunk.weight" in dict(learning.named_parameters())


def test_frames_too_small_for_the_heads_are_refused():
    with pytest.raises(UserError, match="widths"):
        conv_discriminator(FrameDiscriminatorConfig(widths=(8, 8, 8)), 0)(frames(side=8))
    with pytest.raises(UserError, match="widths"):
        FrameDiscriminatorConfig(widths=())
    with pytest.raises(UserError, match="caption"):
        FrameDiscriminatorConfig(caption=-1)


# ---------------------------------------------------------------- losses


def test_the_clamped_loss_of_mcm_is_hinge_minus_two_with_the_same_gradient():
    grads, values = [], []
    for kind in ("clamp", "hinge"):
        real, fake = ((4 * draw(64, 9, seed=i) - 2).requires_grad_() for i in (0, 1))
        if kind == "hinge":
            loss = discriminator_loss(real, fake, "hinge")
        else:
            loss = torch.maximum(-torch.ones(()), -real).mean(1) + torch.maximum(-torch.ones(()), fake).mean(1)
        loss.sum().backward()
        grads.append(torch.stack([real.grad, fake.grad]))
        values.append(loss.detach())
    assert_close(values[0], values[1] - 2)
    assert torch.equal(*grads)


def test_penalty_of_linear_logits_is_in_closed_form_and_joins_all_features():
    features = [draw(3, 2, 5, seed=i).requires_grad_() for i in (0, 1)]
    a, b = (nn.Parameter(torch.full((2, 5), v, dtype=torch.float64)) for v in (0.3, -0.4))
    logits = torch.cat([features[0] * a, features[1] * b], 1).flatten(1)
    found = feature_penalty(logits, features)
    norm = math.sqrt(10 * (0.3**2 + 0.4**2))
    assert_close(found, torch.full((3,), (norm - 1) ** 2, dtype=torch.float64))
    found.sum().backward()
    assert_close(a.grad, torch.full_like(a, 3 * 2 * (norm - 1) * 0.3 / norm))
