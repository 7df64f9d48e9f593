"""`fewstep restoration prepare-targets`: a teacher's samples of a fixed set of crops, once for many trainings."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from fewstep.core.cli.verbs import positive, takes_settings
from fewstep.core.errors import UserError, check


def prepare_targets_arguments(parser: ArgumentParser) -> None:
    """Add the options of ``fewstep restoration prepare-targets``."""
    config = "tad-sr-photos"
    parser.add_argument("--config", default=config, metavar="NAME|FILE", help=f"whose teacher and data ({config})")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder, new or begun before")
    parser.add_argument("-n", "--samples", type=positive, default=4096, metavar="N", help="crops (4096)")
    parser.add_argument("--steps", type=positive, metavar="N", help="of the teacher (all of a short schedule, else 50)")
    parser.add_argument("--ancestral", action="store_true", help="sample with fresh noise at every step")
    parser.add_argument("--guidance-scale", type=float, default=1.0, metavar="S", help="of the teacher (1)")
    parser.add_argument("--seed", type=int, default=0, help="of crops and noise (0)")
    parser.add_argument("--batch", type=positive, default=16, metavar="N", help="crops at a time (16)")
    parser.add_argument("--samples-per-shard", type=positive, default=256, metavar="N", help="crops in a file (256)")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="on the disk (float16)")
    parser.add_argument("--device", default="", help="(cuda where there is one)")
    takes_settings(parser)


def prepare_targets(args: Namespace) -> None:
    """Write the targets, or go on where an earlier call was stopped, and say how to train on them."""
    from fewstep.core.denoiser import NetworkDenoiser
    from fewstep.core.image.preparing import Count
    from fewstep.core.recipe import RoleSpec
    from fewstep.core.tensors import find_device
    from fewstep.core.training.config import load_config
    from fewstep.restoration.domain import DOMAIN
    from fewstep.restoration.recipes.rollout import TeacherConfig
    from fewstep.restoration.targets import Preparation
    from fewstep.restoration.targets import prepare_targets as prepare

    config = load_config(args.config, args.overrides, domain=DOMAIN)
    check(not config.domain.targets, "domain.targets: targets are prepared of data, not of targets: leave it empty")
    sampler = TeacherConfig(
        target="ancestral" if args.ancestral else "deterministic",
        teacher_steps=args.steps or 0,
        guidance_scale=args.guidance_scale,
    )
    how = Preparation(
        samples=args.samples,
        teacher=sampler,
        seed=args.seed,
        batch=args.batch,
        per_shard=args.samples_per_shard,
        dtype=args.dtype,
    )
    device = find_device(args.device)
    problem = DOMAIN.build(config.domain, (RoleSpec("teacher", init="frozen"),), config.seed, device)
    teacher = problem.actors.denoiser("teacher")
    if not isinstance(teacher, NetworkDenoiser):
        raise UserError(f"domain.teacher: a {type(teacher).__name__} is no network that targets could be told to be of")
    count = Count(sys.stderr)
    try:
        prepare(teacher, problem.data, args.out, how, device=device, progress=lambda *done: count("targets", *done))
    finally:
        count.close()
    print(f"{args.out}: {args.samples} targets; train with domain.targets={args.out} recipe.target=prepared")
