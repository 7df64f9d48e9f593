"""What only a GPU can show: bfloat16 training there, and that its numbers are the CPU's."""

from __future__ import annotations

import pytest
import torch
from core.memory_bed import load_benchmark
from torch.testing import assert_close

from fewstep.core.domain import Problem, find_domain
from fewstep.core.networks.adapters import AdapterView
from fewstep.core.planning.plan import plan
from fewstep.core.recipes import find_recipe
from fewstep.core.rng import Rng
from fewstep.core.training.config import load_config
from fewstep.core.training.feed import Feed
from fewstep.core.training.settings import RunConfig
from fewstep.core.training.trainer import Trainer
from fewstep.core.training.world import World

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
bench = load_benchmark()
TINY = ("domain.data.source=digits", "domain.data.caption=the digit {}", "train.batch=4", "train.steps=3")


def config_of(name: str, recipe: str, *overrides: str) -> RunConfig:
    settings = [f"domain.teacher=tiny:{name}", f"recipe.name={recipe}", *TINY, *overrides]
    return load_config(None, settings, domain=find_domain("image"))


def trained(config: RunConfig, steps: int = 3) -> tuple[Trainer, Problem]:
    """A trainer after some steps on the device."""
    recipe = find_recipe(config.recipe_name)
    problem = find_domain("image").build(config.domain, recipe.role_specs(config.recipe), config.seed, DEVICE)
    world = World()
    trainer = Trainer(config, problem, recipe(config.recipe, problem.actors), world)
    with Feed(problem.data, config, world) as feed:
        for step in range(steps):
            trainer.step(feed.get(step), feed)
    return trainer, problem


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "pixart", "sana"])
def test_lora_roles_train_in_bfloat16(name):
    config = config_of(
        name,
        "dmd2",
        "recipe.fake_updates=1",
        "domain.model.dtype=bf16",
        "domain.roles.mode=lora",
        "train.precision=bf16",
    )
    trainer, problem = trained(config)
    view = problem.actors.roles["student"].backbone
    assert isinstance(view, AdapterView)
    assert {p.dtype for p in view.parameters()} == {torch.float32}
    assert all(bool(p.isfinite().all()) for p in view.parameters())
    assert any(bool(p.any()) for n, p in view.named_parameters() if "lora_B" in n), "nothing was learnt"
    assert trainer.bad_updates == 0


@pytest.mark.parametrize("recipe", ["dmd2", "tdm", "consistency"])
def test_the_numbers_are_the_cpus(recipe):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    config = config_of("sd", recipe, "domain.roles.mode=lora")
    method = find_recipe(recipe)
    found: dict[str, dict[str, torch.Tensor]] = {}
    for device in ("cpu", DEVICE):
        problem = find_domain("image").build(config.domain, method.role_specs(config.recipe), 0, device)
        made = method(config.recipe, problem.actors)
        rng = Rng(0, 0, tuple(range(4)), "", device, 4)
        terms = made.loss("student", problem.data.batch(rng, device), rng, 0)
        terms.total().sum().backward()
        gradients = [p.grad for p in problem.actors.module("student").parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        found[device] = {"norm": norm.cpu()} | {name: value.detach().cpu() for name, value in terms.terms.items()}
    for name, value in found["cpu"].items():
        assert_close(found[DEVICE][name], value, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("name", ["dmd2, LoRA", "dmd2, LoRA, guidance", "fine-tuning, full"])
def test_the_plan_is_what_the_allocator_sees(name):
    network = bench.NETWORKS["sd"]
    config = bench.settings(["train.batch=2", "train.precision=bf16", *bench.CASES[name]])
    predicted = plan(config, build=lambda world: bench.make_problem(network, config, world.device)).peak
    took = bench.measured(config, *bench.make_problem(network, config, torch.device(DEVICE)))
    assert abs(predicted / took - 1) < 0.1, f"planned {predicted / 2**20:.0f} MiB, took {took / 2**20:.0f} MiB"
