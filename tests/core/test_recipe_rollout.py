"""The grammar of a student's times, and how generator recipes make samples."""

from __future__ import annotations

import pytest
import torch

from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import UserError
from fewstep.core.grids import time_grid
from fewstep.core.prediction import Kind, Prediction
from fewstep.core.process import EDM, VP, RectifiedFlow, TrigFlow
from fewstep.core.recipe import Actors, Batch, Phase
from fewstep.core.recipes.rollout import StudentConfig, student_plan, student_sample, time_of_fraction
from fewstep.core.rng import Rng
from fewstep.core.sampling import run_plan


class Recorder(Denoiser):
    """Predicts ``gain * x_t`` as x0 and keeps what it was asked."""

    def __init__(self, process, gain=0.5):
        self.process, self.asked = process, []
        self.gain = torch.tensor(gain, requires_grad=True)

    def predict(self, x_t, t, cond):
        self.asked.append((x_t.detach().clone(), t.clone(), torch.is_grad_enabled()))
        return Prediction(self.gain * x_t, Kind.X0)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("process", [VP.linear(), EDM(), RectifiedFlow(shift=3.0), TrigFlow()])
def test_the_default_grid_is_the_trailing_one(process, steps):
    grid = StudentConfig(student_steps=steps).grid(process)
    assert grid == pytest.approx(time_grid(process, steps, "trailing"), abs=1e-12)


def test_times_of_published_students():
    process = VP.scaled_linear()
    assert time_of_fraction(process, (1.0, 0.75, 0.5, 0.25)) == (999, 749, 499, 249)  # DMD2, SDXL, four steps
    assert StudentConfig(student_steps=4, student_start=0.9).grid(process) == (899, 674, 449, 224)  # TDM
    assert StudentConfig(student_times=(0.626,)).grid(process) == (625,)  # SiD-LSG
    assert StudentConfig(student_times=(0.4,)).grid(process) == (399,)  # DMD2, SDXL, one step
    assert StudentConfig(student_start=0.5).grid(EDM()) == pytest.approx((2.515,), abs=1e-3)  # SiD


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"student_steps": 0}, "at least 1"),
        ({"student_start": 1.5}, "student_start"),
        ({"student_times": (0.5, 0.75)}, "must fall"),
        ({"student_times": (1.2,)}, "fractions"),
        ({"student_steps": 3, "student_times": (1.0, 0.5)}, "give one of the two"),
    ],
)
def test_bad_times_are_refused(given, said):
    with pytest.raises(UserError, match=said):
        StudentConfig(**given)


def test_times_that_coincide_on_a_short_table_are_refused():
    with pytest.raises(UserError, match="too few noise levels"):
        StudentConfig(student_steps=8).grid(VP.linear(4))


def test_a_plan_is_only_given_for_the_steps_trained_for():
    config = StudentConfig(student_steps=4)
    assert student_plan("dmd2", config, VP.linear(), 4).times == (999, 749, 499, 249)
    with pytest.raises(UserError, match="made for 4"):
        student_plan("dmd2", config, VP.linear(), 2)


def test_the_first_step_takes_pure_noise_and_one_call():
    process = EDM()
    student = Recorder(process)
    actors = Actors({"student": student}, process, (3,))
    rng = Rng.for_batch(0, 0, 5)
    sample = student_sample(actors, StudentConfig(), Batch(5), rng, grad=True)
    ((x, t, grad),) = student.asked
    torch.testing.assert_close(x, 80 * rng.normal("student/noise", (3,)))
    assert t.tolist() == [80.0] * 5
    assert grad
    assert sample.x0.requires_grad


def test_simulation_stops_at_the_drawn_step_and_matches_sampling():
    """The training input at step j is what sampling sees there; later steps are never run."""
    process = VP.linear()
    config = StudentConfig(student_steps=4)
    plan = student_plan("dmd2", config, process, 4)
    seen = set()
    for step in range(12):
        student = Recorder(process)
        actors = Actors({"student": student}, process, (3,))
        rng = Rng.for_batch(0, step, 5)
        student_sample(actors, config, Batch(5), rng, grad=True)
        index = rng.shared_integer("student/index", 4)
        seen.add(index)
        assert [int(t[0]) for _, t, _ in student.asked] == [int(t) for t in plan.times[: index + 1]]
        assert [grad for _, _, grad in student.asked] == [False] * index + [True]
        assert len({x.numpy().tobytes() for x, _, _ in student.asked}) == index + 1
    assert seen == {0, 1, 2, 3}
    sampled = Recorder(process)
    run_plan(sampled, plan, torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), {}, Rng.for_batch(0, 0, 5))
    assert [int(t[0]) for _, t, _ in sampled.asked] == [int(t) for t in plan.times]


def test_without_simulation_later_inputs_are_noised_data():
    process = VP.linear()
    config = StudentConfig(student_steps=4)
    x0 = torch.full((5, 3), 2.0)
    step = next(s for s in range(50) if Rng.for_batch(0, s, 5).shared_integer("student/index", 4) == 3)
    student = Recorder(process)
    actors = Actors({"student": student}, process, (3,))
    rng = Rng.for_batch(0, step, 5)
    student_sample(actors, config, Batch(5, x0=x0), rng, grad=False, simulate=False)
    ((x, t, grad),) = student.asked
    assert t.tolist() == [249.0] * 5
    assert not grad
    c = process.coefficients(t)
    eps = (x - c.alpha[:, None].float() * 2) / c.sigma[:, None].float()
    assert abs(eps.mean().item()) < 1.0
    with pytest.raises(UserError, match="clean samples"):
        student_sample(actors, config, Batch(5), rng, grad=False, simulate=False)


def test_micro_batches_see_the_samples_of_the_whole_batch():
    process = VP.linear()
    config = StudentConfig(student_steps=3)
    actors = Actors({"student": Recorder(process)}, process, (3,))
    rng = Rng.for_batch(0, 7, 6)
    whole = student_sample(actors, config, Batch(6), rng, grad=False).x0
    parts = [student_sample(actors, config, Batch(3), rng.select(i, i + 3), grad=False).x0 for i in (0, 3)]
    assert torch.equal(whole, torch.cat(parts))


def test_a_domain_may_make_the_samples_itself():
    scene = torch.ones(2, 3, requires_grad=True)
    actors = Actors({}, EDM(), (3,), generate=lambda batch, rng: (2 * scene, {"view": torch.zeros(2)}))
    sample = student_sample(actors, StudentConfig(), Batch(2), Rng.for_batch(0, 0, 2), grad=True)
    sample.x0.sum().backward()
    assert torch.equal(scene.grad, torch.full((2, 3), 2.0))
    assert set(sample.cond) == {"view"}
    detached = student_sample(actors, StudentConfig(), Batch(2), Rng.for_batch(0, 0, 2), grad=False)
    assert not detached.x0.requires_grad


def test_phases_that_alternate():
    fake = Phase("fake_score", ("fake_score",), skip=5)
    student = Phase("student", ("student",), every=5)
    due = [(fake.due(s), student.due(s)) for s in range(20)]
    assert sum(a for a, _ in due) == 16
    assert sum(b for _, b in due) == 4
    assert all(a != b for a, b in due)
