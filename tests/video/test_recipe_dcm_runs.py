"""Runs of dual-expert consistency distillation on tiny video teachers: what moves when, and what a run keeps."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache

import pytest
import torch
from core.model_bed import PROMPTS, teacher
from core.runs import differences, go, newest
from core.training_bed import RandomLatents
from torch import Tensor
from torch.testing import assert_close

from fewstep.core.data.problem import pipeline_problem
from fewstep.core.data.shown import Shown
from fewstep.core.data.source import EncodedTexts, TextSource
from fewstep.core.errors import UserError
from fewstep.core.image.domain import DOMAIN
from fewstep.core.networks.discriminator import DiscriminatorConfig
from fewstep.core.networks.experts import TwoExperts
from fewstep.core.networks.roles import RolesConfig
from fewstep.core.process import times
from fewstep.core.rng import Rng
from fewstep.core.training.config import load_config
from fewstep.core.training.feed import Feed
from fewstep.core.training.trainer import Trainer
from fewstep.core.training.world import World
from fewstep.video.recipes.dcm import DCM
from fewstep.video.recipes.target_judge import Ends


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch):
    """Nobody pulls the plug in these tests."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


SMALL = (
    "recipe.name=dcm", "recipe.semantic_steps=2", "recipe.num_knots=10", "recipe.kappa=5", "recipe.coherence_lag=1",
    "recipe.detail.rank=2", "recipe.detail.alpha=4", "optim.lr=1e-3", "optim.weight_decay=0", "train.batch=2",
    "train.steps=4", "train.ema.kind=constant", "train.ema.decay=0.5", "train.sample_steps=[4]",
)  # fmt: skip


def run_of(*overrides: str, name: str = "wan", mode: str = "full"):
    """The settings, the problem and the recipe of a tiny video teacher."""
    config = load_config(None, [*SMALL, f"domain.teacher=tiny:{name}", *overrides], domain=DOMAIN)
    found = teacher(name)
    encoded = found.encode(PROMPTS)
    problem = pipeline_problem(
        found,
        config.domain.model,
        RolesConfig(mode=mode, rank=2, discriminator=DiscriminatorConfig(taps="blocks", width=8)),
        DCM.role_specs(config.recipe),
        TextSource(EncodedTexts(PROMPTS, [0, 1], encoded.cond, encoded.null), RandomLatents(found.shape)),
        encoded.null,
        Shown(PROMPTS, encoded.cond),
        evaluate=lambda samples, cond: {"contrast": float(samples.std())},
        render=lambda rows, stem: stem.with_suffix(".png"),
        seed=config.seed,
        device="cpu",
    )
    return config, problem, DCM(config.recipe, problem.actors)


def trained(steps: int, *overrides: str, **options) -> Trainer:
    config, problem, recipe = run_of(*overrides, **options)
    trainer = Trainer(config, problem, recipe, World())
    with Feed(problem.data, config, trainer.world) as feed:
        for step in range(steps):
            trainer.step(feed.get(step), feed)
    return trainer


stepped = cache(trained)  # for tests that only look


