"""Laws of how a recipe behaves as code: gradients go where phases say, numbers are functions of the generator."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fewstep.core.check.cast import Actor
from fewstep.core.check.draws import LevelRng
from fewstep.core.check.result import LawResult, judged
from fewstep.core.check.stage import Case, Changes, Stage, make_batch, plane, set_stage
from fewstep.core.prediction import Kind
from fewstep.core.recipe import Phase
from fewstep.core.rng import Rng

SIZE = 6
EDGE = 1e-6
"""How far from the ends of a law of noise levels a draw may come once in a million samples."""


def conduct_laws(case: Case) -> list[LawResult]:
    """Return the laws that hold for any recipe, on a labelled mixture of two numbers per sample."""
    phases = case.recipe.phases(case.config)
    results = [one_value_per_sample(case, phase) for phase in phases]
    if not all(result.passed for result in results):  # the others are about these values
        return results
    for phase in phases:
        results += [
            gradients_reach_their_roles(case, phase),
            *randomness_is_the_generator_s(case, phase),
            pieces_are_the_whole(case, phase),
            kinds_do_not_matter(case, phase),
            ends_are_finite(case, phase),
        ]
    return results


def loss_of(case: Case, phase: Phase, rng: Rng, stage: Stage | None = None) -> Tensor:
    """Return the phase's loss per sample, on a fresh stage unless one is given."""
    laws = plane(case.process)
    stage = stage or set_stage(case, laws)
    return stage.terms(phase.name, make_batch(laws, rng), rng)


def one_value_per_sample(case: Case, phase: Phase) -> LawResult:
    """The loss of a batch is one number per sample."""
    value = loss_of(case, phase, Rng.for_batch(0, case.step, SIZE))
    size = float(len(value)) if value.ndim == 1 else math.nan
    hint = f"a loss has the shape (batch,), got {tuple(value.shape)}: take means per sample, the loop that of the batch"
    return judged(f"one value per sample [{phase.name}]", size, float(SIZE), 0.0, hint)


def gradients_reach_their_roles(case: Case, phase: Phase) -> LawResult:
    """Every role the phase trains gets a gradient that is finite and not zero."""
    stage = set_stage(case, plane(case.process))
    value = loss_of(case, phase, Rng.for_batch(0, case.step, SIZE), stage)
    parameters = {role: stage.parameters(role) for role in phase.trains}
    flat = [p for each in parameters.values() for p in each]
    found: dict[int, Tensor] = {}
    if value.requires_grad:
        grads = torch.autograd.grad(value.mean(), flat, allow_unused=True)
        found = {id(p): g for p, g in zip(flat, grads, strict=True) if g is not None}
    missing = [
        role
        for role, each in parameters.items()
        if not 0 < sum(float(found[id(p)].abs().sum()) for p in each if id(p) in found) < math.inf
    ]
    hint = f"phase '{phase.name}' trains {', '.join(missing)} but no usable gradient gets there: a detach too many?"
    return judged(f"gradients reach the trained roles [{phase.name}]", float(len(missing)), 0.0, 0.0, hint)


def randomness_is_the_generator_s(case: Case, phase: Phase) -> list[LawResult]:
    """The same generator gives the same loss, another step another one, and torch's own generator is not touched."""
    stages = [set_stage(case, plane(case.process)) for _ in range(3)]
    before = torch.get_rng_state()
    first, again, other = (
        loss_of(case, phase, Rng.for_batch(0, step, SIZE), stage).detach()
        for step, stage in zip((3, 3, 4), stages, strict=True)
    )
    touched = not torch.equal(before, torch.get_rng_state())
    repeated = float((first - again).abs().max()) if first.shape == again.shape else math.inf
    stale = float(first.equal(other))
    hints = (
        "the loss differs between two calls with the same rng: some number does not come from it",
        "the loss does not change with the step's noise: draw from the rng of the call, not once",
        "torch's global generator was used: draw from rng, and run dropout under rng.network_noise",
    )
    numbers = (repeated, stale, float(touched))
    names = ("same generator, same loss", "another step, other noise", "global generator untouched")
    return [
        judged(f"{name} [{phase.name}]", value, 0.0, 0.0, hint)
        for name, value, hint in zip(names, numbers, hints, strict=True)
    ]


def pieces_are_the_whole(case: Case, phase: Phase) -> LawResult:
    """Every sample's loss is the same in a micro-batch."""
    rng, laws = Rng.for_batch(0, 3, SIZE), plane(case.process)
    batch = make_batch(laws, rng)
    whole = loss_of(case, phase, rng).detach()
    cuts = ((0, 1), (1, 4), (4, SIZE))
    pieces = [set_stage(case, laws).terms(phase.name, batch.select(*cut), rng.select(*cut)).detach() for cut in cuts]
    hint = "a sample's loss depends on the others of its micro-batch: take means per sample, draw by rng, not by shape"
    error = float((torch.cat(pieces) - whole).abs().max() / whole.abs().max())
    return judged(f"pieces of a batch are the whole [{phase.name}]", error, 0.0, 1e-9, hint)


def kinds_do_not_matter(case: Case, phase: Phase) -> LawResult:
    """The loss is the same whatever networks that the phase does not train predict: x0, eps, v, flow, score."""
    rng = Rng.for_batch(0, case.step, SIZE)
    usable = list(Kind)
    end = case.process.coefficients(torch.tensor([case.process.t_max], dtype=torch.float64))
    if end.alpha.item() < 1e-3:  # these say nothing of x0 there
        usable = [kind for kind in usable if kind not in (Kind.EPS, Kind.SCORE)]
    if case.process.has_anchor:  # its velocity is infinite at the least noise
        usable.remove(Kind.VELOCITY)
    values = []
    for kind in usable:
        stage = set_stage(case, plane(case.process))
        for name, role in stage.actors.roles.items():
            if isinstance(role, Actor) and name not in phase.trains:
                role.kind = kind
        values.append(loss_of(case, phase, rng, stage).detach())
    spread = max(float((value - values[0]).abs().max()) for value in values)
    hint = (
        "the loss depends on what the teacher's network predicts: ask denoisers for x0, eps or score, never predict()"
    )
    scale = max(float(values[0].abs().max()), 1e-30)
    return judged(f"parameterisation does not matter [{phase.name}]", spread / scale, 0.0, 1e-7, hint)


def ends_are_finite(case: Case, phase: Phase) -> LawResult:
    """Losses and gradients are finite in float32 at both ends of every law of noise levels."""
    laws, bad = plane(case.process), 0
    for u, level in ((EDGE, -5.0), (1 - EDGE, 5.0)):
        stage = set_stage(case, laws, Changes(dtype=torch.float32))
        rng = LevelRng(0, case.step, tuple(range(SIZE)), u=u, level=level)
        value = stage.terms(phase.name, make_batch(laws, rng, torch.float32), rng)
        roles = [r for n, r in stage.actors.roles.items() if n in phase.trains and isinstance(r, nn.Module)]
        parameters = [p for role in roles for p in role.parameters()]
        gradients = torch.autograd.grad(value.sum(), parameters, allow_unused=True) if value.requires_grad else ()
        bad += sum(int((~x.isfinite()).sum()) for x in (value, *gradients) if x is not None)
    hint = "a weight is infinite where alpha or sigma vanishes: narrow the time law (low, high), or clamp the weight"
    return judged(f"finite at both ends [{phase.name}]", float(bad), 0.0, 0.0, hint)
