"""Spaces: pixels exactly, autoencoders as diffusers knows them, frozen, from safetensors only."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.core.models.loading import find_folder
from fewstep.core.models.tiny import seeded, tiny_vae
from fewstep.restoration.models.spaces import AutoencoderSpace, PixelSpace, find_space


def pixels(height=16, width=24, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((2, 3, height, width), generator=generator, dtype=dtype) * 2 - 1


def tiny_vq():
    with seeded(0):
        made = VQModel(
            block_out_channels=(8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            norm_num_groups=4,
            num_vq_embeddings=32,
            mid_block_add_attention=False,
        )
        made.quantize.embedding.weight.data.normal_()
    return made


def tiny_kl():
    with seeded(1):
        return tiny_vae(shift=0.25)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("autoencoders")
    tiny_vq().save_pretrained(root / "vq", safe_serialization=True)
    tiny_kl().save_pretrained(root / "kl", safe_serialization=True)
    return root


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_pixels_come_back_exactly_and_blocks_stay_in_place(factor):
    space, given = PixelSpace(factor), pixels()
    z = space.encode(given)
    assert z.shape == (2, 3 * factor**2, 16 // factor, 24 // factor) == (2, space.channels, *z.shape[2:])
    assert torch.equal(space.decode(z), given)
    if factor > 1:
        block = given[0, :, factor : 2 * factor, :factor]
        assert torch.equal(z[0, :, 1, 0], block.flatten())


def test_vq_stops_before_the_codes_and_decodes_them(folders):
    space, model = find_space("vq", folders / "vq"), tiny_vq()
    assert (space.factor, space.channels) == (4, 3)
    z = space.encode(pixels())
    with torch.no_grad():
        assert_close(z, model.quant_conv(model.encoder(pixels())), atol=0, rtol=0)
        codes = model.quantize.embedding.weight
        nearest = torch.cdist(z.permute(0, 2, 3, 1).reshape(-1, 3), codes).argmin(1)
        quantised = codes[nearest].view(2, 4, 6, 3).permute(0, 3, 1, 2)
        assert not torch.allclose(quantised, z, atol=1e-2)
        assert_close(space.decode(z), model.decoder(model.post_quant_conv(quantised)), atol=1e-5, rtol=1e-5)
        assert_close(space.decode(quantised), space.decode(z), atol=1e-5, rtol=1e-5)


def test_kl_is_the_shifted_and_scaled_mode(folders):
    space, model = find_space("kl", folders / "kl"), tiny_kl()
    assert (space.factor, space.channels) == (2, 4)
    z = space.encode(pixels())
    with torch.no_grad():
        mode = model.encode(pixels()).latent_dist.mode()
        assert_close(z, (mode - 0.25) * 0.5, atol=1e-6, rtol=0)
        assert_close(space.decode(z), model.decode(mode).sample, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_an_autoencoder_is_frozen_and_lets_gradients_through(folders, kind):
    space = find_space(kind, folders / kind)
    assert not any(p.requires_grad for p in space.parameters())
    assert not any(part.training for part in space.modules())
    before = {name: value.clone() for name, value in space.state_dict().items()}
    z = space.encode(pixels()).requires_grad_(True)
    space.decode(z).square().mean().backward()
    assert z.grad is not None
    assert z.grad.abs().sum() > 0
    assert all(p.grad is None for p in space.parameters())
    assert all(torch.equal(before[name], value) for name, value in space.state_dict().items())


@pytest.mark.parametrize("kind", ["vq", "kl"])
@pytest.mark.parametrize("cast", ["given", "moved"])
def test_decoding_stays_in_full_precision(folders, kind, cast):
    plain = find_space(kind, folders / kind)
    if cast == "given":
        half = find_space(kind, folders / kind, dtype=torch.bfloat16)
    else:
        half = find_space(kind, folders / kind).to(torch.bfloat16)
    assert half.dtype == torch.bfloat16
    z = plain.encode(pixels())
    assert torch.equal(half.decode(z), plain.decode(z))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(half.decode(z), plain.decode(z))
    coarse = half.encode(pixels())
    assert coarse.dtype == torch.float32
    assert not torch.equal(coarse, z)
    assert_close(coarse, z, atol=0.1, rtol=0.1)


def test_decoding_in_half_where_it_is_asked_for(folders):
    plain = find_space("kl", folders / "kl")
    half = find_space("kl", folders / "kl", dtype=torch.bfloat16, precise=False)
    z = plain.encode(pixels())
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half.decode(z).dtype == torch.float32
    assert not torch.equal(half.decode(z), plain.decode(z))
    assert_close(half.decode(z), plain.decode(z), atol=0.1, rtol=0.1)


@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_a_saved_autoencoder_is_the_same(folders, tmp_path, kind):
    space = find_space(kind, folders / kind)
    space.save(tmp_path / "again")
    again = find_space(kind, tmp_path / "again")
    z = space.encode(pixels())
    assert torch.equal(again.encode(pixels()), z)
    assert torch.equal(again.decode(z), space.decode(z))


def test_the_autoencoder_of_a_pipeline_is_found():
    folder = find_folder("tiny:sd").path
    space = find_space("kl", folder)
    assert (space.factor, space.channels) == (2, 4)
    with pytest.raises(UserError, match="StableDiffusionPipeline has no VQModel"):
        find_space("vq", folder)


@pytest.mark.parametrize("space", [PixelSpace(4), AutoencoderSpace(tiny_vq())])
def test_sizes_that_do_not_divide_are_the_callers_business(space):
    with pytest.raises(UserError, match="18x24 pixels are no multiples of 4"):
        space.encode(pixels(18, 24))
    with pytest.raises(UserError, match="3 channels, got 1"):
        space.encode(pixels()[:, :1])
    with pytest.raises(UserError, match="channels, got 5"):
        space.decode(torch.zeros(1, 5, 4, 4))


def copied(folders, tmp_path, kind="kl"):
    folder = tmp_path / "damaged"
    find_space(kind, folders / kind).save(folder)
    return folder


def rewritten(folder, change):
    file = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def reconfigured(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").write_text("[]"), "must hold a JSON object"),
        (lambda f: (f / "diffusion_pytorch_model.safetensors").unlink(), "no safetensors"),
        (
            lambda f: (f / "diffusion_pytorch_model.safetensors").rename(f / "diffusion_pytorch_model.bin"),
            "weights are pickled",
        ),
        (lambda f: (f / "diffusion_pytorch_model.safetensors").write_bytes(b"\0" * 9), "cannot be read as"),
        (lambda f: rewritten(f, lambda t: t.pop("decoder.conv_out.bias")), "cannot be read as|disagree"),
        (lambda f: rewritten(f, lambda t: t.update(more=torch.zeros(1))), "'more'"),
        (lambda f: reconfigured(f, block_out_channels=[8, 32]), "cannot be read as"),
        (lambda f: reconfigured(f, _class_name="VQModel"), "AutoencoderKL is wanted"),
        (lambda f: reconfigured(f, in_channels=1), "cannot be read as|pictures have 3"),
    ],
)
def test_damaged_folders_are_one_line(folders, tmp_path, damage, message):
    folder = copied(folders, tmp_path)
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        find_space("kl", folder)
    assert "\n" not in str(caught.value)


def test_what_is_no_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a folder"):
        find_space("kl", tmp_path / "nowhere")


def test_other_autoencoders_make_no_space():
    class Other(AutoencoderKL):
        pass

    with pytest.raises(UserError, match="no space of a Other"):
        AutoencoderSpace(Other.__new__(Other))
