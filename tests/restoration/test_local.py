"""Laws of the local U-Net, and of reading it as what is missing from the anchor."""

from __future__ import annotations

import pytest
import torch
from restoration.model_bed import shaken

from fewstep.core.denoiser import Backbone
from fewstep.core.errors import UserError
from fewstep.core.process import VP, ResidualShift
from fewstep.restoration.models.files import load_network, save_network
from fewstep.restoration.models.local import LocalConfig, LocalUNet, unit_length
from fewstep.restoration.process import ResidualDenoiser


def small(dtype: torch.dtype = torch.float64) -> LocalUNet:
    return shaken(LocalUNet(3, LocalConfig(widths=(4, 6, 8), blocks=1, time_width=8))).to(dtype).eval()


def test_an_untrained_network_says_nothing() -> None:
    network = LocalUNet(3, LocalConfig(widths=(8, 16), blocks=1, time_width=8))
    out = network(torch.randn(2, 3, 8, 8), torch.zeros(2), {"anchor": torch.randn(2, 3, 8, 8)})
    assert torch.equal(out, torch.zeros_like(out))


@pytest.mark.parametrize("axis", [2, 3])
def test_nothing_beyond_the_reach_matters_and_reach_is_not_far_from_tight(axis: int) -> None:
    network = small()
    length = 2 * network.reach + 16
    length += -length % network.multiple
    shape = [1, 3, network.multiple, network.multiple]
    shape[axis] = length
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    middle = length // 2
    for at in range(middle, middle + network.multiple):  # every phase of the coarse grids
        out = network(x, torch.zeros(1).double(), {"anchor": torch.zeros(shape).double()})
        (grad,) = torch.autograd.grad(out.select(axis, at).sum(), x)
        far = grad.abs().sum([d for d in range(4) if d != axis]).nonzero().flatten()
        distance = max(at - int(far.min()), int(far.max()) - at)
        assert distance <= network.reach
    assert distance >= network.reach - 2 * network.multiple


def test_a_shifted_picture_gives_the_shifted_result() -> None:
    network, step = small(), 4
    x = torch.randn(1, 3, 96, 4 * 4, dtype=torch.float64)
    y = torch.randn_like(x)
    t = torch.zeros(1).double()
    whole = network(x, t, {"anchor": y})
    part = network(x[:, :, step:], t, {"anchor": y[:, :, step:]})
    inside = network.reach + step
    assert torch.allclose(whole[:, :, inside:], part[:, :, inside - step :], atol=1e-12)


def test_blocks_see_directions_of_channels_only() -> None:
    x = torch.randn(1, 8, 4, 4, dtype=torch.float64)
    assert torch.allclose(unit_length(7 * x), unit_length(x), atol=1e-5)
    assert torch.allclose(unit_length(x).square().mean(1), torch.ones(1, 4, 4).double(), atol=1e-4)


def test_sides_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(UserError, match="multiples of 4"):
        small()(torch.zeros(1, 3, 6, 8).double(), torch.zeros(1).double(), {"anchor": torch.zeros(1, 3, 6, 8).double()})


def test_a_missing_anchor_is_named() -> None:
    with pytest.raises(UserError, match="anchor"):
        small()(torch.zeros(1, 3, 8, 8).double(), torch.zeros(1).double(), {})


def test_extra_inputs_change_nothing_at_first(tmp_path) -> None:
    network = small(torch.float32)
    x, cond = torch.randn(2, 3, 8, 8), {"anchor": torch.randn(2, 3, 8, 8)}
    more = network.with_extras(("end_time",), seed=0)
    told = more(x, torch.ones(2), {**cond, "end_time": torch.ones(2)})
    assert torch.equal(told, network(x, torch.ones(2), cond))
    save_network(more, tmp_path / "m", {})
    again = load_network(tmp_path / "m")
    assert torch.equal(again(x, torch.ones(2), {**cond, "end_time": torch.ones(2)}), told)


class Fixed(Backbone):
    """A network that answers with what it is told to."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x, time, cond):
        return self.answer(x)


@pytest.mark.parametrize("t", [0.0, 3.0, 14.0])
def test_residuals_are_scaled_to_deviation_one(t: float) -> None:
    """For residuals of deviation s, the network's input and target have variance 1, its best linear answer is 0."""
    process, s, n = ResidualShift(), 0.2, 200_000
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    x0 = y + s * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    time = torch.full((n,), t, dtype=torch.float64)
    x_t = process.add_noise(x0, torch.randn(n, 1, generator=generator, dtype=torch.float64), time, y)
    seen: list[torch.Tensor] = []
    answers = {
        value: ResidualDenoiser(Fixed(lambda x, v=value: (seen.append(x), torch.full_like(x, v))[1]), process, s)
        for value in (0.0, 1.0)
    }
    at = {value: denoiser.x0(x_t, time, {"anchor": y}) for value, denoiser in answers.items()}
    target = (x0 - at[0.0]) / (at[1.0] - at[0.0])
    assert seen[0].std() == pytest.approx(1, abs=0.01)
    assert target.std() == pytest.approx(1, abs=0.01)
    assert (target * seen[0]).mean() == pytest.approx(0, abs=0.01)  # the linear part is already taken


def test_only_processes_that_shift_residuals_can_be_read_so() -> None:
    with pytest.raises(UserError, match="shifts no residual"):
        ResidualDenoiser(Fixed(lambda x: x), VP.scaled_linear())


def test_the_reading_survives_a_copy_of_the_network() -> None:
    first = ResidualDenoiser(Fixed(lambda x: x), ResidualShift(), 0.3)
    other = first.with_backbone(Fixed(lambda x: 2 * x))
    assert isinstance(other, ResidualDenoiser)
    assert other.residual_std == 0.3
