"""Backbones on disk: one folder each, safetensors and JSON."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from fewstep.core.errors import UserError, nearest
from fewstep.core.networks.backbone import ExtensibleBackbone
from fewstep.core.networks.reference import MLPBackbone
from fewstep.core.networks.unet2d import UNet2DBackbone

KNOWN = ("MLPBackbone", "UNet2DModel")


def load_backbone(folder: Path) -> ExtensibleBackbone:
    """Return the backbone saved in a folder (:meth:`ExtensibleBackbone.save`, or a diffusers ``UNet2DModel``).

    Raises UserError when the folder holds none, or one this version does not know.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        name = str(config["_class_name"])
    except OSError as error:
        raise UserError(f"{folder}: no config.json there: give a folder a network was saved in") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not the configuration of a network") from error
    if name == "UNet2DModel":
        return UNet2DBackbone.load(folder)
    if name == "MLPBackbone":
        return _load_mlp(folder, config)
    raise UserError(f"{path}: no adapter for the network class '{name}': {nearest(name, KNOWN)}")


def _load_mlp(folder: Path, config: dict[str, object]) -> MLPBackbone:
    path = folder / "model.safetensors"
    try:
        made = MLPBackbone.from_config(config)
        made.load_state_dict(load_file(path))
    except (OSError, RuntimeError, TypeError, SafetensorError) as error:
        line = str(error).strip().splitlines()[0]
        raise UserError(f"{path}: cannot be read as the weights of its config.json ({line})") from error
    return made