def weights(trainer: Trainer, role: str) -> list[Tensor]:
    return [p.detach().clone() for p in trainer.cast.modules[role].parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def sampled(trainer: Trainer, t: float) -> Tensor:
    recipe = trainer.recipe
    view = recipe.student_view(recipe.config, recipe.actors.denoiser("student"))
    cond, rng = trainer.problem.conditions(2, 0), Rng.for_batch(3, 0, 2)
    x = rng.normal("x", recipe.actors.shape)
    with torch.no_grad():
        return view.predict(x, times(t, 2), cond).value


def test_the_network_moves_first_and_then_its_layers_only():
    semantic = stepped(2)
    assert semantic.recipe.layers["detail"].started
    both = stepped(4)
    assert same(weights(semantic, "student"), weights(both, "student"))
    assert not same(weights(semantic, "detail"), weights(both, "detail"))
    assert not same(weights(stepped(1), "student"), weights(semantic, "student"))
    cut = both.recipe.grid.cut
    above, below = cut + 0.01, cut
    assert torch.equal(sampled(semantic, above), sampled(both, above))
    assert not torch.equal(sampled(semantic, below), sampled(both, below))


def test_the_detail_expert_starts_as_the_semantic_one_bit_for_bit():
    trainer = stepped(2)
    student = trainer.recipe.actors.denoiser("student")
    assert isinstance(student, TwoExperts)
    x, cond = torch.randn(2, *trainer.recipe.actors.shape), trainer.problem.conditions(2, 0)
    t = times(0.4, 2)
    with torch.no_grad():
        assert torch.equal(student.second().predict(x, t, cond).value, student.predict(x, t, cond).value)


def test_the_detail_expert_is_built_on_the_averaged_weights():
    """They are what is exported: the average at the end of the first stage becomes the network itself."""
    trainer = trained(1)
    trainer.recipe.config = replace(trainer.recipe.config, semantic_steps=1)
    average = [each.clone() for each in trainer.averaged("student")]
    assert not same(average, weights(trainer, "student"))
    trainer.recipe.after_step(0)
    assert same(average, weights(trainer, "student"))
    both = stepped(4)
    assert same(both.averaged("student"), weights(both, "student"))
    assert not same(both.averaged("detail"), weights(both, "detail"))


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_phase_s_gradients_are_its_own_role_s(mode):
    trainer = trained(2, mode=mode)
    wanted = {"semantic": "student", "detail": "detail", "discriminator": "discriminator"}
    assert [phase.name for phase in trainer.phases] == list(wanted)
    batch = trainer.problem.data.batch(Rng.for_batch(0, 0, 2), "cpu")
    for phase, role in wanted.items():
        trainer.cast.enter(phase)
        trainer.recipe.loss(phase, batch, Rng.for_batch(0, 5, 2), 5).total().mean().backward()
        everything = {id(p): p for m in trainer.cast.modules.values() for p in m.parameters()}
        own = {id(p) for p in trainer.cast.modules[role].parameters()}
        touched = {key for key, p in everything.items() if p.grad is not None}
        assert touched
        assert touched <= own
        base = trainer.recipe.actors.denoiser("student").backbone.network
        if phase != "semantic":
            assert all(p.grad is None for p in base.parameters())
        for p in everything.values():
            p.grad = None


def test_the_saturating_hinge_lets_go_of_what_passes_for_real():
    config, problem, recipe = run_of("recipe.judge.feature_weight=0")
    heads = recipe.judge.heads.heads
    rng = Rng.for_batch(0, 0, 2)
    cond = problem.data.batch(rng, "cpu").cond
    for shift, felt in ((0.0, True), (1e3, False)):
        with torch.no_grad():
            for head in heads:
                head.out.bias.add_(shift)
        x = rng.normal("x", recipe.actors.shape).requires_grad_()
        ends = Ends(x, torch.zeros_like(x), times(recipe.grid.end, 2))
        terms = recipe.judge.terms(ends, cond, rng)
        assert list(terms) == ["adversarial"]
        terms["adversarial"].sum().backward()
        assert bool(x.grad.any()) == felt
    assert config.recipe.judge.adversarial_weight == 0.5


def test_nothing_to_tell_apart_where_jump_and_target_agree():
    _, problem, recipe = run_of()
    rng = Rng.for_batch(0, 0, 2)
    cond, x = problem.data.batch(rng, "cpu").cond, rng.normal("x", recipe.actors.shape)
    ends = Ends(x, x, times(recipe.grid.end, 2))
    assert recipe.judge.terms(ends, cond, rng)["features"].tolist() == [0, 0]
    terms = recipe.judge.discriminator_terms(ends, cond, rng)
    assert torch.equal(terms.metrics["real_logit"], terms.metrics["fake_logit"])
    moved = Ends((x + 1).requires_grad_(), x, ends.end)
    recipe.judge.discriminator_terms(moved, cond, rng).total().sum().backward()
    assert moved.made.grad is None
    assert (recipe.judge.terms(moved, cond, rng)["features"] > 0).all()


@pytest.mark.parametrize("how", ["exact", "linear"])
def test_samples_are_judged_at_levels_below_the_cut(how):
    _, _, recipe = run_of(f"recipe.judge.renoise={how}", "recipe.shift=17", "recipe.end=0.001")
    rng = Rng.for_batch(0, 0, 40)
    x = torch.zeros(40, *recipe.actors.shape)
    e = recipe.grid.end
    fake, real, level = recipe.judge.renoised(Ends(x + 1, x, times(e, 40)), {}, rng)
    ratio = ((1 - level) / (1 - e)).float().reshape(-1, 1, 1, 1, 1)
    assert_close(fake - real, ratio.expand_as(fake), rtol=1e-4, atol=1e-5)  # one noise for both
    size = {
        "exact": (level**2 - (ratio.flatten().double() * e) ** 2).clamp_min(0).sqrt(),
        "linear": (level - e) / (1 - e),
    }
    eps = rng.normal("adversarial/eps", recipe.actors.shape)
    assert_close(real, size[how].float().reshape(-1, 1, 1, 1, 1) * eps, rtol=1e-4, atol=1e-6)
    assert float(level.max()) < recipe.grid.cut
    assert float(level.min()) == pytest.approx(e)


def test_heads_count_alike_whatever_the_number_of_their_positions(monkeypatch):
    _, problem, recipe = run_of()
    rng = Rng.for_batch(0, 0, 2)
    logits = [torch.zeros(2, 30), torch.full((2, 10), -1.0)]
    monkeypatch.setattr(recipe.judge.heads, "feature_logits", lambda *given: logits)
    monkeypatch.setattr(recipe.judge.heads, "head_logits", lambda *given: logits)
    x = torch.zeros(2, *recipe.actors.shape)
    ends, cond = Ends(x, x, times(recipe.grid.end, 2)), problem.data.batch(rng, "cpu").cond
    assert recipe.judge.terms(ends, cond, rng)["adversarial"].tolist() == [1.5, 1.5]
    assert recipe.judge.discriminator_terms(ends, cond, rng).terms["discriminator"].tolist() == [2.0, 2.0]


@pytest.mark.slow
def test_a_run_resumed_on_either_side_of_the_cut_is_the_run(tmp_path):
    for ema, stops in (("stopgrad", (2,)), ("ema", (1, 3))):
        settings = (f"recipe.target={ema}", "recipe.ema_decay=0.5")
        config, problem, recipe = run_of(*settings)
        go(config, tmp_path / f"{ema}-whole", problem=problem, recipe=recipe)
        for steps in stops:
            folder = tmp_path / f"{ema}-{steps}"
            for upto, resume in ((steps, False), (4, True)):
                config, problem, recipe = run_of(*settings, f"train.steps={upto}", "optim.schedule=constant")
                go(config, folder, problem=problem, recipe=recipe, resume=resume)
            assert differences(newest(tmp_path / f"{ema}-whole"), newest(folder)) == []


def test_averaged_targets_follow_the_expert_that_learns():
    first, *started = (stepped(n, "recipe.target=ema", "recipe.ema_decay=0.5") for n in (1, 2, 3))
    live, average = ([weights(each, role) for each in (first, *started)] for role in ("student", "target"))
    assert not same(average[0], live[0])
    assert same(average[1], average[2])
    (begun, target), (moved, followed) = ((weights(e, "detail"), weights(e, "detail_target")) for e in started)
    assert same(begun, target)
    for one, now, mean in zip(begun, moved, followed, strict=True):
        assert_close(mean, (one + now) / 2)


def test_without_a_first_stage_the_detail_expert_starts_on_the_teacher():
    trainer = trained(1, "recipe.semantic_steps=0")
    assert [phase.name for phase in trainer.phases] == ["detail", "discriminator"]
    assert trainer.recipe.layers["detail"].started


@pytest.mark.parametrize("name", ["cogvideox", "hunyuan-video", "ltx"])
def test_every_video_family_has_two_experts(name):
    trainer = trained(3, "recipe.detail.rank=1", name=name)
    assert not torch.equal(*(sampled(trainer, t) for t in trainer.recipe.grid.steps(2)))


def test_drawn_guidance_is_told_to_both_experts():
    trainer = trained(3, "recipe.guidance_scale=2", "recipe.guidance_max=5")
    recipe = trainer.recipe
    assert recipe.plan(recipe.config, recipe.process, 4).extras == {"guidance": 3.5}
    assert recipe.actors.denoiser("student").backbone.extras == ("guidance",)


def test_a_checkpoint_of_another_recipe_is_refused():
    _, _, recipe = run_of()
    with pytest.raises(UserError, match="another recipe"):
        recipe.load_state({})
    recipe.load_state({"detail_started": torch.tensor(True)})
    assert recipe.layers["detail"].started
