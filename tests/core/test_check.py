"""The laws hold for every recipe of the package, and each sees the mistake it is there for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch

from fewstep.core.check import Claims, LawResult, format_results, run
from fewstep.core.check.declarations import claims_of
from fewstep.core.errors import UserError
from fewstep.core.guidance import Guided
from fewstep.core.losses.integral import diff_instruct_loss
from fewstep.core.process import EDM, VP, CosineVP, LocalOffset, RectifiedFlow, ResidualShift, TrigFlow
from fewstep.core.recipe import LossTerms, StepPlan
from fewstep.core.recipes import BUILT_IN, find_recipe
from fewstep.core.recipes.adversarial import AdversarialConfig
from fewstep.core.recipes.consistency import Consistency, ConsistencyConfig
from fewstep.core.recipes.diff_instruct import DiffInstruct, DiffInstructConfig
from fewstep.core.recipes.diffusion import Diffusion, DiffusionConfig
from fewstep.core.recipes.generator import FakeScoreConfig
from fewstep.core.recipes.rollout import Sample
from fewstep.core.rng import Rng
from fewstep.core.tensors import expand_to, sample_sum

GENERATORS = ("sds", "vsd", "diff-instruct", "dmd2", "f-distill", "sid", "sim", "uni-instruct", "tdm", "ladd")


def failures(recipe, config, process=None):
    return [result.name.split(" [")[0] for result in run(recipe, config, process) if not result.passed]


@cache
def on_the_table(name):
    """The defaults on Stable Diffusion's table, once per session."""
    return run(find_recipe(name), find_recipe(name).config_type())


def holds(name, process=None, **settings):
    recipe = find_recipe(name)
    usual = process is None and not settings
    results = on_the_table(name) if usual else run(recipe, recipe.config_type(**settings), process)
    assert [r for r in results if not r.passed] == [], format_results(results)
    return {r.name.split(" [")[0] for r in results}


# ---------------------------------------------------------------- the package's own recipes


LONG = ("accvideo", "tdm", "scm", "diffusion-dpo", "uni-instruct", "distillation-dpo")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in BUILT_IN])
def test_every_recipe_holds_on_the_table_of_stable_diffusion(name):
    checked = holds(name)
    assert {"gradients reach the trained roles", "pieces of a batch are the whole", "finite at both ends"} <= checked
    assert name in ("diffusion", "diffusion-dpo") or "guidance convention" in checked


def test_settings_that_leave_trajectories_to_the_data_are_checked_with_ones_made_here():
    recipe = find_recipe("accvideo")
    for own, instead in ((0, {"segment_steps": 10}), (7, {})):
        assert claims_of(recipe, recipe.config_type(segment_steps=own)).instead == instead


PROCESSES = {
    "flow": RectifiedFlow(shift=3.0),
    "edm": EDM(),
    "cosine": CosineVP(),
    "trigflow": TrigFlow(),
    "residual": ResidualShift(),
    "offset": LocalOffset.linear(),
}
FEW = {("sid", "flow"), ("consistency", "edm"), ("scm", "trigflow"), ("vsd", "residual"), ("progressive", "cosine")}
IMPOSSIBLE = {
    (name, "residual") for name in ("consistency", "tcd", "scm", "progressive", "accvideo")
}  # anchors, 15 levels
# weights clamped in the tail, and angles that lie beyond the least SNR
IMPOSSIBLE |= {("tdm", "offset"), ("scm", "offset")}
PAIRS = [(name, process) for name in BUILT_IN for process in PROCESSES if (name, process) not in IMPOSSIBLE]


