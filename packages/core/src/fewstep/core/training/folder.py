"""The run folder: what is in it, who may write there, and what the run was made with."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from fewstep.core.data.writing import write_text
from fewstep.core.errors import UserError
from fewstep.core.training.settings import RunConfig, dump

CONFIG, ENVIRONMENT, CHECKPOINTS, PREVIEWS = "config.yaml", "environment.json", "checkpoints", "previews"
DEMO = "demo.json"
PACKAGES = (
    "fewstep-core", "fewstep-video", "fewstep-threed", "fewstep-restoration", "fewstep-lidar",
    "torch", "numpy", "diffusers", "transformers", "accelerate", "peft", "kornia", "safetensors",
)  # fmt: skip


def check_new(run_dir: Path) -> None:
    """Raise UserError when a new run cannot start in a folder."""
    if run_dir.is_dir() and any(run_dir.iterdir()):
        what = "there is a run in it" if (run_dir / CONFIG).exists() else "it is not empty"
        raise UserError(f"{run_dir}: {what}: use `resume {run_dir}`, or give another --out")
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"{run_dir}: is a file: give another --out")


def check_run(run_dir: Path) -> None:
    """Raise UserError unless a folder holds a run."""
    if not (run_dir / CONFIG).is_file():
        raise UserError(f"{run_dir}: no run there (no {CONFIG}): start one with `train`")


def make_demo_room(out: Path) -> None:
    """Make an empty folder with a demo's marker in it, in place of an earlier demo; UserError for any other content."""
    if (out / DEMO).is_file():
        shutil.rmtree(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: holds something else than a demo: give another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / DEMO, "{}\n")
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}): give another --out") from error


def make_folder(run_dir: Path) -> None:
    """Make a run folder with its sub-folders; UserError when that is not permitted."""
    try:
        for folder in (run_dir, run_dir / CHECKPOINTS, run_dir / PREVIEWS):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{run_dir}: cannot be made ({error.strerror}): give another --out") from error
    if not os.access(run_dir, os.W_OK):
        raise UserError(f"{run_dir}: no permission to write there: give another --out")


def describe(run_dir: Path, config: RunConfig, machine: Mapping[str, Any]) -> None:
    """Write the resolved config and the environment."""
    write_text(run_dir / CONFIG, dump(config))
    write_text(run_dir / ENVIRONMENT, json.dumps(environment() | dict(machine), indent=2) + "\n")


def environment() -> dict[str, Any]:
    """Return versions, machine, command and the state of the git repository the command was given in."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": versions,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "git": git_state(Path.cwd()),
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return commit and number of changed files of the repository around a folder; None outside one."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout

    try:
        return {
            "commit": git("rev-parse", "HEAD").strip(),
            "changed_files": len(git("status", "--porcelain").splitlines()),
        }
    except (OSError, subprocess.SubprocessError):
        return None
