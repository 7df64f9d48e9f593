from __future__ import annotations

import pytest
import torch
from core.gaussian_bed import PROCESSES, ExactGaussian
from torch import Tensor, nn
from torch.testing import assert_close

from fewstep.core.denoiser import NetworkDenoiser, Plain, Reprocessed
from fewstep.core.errors import UserError
from fewstep.core.jvp import central_difference, directional_derivative, forward_differentiable
from fewstep.core.networks.unet2d import UNet2DBackbone
from fewstep.core.prediction import Kind
from fewstep.core.process import TrigFlow


def randoms(*shape: int, seed: int = 0, dtype=torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class PreciseTime(nn.Module):
    """diffusers computes its time features in float32, whose rounding no difference quotient survives."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.half = inner.num_channels // 2

    def forward(self, t: Tensor) -> Tensor:
        frequencies = torch.exp(-torch.arange(self.half, dtype=t.dtype) / self.half * 4)
        return torch.cat([(t[:, None] * frequencies).sin(), (t[:, None] * frequencies).cos()], 1)


def unet2d() -> nn.Module:
    return UNet2DBackbone.make(1, 8, widths=(16, 16), attention=(False, True), seed=1).unet


def unet2d_condition() -> nn.Module:
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng():
        return UNet2DConditionModel(
            sample_size=8,
            in_channels=2,
            out_channels=2,
            block_out_channels=(16, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=8,
            attention_head_dim=4,
            norm_num_groups=4,
        )


def field(unet: nn.Module):
    """The model as a function of (x, t); the conditional one attends to fixed tokens."""
    channels = unet.config.in_channels
    args = (randoms(2, 3, 8).to(next(unet.parameters()).dtype),) if hasattr(unet, "encoder_hid_proj") else ()
    x = randoms(2, channels, 8, 8, seed=5).to(next(unet.parameters()).dtype)
    return x, lambda x, t: unet(x, t, *args, return_dict=False)[0]


@pytest.mark.parametrize("make", [unet2d, unet2d_condition])
def test_derivative_through_unmodified_attention_models(make):
    unet = make().eval().double()
    unet.time_proj = PreciseTime(unet.time_proj)
    x, function = field(unet)
    t, dx, dt = torch.tensor([0.3, 1.2]).double(), randoms(*x.shape, seed=1), torch.tensor([0.5, -1.0]).double()
    value, derivative = directional_derivative(function, x, t, dx, dt)
    assert_close(value, function(x, t).detach(), rtol=1e-9, atol=1e-10)
    slope = central_difference(function, x, t, dx, dt, step=1e-4)
    assert (derivative - slope).norm() / slope.norm() < 1e-6
    assert not derivative.requires_grad


@pytest.mark.parametrize("make", [unet2d, unet2d_condition])
def test_derivative_of_models_exactly_as_they_come(make):
    """float32, diffusers' own time features: right to the accuracy differences have there."""
    unet = make().eval()
    x, function = field(unet)
    t, dx, dt = torch.tensor([300.0, 700.0]), randoms(*x.shape, seed=1).float(), torch.tensor([1.0, -1.0])
    derivative = directional_derivative(function, x, t, dx, dt)[1]
    slope = central_difference(function, x, t, dx, dt, step=2e-3)
    assert (derivative - slope).norm() / slope.norm() < 1e-2


@pytest.mark.parametrize("make", [unet2d, unet2d_condition])
def test_fused_attention_is_refused_with_advice(make):
    x, function = field(make().eval())
    t = torch.tensor([300.0, 700.0])
    with pytest.raises(UserError, match="finite_difference"):
        directional_derivative(function, x, t, torch.ones_like(x), torch.ones_like(t), plain_kernels=False)


def test_other_errors_come_through_unchanged():
    def broken(x: Tensor, t: Tensor) -> Tensor:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        directional_derivative(broken, randoms(1, 2), randoms(1), randoms(1, 2), randoms(1))


def test_models_in_the_context_are_the_same_function():
    unet = unet2d().eval()
    x, function = field(unet)
    t = torch.tensor([300.0, 700.0])
    with torch.no_grad():
        outside = function(x, t)
        with forward_differentiable():
            assert_close(function(x, t), outside, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["vp", "cosine", "flow", "edm"])
def test_teacher_seen_through_trigflow_has_the_native_values_and_derivatives(name):
    trig = TrigFlow(sigma_data=0.5)
    native, wrapped = ExactGaussian(trig), Reprocessed(ExactGaussian(PROCESSES[name]), trig)
    t, x = torch.tensor([0.3, 0.8, 1.3]).double(), randoms(3, 2)
    assert_close(wrapped.velocity(x, t, {}), native.velocity(x, t, {}), rtol=1e-9, atol=1e-11)
    dx, dt = randoms(3, 2, seed=1), torch.ones(3).double()
    of_wrapped = directional_derivative(lambda x, t: wrapped.velocity(x, t, {}), x, t, dx, dt)[1]
    of_native = directional_derivative(lambda x, t: native.velocity(x, t, {}), x, t, dx, dt)[1]
    slope = central_difference(lambda x, t: wrapped.velocity(x, t, {}), x, t, dx, dt, step=1e-5)
    assert_close(of_wrapped, of_native, rtol=1e-6, atol=1e-7)
    assert_close(of_wrapped, slope, rtol=1e-6, atol=1e-6)


def test_derivative_of_a_network_read_through_another_process():
    """A real UNet trained as a v network on a table, differentiated as a TrigFlow network: the recipe's exact path."""
    backbone = UNet2DBackbone.make(1, 8, widths=(16, 16), attention=(False, True), seed=1).eval().double()
    backbone.unet.time_proj = PreciseTime(backbone.unet.time_proj)
    student = Reprocessed(NetworkDenoiser(backbone, PROCESSES["vp"], Plain(Kind.V)), TrigFlow())
    x, t = randoms(2, 1, 8, 8), torch.tensor([0.5, 1.2]).double()
    dx, dt = randoms(2, 1, 8, 8, seed=1), torch.tensor([0.3, 0.2]).double()

    def network(x: Tensor, t: Tensor) -> Tensor:
        return student.velocity(x, t, {})

    derivative = directional_derivative(network, x, t, dx, dt)[1]
    # the table is linear between indices: stay within one
    slope = central_difference(network, x, t, dx, dt, step=1e-6)
    assert (derivative - slope).norm() / slope.norm() < 1e-5