@pytest.mark.parametrize(
    ("name", "process"), [pytest.param(*pair, marks=() if pair in FEW else pytest.mark.slow) for pair in PAIRS]
)
def test_recipes_hold_under_other_processes(name, process):
    holds(name, PROCESSES[process])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("dmd2", {"student_steps": 4, "guidance_scale": 3.5}),
        ("dmd2", {"student_steps": 4, "backward_simulation": False}),
        ("dmd2", {"adversarial": AdversarialConfig(weight=3e-3)}),
        ("dmd2", {"regression_weight": 0.25, "regression_steps": 6}),
        ("sid", {"alpha": 0.5}),
        (
            "sid",
            {
                "alpha": 1.0,
                "guidance_scale": 2.0,
                "fake_guidance_scale": 2.0,
                "fake": FakeScoreConfig(guidance_scale=2.0),
            },
        ),
        ("sim", {"distance": "l2"}),
        ("sim", {"space": "score"}),
        ("uni-instruct", {"divergence": "jensen_shannon"}),
        ("uni-instruct", {"divergence": "reverse_kl"}),
        ("f-distill", {"divergence": "forward_kl"}),
        ("tdm", {"target": "conditional"}),
        ("tdm", {"student_steps": 1, "distance": "l2"}),
        ("vsd", {"guidance_scale": 4.5, "fake_guidance_scale": 4.5, "fake": FakeScoreConfig(weighting="native")}),
        ("sds", {"variant": "x0"}),
        ("sds", {"variant": "sjc"}),
        ("sds", {"variant": "csd", "negative_share": (0.0, 0.0, 1.0, 100.0)}),
        ("sds", {"variant": "asd", "weight": "tau", "normalizer": "noisy"}),
        ("sds", {"variant": "ism"}),
        ("sds", {"variant": "nfsd"}),
        ("sds", {"variant": "sdi"}),
        ("sds", {"guidance_scale": (0.0, 100.0, 7.5, 100.0)}),
        ("diffusion", {"weighting": "min_snr", "label_dropout": 0.1}),
        ("consistency", {"boundary": "lcm"}),
        ("accvideo", {"student_steps": 4, "segment_steps": 0}),
        ("consistency", {"boundary": "jump", "target": "ema"}),
        ("consistency", {"mode": "training", "weight": "gap"}),
        ("consistency", {"guidance_scale": 2.0, "guidance_max": 8.0, "solver": "heun"}),
        ("tcd", {"num_phases": 4, "end": "phase"}),
        ("tcd", {"end_time": True}),
        ("scm", {"mode": "training"}),
        ("scm", {"derivative": "finite_difference", "variance_head": False}),
        ("progressive", {"start_steps": 4, "final_steps": 2}),
        ("distillation-dpo", {"loser_weight": 0.0, "student_steps": 4}),
        ("distillation-dpo", {"dpo_sigmoid": 2.0, "reduction": "sum"}),
        ("diffusion-dpo", {"objective": "ipo", "winner_anchor": 0.1, "train_times": (1.0, 0.5)}),
        ("ladd", {"adversarial": "relativistic", "distill_weight": 2.5}),
    ],
)
def test_settings_that_change_the_method_hold_too(name, settings):
    holds(name, **settings)


def test_claims_are_checked_where_they_are_made():
    assert "descends reverse_kl" in holds("dmd2")
    assert "descends score:1.2" in holds("sid")
    assert "descends held" in holds("sim")
    assert "descends expanded:forward_kl" in holds("uni-instruct")
    assert "descends jensen_shannon" in holds("f-distill")
    assert "descends cross_entropy" in holds("sds")
    for name in GENERATORS[1:-1]:
        assert "the true score is the optimum" in holds(name)
    assert {"the exact map is at rest", "spread of samples in 4 step(s)"} <= holds("consistency")


def test_a_setting_that_is_biased_is_told_so():
    """TDM's plain target forgets that a step's clean sample and noise are dependent."""
    recipe = find_recipe("tdm")
    assert failures(recipe, recipe.config_type(target="plain")) == ["the true score is the optimum"]


# ---------------------------------------------------------------- broken recipes


class Broken(DiffInstruct):
    """Diff-Instruct in the open, to be broken in one place at a time."""

    def student_loss(self, sample, batch, rng, step):
        at = self.noised(sample, self.config.time, rng, step)
        teacher, fake = self.clean_pair(sample, at, rng, through=False)
        return LossTerms({"diff_instruct": diff_instruct_loss(sample.x0, teacher, fake, reduction="mean")})


class FlippedSign(Broken):
    def student_loss(self, sample, batch, rng, step):
        found = super().student_loss(sample, batch, rng, step).terms["diff_instruct"]
        return LossTerms({"diff_instruct": -found})


class UndetachedFake(Broken):
    def student_loss(self, sample, batch, rng, step):
        at = self.noised(sample, self.config.time, rng, step, through=True)
        teacher, fake = self.clean_pair(sample, at, rng, through=True)
        return LossTerms({"diff_instruct": sample_sum((fake - teacher) * sample.x0)})


class HalfDetached(Broken):
    def student_loss(self, sample, batch, rng, step):
        at = self.noised(sample, self.config.time, rng, step, through=True)
        with torch.no_grad():
            teacher = self.teacher().x0(at.x_t, at.t, sample.cond)
        fake = self.fake_score().x0(at.x_t, at.t, sample.cond)
        return LossTerms({"diff_instruct": sample_sum((fake - teacher) * sample.x0)})


class PaperGuidance(Broken):
    def teacher(self):
        return Guided(self.actors.denoiser("teacher"), self.config.guidance_scale + 1)


