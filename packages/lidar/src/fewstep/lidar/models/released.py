"""Weights of the released networks, turned into this package's and back.

Inner names differ between code bases and are not relied on: tensors are told apart by the prefix of their network, by
the order in which modules are defined, and by shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from fewstep.core.errors import UserError, check
from fewstep.lidar.models.backbone import LidarBackbone
from fewstep.lidar.models.checkpoint import shown
from fewstep.lidar.models.layout import layout
from fewstep.lidar.models.matching import Part
from fewstep.lidar.models.refiner import Refiner
from fewstep.lidar.models.unet import LEVELS

# prefixes of denoiser and encoder: of ScoreLiDAR's and Distillation-DPO's students, of the tuned teacher, of LiDiff; a
# student's file may hold its teacher, too, so students come first
DENOISERS = {"generator.": "partial_enc.", "DiffModel.": "DM_encoder.", "model.": "partial_enc."}
REFINER = "model_refine."
State = Mapping[str, Tensor]


def prefixes(names: Iterable[str]) -> dict[str, int]:
    """Return what the names begin with, up to the first dot, and how many do."""
    found: dict[str, int] = {}
    for name in names:
        first = name.partition(".")[0] + "." * ("." in name)
        found[first] = found.get(first, 0) + 1
    return found


def find_denoiser(names: Iterable[str], wanted: str, where: str) -> str:
    """Return the prefix of a denoiser: the wanted one, or the first there is of DENOISERS; UserError for none."""
    there = prefixes(names)
    known = ", ".join(DENOISERS)
    if wanted:
        prefix = wanted.rstrip(".") + "."
        check(prefix in DENOISERS, f"'{wanted}' is not the prefix of a denoiser: {known}")
        check(prefix in there, f"{where}: nothing under '{prefix}'; it holds {_listed(there)}")
        return prefix
    found = [prefix for prefix in DENOISERS if prefix in there]
    hint = ": use --refiner" if REFINER in there else ""
    check(bool(found), f"{where}: no denoiser ({known}); it holds {_listed(there)}{hint}")
    return found[0]


def find_encoder(names: Iterable[str], denoiser: str, where: str) -> str:
    """Return the prefix of the encoder that belongs to a denoiser; UserError when it is not there."""
    there, prefix = prefixes(names), DENOISERS[denoiser]
    check(
        prefix in there,
        f"{where}: no scan encoder '{prefix}' for the denoiser '{denoiser}'; it holds {_listed(there)}; "
        "give the file that has the encoder with --encoder",
    )
    return prefix


def _listed(found: Mapping[str, int]) -> str:
    names = [f"{shown(name)} ({count} tensors)" for name, count in list(found.items())[:6]]
    return ", ".join(names) + ", ..." * (len(found) > len(names)) or "nothing"


def _under(tensors: State, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}


def denoiser_from(
    tensors: State, prefix: str = "model.", *, encoder: State | None = None, resolution: float = 0.05, where: str = ""
) -> LidarBackbone:
    """Return a denoiser with its encoder, which ``encoder`` holds when ``tensors`` does not; ``where``: for messages.

    Widths are read from the shapes. Raises UserError unless every tensor under the two prefixes has its place, and
    every place its tensor.
    """
    scan = DENOISERS[prefix]
    encoding = Part(_under(tensors if encoder is None else encoder, scan), f"{where}: {scan}")
    denoising = Part(_under(tensors, prefix), f"{where}: {prefix}")
    channels, _ = encoding.widths(LEVELS)
    config = denoising.config(resolution, gated=True)
    check(
        channels == config.channels,
        f"{where}: the encoder has {channels} channels and the denoiser {config.channels}; they do not belong together",
    )
    with torch.device("meta"):
        made = LidarBackbone(config)
    encoding.fill(made.encoder)
    denoising.fill(made.unet)
    return made.eval()


def refiner_from(tensors: State, *, resolution: float = 0.05, where: str = "") -> Refiner:
    """Return a refiner, its widths and ``up_factor`` read from the shapes; UserError as in :func:`denoiser_from`."""
    found = _under(tensors, REFINER)
    check(bool(found), f"{where}: no refiner '{REFINER}'; it holds {_listed(prefixes(tensors))}")
    refining = Part(found, f"{where}: {REFINER}")
    outputs = [out for _, _, out in refining.mlps.values()]
    if len(outputs) != 1 or outputs[0] % 3 or not 1 <= outputs[0] // 3 <= 64:
        raise UserError(
            f"{where}: {REFINER} a refiner ends in one MLP, of 3 outputs per point made, not in {outputs[:3]}"
        )
    config = refining.config(resolution, gated=False)
    with torch.device("meta"):
        made = Refiner(config, outputs[0] // 3)
    refining.fill(made.unet)
    return made.eval()


def to_released(network: LidarBackbone | Refiner, prefix: str = "model.") -> dict[str, Tensor]:
    """Return the weights by released prefix (a refiner has its own) and by the names of :mod:`layout`.

    Raises UserError for a backbone with inputs of its own, which the released networks have no place for.
    """
    if isinstance(network, Refiner):
        return _exported(network.unet, REFINER)
    check(prefix in DENOISERS, f"'{prefix}' is not the prefix of a denoiser: {', '.join(DENOISERS)}")
    check(
        network.extra_inputs is None, "a network with more inputs than scan and time has no place in the released form"
    )
    return _exported(network.encoder, DENOISERS[prefix]) | _exported(network.unet, prefix)


def _exported(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    own = module.state_dict()
    return {prefix + place.released: place.out(own[place.ours]) for place in layout(module).places()}
