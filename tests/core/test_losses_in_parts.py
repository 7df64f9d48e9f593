"""Phases with several losses: their gradients add up, and no two of their graphs are in memory at once."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import pytest
import torch
from core.runs import build, config_of
from core.toys import ToyRecipe

from fewstep.core.errors import UserError
from fewstep.core.recipe import LossTerms
from fewstep.core.training.feed import Feed
from fewstep.core.training.phases import PhaseRunner
from fewstep.core.training.trainer import Trainer
from fewstep.core.training.world import World

DOUBLE = ("domain.dtype=float64", "optim.name=sgd", "optim.lr=0.5")
WEIGHTS = (0.25, 0.5, 1.5)


class InParts(ToyRecipe):
    """The toy's loss three times, weighted; the second and third of other randomness."""

    def parts(self, phase, batch, rng, step) -> Iterator[LossTerms]:
        for index, weight in enumerate(WEIGHTS):
            terms = ToyRecipe.loss(self, phase, batch, rng.fork(str(index)), step).terms
            yield LossTerms(terms, dict.fromkeys(terms, weight), more=index + 1 < len(WEIGHTS))

    def loss(self, phase, batch, rng, step):
        found = list(self.parts(phase, batch, rng, step))
        return LossTerms({str(i): terms.total() for i, terms in enumerate(found)})

    def losses(self, phase, batch, rng, step):
        yield from self.parts(phase, batch, rng, step)


class AtOnce(InParts):
    """The same as one loss."""

    def losses(self, phase, batch, rng, step):
        yield self.loss(phase, batch, rng, step)


def trainer_of(recipe_type, *overrides):
    config = config_of(*DOUBLE, *overrides)
    problem, _ = build(config)
    return Trainer(config, problem, recipe_type(config.recipe, problem.actors), World()), config


def step(trainer, config) -> dict[str, torch.Tensor]:
    with Feed(trainer.problem.data, config, World()) as feed:
        trainer.step(feed.get(0), feed)
    return {f"{role}.{n}": p.detach() for role, m in trainer.cast.modules.items() for n, p in m.named_parameters()}


@pytest.mark.parametrize("micro", ["train.micro_batch=8", "train.micro_batch=3"])
def test_gradients_of_the_parts_are_those_of_their_sum(micro):
    overrides = ("train.batch=9", "train.micro_batch=3") if micro.endswith("3") else (micro,)
    parts, whole = (step(*trainer_of(kind, *overrides)) for kind in (InParts, AtOnce))
    assert parts.keys() == whole.keys()
    for name in parts:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-12, atol=1e-14)


def test_the_toy_moves_at_all_in_that_test():
    before = {f"{r}.{n}": p.detach().clone() for r, m in trainer_of(InParts)[0].cast.modules.items()
              for n, p in m.named_parameters()}  # fmt: skip
    after = step(*trainer_of(InParts))
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_each_graph_is_gone_before_the_next_loss_is_made():
    alive: list[weakref.ref[torch.Tensor]] = []

    class Watched(InParts):
        def losses(self, phase, batch, rng, step):
            for index in range(3):
                assert all(ref() is None for ref in alive)
                terms = ToyRecipe.loss(self, phase, batch, rng.fork(str(index)), step).terms
                alive.extend(weakref.ref(value) for value in terms.values())
                made = LossTerms(terms, more=index < 2)
                del terms
                yield made
                del made

    step(*trainer_of(Watched))
    assert len(alive) >= 3


def test_numbers_reported_are_means_over_the_parts():
    trainer, config = trainer_of(InParts)
    with Feed(trainer.problem.data, config, World()) as feed:
        batch, phase = feed.get(0), trainer.phases[0].name
        rng = feed.rng(0, phase)
        with torch.no_grad():
            made = [ToyRecipe.loss(trainer.recipe, phase, batch, rng.fork(str(i)), 0).terms for i in range(3)]
        update = trainer.runners[phase].run(batch, rng, 0)
    for name in made[0]:
        mean = torch.stack([terms[name].mean() for terms in made]).mean().item()
        assert update.values[f"loss/{phase}/{name}"] == pytest.approx(mean, rel=1e-6)


def test_only_the_last_backward_of_an_update_says_so():
    trainer, config = trainer_of(InParts, "train.batch=8", "train.micro_batch=4")
    runner: PhaseRunner = trainer.runners[trainer.phases[0].name]
    said: list[bool] = []
    backward = runner.stepper.backward
    runner.stepper.backward = lambda loss, last: (said.append(last), backward(loss, last))[1]  # type: ignore[method-assign]
    step(trainer, config)
    assert said == [False] * 5 + [True]


@pytest.mark.parametrize(("flags", "words"), [((), "no losses"), ((True,), "end after"), ((False, False), "go on")])
def test_a_recipe_that_miscounts_its_losses_is_told(flags, words):
    class Miscounting(InParts):
        def losses(self, phase, batch, rng, step):
            for more in flags:
                yield LossTerms(ToyRecipe.loss(self, phase, batch, rng, step).terms, more=more)

    with pytest.raises(UserError, match=words):
        step(*trainer_of(Miscounting))
