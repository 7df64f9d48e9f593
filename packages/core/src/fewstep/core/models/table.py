"""The families this version knows: one row each. A new family is a file with its class, and a row here."""

from __future__ import annotations

from fewstep.core.errors import UserError, nearest
from fewstep.core.models.cogvideox import CogVideoX
from fewstep.core.models.family import Family
from fewstep.core.models.files import PipelineFolder
from fewstep.core.models.flux import Flux
from fewstep.core.models.hunyuan_video import HunyuanVideo
from fewstep.core.models.ltx import LTX
from fewstep.core.models.modelscope import ModelScope
from fewstep.core.models.pixart import PixArt
from fewstep.core.models.sana import Sana
from fewstep.core.models.sd import StableDiffusion
from fewstep.core.models.sd3 import StableDiffusion3
from fewstep.core.models.sdxl import StableDiffusionXL
from fewstep.core.models.wan import Wan

FAMILIES: tuple[Family, ...] = (
    StableDiffusion(),
    StableDiffusionXL(),
    StableDiffusion3(),
    Flux(),
    PixArt(),
    Sana(),
    Wan(),
    CogVideoX(),
    HunyuanVideo(),
    LTX(),
    ModelScope(),
)


def find_family(name: str) -> Family:
    """Return a family by its name; UserError naming the nearest one."""
    for family in FAMILIES:
        if family.name == name:
            return family
    raise UserError(f"no model family '{name}': {nearest(name, [family.name for family in FAMILIES])}")


def family_of(folder: PipelineFolder) -> Family:
    """Return the family of a pipeline folder; UserError for one that no adapter reads."""
    for family in FAMILIES:
        if folder.pipeline in family.pipelines:
            _, network = folder.parts.get(family.network, ("", "none"))
            if network in family.network_classes:
                family.check_folder(folder)
                return family
            raise UserError(
                f"{folder.path}: its {family.network} is a {network}; the adapter for {folder.pipeline} reads "
                f"{' and '.join(family.network_classes)}"
            )
    known = sorted(pipeline for family in FAMILIES for pipeline in family.pipelines)
    raise UserError(f"{folder.path}: no adapter for a {folder.pipeline}: {nearest(folder.pipeline, known)}")
