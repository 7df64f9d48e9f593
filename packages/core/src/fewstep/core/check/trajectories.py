"""Laws of maps along trajectories: the exact map stays where it is, and samples with the law of the data."""

from __future__ import annotations

import itertools
import math

import torch

from fewstep.core.analytic import GaussianTeacher
from fewstep.core.check.cast import Actor, usual_kind
from fewstep.core.check.declarations import Map
from fewstep.core.check.draws import ImpulseRng
from fewstep.core.check.expectation import student_phases
from fewstep.core.check.oracles import Partway, exact_map
from fewstep.core.check.result import LawResult, judged
from fewstep.core.check.stage import MEAN, STD, Case, Changes, line, make_batch, null_condition, set_stage
from fewstep.core.denoiser import Denoiser
from fewstep.core.process import times
from fewstep.core.recipe import StepPlan
from fewstep.core.rng import Rng
from fewstep.core.sampling import sample_from
from fewstep.core.tensors import expand_to

SIZE = 512


def trajectory_laws(case: Case, lead: Map) -> list[LawResult]:
    """Return the laws of a student whose exact form is known."""
    plain = case.plainly()
    results = [law for phase in student_phases(case) for law in exact_student_rests(plain, phase, lead)]
    if lead != "two_steps":
        student = Partway(line(case.process).data, exact_map(lead, _law(case), plain.recipe, plain.config), 0.0)
        view = plain.recipe.student_view(plain.config, student)
        results += sampling_law(plain, view)
    return results


def _law(case: Case) -> GaussianTeacher:
    return GaussianTeacher(case.process, torch.tensor([MEAN], dtype=torch.float64), STD)


def exact_student_rests(case: Case, phase: str, lead: Map) -> list[LawResult]:
    """The gradient at the exact student is small beside that at the teacher, which is pulled towards the exact one."""
    exact, pulls = exact_map(lead, _law(case), case.recipe, case.config), []
    for share in (0.0, 1.0):
        laws = line(case.process)
        student = Partway(laws.data, exact, share)
        stage = set_stage(case, laws, Changes({"student": student}))
        rng = Rng.for_batch(0, case.step, SIZE)
        value = stage.terms(phase, make_batch(laws, rng), rng, claimed=True).mean()
        pulls.append(float(torch.autograd.grad(value, [student.share])[0]))
    size = max(abs(pulls[1]), 1e-30)
    hints = (
        "the exact map of the trajectories is no fixed point: times of the pair, the solver's step, or the boundary",
        "descent does not lead from the teacher to the exact map: a sign, or target and student exchanged",
    )
    return [
        judged(f"the exact map is at rest [{phase}]", abs(pulls[0]) / size, 0.0, case.claims.bias or 0.1, hints[0]),
        judged(f"the teacher is pulled to the exact map [{phase}]", math.copysign(1, pulls[1]), 1.0, 0.0, hints[1]),
    ]


def sampling_law(case: Case, student: Denoiser, least: tuple[int, ...] = (1, 4)) -> list[LawResult]:
    """Samples along the plan have the data's mean and spread, which an affine student shows without drawing any."""
    results = []
    for steps in least:
        for plan in itertools.islice(case.plans(range(steps, 257)), 1):
            mean, std = plan_moments(case, student, plan)
            hint = (
                "an exact student does not sample the data: the plan's times, mode or end are not those of its training"
            )
            name = f"of samples in {len(plan.times)} step(s)"
            results += [
                judged(f"mean {name}", mean, MEAN, 0.03, hint, STD),
                judged(f"spread {name}", std, STD, 0.03, hint, STD),
            ]
    return results


def plan_moments(case: Case, student: Denoiser, plan: StepPlan) -> tuple[float, float]:
    """Return mean and standard deviation of samples along a plan, from exact states, of a student affine in them."""
    size, law = 3 + len(plan.times), _law(case)
    noise = torch.zeros(size, 1, dtype=torch.float64)
    noise[1] = 1
    cond, t = null_condition(line(case.process), size), times(plan.times[0], size)
    c = case.process.coefficients(t)[:2]
    alpha, sigma = (expand_to(part, noise) for part in c)
    core = alpha * law.mean + (alpha**2 * law.std**2 + sigma**2).sqrt() * noise
    rng = ImpulseRng(0, 0, tuple(range(size)))
    with torch.no_grad():
        x = sample_from(student, plan, case.process.offset(core, t, cond.get("anchor"), sign=1.0), cond, rng)
    return float(x[0]), float((x[1:] - x[0]).norm())


def denoiser_sampling_law(case: Case) -> list[LawResult]:
    """An exact denoiser samples the data along the plan of many steps, where there is one."""
    return sampling_law(case, Actor(_law(case), usual_kind(case.process)), (200,))
