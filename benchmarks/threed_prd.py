"""Train a feed-forward student of the world of solids by PRD, from prompts alone, and measure it.

    python benchmarks/threed_prd.py OUT [--teacher exact|solids|FOLDER] [--steps 1500] [--batch 4]

``exact`` knows the true pictures: a proof of the method without a network's mistakes. Any other name is a view model's.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fewstep.core.process import VP
from fewstep.core.rng import Rng
from fewstep.core.sampling import run_plan
from fewstep.core.times import TimeConfig
from fewstep.core.training.loop import train
from fewstep.core.training.settings import EMAConfig, OptimConfig, RunConfig, TrainConfig
from fewstep.threed.feedforward import build_planes
from fewstep.threed.judges import Judge, ViewJudge
from fewstep.threed.planes.model import PlanesConfig
from fewstep.threed.recipes.prd import PRD, PRDConfig, TeacherConfig
from fewstep.threed.settings import SOLIDS_CAMERAS
from fewstep.threed.shapes.named import named_prompts
from fewstep.threed.teachers.exact import ExactJudge
from fewstep.threed.teachers.view_model import load_model


def judge_of(name: str, size: int) -> Judge:
    """Return the teacher of a name."""
    if name == "exact":
        return ExactJudge(VP.scaled_linear(), SOLIDS_CAMERAS, size=size)
    return ViewJudge(load_model(name))


def recipe_config(args: argparse.Namespace) -> PRDConfig:
    """Return the recipe's settings of the world of solids."""
    teacher = TeacherConfig(guidance_scale=args.guidance, against=args.against, views=args.views)
    return PRDConfig(
        teacher=teacher,
        time=TimeConfig(low=args.low, high=0.98, low_end=args.low_end, anneal_steps=args.steps),
        sparsity=args.sparsity,
        eikonal=args.eikonal,
        points=256,
        colour_gradient=1.0,
        anneal_steps=args.steps,
    )


def main() -> None:
    """Train, export and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--teacher", default="exact")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--against", default="noise")
    parser.add_argument("--low", type=float, default=0.3)
    parser.add_argument("--low-end", type=float, default=0.1)
    parser.add_argument("--sparsity", type=float, default=0.0)
    parser.add_argument("--eikonal", type=float, default=50.0)
    parser.add_argument("--size", type=int, default=32, help="pixels of the exact teacher's pictures")
    parser.add_argument("--prompts", default="things")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    prompts, config, recipe = named_prompts(args.prompts), PlanesConfig(), recipe_config(args)
    since = time.perf_counter()
    judge = judge_of(args.teacher, args.size)
    print(f"teacher ready in {time.perf_counter() - since:.1f} s")
    problem = build_planes(config, {"teacher": judge}, prompts, PRD.role_specs(recipe), args.seed)
    run = RunConfig(
        name="prd",
        seed=args.seed,
        recipe_name="prd",
        recipe=recipe,
        domain_name="threed",
        domain=config,
        train=TrainConfig(
            steps=args.steps,
            batch=args.batch,
            grad_clip=1.0,
            log_every=20,
            eval_every=100,
            eval_samples=len(prompts),
            preview_every=100,
            preview_samples=10,
            checkpoint_every=100,
            keep_checkpoints=1,
            ema=EMAConfig(kind="constant", decay=0.99),
        ),
        optim=OptimConfig(name="adamw", lr=args.lr, betas=(0.9, 0.99), weight_decay=0.0, warmup=50, schedule="cosine"),
    )
    method: Any = PRD(recipe, problem.actors)
    train(run, problem, method, args.out, resume=args.resume)
    plan = PRD.plan(recipe, problem.actors.process, 4)
    student = problem.actors.denoiser("student")
    facts = {"name": "prd", "teacher": args.teacher, "steps": args.steps, "minutes": (time.perf_counter() - since) / 60}
    problem.export(student, plan, args.out / "export", facts)
    for mode in ("deterministic", "renoise"):
        cond = problem.conditions(len(prompts), 0)
        rng = Rng.for_batch(1, 0, len(prompts))
        with torch.no_grad():
            z = run_plan(student, replace(plan, mode=mode), rng.normal("noise", config.shape), cond, rng)
        print(mode, {name: round(value, 4) for name, value in problem.evaluate(z, cond).items()})


if __name__ == "__main__":
    main()
