"""Stable Diffusion with a picture as condition: widened without a change, and what stock diffusers runs."""

from __future__ import annotations

import json
import runpy
import shutil
from functools import cache

import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.core.models.files import quiet
from fewstep.core.models.loading import Teacher, find_folder
from fewstep.core.networks.roles import RolesConfig, build_roles
from fewstep.core.networks.taps import features
from fewstep.core.process import times
from fewstep.core.recipe import RoleSpec, StepPlan
from fewstep.core.rng import Rng
from fewstep.core.sampling import run_plan
from fewstep.restoration.models.spaces import AutoencoderSpace
from fewstep.restoration.models.stable import (
    PROMPT_FILE,
    ConditionedBackbone,
    is_stable,
    open_stable,
    read_prompt,
    widen,
)
from fewstep.restoration.models.stable_export import export_stable, read_plan

TINY = "tiny:sd"
ONE = StepPlan((999.0,), "deterministic")
FROM_PICTURE = StepPlan((400.0,), "deterministic", start="anchor")
CARD = {"name": "tiny student", "recipe": "none"}


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pictures(seed=0, height=16, width=24):
    return torch.rand((2, 3, height, width), generator=torch.Generator().manual_seed(seed))


@cache
def space():
    return open_stable(TINY).space()


def anchored(given=None):
    return {"anchor": space().encode(2 * (pictures() if given is None else given) - 1)}


def trained(prompt=None):
    """A denoiser whose new weights are no longer zero."""
    denoiser = open_stable(TINY, prompt=prompt).denoiser(None)
    with torch.no_grad():
        denoiser.backbone.model.conv_in.weight[:, 4:] = 0.05 * noise(16, 4, 3, 3, seed=3)
    return denoiser


def test_widening_changes_no_prediction():
    plain = Teacher.find(TINY)
    cond, x = plain.encode([""] * 2), noise(2, 4, 8, 12)
    found = open_stable(TINY).denoiser(None)
    with torch.no_grad():
        for t in (times(3.0, 2), times(999.0, 2)):
            expected = plain.denoiser(cond.null).predict(x, t, cond.cond)
            got = found.predict(x, t, anchored())
            assert got.kind is expected.kind
            assert_close(got.value, expected.value, atol=1e-6, rtol=1e-6)
            assert torch.equal(found.predict(x, t, anchored(pictures(1))).value, got.value)


def test_gradients_reach_the_new_weights_and_then_the_picture_matters():
    found = open_stable(TINY).denoiser(None)
    conv = found.backbone.model.conv_in
    assert conv.in_channels == found.backbone.model.config.in_channels == 8
    x, t = noise(2, 4, 8, 12), times(500.0, 2)
    before = found.x0(x, t, anchored())
    (before**2).mean().backward()
    new = conv.weight.grad[:, 4:]
    assert new.abs().amax((0, 2, 3)).min() > 0
    with torch.no_grad():
        conv.weight -= 0.1 * conv.weight.grad / conv.weight.grad.abs().max()
        one, other = found.x0(x, t, anchored()), found.x0(x, t, anchored(pictures(1)))
    assert not torch.allclose(one, other, atol=1e-5)


def test_factors_of_lora_reach_the_picture():
    roles = build_roles(
        open_stable(TINY).denoiser(None), (RoleSpec("student"),), RolesConfig(mode="lora", rank=2), seed=0
    )
    x, t, names = noise(2, 4, 8, 12), times(500.0, 2), dict(roles["student"].backbone.named_parameters())
    factor = next(value for name, value in names.items() if "conv_in" in name and "lora_B" in name)
    with torch.no_grad():
        factor.copy_(noise(*factor.shape, seed=4))
        one = roles["student"].x0(x, t, anchored())
        assert not torch.allclose(one, roles["student"].x0(x, t, anchored(pictures(1))), atol=1e-5)


def test_a_network_that_is_wide_already_is_left_alone():
    unet = trained().backbone.model
    weight = unet.conv_in.weight
    assert widen(unet).conv_in.weight is weight


