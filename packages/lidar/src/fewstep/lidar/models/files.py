"""Networks on disk: a folder with ``model.json`` and ``model.safetensors``, nothing that runs code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save
from torch import nn

from fewstep.core.errors import UserError, check
from fewstep.core.models.files import read_json
from fewstep.lidar.models.backbone import LidarBackbone
from fewstep.lidar.models.refiner import Refiner
from fewstep.lidar.models.unet import NetworkConfig

CONFIG, WEIGHTS = "model.json", "model.safetensors"
M = TypeVar("M", bound=nn.Module)


def save_denoiser(
    backbone: LidarBackbone, folder: Path, facts: Mapping[str, Any] | None = None, *, half: bool = False
) -> None:
    """Write encoder and denoiser with ``facts`` about them; matrices in float16 when ``half``."""
    description = {"kind": "denoiser", "network": asdict(backbone.config), "extras": list(backbone.extras)}
    _save(backbone, folder, description | dict(facts or {}), half)


def save_refiner(refiner: Refiner, folder: Path, facts: Mapping[str, Any] | None = None, *, half: bool = False) -> None:
    """Write a refiner with ``facts`` about it; matrices in float16 when ``half``."""
    description = {"kind": "refiner", "network": asdict(refiner.config), "up_factor": refiner.up_factor}
    _save(refiner, folder, description | dict(facts or {}), half)


def _save(module: nn.Module, folder: Path, description: Mapping[str, Any], half: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        # statistics and biases are few and have a wide range: they stay as they are
        name: (value.half() if half and value.ndim > 1 else value).detach().cpu().contiguous()
        for name, value in module.state_dict().items()
    }
    (folder / WEIGHTS).write_bytes(save(tensors))  # save_file would let nobody else read it
    (folder / CONFIG).write_text(json.dumps({"format": 1, **description}, indent=2) + "\n", encoding="utf-8")


def describe(folder: Path, kind: str) -> dict[str, Any]:
    """Return what ``model.json`` says; UserError when there is none, or it describes another kind (``""``: any)."""
    file = folder / CONFIG
    check(file.is_file(), f"{folder}: no {CONFIG} there; give a folder that `fewstep lidar export` or `convert` wrote")
    found = read_json(file)
    check(
        isinstance(found, dict) and found.get("kind") in (kind or "denoiser", kind or "refiner"),
        f"{file}: describes a {found.get('kind') if isinstance(found, dict) else 'list'}, and a {kind} is wanted here",
    )
    return dict(found)


def network_config(found: Mapping[str, Any], file: Path) -> NetworkConfig:
    """Return the sizes a description names; UserError for unknown or ill-typed entries."""
    entries = found.get("network", {})
    try:
        lists: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in dict(entries).items()}
        return NetworkConfig(**lists)
    except (TypeError, ValueError) as error:
        raise UserError(f"{file}: 'network' is not that of a lidar network ({error})") from error


def load_denoiser(folder: Path) -> LidarBackbone:
    """Return encoder and denoiser in float32; UserError for a folder that holds none."""
    found = describe(folder, "denoiser")
    made = LidarBackbone(network_config(found, folder / CONFIG))
    extras = tuple(str(name) for name in found.get("extras", ()))
    if extras:
        made = made.with_extras(extras, seed=0)
    return _filled(made, folder)


def load_refiner(folder: Path) -> Refiner:
    """Return a refiner in float32; UserError for a folder that holds none."""
    found = describe(folder, "refiner")
    factor = found.get("up_factor")
    check(isinstance(factor, int) and 1 <= factor <= 64, f"{folder / CONFIG}: up_factor must be 1 to 64, got {factor}")
    return _filled(Refiner(network_config(found, folder / CONFIG), int(factor or 1)), folder)


def _filled(module: M, folder: Path) -> M:
    file = folder / WEIGHTS
    try:
        tensors = load_file(file)
        fits = {name: value.shape for name, value in module.state_dict().items()}
        wrong = [name for name in {*tensors, *fits} if name not in tensors or tensors[name].shape != fits.get(name)]
        check(not wrong, f"{file}: '{min(wrong, default='')}' is not what {CONFIG} describes: copy both files again")
        module.load_state_dict(tensors)
    except FileNotFoundError as error:
        raise UserError(f"{file}: missing; copy the whole folder") from error
    except Exception as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file}: not readable as safetensors ({error})") from error
    return module.to(torch.float32).eval()
