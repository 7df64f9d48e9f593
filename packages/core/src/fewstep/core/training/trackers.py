"""Where a run's numbers and pictures go: JSON lines and TensorBoard always, other services when asked for."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from fewstep.core.errors import UserError
from fewstep.core.training.settings import RunConfig, tree

METRICS = "metrics.jsonl"


@runtime_checkable
class Tracker(Protocol):
    """Receives numbers by step, and pictures."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers known after ``step`` steps."""

    def picture(self, step: int, path: Path) -> None:
        """Take a preview."""

    def close(self) -> None:
        """Write what is left."""


class JsonLines:
    """``metrics.jsonl``: one object per report; numbers that are not finite become null. Starts after ``step``."""

    def __init__(self, run_dir: Path, step: int) -> None:
        self.path = run_dir / METRICS
        kept = [line for line in read_metrics(run_dir) if int(line["step"]) <= step]
        aside = self.path.with_suffix(".new")
        aside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(aside, self.path)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (kept open for the length of the run)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line."""
        numbers = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **numbers}) + "\n")
        self._file.flush()

    def picture(self, step: int, path: Path) -> None:
        """Pictures stay where they are, in ``previews/``."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics; a last line cut off by a kill is left out."""
    try:
        text = (run_dir / METRICS).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    lines = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and isinstance(value.get("step"), int):
            lines.append(value)
    return lines


class TensorBoard:
    """Event files in ``tensorboard/``; a resumed run hides what came after its checkpoint."""

    def __init__(self, run_dir: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, path: Path) -> None:
        """Write an image."""
        import numpy as np
        from PIL import Image

        if path.suffix == ".png":
            with Image.open(path) as image:
                self._writer.add_image("preview", np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """Flush the event file."""
        self._writer.close()


class Wandb:
    """Weights & Biases, as set up by its own environment variables."""

    def __init__(self, config: RunConfig, run_dir: Path) -> None:
        import wandb

        self._module: Any = wandb
        self._run: Any = wandb.init(name=config.name, dir=str(run_dir), config=tree(config), resume="allow")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send numbers."""
        self._run.log(dict(values), step=step)

    def picture(self, step: int, path: Path) -> None:
        """Send a picture."""
        if path.suffix == ".png":
            self._run.log({"preview": self._module.Image(str(path))}, step=step)

    def close(self) -> None:
        """Finish the run there."""
        self._run.finish()


class Trackio:
    """Trackio: a local dashboard with the same calls."""

    def __init__(self, config: RunConfig, run_dir: Path) -> None:
        import trackio

        self._module: Any = trackio
        trackio.init(project="fewstep", name=f"{config.name}-{run_dir.name}", config=tree(config))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers."""
        self._module.log(dict(values), step=step)

    def picture(self, step: int, path: Path) -> None:
        """Record a picture."""
        if path.suffix == ".png":
            self._module.log({"preview": self._module.Image(str(path))}, step=step)

    def close(self) -> None:
        """Finish the run there."""
        self._module.finish()


def check_trackers(names: Sequence[str]) -> None:
    """Raise UserError for a tracker whose package is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"train.trackers: '{name}' is not installed: pip install {name}, or leave it out")


def open_trackers(config: RunConfig, run_dir: Path, step: int) -> list[Tracker]:
    """Return the trackers of a run that starts after ``step``."""
    found: list[Tracker] = [JsonLines(run_dir, step), TensorBoard(run_dir, step)]
    if "wandb" in config.train.trackers:
        found.append(Wandb(config, run_dir))
    if "trackio" in config.train.trackers:
        found.append(Trackio(config, run_dir))
    return found