def test_the_prompt_of_the_condition_stands_before_the_fixed_one():
    found, x, t = trained("a sharp photo"), noise(2, 4, 8, 12), times(500.0, 2)
    given = Teacher.find(TINY).encode(["a sharp photo", "a blur"]).cond
    with torch.no_grad():
        fixed = found.predict(x, t, anchored()).value
        told = found.predict(x, t, anchored() | given).value
    assert_close(told[0], fixed[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(told[1], fixed[1], atol=1e-5)


def test_without_an_anchor_and_with_guidance_there_is_one_line():
    found = trained()
    with pytest.raises(UserError, match=r"needs cond\['anchor'\]"):
        found.predict(noise(2, 4, 8, 12), times(3.0, 2), {})
    with pytest.raises(UserError, match="guidance_scale=1"):
        found.null(anchored())


def test_taps_and_blocks_are_the_unets():
    found, x, t = trained(), noise(2, 4, 8, 12), times(3.0, 2)
    assert len(features(found, found.backbone.taps("blocks"), x, t, anchored())) == 5
    assert found.backbone.taps() == ("model.mid_block",)
    assert found.backbone.multiple == 2


def test_a_fresh_network_is_another_of_the_same_shape_and_seeded():
    teacher = open_stable(TINY)
    one, same, other = teacher.fresh(1), teacher.fresh(1), teacher.fresh(2)
    shapes = {name: p.shape for name, p in teacher.denoiser(None).backbone.named_parameters()}
    assert {name: p.shape for name, p in one.backbone.named_parameters()} == shapes
    for left, right, third in zip(
        one.backbone.parameters(), same.backbone.parameters(), other.backbone.parameters(), strict=True
    ):
        assert torch.equal(left, right)
        assert left.ndim == 1 or not torch.equal(left, third)


def test_shapes_alone_need_no_weights():
    denoiser = open_stable(TINY).denoiser(None, device="meta")
    assert all(p.is_meta for p in denoiser.backbone.parameters())
    x = torch.empty(2, 4, 8, 12, device="meta")
    assert denoiser.predict(x, torch.full((2,), 3.0, device="meta"), {"anchor": x}).value.shape == x.shape


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "student"
    export_stable(trained("a sharp photo"), ONE, folder, CARD, open_stable(TINY, prompt="a sharp photo"))
    return folder


def stock(folder, **given):
    with quiet():
        pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained(folder, use_safetensors=True, **given)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(
    "plan", [ONE, StepPlan((999.0, 749.0, 499.0, 249.0), "deterministic"), StepPlan((899.0,), "renoise"), FROM_PICTURE]
)
def test_the_stock_pipeline_makes_what_we_make(tmp_path, plan):
    denoiser = trained()
    export_stable(denoiser, plan, tmp_path / "out", CARD, open_stable(TINY))
    start = anchored()["anchor"] if plan.start == "anchor" else noise(2, 4, 8, 12, seed=7)
    with torch.no_grad():
        ours = run_plan(denoiser, plan, start, anchored(), Rng.for_batch(0, 0, 2))
        bare = run_plan(denoiser, plan, start, anchored(torch.zeros(2, 3, 16, 24)), Rng.for_batch(0, 0, 2))
    call = json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text())["_fewstep"]
    call["prompt"] = [call["prompt"]] * 2
    with quiet():
        theirs = stock(tmp_path / "out")(image=pictures(), latents=start, output_type="latent", **call).images
    assert_close(theirs, ours, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(ours, bare, atol=1e-3), "the picture must matter"


def test_an_export_is_a_teacher_again_with_its_prompt(exported):
    again, before = open_stable(str(exported)), trained("a sharp photo")
    assert is_stable(str(exported))
    assert is_stable(TINY)
    assert not is_stable(str(exported / "unet"))
    assert again.told()[1] == "a sharp photo"
    x, t = noise(2, 4, 8, 12), times(999.0, 2)
    denoiser = again.denoiser(None)
    assert isinstance(denoiser.backbone, ConditionedBackbone)
    with torch.no_grad():
        assert_close(denoiser.x0(x, t, anchored()), before.x0(x, t, anchored()), atol=1e-5, rtol=1e-5)
    assert read_plan(exported) == ONE
    assert isinstance(again.space(), AutoencoderSpace)
    z = noise(1, 4, 4, 4)
    assert torch.equal(again.space().decode(z), space().decode(z))


def test_the_unet_alone_is_one_of_stock_diffusers(exported):
    unet = UNet2DConditionModel.from_pretrained(exported / "unet", use_safetensors=True)
    assert unet.config.in_channels == 8
    mine = trained().backbone.model.state_dict()
    assert all(torch.equal(mine[name], value) for name, value in unet.state_dict().items())


def without_text(exported, folder):
    shutil.copytree(exported, folder)
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(folder / part)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(
        json.dumps(index | {"text_encoder": [None, None], "tokenizer": [None, None]})
    )
    return folder


def test_without_text_encoder_the_stored_embedding_is_enough(exported, tmp_path):
    folder = without_text(exported, tmp_path / "small")
    again = open_stable(str(folder))
    assert_close(again.told()[0], open_stable(TINY, prompt="a sharp photo").told()[0], atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="no text encoder there, and no embedding of the prompt 'a blur'"):
        open_stable(str(folder), prompt="a blur").told()
    x = noise(2, 4, 8, 12)
    export_stable(again.denoiser(None), ONE, tmp_path / "out", CARD, again)
    embeds, _ = read_prompt(tmp_path / "out" / PROMPT_FILE, 32)
    with torch.no_grad():
        ours = run_plan(again.denoiser(None), ONE, x, anchored(), Rng.for_batch(0, 0, 2))
    theirs = stock(tmp_path / "out", text_encoder=None, tokenizer=None)(
        image=pictures(),
        latents=x,
        output_type="latent",
        prompt_embeds=embeds.expand(2, -1, -1),
        num_inference_steps=1,
        guidance_scale=1.0,
        image_guidance_scale=1.0,
    ).images
    assert_close(theirs, ours, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("text", "plan"), [(True, ONE), (False, ONE), (True, FROM_PICTURE)])
def test_the_program_of_the_card_runs(exported, tmp_path, monkeypatch, text, plan):
    source = exported if text else without_text(exported, tmp_path / "small")
    again = open_stable(str(source))
    export_stable(again.denoiser(None), plan, tmp_path / "out", CARD | {"scale": 2}, again)
    Image.new("RGB", (12, 8), (200, 90, 30)).save(tmp_path / "out" / "photo.png")
    program = (tmp_path / "out" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    (tmp_path / "out" / "program.py").write_text(program)
    monkeypatch.chdir(tmp_path / "out")
    with quiet():
        runpy.run_path("program.py")
    assert Image.open("restored.png").size == (24, 16)
    assert ("latents" in program) == (plan.start == "anchor")


def changed(folder, part, **changes):
    file = folder / part / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: changed(f, "unet", in_channels=9), "in_channels must be 4, or 8"),
        (lambda f: changed(f, "unet", out_channels=3), "not the autoencoder's 4"),
        (lambda f: changed(f, "vae", shift_factor=0.1), "shift_factor"),
        (lambda f: changed(f, "unet", time_cond_proj_dim=256), "inputs besides text"),
        (lambda f: (f / PROMPT_FILE).write_bytes(b"\xff" * 9), "not readable as the embedding"),
        (lambda f: save_file({"prompt_embeds": torch.zeros(1, 4, 5)}, f / PROMPT_FILE), r"\(1, tokens, 32\)"),
        (lambda f: save_file({"other": torch.zeros(1, 4, 32)}, f / PROMPT_FILE), "not readable as the embedding"),
        (lambda f: shutil.rmtree(f / "vae"), "component 'vae' is missing"),
    ],
)
def test_folders_that_do_not_fit_are_one_line(exported, tmp_path, damage, message):
    shutil.copytree(exported, tmp_path / "bad")
    damage(tmp_path / "bad")
    with pytest.raises(UserError, match=message) as caught:
        open_stable(str(tmp_path / "bad")).denoiser(None)
    assert "\n" not in str(caught.value)


def test_other_pipelines_are_refused():
    with pytest.raises(UserError, match="a PixArtSigmaPipeline is no teacher of restoration"):
        open_stable("tiny:pixart")
    assert find_folder(TINY).pipeline == "StableDiffusionPipeline"


def test_a_plan_that_makes_no_sense_is_refused(tmp_path):
    assert read_plan(tmp_path) is None
    (tmp_path / "fewstep.json").write_text('{"plan": {"times": "now"}}')
    with pytest.raises(UserError, match="'plan' makes no sense"):
        read_plan(tmp_path)
