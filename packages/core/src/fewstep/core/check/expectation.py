"""Laws of what a method descends: expected gradients by quadrature, on Gaussian data and Gaussian samples."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from fewstep.core.analytic import GaussianTeacher, gauss_grid
from fewstep.core.check.cast import Actor, ClassPair, GeneratorStudent, LandingStudent, usual_kind
from fewstep.core.check.draws import GridRng, LevelRng, StreamRng
from fewstep.core.check.objectives import objective_gradient
from fewstep.core.check.result import LawResult, judged
from fewstep.core.check.stage import (
    MEAN,
    SCALE,
    SHIFT,
    STD,
    Case,
    Changes,
    Laws,
    Stage,
    field_of_numbers,
    line,
    make_batch,
    null_condition,
    plane,
    set_stage,
)
from fewstep.core.errors import UserError
from fewstep.core.recipe import Batch
from fewstep.core.rng import Rng

Level = tuple[float, float]
"""A fraction of the laws of noise levels, and a fraction of whole choices (which of the student's steps)."""
LEVELS: tuple[Level, ...] = ((0.2, 0.99), (0.5, 0.5), (0.8, 0.0))
"""Where expectations are taken."""
NODES = {1: 401, 2: 101, 3: 31}
DATA = "check/data"
SIZE = 64


def expected(stage: Stage, phase: str, at: Level, parameters: list[Tensor]) -> Tensor | None:
    """Return the gradient of a phase's expected loss at a level, one number each.

    None when there is more noise than can be integrated over.
    """
    case, laws = stage.case, stage.laws
    probe = StreamRng(0, case.step, (0, 1), u=at[0], pick=at[1])
    try:
        stage.terms(phase, Batch(2, null_condition(laws, 2)), probe)
        axes: tuple[str, ...] = tuple(probe.streams)
    except UserError:  # this method needs data: one more thing to integrate over
        stage.terms(phase, Batch(2, null_condition(laws, 2), torch.zeros(2, 1, dtype=torch.float64)), probe)
        axes = (DATA, *probe.streams)
    if len(axes) > max(NODES):
        return None
    grid = gauss_grid(NODES[max(len(axes), 1)], axes=max(len(axes), 1))
    size = len(grid.mass)
    x0 = MEAN + STD * grid.noise[0] if DATA in axes else None
    rng = GridRng(0, case.step, tuple(range(size)), u=at[0], pick=at[1], grid=grid, axes=axes)
    value = stage.terms(phase, Batch(size, null_condition(laws, size), x0), rng, claimed=True)
    gradients = torch.autograd.grad(grid.mean(value), parameters, allow_unused=True)
    zero = torch.zeros((), dtype=torch.float64)
    return torch.stack([zero if g is None else g.sum().double() for g in gradients])


def student_phases(case: Case) -> list[str]:
    """Return the phases that train the student."""
    return [phase.name for phase in case.recipe.phases(case.config) if "student" in phase.trains]


def generator_laws(case: Case) -> list[LawResult]:
    """Return the laws of methods that judge a generator's samples."""
    results: list[LawResult] = []
    claims, roles = case.claims, {spec.name for spec in case.recipe.role_specs(case.config)}
    for phase in student_phases(case):
        if claims.at_rest and {"teacher", "fake_score"} & roles:
            results.append(rest_at_the_optimum(case, phase))
        if {"teacher", "fake_score"} <= roles or claims.through is not None:
            results.append(gradients_through_networks(case, phase))
        if claims.towards:
            results.append(towards_the_teacher(case, phase))
        if claims.objective:
            results.append(descends_its_objective(case, phase))
    if "fake_score" in roles:
        results += [
            *(
                fake_score_is_the_optimum(case, p.name)
                for p in case.recipe.phases(case.config)
                if "fake_score" in p.trains
            )
        ]
    return results


def rest_at_the_optimum(case: Case, phase: str) -> LawResult:
    """Where fake score and teacher agree no sample is pushed, for any student."""
    laws, pushes = replace(plane(case.process), labels=0), []  # without classes guidance changes nothing
    for each in (laws.at_rest(), laws):
        stage = set_stage(case, each)
        rng = Rng.for_batch(0, case.step, SIZE)
        value = stage.terms(phase, make_batch(laws, rng), rng, claimed=True)
        student = stage.actors.roles["student"]
        made = [x for x in student.made if x.requires_grad] if isinstance(student, GeneratorStudent) else []
        gradients = torch.autograd.grad(value.sum(), made, allow_unused=True) if made and value.requires_grad else ()
        pushes.append(max([float(g.abs().max()) for g in gradients if g is not None], default=0.0))
    hint = "samples are pushed although fake score and teacher agree: signs, unequal guidance, or a term of its own"
    return judged(f"no push at the optimum [{phase}]", pushes[0] / max(pushes[1], 1e-30), 0.0, 1e-6, hint)


def gradients_through_networks(case: Case, phase: str) -> LawResult:
    """Gradients flow through teacher and fake score, or through neither, as the method has it."""
    stage = set_stage(case, plane(case.process))
    rng = Rng.for_batch(0, case.step, 4)
    stage.terms(phase, make_batch(stage.laws, rng), rng)
    judges = [stage.actors.roles[name] for name in ("teacher", "fake_score") if name in stage.actors.roles]
    attached = [any(flag for flag, _ in judge.seen) for judge in judges if isinstance(judge, Actor) and judge.seen]
    claimed = case.claims.through
    goal = claimed if claimed is not None else attached[0] if attached else False
    share = sum(attached) / len(attached) if attached else float(goal)
    hint = (
        "teacher and fake score must be asked under no_grad: this method's gradient is their difference"
        if goal is False
        else "gradients must flow through the inputs of both teacher and fake score: one is detached"
    )
    return judged(f"gradients through the networks [{phase}]", share, float(goal), 0.0, hint)


def towards_the_teacher(case: Case, phase: str) -> LawResult:
    """The mean gradient over many numbers brings a Gaussian student closer to a Gaussian teacher at every level."""
    laws, cosines = field_of_numbers(case.process), list[float]()
    way = torch.tensor([STD - SCALE, MEAN - SHIFT], dtype=torch.float64)
    for u, pick in LEVELS:
        stage = set_stage(case, laws)
        rng = LevelRng(0, case.step, tuple(range(SIZE)), u=u, pick=pick)
        value = stage.terms(phase, make_batch(laws, rng), rng, claimed=True).sum()
        found = torch.autograd.grad(value, stage.parameters("student"), allow_unused=True)
        gradient = torch.stack([torch.zeros(()).double() if g is None else g.sum() for g in found])
        cosines.append(float(-(gradient @ way) / (gradient.norm() * way.norm()).clamp_min(1e-30)))
    hint = "descent leads away from the teacher: a sign (x0_fake - x0_teacher is what is added to the gradient)"
    return judged(f"descent leads to the teacher [{phase}]", min([*cosines, 0.01]), 0.01, 0.0, hint)


def descends_its_objective(case: Case, phase: str) -> LawResult:
    """The expected gradient points along that of the claimed objective, at every noise level."""
    plain, worst = case.plainly(), (0.0, 0.0, -1.0)
    for at in LEVELS:
        laws = line(case.process)
        stage = set_stage(plain, laws)
        gradient = expected(stage, phase, at, list(stage.parameters("student")))
        if gradient is None:
            continue
        judge = stage.actors.roles.get("fake_score", stage.actors.roles["teacher"])
        t = float(judge.seen[-1][1][0])
        goal = objective_gradient(plain.claims.objective, plain.config, _gaussian(laws), SCALE, SHIFT, t)
        found, wanted = (math.atan2(float(g[1]), float(g[0])) for g in (gradient, goal))
        error = abs((found - wanted + math.pi) % (2 * math.pi) - math.pi)
        if not error <= worst[2]:
            worst = (found, wanted, error)
    found, wanted, error = worst
    tolerance = 2e-2 if plain.claims.objective == "held" else 1e-4  # distances with a kink integrate slowly
    hint = (
        f"the expected gradient is not that of '{plain.claims.objective}': a detach, a weight inside, or a guided term"
    )
    name = f"descends {plain.claims.objective} [{phase}]"
    passed = error <= tolerance
    return LawResult(name, passed, found, wanted, max(error, 0.0), tolerance, "" if passed else hint)


def _gaussian(laws: Laws) -> GaussianTeacher:
    if not isinstance(laws.data, GaussianTeacher):
        raise TypeError("objectives are of Gaussian data")
    return laws.data


def fake_score_is_the_optimum(case: Case, phase: str) -> LawResult:
    """The expected gradient of the fake score's loss vanishes at the exact score of the student's samples."""
    laws, plan = line(case.process), case.plan()
    roles = {}
    if plan.mode == "deterministic" and getattr(case.config, "target", "") == "conditional":
        roles = {
            "student": LandingStudent(_gaussian(laws), plan.times),
            "fake_score": Actor(laws.data, usual_kind(case.process)),
        }
    return posterior_is_the_optimum(case, phase, "fake_score", Changes(roles))


def posterior_is_the_optimum(case: Case, phase: str, role: str, changes: Changes) -> LawResult:
    """The expected gradient of a denoising loss vanishes at the posterior mean."""
    errors = [0.0]
    for at in LEVELS:
        sizes = []
        for moved in (0.0, 0.1):
            stage = set_stage(case, line(case.process), changes)
            parameters = stage.parameters(role)
            with torch.no_grad():
                for parameter in parameters:
                    parameter.fill_(moved)
            gradient = expected(stage, phase, at, list(parameters))
            sizes.append(float("nan") if gradient is None else float(gradient.norm()))
        if not math.isnan(sizes[0]):
            errors.append(sizes[0] / max(sizes[1], 1e-30))
    hint = (
        f"the loss of phase '{phase}' is not least at the true score: a wrong target, time or noise, or a biased weight"
    )
    return judged(f"the true score is the optimum [{phase}]", max(errors), 0.0, case.claims.bias or 1e-6, hint)


def guidance_law(case: Case) -> list[LawResult]:
    """Return, per phase, whether guidance between two classes is that of the Gaussian of the guided mean."""
    strength = 3.0
    try:
        guided = case.plainly(guidance_scale=strength, guidance_max=None, sample_guidance=None)
    except UserError:  # a config that refuses guidance
        return []
    if not case.claims.guided or not hasattr(guided.config, "guidance_scale"):
        return []
    process, results = case.process, []
    means = torch.tensor([[MEAN], [-0.2]], dtype=torch.float64)
    pair = ClassPair(process, [1.0, 1.0], means, [STD, STD], classes=[(0,), (1,)])
    whole = GaussianTeacher(process, means[1] + strength * (means[0] - means[1]), STD)
    kind, laws = usual_kind(process), line(process)
    for phase in case.recipe.phases(guided.config):
        values = []
        for teacher in (pair, whole):
            rng = Rng.for_batch(0, case.step, SIZE)
            stage = set_stage(guided, laws, Changes({"teacher": Actor(teacher, kind)}))
            batch = make_batch(laws, rng)
            labelled = Batch(batch.size, {**batch.cond, "label": torch.zeros(batch.size, dtype=torch.long)}, batch.x0)
            values.append(stage.terms(phase.name, labelled, rng).detach())
        scale = float(values[1].abs().max())
        hint = (
            "guidance is not uncond + guidance_scale (cond - uncond); with cond + w (cond - uncond) the scale is w + 1"
        )
        error = float((values[0] - values[1]).abs().max()) / max(scale, 1e-30)
        results.append(judged(f"guidance convention [{phase.name}]", error, 0.0, 1e-7, hint))
    return results
