"""Gaussians that split, move, come and go: what they look like afterwards, and what the optimizer remembers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from threed.splat_bed import cameras, scene
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.core.rng import Rng
from fewstep.threed.gaussians import densify
from fewstep.threed.gaussians.densify import (
    ChainConfig,
    ChainGrowth,
    GradientGrowth,
    GrowthConfig,
    parameter_groups,
    relocate_dead,
)
from fewstep.threed.gaussians.mcmc import MOST, exploration, grown, relocated, split_in_place
from fewstep.threed.gaussians.parameters import GaussianParameters, Gaussians
from fewstep.threed.gaussians.projection import covariances
from fewstep.threed.gaussians.render import render

RATES = {"means": 1e-3, "scales": 2e-3, "quats": 1e-3, "opacities": 3e-2, "sh0": 1e-3, "shN": 1e-3}
RNG = Rng.for_batch(0, 7, 1)


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("copies", [1, 2, 7, MOST])
@pytest.mark.parametrize("opacity", [0.01, 0.6, 0.999])
def test_copies_composite_to_the_opacity_and_to_the_integral(copies, opacity):
    new, scales = split_in_place(double(opacity), double(0.2, 0.3, 0.4)[None], torch.tensor([copies]))
    assert_close(1 - (1 - new) ** copies, double(opacity))
    along = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    ratio = scales[0, 0] / 0.2
    assert_close(scales[0], double(0.2, 0.3, 0.4) * ratio)
    before = torch.trapezoid(opacity * torch.exp(-(along**2) / 2), along)
    after = torch.trapezoid(1 - (1 - new * torch.exp(-((along / ratio) ** 2) / 2)) ** copies, along)
    assert_close(after, before, rtol=1e-8, atol=0)


def test_one_opaque_gaussian_in_single_precision_stays_finite():
    new, scales = split_in_place(torch.ones(1), torch.ones(1, 3), torch.tensor([MOST + 1000]))
    assert 0 < float(new) < 1
    assert torch.isfinite(scales).all()


def with_dead(n: int = 6, dead: int = 3) -> Gaussians:
    """Gaussians far apart, the last of them nearly transparent."""
    cloud = scene(n, degree=1, size=0.2)
    logits = cloud.opacity_logits.abs()
    logits[n - dead :] = -8
    return replace(cloud, opacity_logits=logits, quaternions=torch.nn.functional.normalize(cloud.quaternions, dim=-1))


def test_relocation_keeps_count_and_picture():
    cloud = with_dead()
    made, fresh = relocated(cloud, RNG)
    view = (*cameras(2, 24, 24), 24, 24)
    before, after = (render(each, *view)[1] for each in (cloud, made))
    assert len(made) == len(cloud)
    assert (made.opacities > 0.005).all()
    assert (before - after).abs().mean() < 0.01 * before.mean() + 2e-3
    assert (before - after).abs().max() < 0.1
    untouched = ~fresh
    for name in cloud.__dataclass_fields__:
        assert torch.equal(getattr(made, name)[untouched], getattr(cloud, name)[untouched]), name
    moved = made.means[3:]
    assert (torch.cdist(moved, cloud.means[:3]).min(dim=1).values == 0).all(), "every dead one sits on a live one"


def test_alpha_at_the_centre_of_a_split_is_exactly_what_it_was():
    one = Gaussians.isotropic(double(0, 0, 4)[None], 0.2, 0.8)
    made, fresh = grown(one, 4, RNG)
    assert (len(made), fresh.all()) == (5, True)
    intrinsics = torch.tensor([[[60.0, 0, 8.5], [0, 60, 8.5], [0, 0, 1]]], dtype=torch.float64)
    view = (torch.eye(4, dtype=torch.float64)[None], intrinsics, 17, 17)
    assert_close(render(made, *view)[1][0, 8, 8, 0], double(0.8)[0])


def test_relocation_draws_by_opacity_and_by_its_own_stream():
    heavy = replace(
        with_dead(2002, 2000), opacity_logits=torch.cat([double(0.75, 0.25).logit(), double(-8).repeat(2000)])
    )
    made, _ = relocated(heavy, RNG)
    share = (made.means[2:] == heavy.means[0]).all(dim=1).double().mean()
    assert abs(float(share) - 0.75) < 0.04
    again = relocated(heavy, replace(RNG, ids=(3, 4)))[0]
    assert torch.equal(made.means, again.means)
    assert not torch.equal(made.means, relocated(heavy, RNG.at_step(8))[0].means)


@pytest.mark.parametrize("logit", [-8.0, 2.0])
def test_nothing_moves_where_all_are_dead_or_all_alive(logit):
    cloud = replace(scene(4), opacity_logits=torch.full((4,), logit, dtype=torch.float64))
    made, fresh = relocated(cloud, RNG)
    assert made is cloud
    assert not fresh.any()


def test_noise_has_the_gaussians_shape_and_spares_what_shows():
    count = 4000
    one = scene(1, size=0.5)
    cloud = Gaussians(
        *(getattr(one, name).expand(count, *getattr(one, name).shape[1:]).clone() for name in one.__dataclass_fields__)
    )
    faint = replace(cloud, opacity_logits=torch.full_like(cloud.opacity_logits, -20))
    spread = covariances(one.quaternions, one.scales)[0]
    noise = exploration(faint, 2.0, RNG)
    stays = torch.sigmoid(double(100 * 0.005))
    assert_close(
        noise.T.cov() / (2 * stays) ** 2, spread @ spread.T, rtol=0.1, atol=0.1 * float((spread @ spread).max())
    )
    shown = replace(cloud, opacity_logits=torch.zeros_like(cloud.opacity_logits))
    assert exploration(shown, 2.0, RNG).abs().max() < 1e-15


def model(cloud: Gaussians) -> tuple[GaussianParameters, torch.optim.Adam]:
    parameters = GaussianParameters(cloud)
    optimizer = torch.optim.Adam(parameter_groups(parameters, RATES))
    return parameters, optimizer


def step(parameters: GaussianParameters, optimizer: torch.optim.Optimizer, growth=None, number: int = 0) -> None:
    image, alpha, meta = render(parameters(), *cameras(2, 12, 12, parameters.params["means"].dtype), 12, 12)
    if growth is not None:
        growth.before_backward(number, meta)
    optimizer.zero_grad()
    (image.square().sum() + alpha.sum()).backward()
    optimizer.step()
    if growth is not None:
        growth.after_step(number, meta, RNG.at_step(number))


def assert_in_step(parameters: GaussianParameters, optimizer: torch.optim.Optimizer) -> None:
    """Every parameter is the optimizer's, with a state of its shape, and the next step moves it."""
    held = [group["params"][0] for group in optimizer.param_groups]
    count = len(parameters.params["means"])
    for name, own in zip(parameters.params, held, strict=True):
        assert own is parameters.params[name], name
        assert len(own) == count, name
        assert optimizer.state[own]["exp_avg"].shape == own.shape, name
    assert len(optimizer.state) == len(held), "nothing is remembered of what is gone"


