"""LoRA factors out of a difference of weights: exact where the rank suffices, the best there is where it does not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.core.networks.adapters import AdapterView, SharedNetwork, lora_state
from fewstep.core.networks.extraction import extract_lora
from fewstep.core.networks.unet2d import UNet2DBackbone


def unet(seed=0):
    return UNet2DBackbone.make(1, 8, widths=(8, 16), attention=(False, True), seed=seed)


def changed(network, rank, seed=1):
    """A copy whose linear and convolution weights moved by a matrix of that rank."""
    made, generator = copy.deepcopy(network), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in made.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                flat = layer.weight.flatten(1)
                a, b = (torch.randn(n, rank, generator=generator) for n in flat.shape)
                layer.weight += (0.02 * a @ b.T).reshape(layer.weight.shape)
    return made


def test_a_change_of_low_rank_is_found_whole_and_acts_as_the_adapter_it_becomes():
    base, rank = unet(), 3
    tuned = changed(base.unet, rank)
    found = extract_lora(base.unet, tuned, rank)
    assert found.kept == pytest.approx(1, abs=1e-9)
    assert found.lost == 0
    x, time = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3.0, 500.0])
    other = copy.deepcopy(base)
    other.unet = tuned
    with torch.no_grad():
        expected, plain = other(x, time, {}), base(x, time, {})
    shared = SharedNetwork(base)
    layers = sorted({key.removeprefix("unet.").rsplit(".", 2)[0] for key in found.state})
    shared.add("student", rank=rank, alpha=float(rank), targets=layers, dropout=0.0, seed=0)
    view = AdapterView(shared, "student")
    own = {key: value.shape for key, value in lora_state(view).items()}
    ranks = {key: value.shape for key, value in found.state.items()}
    assert own.keys() == ranks.keys()
    with torch.no_grad():
        for path, layer in shared.layers.items():
            for factor in ("lora_A", "lora_B"):
                value, target = found.state[f"unet.{path}.{factor}.weight"], getattr(layer, factor)["student"].weight
                target.zero_()  # a layer with a side shorter than the rank has fewer factors
                (target[: len(value)] if factor == "lora_A" else target[:, : value.shape[1]]).copy_(value)
        assert_close(view(x, time, {}), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(plain, expected, atol=1e-2)


def test_what_a_lower_rank_loses_are_the_smallest_singular_values():
    base, tuned = nn.Linear(12, 9), nn.Linear(12, 9)
    tuned.bias.data.copy_(base.bias.data)
    s = torch.linalg.svdvals((tuned.weight - base.weight).detach().double())
    for rank in (1, 4, 9, 20):
        found = extract_lora(nn.Sequential(base), nn.Sequential(tuned), rank, prefix="net")
        a, b = found.state["net.0.lora_A.weight"], found.state["net.0.lora_B.weight"]
        error = (tuned.weight - base.weight - b @ a).detach().double().square().sum()
        assert_close(error, s[rank:].square().sum(), atol=1e-10, rtol=1e-5)
        assert found.kept == pytest.approx(float(s[:rank].square().sum() / s.square().sum()))
        assert a.shape == (min(rank, 9), 12)


def test_what_has_no_factors_is_told():
    base = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Conv2d(4, 4, 1, groups=2))
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned[0].weight += torch.eye(4)  # 4
        tuned[0].bias += 1  # 4
        tuned[1].weight += 2  # 16
        tuned[2].weight += 1  # 8
    found = extract_lora(base, tuned, 2)
    assert found.state.keys() == {"unet.0.lora_A.weight", "unet.0.lora_B.weight"}
    assert found.lost == pytest.approx(28 / 32, abs=1e-6)
    assert found.kept == pytest.approx(2 / 32, abs=1e-6)


def test_mistakes_are_one_line():
    base = nn.Linear(2, 2)
    with pytest.raises(UserError, match="nothing to extract"):
        extract_lora(base, copy.deepcopy(base), 1)
    with pytest.raises(UserError, match="only one of the two networks has a parameter 'bias'"):
        extract_lora(nn.Linear(2, 2), nn.Linear(2, 2, bias=False), 1)
    with pytest.raises(UserError, match="rank must be at least 1"):
        extract_lora(nn.Linear(2, 2), nn.Linear(2, 2), 0)
    with pytest.raises(UserError, match=r"'weight' is \[2, 2\] and \[2, 3\]"):
        extract_lora(nn.Linear(2, 2), nn.Linear(3, 2), 1)
