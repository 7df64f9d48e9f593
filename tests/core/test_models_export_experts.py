"""Students of two experts leave as pipelines whose card changes from one network to the other."""

from __future__ import annotations

import pytest
import torch
from core.export_bed import CARD, PROMPT, Scripted, found_teacher, run_cards
from core.tiny_loop import mlp_teacher
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.core.models.export import export_lora, export_pipeline, export_student
from fewstep.core.models.export_experts import SecondExpert, second_expert
from fewstep.core.networks.experts import ExpertConfig, ExpertLayers, RoutedExperts, TwoExperts
from fewstep.core.networks.freezing import trainable_copy
from fewstep.core.process import CosineVP
from fewstep.core.recipe import StepPlan
from fewstep.core.sampling import run_plan


def student_of(family: str, steps: tuple[float, ...], started: bool = True) -> tuple[RoutedExperts, StepPlan]:
    """Two experts some way off their teacher and off each other; ``steps`` are fractions of the clock."""
    found = found_teacher(family)
    source = found.denoiser(found.encode([PROMPT]).null)
    denoiser = source.with_backbone(trainable_copy(source.backbone).eval())
    layers = ExpertLayers(ExpertConfig(rank=2, alpha=2.0), 0)
    layers.attach(denoiser.backbone)
    layers.started = started
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (*denoiser.backbone.parameters(), *layers.parameters()):
            parameter.add_(
                0.1 * torch.randn(parameter.shape, generator=generator) * (parameter.std(correction=0) + 0.2)
            )
    times = tuple(denoiser.process.unit_to_time(torch.tensor(steps, dtype=torch.float64)).tolist())
    experts = TwoExperts(denoiser, layers)
    cut = times[len(times) // 2]
    return RoutedExperts(experts, experts.second(), cut), StepPlan(times, "deterministic", end="t_min")


CASES = {"hunyuan-video": (1.0, 0.9, 0.76, 0.4), "wan": (1.0, 0.75, 0.5, 0.25)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Pipelines, and what their own programs sampled from the prepared noise."""
    root = tmp_path_factory.mktemp("experts")
    for family, steps in CASES.items():
        student, plan = student_of(family, steps)
        found = found_teacher(family)
        export_student(student, plan, root / family, CARD, found)
        noise = torch.randn(1, *found.shape, generator=torch.Generator().manual_seed(7))
        save_file({"0": found.family.to_pipeline(noise).contiguous()}, root / family / "noise.safetensors")
    run_cards(root)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("family", list(CASES))
def test_the_card_s_program_samples_with_both_networks(exported, family):
    student, plan = student_of(family, CASES[family])
    found = found_teacher(family)
    noise = torch.randn(1, *found.shape, generator=torch.Generator().manual_seed(7))
    cond = found.encode([PROMPT]).cond
    theirs = load_file(exported / family / "theirs.safetensors")
    with torch.no_grad():
        ours = run_plan(student, plan, noise, cond, Scripted([]))
        alone = run_plan(student.high, plan, noise, cond, Scripted([]))
    assert len(theirs["times"]) == 4
    assert_close(theirs["latents"], found.family.to_pipeline(ours), rtol=1e-3, atol=1e-3)
    assert (ours - alone).abs().max() > 3e-2


def test_an_expert_that_has_not_started_is_not_written(tmp_path):
    student, plan = student_of("wan", CASES["wan"], started=False)
    export_pipeline(student, plan, tmp_path / "first", CARD, found_teacher("wan"))
    assert not (tmp_path / "first" / "detail").exists()
    assert "change" not in (tmp_path / "first" / "README.md").read_text()


def test_two_experts_are_no_lora_file(tmp_path):
    student, plan = student_of("wan", CASES["wan"])
    with pytest.raises(UserError, match=r"two experts are no LoRA file.*--as pipeline"):
        export_lora(student, plan, tmp_path / "lora", CARD, found_teacher("wan"))
    assert not (tmp_path / "lora").exists()


def test_a_pipeline_without_callbacks_is_refused():
    student, plan = student_of("wan", CASES["wan"])
    second = second_expert(student, plan.times)
    assert isinstance(second, SecondExpert)
    assert (second.first, second.count) == (2, 4)
    with pytest.raises(UserError, match="no callback"):
        second.program("", "transformer", ("prompt",))
    old = second.program("prompt = 1\n    generator=generator,\n", "unet", ("callback",))
    assert "    callback=lambda step, time, latents: change(pipe, step, time, {}),\n" in old


def test_steps_all_above_the_cut_need_no_second_network():
    student, plan = student_of("wan", CASES["wan"])
    assert second_expert(student, plan.times[:2]) is None


def test_a_network_of_no_pipeline_is_refused():
    denoiser = mlp_teacher(CosineVP(), 2)
    layers = ExpertLayers(ExpertConfig(rank=1, private="none"), 0)
    layers.attach(denoiser.backbone)
    layers.started = True
    experts = TwoExperts(denoiser, layers)
    routed = RoutedExperts(experts, experts.second(), 0.5)
    with pytest.raises(UserError, match="no part of a diffusers pipeline"):
        second_expert(routed, (0.9, 0.5))
    with pytest.raises(UserError, match="no part of a diffusers pipeline"):
        second_expert(RoutedExperts(experts, denoiser, 0.5), (0.9, 0.5))
