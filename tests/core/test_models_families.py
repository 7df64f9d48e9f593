"""Every family: the adapter's prediction is the pipeline's own, guided and not; what it declares is there."""

from __future__ import annotations

import pytest
import torch
from core.model_bed import FEW, NAMES, PROMPTS, encoded, own_time, teacher, watched
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.core.guidance import Guided
from fewstep.core.models.family import Size
from fewstep.core.models.loading import Teacher
from fewstep.core.networks.roles import RolesConfig, build_roles
from fewstep.core.networks.taps import features
from fewstep.core.process import times
from fewstep.core.recipe import RoleSpec

LORA_SPECS = (RoleSpec("student"), RoleSpec("teacher", init="frozen"), RoleSpec("fake_score"))


def rounding(guidance: float) -> float:
    """What may differ where conditions run in another batch: a guided prediction is s * cond - (s - 1) * uncond."""
    return 1e-6 * (2 * guidance - 1)


@pytest.mark.parametrize("guidance", [pytest.param(1.0, marks=pytest.mark.slow), 4.5])
@pytest.mark.parametrize("name", NAMES)
def test_the_prediction_is_the_pipelines_own(name, guidance):
    distilled = teacher(name).family.guidance_distilled
    found = teacher(name, guidance) if distilled else teacher(name)
    denoiser = Guided(found.denoiser(encoded(name).null), 1.0 if distilled else guidance)
    seen = watched(found, guidance)
    assert len(seen) == 2
    atol = 1e-6 if distilled else rounding(guidance)
    for output, time, latents in seen:
        x = found.family.from_pipeline(latents, found.shape)
        assert x.shape[1:] == found.shape
        with torch.no_grad():
            ours = denoiser.predict(x, own_time(found, time), encoded(name).cond).value
        assert float(output.std()) > 1e-3, "a prediction of nothing would prove nothing"
        assert_close(found.family.to_pipeline(ours), output, atol=atol, rtol=1e-6)


@pytest.mark.parametrize("name", [name for name in NAMES if not teacher(name).family.guidance_distilled])
def test_a_negative_prompt_is_the_pipelines_own(name):
    found = Teacher.find(f"tiny:{name}", negative="a blur")
    given = found.encode(PROMPTS)
    denoiser = Guided(found.denoiser(given.null), 3.0)
    output, time, latents = watched(found, 3.0, negative_prompt=["a blur"] * len(PROMPTS))[0]
    x = found.family.from_pipeline(latents, found.shape)
    with torch.no_grad():
        ours = denoiser.predict(x, own_time(found, time), given.cond).value
        empty = Guided(found.denoiser(encoded(name).null), 3.0).predict(x, own_time(found, time), given.cond).value
    assert_close(found.family.to_pipeline(ours), output, atol=rounding(3.0), rtol=1e-6)
    assert not torch.allclose(ours, empty, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_width_and_height_keep_their_places(name):
    size = teacher(name).size
    found = Teacher.find(f"tiny:{name}", size=Size(size.height, 2 * size.width, size.frames))
    given = found.encode(PROMPTS)
    output, time, latents = watched(found, 1.0)[0]
    denoiser = found.denoiser(given.null)
    with torch.no_grad():
        x = found.family.from_pipeline(latents, found.shape)
        ours = denoiser.predict(x, own_time(found, time), given.cond).value
    assert ours.shape[-1] == 2 * ours.shape[-2]
    assert_close(found.family.to_pipeline(ours), output, atol=rounding(3.0), rtol=1e-6)


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
        folded = 2 * found.size.frames  # by U-Nets of videos, into the batch
        assert all(len(each) in (2, folded) for each in caught)


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


def lora_gradients(name, x, checkpointing):
    """Two roles' predictions, and their gradients, when one runs between the other's forward and backward."""
    found, cond = teacher(name), encoded(name).cond
    roles = build_roles(
        found.denoiser(encoded(name).null),
        LORA_SPECS,
        RolesConfig(mode="lora", rank=2, checkpointing=checkpointing),
        seed=0,
    )
    t = times(float(roles["student"].process.unit_to_time(torch.tensor(0.5))), 2)
    generator = torch.Generator().manual_seed(1)
    grads, losses = [], []
    for role in ("student", "fake_score"):
        trained = [p for p in roles[role].backbone.parameters() if p.requires_grad]
        with torch.no_grad():
            for parameter in trained:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        losses.append((roles[role].predict(x, t, cond).value ** 2).mean())
    for role, loss in zip(("student", "fake_score"), losses, strict=True):
        loss.backward()
        grads.append({path: p.grad for path, p in roles[role].backbone.named_parameters() if p.requires_grad})
    return roles, t, grads


@pytest.mark.parametrize("name", [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_lora_roles_leave_the_teacher_alone_and_checkpointing_keeps_gradients(name):
    found, cond = teacher(name), encoded(name).cond
    x = torch.randn(2, *found.shape, generator=torch.Generator().manual_seed(0))
    roles, t, plain = lora_gradients(name, x, checkpointing=False)
    with torch.no_grad():
        alone = found.denoiser(encoded(name).null).predict(x, t, cond).value
        assert torch.equal(roles["teacher"].predict(x, t, cond).value, alone)
        moved = roles["student"].predict(x, t, cond).value
        assert not torch.allclose(moved, alone, atol=1e-5)
        assert not torch.allclose(moved, roles["fake_score"].predict(x, t, cond).value, atol=1e-5)
    again, _, recomputed = lora_gradients(name, x, checkpointing=True)
    assert again["student"].backbone.network.is_gradient_checkpointing
    for one, other in zip(plain, recomputed, strict=True):
        assert one
        assert one.keys() == other.keys()
        for path, gradient in one.items():
            assert_close(other[path], gradient, atol=0, rtol=0, msg=path)
        # not all: SD3's last block drops what its prompt's queries make
        assert sum(bool(gradient.any()) for gradient in one.values()) > 0.9 * len(one)


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