class OneGuidance(Broken):
    """Guides the teacher by hand, and only its noise: the clean sample stays conditional."""

    def teacher(self):
        return self.actors.denoiser("teacher")


class DensityWeighted(Broken):
    """A weight that depends on the sample makes it another divergence."""

    def student_loss(self, sample, batch, rng, step):
        at = self.noised(sample, self.config.time, rng, step)
        teacher, fake = self.clean_pair(sample, at, rng, through=False)
        weight = sample.x0.detach().square().flatten(1).sum(1)
        return LossTerms({"diff_instruct": diff_instruct_loss(sample.x0, teacher, fake, weight=weight)})


class BatchMean(Broken):
    def student_loss(self, sample, batch, rng, step):
        value = super().student_loss(sample, batch, rng, step).terms["diff_instruct"]
        return LossTerms({"diff_instruct": value / value.detach().mean()})


class OneNumber(Broken):
    def student_loss(self, sample, batch, rng, step):
        return LossTerms({"diff_instruct": super().student_loss(sample, batch, rng, step).total().mean()[None]})


class GlobalNoise(Broken):
    def student_loss(self, sample, batch, rng, step):
        moved = Sample(sample.x0 + 0.1 * torch.randn_like(sample.x0), sample.cond)
        return super().student_loss(moved, batch, rng, step)


class StaleNoise(Broken):
    def loss(self, phase, batch, rng, step):
        return super().loss(phase, batch, rng.at_step(0), step)


class RawPrediction(Broken):
    def student_loss(self, sample, batch, rng, step):
        at = self.noised(sample, self.config.time, rng, step)
        with torch.no_grad():
            value = self.actors.denoiser("teacher").predict(at.x_t, at.t, sample.cond).value
            fake = self.fake_score().x0(at.x_t, at.t, sample.cond)
        return LossTerms({"diff_instruct": diff_instruct_loss(sample.x0, value, fake)})


class InfiniteWeight(Broken):
    def student_loss(self, sample, batch, rng, step):
        value = super().student_loss(sample, batch, rng, step).terms["diff_instruct"]
        t = self.config.time.draw(self.process, rng, "noised/t", step)
        return LossTerms({"diff_instruct": value * expand_to(self.process.tau(t) ** -40, value)})


class DetachedStudent(Broken):
    def sample(self, batch, rng, *, grad):
        sample = super().sample(batch, rng, grad=grad)
        return Sample(sample.x0.detach().requires_grad_(grad), sample.cond)


class FakeOnData(Broken):
    def fake_score_loss(self, sample, batch, rng, step):
        data = Sample(batch.clean_samples(self.name), batch.cond)
        return super().fake_score_loss(data, batch, rng, step)


class OwnTerm(Broken):
    """Pulls samples to the origin besides."""

    def student_loss(self, sample, batch, rng, step):
        terms = super().student_loss(sample, batch, rng, step).terms
        return LossTerms({**terms, "decay": sample.x0.square().flatten(1).sum(1)})


@pytest.mark.parametrize(
    ("broken", "laws"),
    [
        (Broken, set()),
        (FlippedSign, {"descent leads to the teacher", "descends reverse_kl"}),
        (UndetachedFake, {"gradients through the networks", "descends reverse_kl"}),
        (HalfDetached, {"gradients through the networks", "descends reverse_kl"}),
        (PaperGuidance, {"guidance convention"}),
        (OneGuidance, {"guidance convention"}),
        (DensityWeighted, {"descends reverse_kl"}),
        (BatchMean, {"pieces of a batch are the whole"}),
        (OneNumber, {"one value per sample"}),
        (GlobalNoise, {"same generator, same loss", "global generator untouched"}),
        (StaleNoise, {"another step, other noise"}),
        (RawPrediction, {"parameterisation does not matter", "no push at the optimum"}),
        (InfiniteWeight, {"finite at both ends"}),
        (DetachedStudent, {"gradients reach the trained roles"}),
        (FakeOnData, {"the true score is the optimum"}),
        (OwnTerm, {"no push at the optimum", "descends reverse_kl"}),
    ],
)
def test_a_broken_recipe_fails_by_the_name_of_its_mistake(broken, laws):
    found = set(failures(broken, DiffInstructConfig()))
    assert laws <= found
    if not laws:
        assert found == set()


def test_a_recipe_without_claims_is_still_held_to_what_holds_for_all():
    class Mine(FlippedSign):
        name = "mine"

    class Half(HalfDetached):
        name = "mine"

    class Fine(Broken):
        name = "mine"

    assert "descent leads to the teacher" in failures(Mine, DiffInstructConfig())
    assert "gradients through the networks" in failures(Half, DiffInstructConfig())
    assert failures(Fine, DiffInstructConfig()) == []


