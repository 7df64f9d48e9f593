"""`fewstep plan`."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch

from fewstep.core.domain import find_domain
from fewstep.core.errors import UserError
from fewstep.core.planning.advice import Advice, advise, needed
from fewstep.core.planning.plan import plan
from fewstep.core.planning.tables import describe, describe_advice, plain, size
from fewstep.core.training.config import load_config
from fewstep.core.training.settings import RunConfig

GIB = 2**30


def plan_memory(args: Namespace) -> None:
    """Print the memory a config will take, and what to change where it does not fit."""
    # a file names its domain; a shipped config's name belongs to one
    domain = None if Path(args.config).is_file() and not args.domain_name else find_domain(args.domain_name or "image")

    def load(settings: Sequence[str] = ()) -> RunConfig:
        return load_config(args.config, [*args.overrides, *settings], domain=domain)

    config = load()
    found = plan(config, processes=args.processes)
    need = found.sharded(args.processes) if args.fsdp else found.peak
    print(describe(found))
    if args.fsdp:
        print(f"sharded over {args.processes} processes: peak {size(need)}")
    room, advice = _room(args.gpu_gib), list[Advice]()
    if room is not None and needed(need) > room:
        advice = advise(config, load, found, room)
        print(f"\n{describe_advice(advice, room)}")
    elif room is not None:
        print(f"fits into {size(room)}")
    if args.json is not None:
        _write(args.json, json.dumps(plain(found, advice, room), indent=1) + "\n")


def _room(gpu_gib: float | None) -> int | None:
    """Return the bytes of the GPU that was named, or of the one here; None without any."""
    if gpu_gib is not None:
        return round(gpu_gib * GIB)
    return int(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
