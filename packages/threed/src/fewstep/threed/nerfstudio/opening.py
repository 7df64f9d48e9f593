"""Scenes out of runs of `ns-train`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fewstep.core.errors import UserError, check
from fewstep.threed.assets import Asset

CONFIG = "config.yml"
HEAD = "!!python/object:nerfstudio.engine.trainer.TrainerConfig"
CHECKPOINTS = "nerfstudio_models"
NEEDED = "nerfstudio is not installed: pip install 'fewstep-threed[nerfstudio]' into an environment of its own"


def is_run(path: Path) -> bool:
    """Return whether ``path`` is the config or the folder of a run of nerfstudio."""
    config = path / CONFIG if path.is_dir() else path
    if config.name != CONFIG or not config.is_file():
        return False
    with config.open(encoding="utf-8", errors="replace") as file:
        return file.read(len(HEAD)) == HEAD


def open_run(path: Path) -> Asset:
    """Return the scene of a run's newest checkpoint, with its prompt; UserError for what is no run of our methods.

    nerfstudio reads it, and its configs are Python objects: open runs of people you trust only.
    """
    check(is_run(path), f"{path}: no run of nerfstudio: give the {CONFIG} that `ns-train` wrote, or its folder")
    check(find_spec("nerfstudio") is not None, f"{path}: {NEEDED}")
    folder = path if path.is_dir() else path.parent
    check(
        any((folder / CHECKPOINTS).glob("step-*.ckpt")),
        f"{folder / CHECKPOINTS}: no checkpoint yet; let `ns-train` save one",
    )
    from nerfstudio.utils.eval_utils import eval_setup  # type: ignore[import-not-found]

    from fewstep.threed.nerfstudio.models import SceneModel

    def moved(config: Any) -> Any:
        config.output_dir = folder.resolve().parents[2]  # wherever the run lies now
        return config

    _, pipeline, _, _ = eval_setup(folder / CONFIG, test_mode="inference", update_config_callback=moved)
    model = pipeline.model
    if not isinstance(model, SceneModel):
        raise UserError(f"{folder}: made by another method than ours; export it with `ns-export`")
    return Asset(model.scene.cpu().eval(), model.config.prompt or "")
