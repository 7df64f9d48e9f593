"""A U-Net adapted to six planes: itself at the start, one prompt per object, factors where they belong."""

from __future__ import annotations

import pytest
import torch
from threed.planes_bed import FIELD, small_unet
from torch import nn
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.threed.planes.adapting import PlaneLinear, adapt
from fewstep.threed.planes.decoders import AutoencoderDecoder, TinyDecoder, split_features
from fewstep.threed.planes.generator import PlaneGenerator


def generator_of(joint: bool, *, trained: bool = False, **changes) -> PlaneGenerator:
    unet = adapt(small_unet(**changes), rank=2, joint=joint)
    if trained:
        torch.manual_seed(3)
        for parameter in unet.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.3)
    return PlaneGenerator(unet, TinyDecoder(4, 4, width=8), 4, FIELD)


def inputs(objects: int = 2):
    torch.manual_seed(1)
    return torch.randn(objects, 6, 4, 8, 8), torch.arange(objects) * 100.0 + 7, torch.randn(objects, 5, 16)


@torch.no_grad()
def test_without_joint_attention_the_student_starts_as_the_network_itself_bit_for_bit():
    x, t, text = inputs()
    got = generator_of(joint=False)(x, t, {"prompt_embeds": text})
    base = small_unet()
    wanted = base(x.flatten(0, 1), t.repeat_interleave(6), text.repeat_interleave(6, 0), return_dict=False)[0]
    assert torch.equal(got, wanted.reshape(x.shape))


def test_an_update_moves_nothing_but_factors_decoder_and_heads():
    generator = generator_of(joint=True)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in generator.parameters() if p.requires_grad], lr=0.1)
    x, t, text = inputs()
    field = generator.field(generator(x, t, {"prompt_embeds": text}))
    points = torch.randn(2, 9, 3).clamp(-0.5, 0.5)
    (field.colour(points).square().sum() + field.sdf(points).square().sum()).backward()
    optimizer.step()
    moved = {name for name, value in generator.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    own = (".up", "lora_B.planes.weight", "decoder.", "heads.")
    assert all(any(part in name for part in own) for name in moved), moved
    assert any(".attn1." in name and name.endswith(".up") for name in moved)
    assert any(".attn2." in name for name in moved)
    assert any("conv1" in name for name in moved)


def test_locon_goes_down_by_the_layers_own_kernel_and_up_by_one_pixel():
    unet = adapt(small_unet(), rank=2)
    layer = unet.get_submodule("down_blocks.0.downsamplers.0.conv")
    down, up = layer.lora_A["planes"], layer.lora_B["planes"]
    assert (down.kernel_size, down.stride, down.padding) == ((3, 3), (2, 2), (1, 1))
    assert (up.kernel_size, tuple(up.weight.shape)) == ((1, 1), (16, 2, 1, 1))
    assert not up.weight.any()


def test_down_factors_have_the_deviation_one_over_rank():
    layer = PlaneLinear(nn.Linear(400, 8), 16, joint=False)
    assert layer.down.std().item() == pytest.approx(1 / 16, rel=0.03)


def test_each_plane_has_factors_of_its_own():
    torch.manual_seed(0)
    layer = PlaneLinear(nn.Linear(3, 5), 2, joint=True).double()
    nn.init.normal_(layer.up)
    x = torch.randn(2, 6 * 4, 3, dtype=torch.float64)
    got = layer(x)
    for plane in range(6):
        part = x[:, plane * 4 : plane * 4 + 4]
        wanted = layer.base(part) + part @ layer.down[plane] @ layer.up[plane]
        assert_close(got[:, plane * 4 : plane * 4 + 4], wanted)
    apart = PlaneLinear(layer.base, 2, joint=False)
    apart.down, apart.up = layer.down, layer.up
    assert_close(apart(x.reshape(12, 4, 3)).reshape(2, 24, 5), got)  # the same numbers in the same order


@torch.no_grad()
@pytest.mark.parametrize("joint", [True, False])
def test_an_object_hears_of_its_own_prompt_and_planes_alone(joint):
    generator = generator_of(joint, trained=True)
    x, t, text = inputs(3)
    whole = generator(x, t, {"prompt_embeds": text})
    for row in range(3):
        alone = generator(x[row : row + 1], t[row : row + 1], {"prompt_embeds": text[row : row + 1]})
        assert_close(whole[row : row + 1], alone, atol=1e-5, rtol=1e-5)
    other = text.clone()
    other[1] += 1
    changed = (generator(x, t, {"prompt_embeds": other}) - whole).flatten(1).abs().amax(1) > 1e-4
    assert changed.tolist() == [False, True, False]


@torch.no_grad()
@pytest.mark.parametrize("joint", [True, False])
def test_planes_see_each_other_in_joint_attention_only(joint):
    generator = generator_of(joint)
    x, t, text = inputs(1)
    moved = x.clone()
    moved[:, 4] += 1
    cond = {"prompt_embeds": text}
    changed = (generator(moved, t, cond) - generator(x, t, cond)).flatten(2).abs().amax(2)[0] > 1e-6
    assert changed.tolist() == ([True] * 6 if joint else [plane == 4 for plane in range(6)])


def test_features_of_geometry_are_the_first_half_of_the_channels():
    x = torch.arange(12.0)[:, None] * 10 + torch.arange(4.0)  # two objects, four channels
    got = split_features(x[..., None, None])[..., 0, 0]
    assert got.shape == (2, 6, 2)
    assert got[1].tolist() == [[60, 61], [70, 71], [80, 81], [92, 93], [102, 103], [112, 113]]


def autoencoder():
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(block_out_channels=(16, 16), latent_channels=4, norm_num_groups=8, **kinds).eval()


def test_an_adapted_decoder_starts_as_its_autoencoders_up_to_the_last_convolution():
    z = torch.randn(1, 6, 4, 8, 8)
    vae, decoder = autoencoder(), AutoencoderDecoder(autoencoder(), 8, rank=2)
    seen = []
    for network in (vae.decoder, decoder.decoder):
        network.conv_out.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        vae.decode(z[0])
        assert decoder(z).shape == (1, 6, 8, 16, 16)
    assert torch.equal(seen[0], seen[1])  # not divided by the scaling factor
    trained = {name for name, p in decoder.named_parameters() if p.requires_grad}
    assert {"decoder.conv_out.weight", "decoder.conv_out.bias"} <= trained
    assert all("lora_" in name or "conv_out" in name for name in trained)
    assert any("attentions" in name for name in trained)


@torch.no_grad()
def test_a_scaled_decoder_divides_by_the_scaling_factor():
    z, vae = torch.randn(1, 6, 4, 8, 8), autoencoder()
    torch.manual_seed(5)
    plain = AutoencoderDecoder(vae, 8, rank=2)
    factor = vae.config.scaling_factor
    torch.manual_seed(5)
    scaled = AutoencoderDecoder(autoencoder(), 8, rank=2, scaled=True)
    scaled.load_state_dict(plain.state_dict())
    assert_close(scaled(factor * z), plain(z), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(scaled(z), plain(z))


def test_networks_without_transformer_blocks_and_samples_of_other_planes_are_told():
    with pytest.raises(UserError, match="no transformer blocks"):
        adapt(nn.Sequential(nn.Conv2d(3, 3, 1)), rank=2)
    x, t, text = inputs()
    with pytest.raises(UserError, match="b, 6, c, h, w"):
        generator_of(True)(x[:, :3], t, {"prompt_embeds": text})
    with pytest.raises(UserError, match="prompt_embeds"):
        generator_of(True)(x, t, {})