def test_a_recipe_may_make_claims_of_its_own():
    class Honest(UndetachedFake):
        name, claims = "mine", Claims("generator", through=True, towards=False, at_rest=False)

    class Wrong(Broken):
        name, claims = "mine", staticmethod(lambda config: Claims("generator", "forward_kl", False))

    assert failures(Honest, DiffInstructConfig()) == []
    assert failures(Wrong, DiffInstructConfig()) == ["descends forward_kl"]


class LateTarget(Consistency):
    """Asks the target at the noisier time of the pair."""

    def pair(self, x0, cond, rng, step):
        pair = super().pair(x0, cond, rng, step)
        return pair._replace(s=pair.t)


class NoisyPair(Consistency):
    """Both points from one data sample, though there is a teacher to follow: the loss of training."""

    def pair(self, x0, cond, rng, step):
        pair = super().pair(x0, cond, rng, step)
        eps = rng.normal_like("eps2", x0)
        return pair._replace(x_s=self.process.add_noise(x0, eps, pair.s))


class SwappedSides(Consistency):
    def pair(self, x0, cond, rng, step):
        pair = super().pair(x0, cond, rng, step)
        return pair._replace(x_t=pair.x_s, t=pair.s, x_s=pair.x_t, s=pair.t)


class WrongPlan(Consistency):
    @classmethod
    def plan(cls, config, process, num_steps):
        plan = super().plan(config, process, num_steps)
        return StepPlan(plan.times, "deterministic") if num_steps > 1 else plan


@pytest.mark.parametrize(
    ("broken", "laws"),
    [
        (LateTarget, {"the exact map is at rest"}),
        (NoisyPair, {"the exact map is at rest"}),
        (SwappedSides, {"the teacher is pulled to the exact map"}),
        (WrongPlan, {"spread of samples in 4 step(s)"}),
    ],
)
def test_broken_maps_fail_by_name(broken, laws):
    assert laws <= set(failures(broken, ConsistencyConfig()))


def test_a_denoiser_taught_the_wrong_time_is_found():
    class Late(Diffusion):
        def loss(self, phase, batch, rng, step):
            drawn = self.config.time.draw(self.actors.process, rng, "time", step)
            student, x0 = self.actors.denoiser("student"), batch.clean_samples("late")
            eps = rng.normal_like("eps", x0)
            x_t = student.process.add_noise(x0, eps, drawn)
            found = student.x0(x_t, (drawn + 40).clamp_max(student.process.t_max), batch.cond)
            return LossTerms({"denoise": sample_sum((found - x0).square())})

    assert "the true score is the optimum" in failures(Late, DiffusionConfig())


# ---------------------------------------------------------------- the interface


def test_results_print_as_a_table_with_hints():
    good = LawResult("first", True, 1.0, 1.0, 0.0, 1e-6)
    bad = LawResult("a longer name", False, 2.0, 1.0, 1.0, 1e-6, "look there")
    text = format_results([good, bad]).splitlines()
    assert text[0].split() == ["law", "found", "expected", "error", "allowed"]
    assert text[1].split()[:2] == ["first", "ok"]
    assert "FAIL" in text[2]
    assert text[3].strip() == "look there"
    assert text[-1] == "1 of 2 laws hold"
    assert format_results([]).endswith("0 of 0 laws hold")


def test_a_number_that_is_none_fails():
    class Nan(Broken):
        def student_loss(self, sample, batch, rng, step):
            return LossTerms({"diff_instruct": super().student_loss(sample, batch, rng, step).total() * float("nan")})

    found = run(Nan, DiffInstructConfig())
    assert {"finite at both ends", "descends reverse_kl"} <= {r.name.split(" [")[0] for r in found if not r.passed}


def test_a_config_that_does_not_go_with_the_process_says_so():
    with pytest.raises(UserError, match="lcm boundary"):
        run(Consistency, ConsistencyConfig(boundary="lcm"), RectifiedFlow())


def test_checking_leaves_the_config_alone_and_is_repeatable():
    @dataclass(frozen=True, kw_only=True)
    class Config(DiffInstructConfig):
        pass

    config = replace(Config(), guidance_scale=2.0)
    first, second = (run(Broken, config, VP.linear()) for _ in range(2))
    assert first == second
    assert config == replace(Config(), guidance_scale=2.0)
    before = torch.get_rng_state()
    run(Broken, config)
    assert torch.equal(before, torch.get_rng_state())
    assert Rng.for_batch(0, 0, 1).normal("a", (1,)).shape == (1, 1)
