"""What training really takes on a CPU, from the profiler's own record of allocations."""

from __future__ import annotations

import gc

import torch
from torch.profiler import ProfilerActivity, profile

from fewstep.core.domain import Problem, find_domain
from fewstep.core.recipe import Recipe
from fewstep.core.recipes import find_recipe
from fewstep.core.training.config import load_config
from fewstep.core.training.feed import Feed
from fewstep.core.training.settings import RunConfig
from fewstep.core.training.trainer import Trainer
from fewstep.core.training.world import World


def config_of(*overrides: str) -> RunConfig:
    """The image domain's config with settings."""
    return load_config(None, overrides, domain=find_domain("image"))


def rise(profiled: profile) -> int:
    """The highest sum of allocations and frees since profiling began."""
    live = highest = 0
    memory = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(memory, key=lambda event: event.start_ns()):
        live += event.nbytes()
        highest = max(highest, live)
    return highest


def resident(trainer: Trainer) -> int:
    """The bytes of every storage that stays: weights, buffers, states of optimizers, averages."""
    modules = [*trainer.cast.modules.values()]
    modules += [module.network for module in modules if hasattr(module, "network")]
    tensors = [x for module in modules for x in (*module.parameters(), *module.buffers())]
    tensors += [x for runner in trainer.runners.values() for state in runner.optimizer.state.values()
                for x in state.values()]  # fmt: skip
    tensors += [x for ema in trainer.emas.values() for x in ema.averages()]
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())


def measured(config: RunConfig, problem: Problem | None = None, steps: int = 2) -> int:
    """The highest number of bytes in use during one step of training, the first of all steps excepted."""
    method = find_recipe(config.recipe_name)
    specs = method.role_specs(config.recipe)
    problem = problem or find_domain(config.domain_name).build(config.domain, specs, config.seed, "cpu")
    recipe: Recipe = method(config.recipe, problem.actors)
    world = World()
    trainer = Trainer(config, problem, recipe, world)
    with Feed(problem.data, config, world) as feed:
        batches = [problem.data.batch(feed.rng(step, "data"), world.device) for step in range(steps)]
        for step in range(steps - 1):
            trainer.step(batches[step], feed)
        gc.collect()
        held = resident(trainer)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            trainer.step(batches[-1], feed)
    return held + rise(profiled)