def test_relocation_in_place_forgets_only_what_is_new():
    parameters, optimizer = model(with_dead())
    step(parameters, optimizer)
    before = {name: (value, optimizer.state[value]["exp_avg"].clone()) for name, value in parameters.params.items()}
    moved = relocate_dead(parameters, RNG, optimizer)
    fresh = torch.cdist(parameters.params["means"], parameters.params["means"]).fill_diagonal_(1).min(dim=1).values == 0
    assert moved == int(fresh.sum()) > 3
    for name, (value, remembered) in before.items():
        assert parameters.params[name] is value, "the parameters are the same objects"
        assert torch.equal(optimizer.state[value]["exp_avg"][~fresh], remembered[~fresh])
        assert optimizer.state[value]["exp_avg"][fresh].abs().sum() == 0
    assert_in_step(parameters, optimizer)
    assert relocate_dead(parameters, RNG, optimizer) == 0


def test_a_chain_grows_up_to_its_limit_and_trains_on():
    parameters, optimizer = model(with_dead(40, 5))
    growth = ChainGrowth(parameters, optimizer, ChainConfig(most=43, noise=0.0, start=0, every=2, stop=100))
    counts = []
    for number in range(6):
        step(parameters, optimizer, growth, number)
        counts.append(len(parameters.params["means"]))
    assert counts == [40, 40, 42, 42, 43, 43]
    assert_in_step(parameters, optimizer)
    assert (parameters().opacities > 0.005).all()


