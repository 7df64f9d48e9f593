"""A network of ours on disk: a folder with ``model.json`` and ``model.safetensors``, nothing that runs code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fewstep.core.errors import UserError, check
from fewstep.core.models.files import read_json

CONFIG, WEIGHTS = "model.json", "model.safetensors"
MAX_CONFIG_BYTES = 1 << 20


def write_folder(folder: Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write what a network is and its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    held = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    (folder / WEIGHTS).write_bytes(save(held))  # save_file would let nobody else read it
    (folder / CONFIG).write_text(json.dumps({"format": 1, **description}, indent=2) + "\n", encoding="utf-8")


def read_description(folder: Path, kind: str) -> tuple[dict[str, Any], Path]:
    """Return what ``model.json`` says, and its path; UserError when there is none, or it describes another kind."""
    file = folder / CONFIG
    check(file.is_file(), f"{folder}: no {CONFIG} there; give a folder a network was saved in")
    check(file.stat().st_size <= MAX_CONFIG_BYTES, f"{file}: too large for the description of a network")
    found = read_json(file)
    check(found.get("kind") == kind, f"{file}: describes a {found.get('kind')!r}, and a '{kind}' is wanted here")
    network, extras = found.get("network", {}), found.get("extras", [])
    check(isinstance(network, dict), f"{file}: 'network' must hold the network's options")
    check(
        isinstance(extras, list) and all(isinstance(name, str) for name in extras),
        f"{file}: 'extras' must list the names of extra inputs",
    )
    return found, file


def read_weights(folder: Path, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Return the weights in float32; UserError unless names and shapes in the file's header are exactly ``shapes``."""
    file = folder / WEIGHTS
    try:
        with safe_open(file, "pt") as opened:
            found = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
            wrong = sorted(n for n in {*found, *shapes} if n not in found or found[n] != tuple(shapes.get(n, (-1,))))
            check(not wrong, f"{file}: '{(wrong or [''])[0]}' is not what {CONFIG} describes: copy both files again")
            return {name: opened.get_tensor(name).float() for name in shapes}
    except FileNotFoundError as error:
        raise UserError(f"{file}: missing; copy the whole folder") from error
    except (OSError, SafetensorError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{file}: not readable as safetensors ({line}): copy the folder again") from error
