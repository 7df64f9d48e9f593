"""What single families of image models do beyond the common rules."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from core.model_bed import PROMPTS, encoded, own_time, stock, teacher, watched
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.core.guidance import Guided
from fewstep.core.models.family import Size
from fewstep.core.models.loading import Teacher
from fewstep.core.models.sd import guidance_features
from fewstep.core.models.tiny import save_pipeline, seeded
from fewstep.core.networks.taps import features
from fewstep.core.process import times


def changed(name, folder, part, size=None, **values):
    """A copy of a tiny pipeline with other values in one of its configurations."""
    shutil.copytree(teacher(name).folder.path, folder)
    file = folder / part
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return Teacher.find(str(folder), size=size)


def agrees(found, guidance):
    """Check a teacher's guided prediction against its pipeline's, at every step; return the conditions."""
    given = found.encode(PROMPTS)
    denoiser = Guided(found.denoiser(given.null), 1.0 if found.family.guidance_distilled else guidance)
    for output, time, latents in watched(found, guidance):
        x = found.family.from_pipeline(latents, found.shape)
        with torch.no_grad():
            ours = denoiser.predict(x, own_time(found, time), given.cond).value
        assert_close(found.family.to_pipeline(ours), output, atol=1e-6, rtol=1e-6)
    return given


@pytest.mark.parametrize("name", ["sd3", "flux", "pixart", "sana"])
@pytest.mark.parametrize("where", ["bottleneck", "blocks"])
def test_taps_see_the_picture_and_nothing_of_the_prompts_length(name, where):
    found, network = teacher(name), teacher(name).folder.config("transformer")
    denoiser = found.denoiser(encoded(name).null)
    x = torch.randn(2, *found.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for feature in features(denoiser, denoiser.backbone.taps(where), x, times(0.5, 2), encoded(name).cond):
            assert feature.shape[1] == found.family.tokens(network, found.shape)


@pytest.mark.parametrize("zeros", [True, False])
def test_sdxl_is_unconditional_as_its_pipeline_is(tmp_path, zeros):
    found = changed("sdxl", tmp_path / "sdxl", "model_index.json", force_zeros_for_empty_prompt=zeros)
    null = agrees(found, 4.0).null
    assert bool(null["prompt_embeds"].any()) is not zeros
    assert bool(null["text_embeds"].any()) is not zeros


def test_sdxl_is_told_its_size():
    found = Teacher.find("tiny:sdxl", size=Size(16, 32))
    assert found.encode(PROMPTS).cond["time_ids"].tolist() == [[16, 32, 0, 0, 16, 32]] * 2


def test_sd3_does_without_t5(tmp_path):
    found = changed("sd3", tmp_path / "sd3", "model_index.json", text_encoder_3=[None, None], tokenizer_3=[None, None])
    prompt = agrees(found, 3.0).cond["prompt_embeds"]
    assert not bool(prompt[:, -256:].any())
    assert bool(prompt[:, :-256].any())


def test_sd3_has_positions_for_some_sizes_only():
    with pytest.raises(UserError, match="sides up to 32"):
        _ = Teacher.find("tiny:sd3", size=Size(16, 36)).shape
    assert Teacher.find("tiny:sd3", size=Size(16, 32)).shape == (4, 8, 16)


@pytest.mark.parametrize("shifting", ["exponential", "linear"])
def test_flux_runs_through_its_pipelines_times(tmp_path, shifting):
    found = changed("flux", tmp_path / "flux", "scheduler/scheduler_config.json", time_shift_type=shifting)
    process, _ = found.reading()
    seen = torch.stack([time for _, time, _ in watched(found, 1.0, steps=5)])
    grid = torch.linspace(1.0, 1 / 5, 5, dtype=torch.float64)
    assert_close(process.time_input(process.unit_to_time(grid)), seen.double(), atol=1e-3, rtol=0)
    assert process.shift != pytest.approx(1.0)


def test_flux_told_nothing_of_guidance(tmp_path):
    from diffusers import FluxTransformer2DModel

    pipe = stock(teacher("flux"))
    torch.manual_seed(0)
    pipe.transformer = FluxTransformer2DModel.from_config(pipe.transformer.config, guidance_embeds=False)
    save_pipeline(type(pipe), tmp_path / "schnell", **{k: v for k, v in pipe.components.items() if v is not None})
    found = Teacher.find(str(tmp_path / "schnell"), guidance=7.0)
    agrees(found, 7.0)


def test_pixart_alpha_is_told_its_size(tmp_path):
    from diffusers import PixArtAlphaPipeline, PixArtTransformer2DModel

    pipe = stock(teacher("pixart"))
    torch.manual_seed(0)
    pipe.transformer = PixArtTransformer2DModel.from_config(pipe.transformer.config, sample_size=128)
    save_pipeline(PixArtAlphaPipeline, tmp_path / "alpha", **pipe.components)
    found = Teacher.find(str(tmp_path / "alpha"), size=Size(16, 24))
    assert agrees(found, 4.5).cond["resolution"].tolist() == [[16, 24]] * 2
    x, t = torch.zeros(2, *found.shape), times(300.0, 2)
    cond = found.encode(PROMPTS).cond
    with torch.no_grad():
        denoiser = found.denoiser(None)
        told = denoiser.predict(x, t, cond).value
        other = denoiser.predict(x, t, dict(cond) | {"aspect_ratio": 2 * cond["aspect_ratio"]}).value
    assert not torch.allclose(told, other, atol=1e-6)


def test_sana_scales_its_times(tmp_path):
    agrees(changed("sana", tmp_path / "sana", "transformer/config.json", timestep_scale=0.5), 4.5)


def test_sana_follows_its_instruction_but_for_the_unconditional_prompt():
    found = teacher("sana")
    pipe = found.text_pipeline()
    plain, _, _, _ = pipe.encode_prompt(list(PROMPTS), device=torch.device("cpu"))
    given = encoded("sana")
    assert given.cond["prompt_embeds"].shape == plain.shape
    assert not torch.allclose(given.cond["prompt_embeds"], plain, atol=1e-3)


@pytest.mark.parametrize("width", [8, 9, 256])
def test_a_guidance_scale_is_embedded_as_lcm_pipelines_do(width):
    from diffusers import StableDiffusionPipeline

    scale = torch.tensor([1.0, 1.5, 7.5, 14.0])
    expected = StableDiffusionPipeline.get_guidance_scale_embedding(None, scale - 1, embedding_dim=width)
    # angles are thousands of radians: float32 keeps them to about 1e-3
    assert_close(guidance_features(scale, width), expected, atol=2e-3, rtol=0)


def test_an_lcm_network_is_told_the_scale_of_the_condition_or_its_own():
    network = teacher("sd").folder.skeleton("unet")
    with seeded(0):
        unet = type(network).from_config({**network.config, "time_cond_proj_dim": 16}).eval()
    null = encoded("sd").null
    x, t, cond = torch.randn(2, 4, 8, 8), times(500.0, 2), encoded("sd").cond
    told = [Teacher(teacher("sd").folder, teacher("sd").size, guidance).reads(unet, null) for guidance in (1.0, 8.0)]
    with torch.no_grad():
        low, high = (each.predict(x, t, cond).value for each in told)
        given = told[0].predict(x, t, dict(cond) | {"guidance": torch.full((2,), 8.0)}).value
    assert torch.equal(given, high)
    assert not torch.allclose(low, high, atol=1e-6)
