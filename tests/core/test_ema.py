"""Averages of weights: closed forms of every law, buffers, swaps."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fewstep.core.denoiser import NetworkDenoiser, Plain
from fewstep.core.errors import UserError
from fewstep.core.networks.ema import EMA, ConstantDecay, HalfLife, PowerFunction
from fewstep.core.networks.reference import MLPBackbone
from fewstep.core.networks.roles import RolesConfig, build_roles
from fewstep.core.prediction import Kind
from fewstep.core.process import VP
from fewstep.core.recipe import RoleSpec


class Scalar(nn.Module):
    """One parameter and two buffers that take given values."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=dtype))
        self.register_buffer("statistic", torch.zeros(1, dtype=dtype))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def take(self, value):
        with torch.no_grad():
            self.weight.fill_(value)
            self.statistic.fill_(2 * value)
            self.count += 1


def weights_of(law, updates):
    """The share each of the updates has in the average, and the share of the start."""
    shares = []
    for probe in range(updates + 1):
        module = Scalar()
        module.take(float(probe == 0))
        ema = EMA(module, law)
        for i in range(1, updates + 1):
            module.take(float(i == probe))
            ema.update()
        shares.append(ema.tensors()[0].item())
    return shares


def test_constant_decay_is_a_geometric_series():
    shares = weights_of(ConstantDecay(0.9), 12)
    expected = [0.9**12, *(0.1 * 0.9 ** (12 - i) for i in range(1, 13))]
    assert shares == pytest.approx(expected, abs=1e-14)
    assert math.fsum(shares) == pytest.approx(1, abs=1e-14)


def test_half_life_halves_and_does_not_depend_on_the_batch():
    for batch in (16, 64):
        law = HalfLife(samples=256.0, batch=batch)
        shares = weights_of(law, 256 // batch)
        assert shares[0] == pytest.approx(0.5, abs=1e-12)


@given(st.floats(0.02, 0.28))
def test_power_function_exponent_inverts_its_relative_deviation(std):
    g = PowerFunction(std).gamma
    assert g > 0 or std > 0.288
    assert math.sqrt((g + 1) / ((g + 2) ** 2 * (g + 3))) == pytest.approx(std, rel=1e-9)


def test_published_exponents():
    # EDM2: relative deviations 0.05 and 0.10 are gamma 16.97 and 6.94
    assert PowerFunction(0.05).gamma == pytest.approx(16.97, abs=5e-3)
    assert PowerFunction(0.10).gamma == pytest.approx(6.94, abs=5e-3)


def test_power_function_weighs_updates_by_the_power():
    law, n = PowerFunction(0.1), 15
    p = law.gamma + 1
    expected = [0.0, *((i**p - (i - 1) ** p) / n**p for i in range(1, n + 1))]
    assert weights_of(law, n) == pytest.approx(expected, abs=1e-13)


def test_the_profile_of_a_long_run_has_the_relative_deviation_asked_for():
    law, n = PowerFunction(0.1), 4000
    share, time = torch.zeros(n, dtype=torch.float64), (torch.arange(n, dtype=torch.float64) + 0.5) / n
    for i in range(1, n + 1):
        keep = law.decay(i)
        share[: i - 1] *= keep
        share[i - 1] = 1 - keep
    mean = (share * time).sum()
    assert ((share * (time - mean) ** 2).sum().sqrt()).item() == pytest.approx(0.1, abs=1e-3)


def test_warm_up_grows_the_time_constant_linearly_from_no_averaging():
    law = ConstantDecay(0.99, warmup=10)
    constants = [1 / (1 - law.decay(i)) for i in range(1, 15)]
    assert constants[0] == 1
    assert constants[:11] == pytest.approx([1 + 9.9 * i for i in range(11)])
    assert constants[10:] == pytest.approx([100.0] * 4)
    assert HalfLife(256.0, 64, warmup=4).decay(1) == 0
    assert ConstantDecay(0.0, warmup=4).decay(2) == 0


def test_floating_buffers_are_averaged_and_others_copied():
    module = Scalar()
    ema = EMA(module, ConstantDecay(0.5))
    for value in (1.0, 2.0):
        module.take(value)
        ema.update()
    state = ema.state_dict()
    assert state["average.weight"].item() == 1.25
    assert state["average.statistic"].item() == 2.5
    assert state["average.count"].item() == 2


def test_low_precision_weights_are_averaged_in_single():
    module = Scalar(torch.bfloat16)
    ema = EMA(module, ConstantDecay(0.999))
    module.take(1.0)
    for _ in range(1000):
        ema.update()
    assert ema.state_dict()["average.weight"].item() == pytest.approx(1 - 0.999**1000, abs=1e-5)
    assert ema.tensors()[0].dtype == torch.bfloat16


def test_swap_shows_the_average_and_puts_everything_back_even_after_an_exception():
    module = Scalar()
    ema = EMA(module, ConstantDecay(0.5))
    module.take(1.0)
    ema.update()
    identity = module.weight
    seen = []

    def look_and_fail():
        seen.append((module.weight.item(), module.statistic.item()))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), ema.swap():
        look_and_fail()
    assert seen == [(0.5, 1.0)]
    assert (module.weight.item(), module.statistic.item(), module.count.item()) == (1.0, 2.0, 1)
    assert module.weight is identity
    ema.update()
    assert ema.tensors()[0].item() == 0.75, "a swap leaves the average alone"


