"""Time-aware heads: silent at first, told the noise level, any layout of features, neighbours on a circle."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from fewstep.core.networks.discriminator import DiscriminatorConfig, make_discriminator
from fewstep.core.networks.taps import features
from fewstep.core.networks.time_head import TimeAwareHead, _Line
from fewstep.core.networks.unet2d import UNet2DBackbone
from fewstep.core.rng import Rng

from core.test_networks_discriminator import COND, SHAPE, T, noise, trunk, vectors  # isort: skip

U = torch.tensor([0.1, 0.8])


def head(channels=16, maps=True, width=8, gate=0.0):
    with Rng(0, 0, ()).network_noise("head"):
        made = TimeAwareHead(channels, maps, width)
        torch.nn.init.normal_(made.gate.weight, std=gate)
    return made.double().eval()


LAYOUTS = {"maps": (2, 16, 4, 4), "tokens": (2, 5, 16), "vectors": (2, 16)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_at_first_nothing_matters_and_no_gradient_gets_through(layout):
    made = head(maps=layout == "maps")
    x = noise(*LAYOUTS[layout]).double().requires_grad_()
    logits = made(x, U, None)
    assert_close(logits, made(3 * x + 1, 1 - U, None), atol=1e-12, rtol=0)
    assert_close(logits[0], logits[1])
    logits.sum().backward()
    assert not x.grad.any()
    assert made.gate.weight.grad.abs().sum() > 0, "but the gate learns"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_once_open_a_sample_s_logits_depend_on_its_features_and_its_time_alone(layout):
    made, x = head(maps=layout == "maps", gate=0.3), noise(*LAYOUTS[layout]).double()
    logits = made(x, U, None)
    positions = x[0].numel() // 16
    assert logits.shape == (2, 8 * positions)
    alone = torch.cat([made(x[i : i + 1], U[i : i + 1], None) for i in range(2)])
    assert_close(logits, alone)
    assert (made(x, U.flip(0), None) - logits).abs().max() > 1e-3
    assert (made(x + noise(*x.shape, seed=1), U, None) - logits).abs().max() > 1e-3


def test_levels_of_a_short_table_are_told_apart():
    made = head()
    told = made.film(torch.nn.functional.silu(_features(torch.arange(15) / 14)))
    apart = torch.cdist(told, told) + torch.eye(15)
    assert apart.min() > 0.1


def _features(unit):
    from fewstep.core.networks.embedding import sinusoid
    from fewstep.core.networks.time_head import TIME_FEATURES, TIME_SCALE

    return sinusoid(TIME_SCALE * unit.double(), TIME_FEATURES)


@pytest.mark.parametrize("length", [1, 3, 5, 16])
def test_lines_are_circles(length):
    with Rng(0, 0, ()).network_noise("line"):
        line = _Line(8, 9).double().eval()
    h = noise(2, 8, length).double()
    out = line(h)
    assert out.shape == h.shape
    assert_close(line(h.roll(2, 2)), out.roll(2, 2))
    if length >= 5:
        padded = torch.nn.functional.pad(h, (4, 4), mode="circular")
        assert_close(out, torch.nn.functional.leaky_relu(line.norm(line.conv(padded)), 0.2))


@pytest.mark.parametrize("channels", [3, 4, 12, 18, 160])
def test_any_number_of_channels_has_a_norm_that_keeps_something(channels):
    made = head(channels, maps=False, gate=0.3)
    x = noise(2, channels).double()
    assert (made(x, U, None) - made(x + noise(2, channels, seed=1), U, None)).abs().max() > 1e-6


def test_channels_last_features_without_gradient_can_be_learned_from():
    made = head(32, gate=0.3)
    x = noise(2, 32, 8, 8).double()
    grads = []
    for given in (x, x.to(memory_format=torch.channels_last)):
        made.zero_grad()
        made(given, U, None).sum().backward()
        grads.append(made.norm.weight.grad.clone())
    assert_close(grads[0], grads[1])


@pytest.mark.parametrize("make", [trunk, vectors])
def test_as_heads_of_a_discriminator(make):
    net, shape = make(), SHAPE if make is trunk else (5,)
    config = DiscriminatorConfig(head="time_aware", taps="blocks", width=16)
    d = make_discriminator(net, config, shape, COND, seed=0)
    assert all(isinstance(each, TimeAwareHead) for each in d.heads)
    found = features(net, net.backbone.taps("blocks"), noise(2, *shape), T, COND)
    positions = sum(f[0, 0].numel() if f.ndim == 4 else 1 for f in found)
    d.eval()
    assert d.patch_logits(noise(2, *shape), T, COND).shape == (2, 16 * positions)
    assert_close(d.logits(noise(2, *shape), T, COND), d.logits(noise(2, *shape, seed=1), T - 5, COND))


def test_real_features_of_a_middle_block_are_learned_from():
    """An attention block's output is channels-last."""
    net = trunk()
    assert isinstance(net.backbone, UNet2DBackbone)
    d = make_discriminator(net, DiscriminatorConfig(head="time_aware", width=16), SHAPE, COND, seed=0)
    with torch.no_grad():
        x = noise(2, *SHAPE)
    net.backbone.requires_grad_(False)
    d.logits(x, T, COND).sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in d.parameters())
