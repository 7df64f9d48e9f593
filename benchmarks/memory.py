"""What distillation takes in memory beyond plain LoRA fine-tuning of the same base, measured and planned.

    python benchmarks/memory.py [--network small|sd] [--batch 8] [--precision fp32] [--planned-only]

DMD2 has three roles: a student, a fake score and a teacher. As LoRA adapters over one base they should cost little more
than one adapter does: the ratio of the peaks is at most 1.20. The floor is 1.00: the weights of the base and the graph
of one forward are needed either way. Beyond it are a second adapter with its gradients and optimizer state, and what
evaluations without gradient take while the student's graph is held: one block's activations at the full batch, at twice
the batch under guidance. Full copies of every role are there for comparison.

On a CPU the peak is that of the profiler's record of allocations; on a GPU, ``torch.cuda.max_memory_allocated``.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from fewstep.core.denoiser import NetworkDenoiser, Plain
from fewstep.core.domain import Problem, find_domain
from fewstep.core.models.backbone import PipelineBackbone
from fewstep.core.models.sd import StableDiffusion
from fewstep.core.networks.roles import RolesConfig, build_roles
from fewstep.core.planning.plan import plan
from fewstep.core.prediction import Kind
from fewstep.core.process import VP
from fewstep.core.recipe import Actors, Batch, Recipe
from fewstep.core.recipes import find_recipe
from fewstep.core.rng import Rng
from fewstep.core.training.config import load_config
from fewstep.core.training.feed import Feed
from fewstep.core.training.settings import RunConfig
from fewstep.core.training.trainer import Trainer
from fewstep.core.training.world import World

LIMIT = 1.20
TOKENS = 77
COMMON: dict[str, Any] = {"in_channels": 4, "out_channels": 4}
NETWORKS: dict[str, dict[str, Any]] = {
    "small": COMMON
    | {
        "sample_size": 16,
        "block_out_channels": (64, 128),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 64,
        "attention_head_dim": 4,
    },
    "sd": COMMON | {"sample_size": 64, "cross_attention_dim": 768},  # Stable Diffusion 1.5: diffusers' own defaults
}
LORA = ["domain.roles.mode=lora", "domain.roles.rank=16"]
DMD2 = ["recipe.name=dmd2", "recipe.fake_updates=1"]
CASES: dict[str, list[str]] = {
    "fine-tuning, LoRA": ["recipe.name=diffusion", "recipe.init=teacher", *LORA],
    "dmd2, LoRA": [*DMD2, *LORA],
    "dmd2, LoRA, guidance": [*DMD2, *LORA, "recipe.guidance_scale=4"],
    "fine-tuning, full": ["recipe.name=diffusion", "recipe.init=teacher"],
    "dmd2, full": DMD2,
}


class RandomLatents:
    """Latents of noise under conditions of noise: memory does not depend on values."""

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        self.shape, self.width = shape, width

    def __len__(self) -> int:
        """Return 0: there is no end to it."""
        return 0

    def batch(self, rng: Rng, device: torch.device | str) -> Batch:
        """Return latents and prompt embeddings."""
        prompts = rng.normal("prompt", (TOKENS, self.width)).to(device)
        return Batch(len(rng.ids), {"prompt_embeds": prompts}, rng.normal("x0", self.shape).to(device), device)


def make_problem(network: dict[str, Any], config: RunConfig, device: torch.device) -> tuple[Problem, Recipe]:
    """Return a problem whose teacher is an untrained ``UNet2DConditionModel``, and the recipe on it."""
    from diffusers import UNet2DConditionModel

    with torch.device(device):
        unet = UNet2DConditionModel(**network)
    null = {"prompt_embeds": torch.zeros(1, TOKENS, network["cross_attention_dim"], device=device)}
    process = VP.scaled_linear()
    teacher = NetworkDenoiser(PipelineBackbone(unet, StableDiffusion(), null), process, Plain(Kind.V))
    method = find_recipe(config.recipe_name)
    shape = (4, network["sample_size"], network["sample_size"])
    roles_config: RolesConfig = config.domain.roles
    roles = build_roles(teacher, method.role_specs(config.recipe), roles_config, 0, shape=shape, cond=null)
    for role in roles.values():
        (role.backbone if isinstance(role, NetworkDenoiser) else role).to(device)  # type: ignore[union-attr]
    actors = Actors(dict(roles), process, shape)
    data = RandomLatents(shape, network["cross_attention_dim"])
    nothing: Callable[..., Any] = lambda *_: {}  # noqa: E731
    return Problem(actors, data, nothing, nothing, nothing, nothing), method(config.recipe, actors)


def settings(overrides: list[str]) -> RunConfig:
    """Return a config with overrides; its domain serves for the settings of roles only."""
    return load_config(None, ["train.steps=2", "train.ema.kind=none", *overrides], domain=find_domain("image"))


def rise(profiled: profile) -> int:
    """Return the highest sum of allocations and frees since profiling began."""
    live = highest = 0
    record: Any = profiled.profiler
    memory = [event for event in record.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(memory, key=lambda event: event.start_ns()):
        live += event.nbytes()
        highest = max(highest, live)
    return highest


def resident(trainer: Trainer) -> int:
    """Return the bytes of every storage that stays: weights, buffers, states of optimizers, averages."""
    modules = list(trainer.cast.modules.values())
    modules += [module.network for module in modules if hasattr(module, "network")]
    tensors = [x for module in modules for x in (*module.parameters(), *module.buffers())]
    for runner in trainer.runners.values():
        tensors += [x for state in runner.optimizer.state.values() for x in state.values()]
    tensors += [x for ema in trainer.emas.values() for x in ema.averages()]
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())


def measured(config: RunConfig, problem: Problem, recipe: Recipe) -> int:
    """Return the highest number of bytes in use during the second step of training."""
    world = World()
    trainer, cuda = Trainer(config, problem, recipe, world), world.device.type == "cuda"
    with Feed(problem.data, config, world) as feed:
        batches = [problem.data.batch(feed.rng(step, "data"), world.device) for step in range(2)]
        trainer.step(batches[0], feed)
        gc.collect()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
            trainer.step(batches[1], feed)
            return int(torch.cuda.max_memory_allocated())
        held = resident(trainer) + sum(x.nbytes for b in batches for x in (b.x0, *b.cond.values()) if x is not None)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            trainer.step(batches[1], feed)
    return held + rise(profiled)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", choices=tuple(NETWORKS), default="small")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--planned-only", action="store_true", help="for networks this machine has no room for")
    args = parser.parse_args()
    network, device = NETWORKS[args.network], World().device
    given = [f"train.batch={args.batch}", f"train.precision={args.precision}"]
    given += ["domain.roles.checkpointing=true"] if args.checkpointing else []
    print(f"{args.network} U-Net, batch {args.batch}, {args.precision}, {device.type}; floor 1.00, limit {LIMIT:.2f}")
    print(f"{'':22} {'planned MiB':>12} {'ratio':>6} {'measured MiB':>13} {'ratio':>6} {'plan / measured':>16}")
    first: tuple[float, float] | None = None
    for name, overrides in CASES.items():
        config = settings([*given, *overrides])
        planned = plan(config, build=lambda world, c=config: make_problem(network, c, world.device)).peak / 2**20
        found = planned if args.planned_only else measured(config, *make_problem(network, config, device)) / 2**20
        first = first or (planned, found)
        ratios = planned / first[0], found / first[1]
        seen = (
            f"{'':13} {'':6} {'':16}"
            if args.planned_only
            else f"{found:13.1f} {ratios[1]:6.3f} {planned / found:16.3f}"
        )
        above = "  above the limit" if "LoRA" in name and max(ratios) > LIMIT else ""
        print(f"{name:22} {planned:12.1f} {ratios[0]:6.3f} {seen}{above}")
        gc.collect()


if __name__ == "__main__":
    main()
