"""Resumes copies of a run in forked children, each killed at another write of a save; prints what was cut off.

A fork per kill, everything imported and no tensor computed in the parent: children start in milliseconds.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import accelerate  # noqa: F401
import torch
import torch.utils.tensorboard
from core.runs import config_of, go

from fewstep.core.training import checkpoint

WRITES = ("save_file", "_write_json", "_sync", "_publish", "_discard")


def arm(number: int, note: Path) -> None:
    """Let the ``number``-th event kill this process: every call is an event before, and one half-way if it writes."""
    left = [number]

    def event(name: str) -> bool:
        left[0] -= 1
        if left[0] < 0:
            note.write_text(name)
        return left[0] < 0

    def armed(name: str, function):
        def call(*args):
            if event(f"{name} not begun"):
                os.kill(os.getpid(), signal.SIGKILL)
            if name in ("save_file", "_write_json", "_discard") and event(f"{name} half done"):
                half(name, function, args)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args)

        return call

    for name in WRITES:
        setattr(checkpoint, name, armed(name, getattr(checkpoint, name)))


def half(name: str, function, args) -> None:
    """Leave what a kill in the middle leaves: half a file, or half a deleted folder."""
    if name == "_discard":
        doomed = args[0].with_name(f".deleting-{args[0].name}")
        os.rename(args[0], doomed)
        next(path for path in sorted(doomed.iterdir()) if path.name != "manifest.json").unlink()
        return
    function(*args)
    path = args[1] if name == "save_file" else args[0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def main(root: Path) -> None:
    """Kill children until one gets through."""
    events: list[str] = []
    config = config_of("train.steps=3", "train.keep_checkpoints=1")
    torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])  # imports a good second of torch on its first use
    os.fsync = lambda handle: None  # what a killed process has written is not lost; only a machine's end loses it
    while True:
        folder, note = root / f"killed-{len(events)}", root / "event"
        shutil.copytree(root / "start", folder)
        child = os.fork()
        if child == 0:
            arm(len(events), note)
            go(config, folder, resume=True)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        events.append(note.read_text())
    sys.stdout.write(json.dumps(events))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