def test_state_round_trip_continues_bit_for_bit():
    module, laws = Scalar(), ConstantDecay(0.9, warmup=5)
    ema = EMA(module, laws)
    for value in range(4):
        module.take(value / 3)
        ema.update()
    again = EMA(module, laws)
    again.load_state_dict(ema.state_dict())
    for each in (ema, again):
        module.take(0.7)
        each.update()
    assert torch.equal(ema.tensors()[0], again.tensors()[0])
    assert again.updates == 5
    with pytest.raises(UserError, match="another network"):
        EMA(nn.Linear(1, 1), laws).load_state_dict(ema.state_dict())


def test_the_state_does_not_follow_later_updates():
    module = Scalar()
    ema = EMA(module, ConstantDecay(0.5))
    state = ema.state_dict()
    module.take(1.0)
    ema.update()
    assert state["average.weight"].item() == 0


def test_a_view_averages_its_adapter_only():
    teacher = NetworkDenoiser(MLPBackbone(3, width=8, depth=1), VP.linear(), Plain(Kind.EPS))
    specs = (RoleSpec("student"), RoleSpec("teacher", init="frozen"))
    roles = build_roles(teacher, specs, RolesConfig(mode="lora", rank=2), seed=0)
    view = roles["student"].backbone
    ema = EMA(view, PowerFunction(0.1))
    assert all("lora_" in name for name in ema.state_dict() if name != "updates")
    x, t = torch.ones(1, 3), torch.tensor([500.0])
    start = view(x, t, {})
    with torch.no_grad():
        for parameter in view.parameters():
            parameter += 0.1
    ema.update()
    moved = view(x, t, {})
    with torch.no_grad():
        for parameter in view.parameters():
            parameter += 0.1
    with ema.swap():
        assert torch.equal(view(x, t, {}), moved)
    assert not torch.equal(moved, start)


def test_nothing_to_average_is_fine():
    ema = EMA(nn.Identity(), ConstantDecay(0.5))
    ema.update()
    assert ema.tensors() == []


@pytest.mark.parametrize(
    "make",
    [lambda: ConstantDecay(1.0), lambda: ConstantDecay(0.5, -1), lambda: HalfLife(0.0, 1), lambda: PowerFunction(0.3)],
)
def test_impossible_laws_are_user_errors(make):
    with pytest.raises(UserError):
        make()