def test_noise_of_a_chain_is_times_the_rate_of_the_means():
    parameters, optimizer = model(replace(with_dead(), opacity_logits=torch.full((6,), -20.0, dtype=torch.float64)))
    before = parameters.params["means"].detach().clone()
    ChainGrowth(parameters, optimizer, ChainConfig(noise=10.0)).after_step(1, {}, RNG)
    assert_close(parameters.params["means"].detach() - before, exploration(parameters(), 10 * RATES["means"], RNG))


def test_gradients_on_the_image_split_double_and_remove():
    """With gsplat's strategy on the CPU: large ones split in two, small ones are doubled, faint ones vanish."""
    cloud = scene(12, degree=1, size=0.05, dtype=torch.float32)
    sizes = cloud.log_scales.clone()
    sizes[:4] = -1.0
    logits = torch.full((12,), 1.0)
    logits[-2:] = -9
    parameters, optimizer = model(replace(cloud, means=0.3 * cloud.means, log_scales=sizes, opacity_logits=logits))
    config = GrowthConfig(grow_grad2d=0.0, grow_scale3d=0.2, start=1, every=2, stop=10, reset_every=100)
    growth = GradientGrowth(parameters, optimizer, config)
    for number in range(4):
        step(parameters, optimizer, growth, number)
    # of 12, the 2 faint have no gradient and go; 4 split and 6 are doubled
    assert len(parameters.params["means"]) == 20
    assert_in_step(parameters, optimizer)
    assert sorted(parameters.params["scales"].detach().amax(dim=1).sort().values[-8:].tolist())[0] == pytest.approx(
        -1.0 - torch.tensor(1.6).log().item(), abs=0.05
    )
    step(parameters, optimizer)


def test_no_gradient_above_the_threshold_means_no_growth_and_a_reset_dims():
    parameters, optimizer = model(scene(10, size=0.3, dtype=torch.float32))
    config = GrowthConfig(
        grow_grad2d=1e9, prune_scale3d=1e9, prune_opacity=0.01, start=1, every=2, stop=10, reset_every=3
    )
    growth = GradientGrowth(parameters, optimizer, config)
    for number in range(4):
        step(parameters, optimizer, growth, number)
        if number == 2:
            assert parameters().opacities.max() > 0.1
    assert len(parameters.params["means"]) == 10
    assert parameters().opacities.max() <= 0.02 + 1e-6
    assert optimizer.state[parameters.params["opacities"]]["exp_avg"].abs().sum() == 0


def test_growth_is_a_function_of_seed_and_step():
    def run() -> torch.Tensor:
        parameters, optimizer = model(scene(6, size=0.3, dtype=torch.float32))
        growth = GradientGrowth(parameters, optimizer, GrowthConfig(grow_grad2d=0.0, start=1, every=2, prune_scale3d=9))
        torch.rand(1)
        for number in range(3):
            step(parameters, optimizer, growth, number)
        return parameters.params["means"].detach()

    first = run()
    assert len(first) == 12
    assert torch.equal(first, run())


def test_radii_of_an_older_gsplat(monkeypatch):
    import gsplat

    meta = {"radii": torch.tensor([[[3, 5], [2, 0]]])}
    assert densify._as_installed(meta)["radii"].shape == (1, 2, 2)
    monkeypatch.setattr(gsplat, "__version__", "1.4.0")
    assert densify._as_installed(meta)["radii"].tolist() == [[5, 2]]


def test_bad_input():
    parameters, _ = model(with_dead())
    with pytest.raises(UserError, match="no group for 'means' alone"):
        ChainGrowth(parameters, torch.optim.SGD(parameters.parameters(), lr=1.0))
    with pytest.raises(UserError, match="rates of means: must be of means, scales"):
        parameter_groups(parameters, {"means": 1.0})
    with pytest.raises(UserError, match="no Gaussians to grow from"):
        grown(scene(0), 3, RNG)
    with pytest.raises(UserError, match="needs a CUDA device"):
        ChainGrowth(parameters, torch.optim.Adam(parameter_groups(parameters, RATES)), backend="gsplat")
