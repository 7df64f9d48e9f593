"""A training step at real model sizes: seconds, memory, share of the device's arithmetic, overhead over bare passes.

    python benchmarks/real_models.py [--models sd15 sdxl] [--recipes dmd2 tdm] [--batch 4] [--micro 1] [--rounds 5]

Networks have random weights of the real architectures and see random latents and embeddings: neither speed nor memory
depends on values. Roles are LoRA adapters (rank 64) over one frozen bfloat16 base; text encoders and autoencoder are
not loaded, as in training from prepared data. ``peak`` is what the allocator held at most, ``reserved`` what it took
from the device. ``share``: arithmetic of the step (counted by torch, recomputation included) per second, over that of a
large bfloat16 matrix product measured here: 1 would be the floor of the time. ``overhead``: the full step over a replay
of its network passes and optimizer updates alone (see step_overhead.py), 1.00 the floor.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from step_overhead import bare_step, record, synchronize
from torch.utils.flop_counter import FlopCounterMode

from fewstep.core.denoiser import Cond, NetworkDenoiser, Plain
from fewstep.core.domain import Problem
from fewstep.core.models.backbone import PipelineBackbone
from fewstep.core.models.table import find_family
from fewstep.core.networks.roles import RolesConfig, build_roles
from fewstep.core.prediction import Kind
from fewstep.core.process import VP
from fewstep.core.recipe import Actors, Batch
from fewstep.core.recipes import find_recipe
from fewstep.core.rng import Rng
from fewstep.core.training.feed import Feed
from fewstep.core.training.settings import EMAConfig, OptimConfig, RunConfig, TrainConfig
from fewstep.core.training.trainer import Trainer
from fewstep.core.training.world import World

GIB = 2**30
SDXL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD15: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
SMALL: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (64, 128),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 64,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {"sd15": ("sd", SD15), "sdxl": ("sdxl", SDXL), "small": ("sd", SMALL)}


class Noise:
    """Random latents and embeddings, the same at every step."""

    def __init__(self, shape: tuple[int, ...], row: Cond) -> None:
        self.shape, self.row = shape, row

    def __len__(self) -> int:
        return 0

    def batch(self, rng: Rng, device: torch.device | str) -> Batch:
        """Return clean samples and a condition."""
        n = len(rng.ids)
        cond = {name: value.expand(n, *value.shape[1:]).to(device) for name, value in self.row.items()}
        return Batch(n, cond, torch.ones(n, *self.shape, device=device), device)


def condition(config: dict[str, Any]) -> Cond:
    """Return one row of a condition of the sizes a real text encoder gives."""
    cond = {"prompt_embeds": torch.randn(1, 77, config["cross_attention_dim"])}
    if config.get("addition_embed_type"):
        cond["text_embeds"] = torch.randn(1, 1280)
        cond["time_ids"] = torch.tensor([[1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0]])
    return cond


def make_trainer(model: str, recipe: str, args: argparse.Namespace, world: World) -> tuple[Trainer, Problem]:
    """Return a trainer of a recipe whose LoRA roles share one frozen base of a real size."""
    from diffusers import UNet2DConditionModel

    name, config = MODELS[model]
    half = torch.bfloat16 if world.device.type == "cuda" else torch.float32
    with torch.device(world.device):
        unet = UNet2DConditionModel(**config).to(half)
    shape, row = (4, config["sample_size"], config["sample_size"]), condition(config)
    method = find_recipe(recipe)
    often = {"fake_updates": 1} if recipe == "dmd2" else {}  # every phase at every step
    chosen = method.config_type(guidance_scale=7.5, **often)
    backbone = PipelineBackbone(unet, find_family(name), row)
    teacher = NetworkDenoiser(backbone, VP.scaled_linear(), Plain(Kind.EPS))
    settings = RolesConfig(mode="lora", rank=64, checkpointing=not args.no_checkpointing)
    roles = build_roles(teacher, method.role_specs(chosen), settings, 0, shape=shape, cond=row)
    for role in roles.values():
        (role.backbone if isinstance(role, NetworkDenoiser) else role).to(world.device)
    train = TrainConfig(
        steps=10**6,
        batch=args.batch,
        micro_batch=args.micro or "auto",
        precision="bf16" if world.device.type == "cuda" else "fp32",
        ema=EMAConfig(kind="none"),
    )
    run = RunConfig(
        name=model, seed=0, recipe_name=recipe, recipe=chosen, domain_name="image", domain=None, train=train,
        optim=OptimConfig(lr=1e-6),
    )  # fmt: skip
    actors = Actors(dict(roles), teacher.process, shape)
    problem = Problem(
        actors, Noise(shape, row), lambda n, seed: {}, lambda x, c: {}, lambda rows, stem: stem, lambda *a: None
    )
    return Trainer(run, problem, method(chosen, actors), world), problem


def peak_arithmetic(device: torch.device) -> float:
    """Return operations per second of a large matrix product in the dtype training runs in."""
    cuda = device.type == "cuda"
    size, dtype = (8192, torch.bfloat16) if cuda else (1024, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        if cuda:
            torch.cuda.synchronize()
        since = time.perf_counter()
        a @ b
        if cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - since)
    return 2 * size**3 / best


def measure(model: str, recipe: str, args: argparse.Namespace, peak: float) -> dict[str, Any]:
    """Return one row of the table."""
    world = World()
    cuda = world.device.type == "cuda"
    trainer, problem = make_trainer(model, recipe, args, world)
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    clock: Callable[[], float] = time.perf_counter
    full, bare = [], []
    with Feed(problem.data, trainer.config, world) as feed:

        def step() -> None:
            trainer.step(feed.get(trainer.step_count), feed)

        step()
        step()
        memory = (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()) if cuda else (0, 0)
        with FlopCounterMode(display=False) as counter:
            step()
        calls = record(trainer, feed)
        for _ in range(args.rounds):
            synchronize(world)
            since = clock()
            step()
            synchronize(world)
            full.append(clock() - since)
            bare.append(bare_step(trainer, calls, clock))
    parameters = sum(p.numel() for p in trainer.problem.actors.module("teacher").network.parameters())
    trained = sum(p.numel() for _, p in trainer.runners["student"].named)
    return {
        "model": model,
        "recipe": recipe,
        "base M": (parameters - 2 * trained) / 1e6,
        "LoRA M": trained / 1e6,
        "s/step": min(full),
        "peak GiB": memory[0] / GIB,
        "reserved GiB": memory[1] / GIB,
        "share": counter.get_total_flops() / min(full) / peak,
        "overhead": min(full) / min(bare),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["sd15", "sdxl"], choices=list(MODELS))
    parser.add_argument("--recipes", nargs="+", default=["dmd2", "tdm"])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--micro", type=int, default=0, help="samples at once (0: all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-checkpointing", action="store_true")
    args = parser.parse_args()
    world = World()
    where = torch.cuda.get_device_name() if world.device.type == "cuda" else "CPU"
    peak = peak_arithmetic(world.device)
    print(f"{where}, torch {torch.__version__}, batch {args.batch}, {args.micro or 'all'} at once")
    print(f"matrix product: {peak / 1e12:.3g} TFLOP/s; checkpointing {'off' if args.no_checkpointing else 'on'}")
    header: list[str] = []
    for model in args.models:
        for recipe in args.recipes:
            row = measure(model, recipe, args, peak)
            if not header:
                header = list(row)
                print("  ".join(f"{name:>12}" for name in header))
            cells = (f"{value:12.3f}" if isinstance(value, float) else f"{value:>12}" for value in row.values())
            print("  ".join(cells), flush=True)


if __name__ == "__main__":
    main()
