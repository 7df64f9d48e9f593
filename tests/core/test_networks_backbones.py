"""Backbones: conditions, extra inputs that start as nothing, files that stock diffusers reads."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from fewstep.core.denoiser import NetworkDenoiser, Plain
from fewstep.core.errors import UserError
from fewstep.core.networks.embedding import sinusoid
from fewstep.core.networks.files import load_backbone
from fewstep.core.networks.reference import MLPBackbone
from fewstep.core.networks.unet2d import UNet2DBackbone
from fewstep.core.prediction import Kind
from fewstep.core.process import VP

EXTRAS = {"guidance": torch.tensor([1.0, 4.0]), "end_time": torch.tensor([0.0, 300.0])}
TIME = torch.tensor([10.0, 700.0])


def unet(**settings):
    return UNet2DBackbone.make(2, 8, widths=(8, 16), attention=(False, True), **settings).eval()


def mlp(**settings):
    return MLPBackbone(5, width=16, depth=2, **settings).eval()


def inputs(backbone, seed=0):
    shape = (2, 2, 8, 8) if isinstance(backbone, UNet2DBackbone) else (2, 5)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


BOTH = pytest.mark.parametrize("make", [unet, mlp])


@BOTH
def test_construction_is_a_function_of_the_seed_and_leaves_the_global_generator_alone(make):
    before = torch.get_rng_state()
    first, second, other = make(seed=3), make(seed=3), make(seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    x = inputs(first)
    assert torch.equal(first(x, TIME, {}), second(x, TIME, {}))
    assert not torch.equal(first(x, TIME, {}), other(x, TIME, {}))


@BOTH
def test_null_is_the_class_after_the_last(make):
    net = make(num_classes=3)
    x, cond = inputs(net), {"label": torch.tensor([0, 2])}
    assert net.null(cond)["label"].tolist() == [3, 3]
    assert not torch.equal(net(x, TIME, net.null(cond)), net(x, TIME, cond))
    without = make(num_classes=3, null_class=False)
    with pytest.raises(UserError, match="unconditional"):
        without.null(cond)
    with pytest.raises(UserError, match="label"):
        net(x, TIME, {})


@BOTH
def test_extras_change_nothing_at_first_and_something_once_trained(make):
    net = make()
    x, extended = inputs(net), net.with_extras(("guidance", "end_time"), seed=1).eval()
    plain = net(x, TIME, {})
    assert torch.equal(extended(x, TIME, EXTRAS), plain)
    assert extended.network is net.network
    assert extended.extras == ("guidance", "end_time")
    assert net.extras == ()
    assert len(list(extended.parameters())) == len(list(net.parameters())) + 8
    for embedding in extended.extra_inputs.embeddings.values():
        torch.nn.init.constant_(embedding.outer.bias, 0.3)
    trained = extended(x, TIME, EXTRAS)
    assert not torch.allclose(trained, plain)
    assert torch.equal(net(x, TIME, {}), plain), "the hook must not outlive the call"


@BOTH
@pytest.mark.parametrize("name", ["guidance", "end_time"])
def test_every_extra_gets_a_gradient_and_tells_values_apart(make, name):
    net = make().with_extras((name,), seed=1)
    x = inputs(net)
    net(x, TIME, {name: EXTRAS[name]}).square().sum().backward()
    assert net.extra_inputs.embeddings[name].outer.weight.grad.abs().sum() > 0
    torch.nn.init.normal_(net.extra_inputs.embeddings[name].outer.weight)
    same = {name: torch.zeros(2)}
    assert not torch.allclose(net(x, TIME, same), net(x, TIME, {name: EXTRAS[name]}))


@BOTH
def test_a_copy_of_an_extended_backbone_is_independent(make):
    net = make().with_extras(("guidance",), seed=1)
    clone = copy.deepcopy(net)
    torch.nn.init.constant_(clone.extra_inputs.embeddings["guidance"].outer.bias, 1.0)
    x = inputs(net)
    assert not torch.equal(clone(x, TIME, EXTRAS), net(x, TIME, EXTRAS))


@BOTH
def test_extras_can_be_added_twice_and_share_the_old_ones(make):
    first = make().with_extras(("guidance",), seed=1)
    both = first.with_extras(("guidance", "end_time"), seed=2)
    assert both.extra_inputs.embeddings["guidance"] is first.extra_inputs.embeddings["guidance"]
    assert both.extras == ("guidance", "end_time")


@BOTH
def test_missing_and_unknown_extras_are_named(make):
    net = make()
    with pytest.raises(UserError, match="guidance"):
        net.with_extras(("guidence",), seed=0)
    with pytest.raises(UserError, match="end_time"):
        net.with_extras(("end_time",), seed=0)(inputs(net), TIME, {})
    assert not net.network.time_embedding._forward_hooks


def test_concatenated_images_are_seen_and_their_size_is_checked():
    net = unet(concat=("image",), concat_channels=2)
    x, image = inputs(net), inputs(net, seed=1)
    assert not torch.equal(net(x, TIME, {"image": image}), net(x, TIME, {"image": 0 * image}))
    with pytest.raises(UserError, match="resize"):
        net(x, TIME, {"image": image[..., ::2, ::2]})
    with pytest.raises(UserError, match="image"):
        net(x, TIME, {})


def test_concatenated_vectors_are_flattened():
    net = mlp(concat=("anchor",), concat_dim=6)
    x = inputs(net)
    out = net(x, TIME, {"anchor": torch.ones(2, 2, 3)})
    assert out.shape == x.shape


@BOTH
def test_folder_round_trip(make, tmp_path):
    net = make(num_classes=3, seed=2).with_extras(("guidance", "end_time"), seed=1).eval()
    for embedding in net.extra_inputs.embeddings.values():
        torch.nn.init.constant_(embedding.outer.bias, 0.3)
    net.save(tmp_path / "net")
    again = load_backbone(tmp_path / "net").eval()
    cond = EXTRAS | {"label": torch.tensor([1, 3])}
    assert torch.equal(again(inputs(net), TIME, cond), net(inputs(net), TIME, cond))
    assert again.null(cond)["label"].tolist() == [3, 3]
    assert not list((tmp_path / "net").glob("*.bin"))


def test_stock_diffusers_loads_the_unet(tmp_path):
    from diffusers import UNet2DModel

    net = unet(num_classes=3)
    net.save(tmp_path)
    stock = UNet2DModel.from_pretrained(tmp_path).eval()
    label = torch.tensor([0, 3])
    assert torch.equal(stock(inputs(net), TIME, class_labels=label).sample, net(inputs(net), TIME, {"label": label}))


def test_unreadable_folders_are_user_errors(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        load_backbone(tmp_path)
    (tmp_path / "config.json").write_text("{]")
    with pytest.raises(UserError, match="not the configuration"):
        load_backbone(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet3DModel"}))
    with pytest.raises(UserError, match="UNet2DModel"):
        load_backbone(tmp_path)
    unet().save(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(UserError, match="no UNet2DModel"):
        load_backbone(tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match="no UNet2DModel"):
        load_backbone(tmp_path)
    mlp().save(tmp_path / "mlp")
    (tmp_path / "mlp" / "model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(UserError, match="cannot be read"):
        load_backbone(tmp_path / "mlp")


def test_impossible_sizes_are_user_errors():
    with pytest.raises(UserError, match="halved"):
        UNet2DBackbone.make(1, 6, widths=(8, 8, 8))
    with pytest.raises(UserError, match="attention"):
        UNet2DBackbone.make(1, 8, widths=(8, 8), attention=(True,))


@BOTH
def test_double_precision(make):
    net = make().double()
    denoiser = NetworkDenoiser(net, VP.linear(), Plain(Kind.EPS))
    x = inputs(net).double()
    assert denoiser.x0(x, TIME.double(), {}).dtype == torch.float64


def test_sinusoid_is_the_one_of_diffusers():
    from diffusers.models.embeddings import get_timestep_embedding

    ours = sinusoid(TIME, 16)
    theirs = get_timestep_embedding(TIME, 16, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(ours.float(), theirs)
