"""Every family: the adapter's prediction is the pipeline's own, guided and not; what it declares is there."""

from __future__ import annotations

import pytest
import torch
from core.model_bed import NAMES, PROMPTS, encoded, teacher, watched
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.core.guidance import Guided
from fewstep.core.models.loading import Teacher
from fewstep.core.networks.taps import features
from fewstep.core.process import RectifiedFlow, times


def own_time(found: Teacher, time: torch.Tensor) -> torch.Tensor:
    """The pipeline's timestep on our clock."""
    process, _ = found.reading()
    scale = process.time_scale if isinstance(process, RectifiedFlow) else 1.0
    return time.double().reshape(-1)[:1].expand(len(PROMPTS)) / scale


@pytest.mark.parametrize("guidance", [1.0, 4.5])
@pytest.mark.parametrize("name", NAMES)
def test_the_prediction_is_the_pipelines_own(name, guidance):
    distilled = teacher(name).family.guidance_distilled
    found = teacher(name, guidance) if distilled else teacher(name)
    denoiser = Guided(found.denoiser(encoded(name).null), 1.0 if distilled else guidance)
    seen = watched(found, guidance)
    assert len(seen) == 2
    rounding = 1e-6 if distilled else 1e-6 * (2 * guidance - 1)  # guided predictions are s * cond - (s - 1) * uncond
    for output, time, latents in seen:
        x = found.family.from_pipeline(latents, found.shape)
        assert x.shape[1:] == found.shape
        with torch.no_grad():
            ours = denoiser.predict(x, own_time(found, time), encoded(name).cond).value
        assert float(output.std()) > 1e-3, "a prediction of nothing would prove nothing"
        assert_close(found.family.to_pipeline(ours), output, atol=rounding, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_layouts_are_inverse_to_each_other(name):
    found = teacher(name)
    x = torch.randn(2, *found.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found.family.from_pipeline(found.family.to_pipeline(x), found.shape), x)


@pytest.mark.parametrize("name", NAMES)
def test_the_prompt_and_the_time_matter(name):
    found, cond = teacher(name), encoded(name).cond
    denoiser = found.denoiser(encoded(name).null)
    x = torch.randn(1, *found.shape, generator=torch.Generator().manual_seed(0)).expand(2, *found.shape)
    process = denoiser.process
    with torch.no_grad():
        one = denoiser.predict(x, times(float(process.unit_to_time(torch.tensor(0.7))), 2), cond).value
        other = denoiser.predict(x, times(float(process.unit_to_time(torch.tensor(0.3))), 2), cond).value
    assert not torch.allclose(one[0], one[1], atol=1e-6), "two prompts, one prediction"
    assert not torch.allclose(one, other, atol=1e-6), "two times, one prediction"


@pytest.mark.parametrize("name", NAMES)
def test_declared_modules_are_there(name):
    found, cond = teacher(name), encoded(name).cond
    denoiser = found.denoiser(encoded(name).null)
    backbone, network = denoiser.backbone, denoiser.backbone.network
    names = [path for path, _ in network.named_modules()]
    for target in backbone.lora_targets:
        assert any(path == target or path.endswith(f".{target}") for path in names), f"LoRA target {target}"
    assert backbone.time_embedding.linear_1.in_features > 0
    x = torch.zeros(2, *found.shape)
    t = times(float(denoiser.process.unit_to_time(torch.tensor(0.5))), 2)
    for where in ("bottleneck", "blocks"):
        taps = backbone.taps(where)
        with torch.no_grad():
            caught = features(denoiser, taps, x, t, cond)
        assert len(caught) == len(taps)
        assert all(len(each) == 2 for each in caught)


@pytest.mark.parametrize("name", NAMES)
def test_extra_inputs_change_nothing_at_first_and_fold_away(name):
    found, cond = teacher(name), dict(encoded(name).cond)
    denoiser = found.denoiser(encoded(name).null)
    x = torch.randn(2, *found.shape, generator=torch.Generator().manual_seed(0))
    t = times(float(denoiser.process.unit_to_time(torch.tensor(0.5))), 2)
    extended = denoiser.with_backbone(denoiser.backbone.with_extras(("end_time",), 0))
    cond["end_time"] = denoiser.process.time_input(t * 0.5).float()
    with torch.no_grad():
        assert torch.equal(denoiser.predict(x, t, cond).value, extended.predict(x, t, cond).value)
        for parameter in extended.backbone.extra_inputs.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1)).mul_(0.1)
        moved = extended.predict(x, t, cond).value
        assert not torch.allclose(moved, denoiser.predict(x, t, cond).value, atol=1e-5)
        extended.backbone.fold_extras({"end_time": float(cond["end_time"][0])})
        assert_close(denoiser.predict(x, t, cond).value, moved, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_sizes_the_model_cannot_take_are_refused(name):
    found = teacher(name)
    wrong = Teacher(found.folder, type(found.size)(found.size.height + 1, found.size.width, found.size.frames))
    with pytest.raises(UserError, match=r"multiples of|frames"):
        _ = wrong.shape


@pytest.mark.parametrize("name", NAMES)
def test_latents_decode_and_encode(name):
    found = teacher(name)
    codec = found.vae()
    x = torch.randn(2, *found.shape, generator=torch.Generator().manual_seed(0))
    pixels = codec.decode(x)
    assert len(pixels) == 2
    assert pixels.shape[-2:] == (found.size.height, found.size.width)
    assert codec.encode(pixels).shape == x.shape
    vae = codec.vae
    assert_close(found.family.unscale(vae, found.family.scale(vae, x)), x, atol=1e-5, rtol=1e-5)
