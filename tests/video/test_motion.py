"""Motion representations: what each of them sees of a clip, and what it is blind to."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.video.motion.bands import BandConfig, high_band, low_band, low_pass_mask
from fewstep.video.motion.correlation import global_correlation, local_correlation
from fewstep.video.motion.differences import frame_difference, lagged_difference, relative_motion
from fewstep.video.motion.head import MotionHead, MotionHeadConfig, head_deviation
from fewstep.video.motion.representation import MotionConfig, motion_consistency_loss, represent

F64 = torch.float64
LEARN, HLEARN = MotionHeadConfig(layers=2), MotionHeadConfig(layers=5, kernel=3)


def clip(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ---------------------------------------------------------------- differences


def test_differences_telescope_and_see_no_still_image():
    x, still = clip(2, 4, 6, 3, 5), clip(2, 4, 1, 3, 5, seed=1)
    assert_close(frame_difference(x).sum(2), x[:, :, -1] - x[:, :, 0])
    assert_close(frame_difference(x + still), frame_difference(x))
    assert_close(lagged_difference(x + still, 3), lagged_difference(x, 3))
    assert not frame_difference(still.expand_as(x)).any()


def test_a_lagged_difference_is_the_sum_of_neighbouring_ones():
    x = clip(2, 4, 7, 3, 5)
    steps = frame_difference(x)
    assert_close(lagged_difference(x, 3), steps[:, :, :-2] + steps[:, :, 1:-1] + steps[:, :, 2:])
    assert torch.equal(lagged_difference(x, 1), steps)


def test_relative_motion_is_blind_to_scale_offset_and_stillness():
    x = clip(3, 4, 64, 3, 5)
    assert_close(relative_motion(5 * x + 2), relative_motion(x))
    assert_close(relative_motion(x), torch.full((3,), 2.0, dtype=F64), atol=0.2, rtol=0)
    assert relative_motion(x[:, :, :1].expand_as(x)).tolist() == [0.0] * 3
    assert relative_motion(x[:, :, :1]).tolist() == [0.0] * 3


def test_a_still_offset_costs_raw_and_low_but_not_the_difference():
    x, still = clip(2, 4, 6, 3, 5), torch.full((2, 4, 1, 3, 5), 0.5, dtype=F64)
    assert motion_consistency_loss(x + still, x, MotionConfig(kind="difference")).max() < 1e-12
    assert motion_consistency_loss(x + still, x, MotionConfig(kind="lagged")).max() < 1e-12
    raw = motion_consistency_loss(x + still, x, MotionConfig())
    assert_close(raw, torch.full((2,), math.hypot(0.5, 0.001) - 0.001, dtype=F64))


# ---------------------------------------------------------------- bands

sizes = st.tuples(*[st.integers(1, 9)] * 3)


@settings(max_examples=25)
@given(size=sizes, official=st.booleans())
def test_the_bands_add_up_to_the_clip(size, official):
    x, config = clip(2, 2, *size, dtype=torch.float32), BandConfig(official=official)
    assert_close(low_band(x, config) + high_band(x, config), x, rtol=0, atol=2e-6)


@settings(max_examples=25)
@given(size=sizes, official=st.booleans(), order=st.integers(1, 4))
def test_the_low_band_is_the_masked_transform(size, official, order):
    x, config = clip(1, 2, *size), BandConfig(official=official, order=order, cutoff_time=0.5)
    plain = torch.fft.ifftn(torch.fft.fftn(x, dim=(2, 3, 4)) * low_pass_mask(size, config), dim=(2, 3, 4)).real
    assert_close(low_band(x, config), plain)


@settings(max_examples=25)
@given(size=sizes)
def test_the_low_band_keeps_a_constant_and_the_high_band_loses_it_at_every_size(size):
    flat = torch.full((1, 2, *size), 0.7, dtype=F64)
    assert_close(low_band(flat), flat)
    assert_close(high_band(flat + clip(1, 2, *size)), high_band(clip(1, 2, *size)))


@pytest.mark.parametrize(("frames", "gain"), [(16, 1.0), (21, 0.999998), (5, 0.856), (3, 0.091), (1, 1.5e-5)])
def test_the_official_mask_loses_the_mean_of_odd_clips(frames, gain):
    flat = torch.ones(1, 1, frames, 4, 4, dtype=F64)
    found = low_band(flat, BandConfig(official=True)).mean().item()
    assert found == pytest.approx(gain, rel=5e-3, abs=4e-7)


def test_masks_agree_on_even_sizes_and_differ_on_odd_ones():
    assert_close(low_pass_mask((4, 6, 8)), low_pass_mask((4, 6, 8), BandConfig(official=True)))
    assert not torch.allclose(low_pass_mask((5, 6, 8)), low_pass_mask((5, 6, 8), BandConfig(official=True)))


def test_half_of_the_amplitude_passes_at_the_cutoff():
    """A wave at a quarter of the Nyquist frequency is halved; slower ones pass, faster ones do not."""
    frames = torch.arange(32, dtype=F64)
    for cycles, kept in ((2, 1 / (1 + 0.5**8)), (4, 0.5), (8, 1 / (1 + 2.0**8))):
        wave = torch.cos(2 * torch.pi * cycles * frames / 32).reshape(1, 1, 32, 1, 1).expand(1, 1, 32, 4, 4)
        assert_close(low_band(wave), kept * wave)


# ---------------------------------------------------------------- correlations


def test_global_correlation_is_the_inner_product_of_places():
    x = clip(2, 3, 4, 2, 3)
    found = global_correlation(x)
    assert found.shape == (2, 3, 6, 6)
    value = (x[1, :, 2, 1, 0] * x[1, :, 3, 0, 2]).sum() / 3**0.5  # places 3 and 2 of neighbouring frames
    assert_close(found[1, 2, 3, 2], value)
    assert_close(represent(x, MotionConfig(kind="scaled_correlation")), found * 2**0.5)


def test_a_moving_dot_correlates_with_where_it_went():
    x = torch.zeros(1, 4, 2, 5, 6)
    x[0, :, 0, 1, 2] = 1
    x[0, :, 1, 3, 1] = 1  # two down, one to the left
    found = global_correlation(x)[0, 0]
    assert found[1 * 6 + 2, 3 * 6 + 1] == 2  # 4 / sqrt(4)
    assert found.count_nonzero() == 1
    near = local_correlation(x, 2)[0, 0].reshape(5, 5, 5, 6)
    assert near[2 + 2, -1 + 2, 1, 2] == 2
    assert near.count_nonzero() == 1
    assert not local_correlation(x, 1).any()  # it went too far


@settings(max_examples=15)
@given(height=st.integers(1, 5), width=st.integers(1, 5), radius=st.integers(0, 6))
def test_local_correlation_is_a_window_of_the_global_one(height, width, radius):
    x, side = clip(2, 3, 3, height, width), 2 * radius + 1
    whole = global_correlation(x).reshape(2, 2, height, width, height, width)
    found = local_correlation(x, radius, outside=-7.0).reshape(2, 2, side, side, height, width)
    expected = torch.full_like(found, -7.0)
    for y in range(height):
        for x_ in range(width):
            for v in range(max(0, y - radius), min(height, y + radius + 1)):
                for u in range(max(0, x_ - radius), min(width, x_ + radius + 1)):
                    expected[:, :, v - y + radius, u - x_ + radius, y, x_] = whole[:, :, y, x_, v, u]
    assert_close(found, expected)


def test_what_lies_outside_the_frame_adds_nothing_to_loss_or_gradient():
    a, b, grads = clip(2, 3, 3, 4, 4), clip(2, 3, 3, 4, 4, seed=1), []
    for outside in (0.0, -1e9):
        x = a.clone().requires_grad_()
        gap = local_correlation(x, 3, outside=outside) - local_correlation(b, 3, outside=outside)
        ((gap.square() + 1e-6).sqrt() - 1e-3).mean().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize("kind", ["global_correlation", "scaled_correlation", "local_correlation"])
def test_correlations_see_no_change_of_sign_or_channels_and_grow_with_the_square_of_contrast(kind):
    x, config = clip(2, 4, 3, 4, 5), MotionConfig(kind=kind, radius=2)
    assert_close(represent(-x, config), represent(x, config))
    assert_close(represent(x[:, [2, 0, 3, 1]], config), represent(x, config))
    assert_close(represent(3 * x, config), 9 * represent(x, config))


@pytest.mark.parametrize("kind", ["difference", "lagged", "low", "high"])
def test_linear_representations_move_with_the_picture(kind):
    """A cyclic shift of all frames shifts them alike; a sum is represented by the sum."""
    x, y, config = clip(1, 2, 5, 4, 6), clip(1, 2, 5, 4, 6, seed=1), MotionConfig(kind=kind)
    assert_close(represent(x.roll((1, 2), (3, 4)), config), represent(x, config).roll((1, 2), (3, 4)))
    assert_close(represent(2 * x + y, config), 2 * represent(x, config) + represent(y, config))


# ---------------------------------------------------------------- all of them

SHAPES = {
    "raw": (2, 4, 5, 6, 7),
    "difference": (2, 4, 4, 6, 7),
    "lagged": (2, 4, 3, 6, 7),
    "low": (2, 4, 5, 6, 7),
    "high": (2, 4, 5, 6, 7),
    "global_correlation": (2, 4, 42, 42),
    "scaled_correlation": (2, 4, 42, 42),
    "local_correlation": (2, 4, 25, 6, 7),
}


@pytest.mark.parametrize("kind", sorted(SHAPES))
def test_shapes_gradients_and_independent_samples(kind):
    x, config = clip(2, 4, 5, 6, 7).requires_grad_(), MotionConfig(kind=kind, radius=2)
    found = represent(x, config)
    assert found.shape == SHAPES[kind]
    found[0].square().sum().backward()
    assert bool(x.grad[0].isfinite().all())
    assert x.grad[0].any()
    assert not x.grad[1].any()
    half = represent(x.detach().to(torch.float16), config)
    assert half.dtype in (torch.float16, torch.float32)


@pytest.mark.parametrize("kind", sorted(SHAPES))
def test_the_target_carries_no_gradient_and_equal_clips_cost_nothing(kind):
    x, y = clip(3, 4, 5, 4, 4).requires_grad_(), clip(3, 4, 5, 4, 4, seed=1).requires_grad_()
    config = MotionConfig(kind=kind)
    loss = motion_consistency_loss(x, y, config)
    assert loss.shape == (3,)
    loss.sum().backward()
    assert x.grad.any()
    assert y.grad is None
    assert motion_consistency_loss(x, x, config).abs().max() < 1e-12
    weight = torch.tensor([0.0, 1.0, 2.0], dtype=F64)
    assert_close(motion_consistency_loss(x, y, config, weight=weight), weight * loss)


@pytest.mark.parametrize(
    ("kind", "message"),
    [("difference", "1 frames apart"), ("lagged", "2 frames apart"), ("local_correlation", "needs two")],
)
def test_clips_too_short_to_move_are_refused(kind, message):
    with pytest.raises(UserError, match=message):
        represent(clip(1, 3, 1, 4, 4), MotionConfig(kind=kind))


# ---------------------------------------------------------------- the learned head


@pytest.mark.parametrize("config", [LEARN, HLEARN])
def test_at_first_the_head_changes_neither_loss_nor_gradient(config):
    x, y = (clip(2, 4, 3, 5, 6, seed=i, dtype=torch.float32) for i in (0, 1))
    head, target = MotionHead(config, 0), MotionHead(config, 1)
    assert torch.equal(head(x), x)
    losses, grads = [], []
    for kwargs in ({}, {"head": head, "target_head": target}):
        online = x.clone().requires_grad_()
        loss = motion_consistency_loss(online, y, MotionConfig(), **kwargs)
        loss.sum().backward()
        losses.append(loss.detach())
        grads.append(online.grad)
    assert_close(*losses)
    assert_close(*grads)
    assert not any(p.grad.any() for p in head.blocks.parameters())
    assert all(p.grad.any() for p in head.out.parameters())
    assert all(p.grad is None for p in target.parameters()) or not any(p.grad.any() for p in target.parameters())


def test_the_head_sees_one_frame_at_a_time():
    head = moved(MotionHead(HLEARN))
    x = clip(2, 4, 5, 6, 7, dtype=torch.float32)
    found = head(x)
    assert_close(head(x[:, :, [3, 1]]), found[:, :, [3, 1]])
    assert_close(head(x[1:]), found[1:])
    other = x.clone()
    other[:, :, 2] += 1
    changed = (head(other) - found).abs().amax((0, 1, 3, 4))
    assert (changed > 1e-3).tolist() == [False, False, True, False, False]


def moved(head):
    with torch.no_grad():
        for p in head.out.parameters():
            p.copy_(torch.linspace(-0.2, 0.3, p.numel()).reshape(p.shape))
    return head


def test_deviation_of_a_head_that_shrinks_is_what_it_took_away():
    x = clip(2, 4, 3, 5, 5)
    assert_close(head_deviation(0.75 * x, x), torch.full((2,), 0.25, dtype=F64))
    assert head_deviation(x, x).tolist() == [0.0, 0.0]
    assert head_deviation(torch.zeros_like(x), torch.zeros_like(x)).tolist() == [0.0, 0.0]


def test_the_same_seed_makes_the_same_head():
    states = [MotionHead(LEARN, seed).state_dict()["blocks.1.weight"] for seed in (0, 0, 1)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_pseudo_huber_is_square_for_small_gaps_and_linear_for_large_ones():
    zero = torch.zeros(1, 4, 2, 3, 3, dtype=F64)
    small, large = (motion_consistency_loss(zero + d, zero, MotionConfig()).item() for d in (1e-5, 1.0))
    assert small == pytest.approx(1e-10 / (2 * 1e-3), rel=1e-4)
    assert large == pytest.approx(1 - 1e-3, rel=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MotionConfig(lag=0), "lag"),
        (lambda: MotionConfig(radius=-1), "radius"),
        (lambda: MotionConfig(kind="local_correlation", head=LEARN), "head"),
        (lambda: MotionHeadConfig(layers=1), "layers"),
        (lambda: MotionHeadConfig(layers=2, kernel=2), "odd"),
        (lambda: MotionHeadConfig(ema_decay=1.0), "ema_decay"),
        (lambda: BandConfig(cutoff_time=0.0), "cutoff_time"),
        (lambda: BandConfig(order=0), "order"),
        (lambda: MotionHead(LEARN)(torch.zeros(1, 3, 2, 4, 4)), "head.channels"),
        (lambda: MotionHead(MotionHeadConfig()), "layers"),
    ],
)
def test_settings_without_meaning_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
