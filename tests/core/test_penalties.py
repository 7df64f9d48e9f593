"""What a domain's student has against itself joins the loss of the phases that train it, once a micro-batch."""

from __future__ import annotations

import pytest
import torch
from core.test_losses_in_parts import AtOnce, InParts, step, trainer_of

PULL = 0.125


def penalised(recipe_type, *overrides, weight=PULL):
    trainer, config = trainer_of(recipe_type, *overrides)
    actors = trainer.problem.actors
    student = actors.module("student")
    calls = []

    def penalties(rng):
        calls.append(rng.scope)
        return {"size": weight * sum(p.square().sum() for p in student.parameters())}

    actors.penalties = penalties
    return trainer, config, calls


@pytest.mark.parametrize("recipe_type", [AtOnce, InParts])
@pytest.mark.parametrize("micro", [9, 3])
def test_its_gradient_is_added_once(recipe_type, micro):
    overrides = ("train.batch=9", f"train.micro_batch={micro}", "optim.lr=0.01")
    trainer, config, _ = penalised(recipe_type, *overrides)
    before = {n: p.detach().clone() for n, p in trainer.problem.actors.module("student").named_parameters()}
    plain = step(*trainer_of(recipe_type, *overrides))
    found = step(trainer, config)
    for name, start in before.items():
        pulled = plain[f"student.{name}"] - 0.01 * PULL * 2 * start
        torch.testing.assert_close(found[f"student.{name}"], pulled, rtol=1e-10, atol=1e-12)


def test_phases_that_do_not_train_the_student_know_nothing_of_it():
    trainer, config, calls = penalised(AtOnce)
    training = ["student" in phase.trains for phase in trainer.recipe.phases(trainer.recipe.config)]
    assert set(training) == {True, False}
    step(trainer, config)
    assert len(calls) == sum(training)
