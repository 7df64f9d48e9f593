"""ResShift's denoiser: its size, what it is at first, what a window sees, pictures of any size, files."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fewstep.core.denoiser import NetworkDenoiser
from fewstep.core.errors import UserError
from fewstep.core.models.tiny import visible
from fewstep.core.networks.roles import RolesConfig, build_roles
from fewstep.core.networks.taps import features
from fewstep.core.process import ResidualShift, times
from fewstep.core.recipe import RoleSpec
from fewstep.restoration.models.scaling import ResShiftScaling
from fewstep.restoration.models.swin import SwinBackbone, pad_ends
from fewstep.restoration.models.swin_config import SwinConfig

TINY = SwinConfig(
    image_size=8,
    model_channels=32,
    attention_resolutions=(8, 4),
    channel_mult=(1, 2),
    num_res_blocks=1,
    num_head_channels=8,
    swin_embed_dim=16,
    window_size=4,
    lq_size=8,
    mlp_ratio=2.0,
)


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def network(config=TINY, seed=0):
    """A network whose output depends on everything."""
    made = SwinBackbone(config, seed)
    with torch.random.fork_rng():
        visible(made.unet)
    return made.eval()


def call(made, height=8, width=8, batch=2, time=3.0, lq=1, dtype=torch.float32):
    factor = made.config.lq_factor
    cond = {"lq": noise(batch, 3, factor * height, factor * width, seed=lq, dtype=dtype)}
    with torch.no_grad():
        return made(noise(batch, 3, height, width, dtype=dtype), torch.full((batch,), time), cond)


def test_the_conference_model_has_the_published_number_of_parameters():
    with torch.device("meta"):
        made = SwinBackbone(SwinConfig())
    count = sum(p.numel() for p in made.parameters())
    assert count == 118_593_583
    assert round(count / 1e6) == 119
    assert all(p.is_meta for p in made.parameters())


def test_the_conference_models_features_are_the_five_of_the_discriminator():
    with torch.device("meta"):
        made = SwinBackbone(SwinConfig())
        x = torch.empty(1, 3, 64, 64)
        denoiser = NetworkDenoiser(made, ResidualShift(), ResShiftScaling())
        found = features(denoiser, made.taps("blocks"), x, torch.full((1,), 3.0), {"lq": x, "anchor": x})
    assert [tuple(each.shape[1:]) for each in found] == [
        (160, 32, 32),
        (320, 16, 16),
        (320, 8, 8),
        (640, 8, 8),
        (640, 8, 8),
    ]
    assert made.taps("bottleneck") == made.taps("blocks")[-1:]


def test_at_first_every_block_is_its_shortcut_and_nothing_is_told():
    made = SwinBackbone(TINY)
    x = noise(2, 32, 8, 8)
    stage = made.unet.encoder[0]
    embedding = noise(2, 128)
    assert torch.equal(stage(x, embedding), x)
    assert torch.equal(made.unet.middle.swin(noise(1, 64, 8, 8)), noise(1, 64, 8, 8))
    assert torch.equal(call(made, time=1.0), call(made, time=9.0))


@pytest.mark.parametrize("scale_shift", [True, False])
def test_time_and_low_quality_picture_matter(scale_shift):
    made = network(replace(TINY, use_scale_shift_norm=scale_shift))
    base = call(made)
    assert not torch.allclose(base, call(made, time=4.0), atol=1e-5)
    assert not torch.allclose(base, call(made, lq=2), atol=1e-5)
    assert torch.equal(base, call(made))


def test_samples_of_a_batch_do_not_see_each_other():
    made = network()
    both, cond = noise(2, 3, 8, 8), {"lq": noise(2, 3, 8, 8, seed=1)}
    t = torch.tensor([2.0, 9.0])
    with torch.no_grad():
        whole = made(both, t, cond)
        second = made(both[1:], t[1:], {"lq": cond["lq"][1:]})
    assert_close(whole[1:], second, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 17), (8, 9), (24, 8)])
def test_any_size_is_the_padded_size_cropped(height, width):
    made = network()
    out = call(made, height, width, batch=1)
    assert out.shape == (1, 3, height, width)
    x, lq = noise(1, 3, height, width), noise(1, 3, height, width, seed=1)
    bottom, right = -height % made.multiple, -width % made.multiple
    with torch.no_grad():
        whole = made(pad_ends(x, bottom, right), torch.full((1,), 3.0), {"lq": pad_ends(lq, bottom, right)})
    assert_close(out, whole[..., :height, :width])


def test_padding_mirrors_and_then_repeats():
    row = torch.tensor([[[[1.0, 2.0, 3.0]]]])
    assert pad_ends(row, 1, 4)[0, 0].tolist() == [[1, 2, 3, 2, 1, 1, 1], [1, 2, 3, 2, 1, 1, 1]]


@pytest.mark.parametrize("factor", [2, 8])
def test_a_larger_low_quality_picture_goes_through_convolutions(factor):
    config = replace(TINY, lq_size=8 * factor)
    made = network(config)
    assert made.unet.lq[-1].out_channels == 16 * factor
    assert call(made, 5, 11).shape == (2, 3, 5, 11)
    assert not torch.allclose(call(made), call(made, lq=2), atol=1e-6)


def test_without_a_condition_none_is_needed():
    made = network(replace(TINY, cond_lq=False))
    with torch.no_grad():
        assert made(noise(1, 3, 8, 8), torch.ones(1), {}).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("cond", "message"), [({}, r"needs cond\['lq'\]"), ({"lq": torch.zeros(2, 3, 4, 8)}, r"need \(2, 3, 8, 8\)")]
)
def test_a_condition_that_does_not_fit_is_refused(cond, message):
    with pytest.raises(UserError, match=message):
        SwinBackbone(TINY)(noise(2, 3, 8, 8), torch.ones(2), cond)


@pytest.mark.parametrize("changes", [{"conv_resample": False}, {"patch_norm": True}, {"num_res_blocks": (1, 2)}])
def test_every_option_builds_a_network_of_its_own(changes):
    other = network(replace(TINY, **changes))
    assert {n: p.shape for n, p in other.named_parameters()} != {n: p.shape for n, p in network().named_parameters()}
    assert call(other).shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dims": 3}, "dims"),
        ({"use_fp16": True}, "use_fp16"),
        ({"resblock_updown": True}, "resblock_updown"),
        ({"swin_attn_type": "swinv2"}, "swin_attn_type"),
        ({"lq_size": 24}, "times a power of two"),
        ({"lq_size": 4}, "times a power of two"),
        ({"attention_resolutions": (7,)}, "no level has the side 7"),
        ({"image_size": 9}, "cannot be halved"),
        ({"num_res_blocks": (1,)}, "entries for 2 levels"),
        ({"num_head_channels": 5}, "no multiple"),
        ({"model_channels": 40}, "multiple of 32"),
        ({"num_res_blocks": 10**9}, "1 to 32"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_options_that_cannot_be_built_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        replace(TINY, **changes)


def test_extra_inputs_change_nothing_at_first_and_fold_away():
    made = network()
    base = call(made)
    told = made.with_extras(("end_time",), seed=0)
    cond = {"lq": noise(2, 3, 8, 8, seed=1), "end_time": torch.full((2,), 2.0)}
    x, t = noise(2, 3, 8, 8), torch.full((2,), 3.0)
    with torch.no_grad():
        assert torch.equal(told(x, t, cond), base)
        for parameter in told.extra_inputs.parameters():
            parameter.copy_(0.1 * noise(*parameter.shape, seed=5))
        moved = told(x, t, cond)
        assert not torch.allclose(moved, base, atol=1e-5)
        told.fold_extras({"end_time": 2.0})
        assert_close(told(x, t, {"lq": cond["lq"]}), moved, atol=1e-5, rtol=1e-4)


def gradients(mode, checkpointing):
    denoiser = NetworkDenoiser(network(), ResidualShift(), ResShiftScaling())
    config = RolesConfig(mode=mode, rank=2, checkpointing=checkpointing)
    roles = build_roles(denoiser, (RoleSpec("student"), RoleSpec("fake_score")), config, seed=0)
    x = noise(2, 3, 8, 8)
    losses = [(roles[n].predict(x, times(3.0, 2), {"lq": noise(2, 3, 8, 8, seed=1)}).value ** 2).mean() for n in roles]
    for loss in losses:
        loss.backward()
    return {name: p.grad for name, p in roles["student"].backbone.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_checkpointing_keeps_gradients(mode):
    plain, again = gradients(mode, False), gradients(mode, True)
    assert plain
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        assert_close(again[name], gradient, atol=0, rtol=0, msg=name)


def test_every_layer_that_gets_factors_is_there():
    made = network()
    names = [name for name, part in made.unet.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    for target in made.lora_targets:
        assert any(name.endswith(f".{target}") for name in names), target


@pytest.mark.parametrize("extras", [(), ("end_time",)])
def test_a_saved_network_is_the_same_network(tmp_path, extras):
    made = network(replace(TINY, num_res_blocks=(1, 2), lq_size=16), seed=3)
    if extras:
        made = made.with_extras(extras, seed=1)
    made.save(tmp_path / "net")
    again = SwinBackbone.load(tmp_path / "net")
    assert again.config == made.config
    assert again.extras == made.extras
    for (name, one), (other, two) in zip(
        sorted(made.state_dict().items()), sorted(again.state_dict().items()), strict=True
    ):
        assert name == other
        assert torch.equal(one, two)


def spoil(folder, **changes):
    file = folder / "model.json"
    found = json.loads(file.read_text())
    network_changes = changes.pop("network", {})
    found |= changes
    if isinstance(network_changes, dict):
        found["network"] |= network_changes
    else:
        found["network"] = network_changes
    file.write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.json").unlink(), "no model.json"),
        (lambda f: (f / "model.json").write_text("{"), "cannot be read as JSON"),
        (lambda f: (f / "model.json").write_bytes(b" " * (1 << 21)), "too large"),
        (lambda f: (f / "model.safetensors").unlink(), "missing"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64), "not readable as safetensors"),
        (
            lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
            "not readable as safetensors",
        ),
        (lambda f: spoil(f, kind="other"), "a 'swin' is wanted"),
        (lambda f: spoil(f, network=[]), "must hold the network's options"),
        (lambda f: spoil(f, network={"model_chanels": 32}), "did you mean 'model_channels'"),
        (lambda f: spoil(f, network={"model_channels": "32"}), "model_channels cannot be"),
        (lambda f: spoil(f, network={"model_channels": 64}), "is not what model.json describes"),
        (lambda f: spoil(f, network={"model_channels": 8192, "channel_mult": [64, 64]}), "is not what model.json"),
        (lambda f: spoil(f, network={"channel_mult": [1] * 1000}), "channel_mult: its length"),
        (lambda f: spoil(f, extras=["colour"]), "no embedding for the extra input"),
    ],
)
def test_damaged_files_are_one_line(tmp_path, damage, message):
    SwinBackbone(TINY).save(tmp_path / "net")
    damage(tmp_path / "net")
    with pytest.raises(UserError, match=message) as caught:
        SwinBackbone.load(tmp_path / "net")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_input_scales_are_the_published_ones():
    process, one = ResidualShift(), torch.ones(2, 1, 1, 1, dtype=torch.float64)
    t = torch.tensor([0.0, 14.0], dtype=torch.float64)
    x, time = ResShiftScaling().inputs(one, t, process)
    assert_close((1 / x).flatten(), torch.tensor([1.000800, 2.218197], dtype=torch.float64), atol=1e-6, rtol=0)
    assert torch.equal(time, t)
    pixel, _ = ResShiftScaling("pixel").inputs(one, t, process)
    assert_close((1 / pixel).flatten(), torch.tensor([1 + 3 * 0.04, 1 + 3 * 1.98], dtype=torch.float64))


def test_a_scaled_network_gives_the_clean_sample():
    made = network()
    denoiser = NetworkDenoiser(made, ResidualShift(), ResShiftScaling())
    x, t, cond = noise(2, 3, 8, 8), times(14.0, 2), {"lq": noise(2, 3, 8, 8, seed=1)}
    with torch.no_grad():
        found = denoiser.x0(x, t, cond | {"anchor": x})
        raw = made((x / (1 + 1.98**2) ** 0.5), t.float(), cond)
    assert_close(found, raw, atol=1e-5, rtol=1e-5)
