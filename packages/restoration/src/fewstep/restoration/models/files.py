"""Networks of any kind on disk: a folder with ``model.json`` and ``model.safetensors``, nothing that runs code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.core.errors import UserError, check
from fewstep.core.models.files import read_json
from fewstep.core.networks.unet2d import UNet2DBackbone
from fewstep.restoration.models.local import LocalConfig, LocalUNet
from fewstep.restoration.models.swin import SwinBackbone
from fewstep.restoration.models.weights import CONFIG, MAX_CONFIG_BYTES, read_description, read_weights, write_folder

KINDS = ("local", "swin", "unet")
UNET = "unet"
Network = LocalUNet | SwinBackbone | UNet2DBackbone


def save_network(
    network: nn.Module, folder: Path, facts: Mapping[str, Any] | None = None, *, half: bool = False
) -> None:
    """Write a network with ``facts`` about it; matrices in float16 when ``half``. A diffusers one goes into ``unet``.

    Raises UserError for a network that is none of this domain.
    """
    if isinstance(network, UNet2DBackbone):
        check(not half, "export: a diffusers network is written as it is: leave --as out")
        network.save(folder / UNET)
        write_folder(folder, {"kind": "unet", **(facts or {})}, {})
    elif isinstance(network, LocalUNet | SwinBackbone):
        description: dict[str, Any] = {"kind": "local" if isinstance(network, LocalUNet) else "swin"}
        description |= {"network": asdict(network.config), "extras": list(network.extras)}
        description |= {"channels": network.channels} if isinstance(network, LocalUNet) else {}
        tensors = network.state_dict()
        if half:  # biases are few and may have a wide range: they stay as they are
            tensors = {name: value.half() if value.ndim > 1 else value for name, value in tensors.items()}
        write_folder(folder, description | dict(facts or {}), tensors)
    else:
        raise UserError(f"export: a {type(network).__name__} is no network of this domain")


def describe(folder: Path) -> dict[str, Any]:
    """Return what ``model.json`` says; UserError when there is none, or it describes nothing of this domain."""
    file = folder / CONFIG
    check(file.is_file(), f"{folder}: no {CONFIG} there; give a folder that `fewstep restoration export` wrote")
    check(file.stat().st_size <= MAX_CONFIG_BYTES, f"{file}: too large for the description of a network")
    found = read_json(file)
    check(
        isinstance(found, dict) and found.get("kind") in KINDS,
        f"{file}: describes no network of restoration; was it written by another package?",
    )
    return dict(found)


def load_network(folder: Path) -> Network:
    """Return the network of a folder in float32; UserError for a folder that holds none."""
    kind = describe(folder)["kind"]
    if kind == "unet":
        return UNet2DBackbone.load(folder / UNET).float().eval()
    return SwinBackbone.load(folder) if kind == "swin" else _load_local(folder)


def _load_local(folder: Path) -> LocalUNet:
    found, file = read_description(folder, "local")
    channels, extras = found.get("channels"), tuple(found.get("extras", ()))
    check(isinstance(channels, int) and 1 <= channels <= 4096, f"{file}: channels must be 1 to 4096, got {channels!r}")
    try:
        entries: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in found["network"].items()}
        config = LocalConfig(**entries)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: 'network' is not that of a local network ({error})") from error

    def make() -> LocalUNet:
        made = LocalUNet(int(channels or 1), config)
        return made.with_extras(extras, seed=0) if extras else made

    with torch.device("meta"):  # what is to come is known before anything is allocated
        shapes = {name: value.shape for name, value in make().state_dict().items()}
    tensors = read_weights(folder, shapes)
    made = make()
    made.load_state_dict(tensors)
    return made.eval()
