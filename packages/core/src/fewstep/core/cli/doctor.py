"""`fewstep doctor`: this machine's environment, and what may be wrong with a run."""

from __future__ import annotations

import os
import shutil
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch

from fewstep.core.cli.symptoms import Finding, examine_run
from fewstep.core.domain import domain_names, find_domain
from fewstep.core.errors import TrainingError
from fewstep.core.report.tables import table
from fewstep.core.training.folder import check_run, environment

OPTIONAL = {
    "wandb": "tracking",
    "deepspeed": "ZeRO",
    "bitsandbytes": "8-bit optimizers",
    "trackio": "tracking",
    "decord": "video",
    "gsplat": "splats on a GPU",
}


def examine(args: Namespace) -> None:
    """Print findings on the environment, or on a run; TrainingError when one of them is a failure."""
    if args.run is not None:
        check_run(args.run)
    findings = examine_environment() if args.run is None else examine_run(args.run)
    rows = [{"": f.level, "what": f.what, "seen": f.seen, "do": f.advice} for f in findings]
    print(table(rows))
    failed = [f.what for f in findings if f.level == "fail"]
    if failed:
        raise TrainingError(f"doctor: {', '.join(failed)} not in order")


def examine_environment() -> list[Finding]:
    """Return what is installed, and whether it can work."""
    return [*_software(), *_machine(), *_domains()]


def _software() -> Iterator[Finding]:
    facts = environment()
    yield Finding("ok", "python", facts["python"])
    for name, version in facts["packages"].items():
        yield Finding("ok", name, version)
    for name, use in OPTIONAL.items():
        there = find_spec(name) is not None
        yield Finding("ok" if there else "note", name, "installed" if there else f"not installed ({use})")


def _machine() -> Iterator[Finding]:
    yield Finding("ok", "processors", f"{os.cpu_count()}, torch uses {torch.get_num_threads()}")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            seen = f"{torch.cuda.get_device_name(index)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
            yield Finding("ok", f"cuda:{index}", seen)
    else:
        yield Finding("note", "accelerator", "none: small networks only")
    free_gib = shutil.disk_usage(Path.cwd()).free / 2**30
    if free_gib > 2:
        yield Finding("ok", "disk", f"{free_gib:.1f} GiB free here")
    else:
        yield Finding("warn", "disk", f"{free_gib:.1f} GiB free here", "checkpoints need room: give --out elsewhere")
    try:
        with tempfile.TemporaryDirectory(dir=Path.cwd()):
            yield Finding("ok", "folder", f"{Path.cwd()} can be written")
    except OSError as error:
        yield Finding("warn", "folder", f"{Path.cwd()}: {error.strerror}", "give --out, or go to another folder")


def _domains() -> Iterator[Finding]:
    for name in domain_names():
        try:
            yield Finding("ok", f"domain {name}", find_domain(name).summary)
        except ImportError as error:
            yield Finding("fail", f"domain {name}", str(error), f"reinstall fewstep-{name}")
