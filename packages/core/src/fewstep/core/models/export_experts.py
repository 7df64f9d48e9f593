"""A student of two experts as a stock pipeline: the second one's network beside it, and a callback that changes over.

A pipeline walks all steps with one network, but asks its own attribute for it at every step, and calls back in between.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from fewstep.core.denoiser import NetworkDenoiser
from fewstep.core.errors import UserError
from fewstep.core.models.backbone import PipelineBackbone
from fewstep.core.networks.experts import ExpertBackbone, RoutedExperts

SECOND = "detail"  # the folder of the second expert's network

LOAD = """experts = pipe.{network}, {kind}.from_pretrained(".", subfolder="{folder}", use_safetensors=True)


def change(pipe, step, time, inputs):  # steps {first} to {last} are the second expert's
    pipe.{network} = experts[{first} <= step + 1 < {count}]
    return inputs


"""
CALLS = {
    "callback_on_step_end": "    callback_on_step_end=change,\n",
    "callback": "    callback=lambda step, time, latents: change(pipe, step, time, {}),\n",
}


@dataclass(frozen=True)
class SecondExpert:
    """The second expert of a student to be exported: a network of its own, from step ``first`` of ``count`` on."""

    backbone: PipelineBackbone
    first: int
    count: int

    def save(self, folder: Path, extras: Mapping[str, float], dtype: torch.dtype) -> None:
        """Write the network into its folder of a pipeline's, constant extra inputs folded."""
        self.backbone.fold_extras(dict(extras))
        self.backbone.to(dtype).save(folder / SECOND)

    def program(self, readme: str, network: str, takes: Collection[str]) -> str:
        """Return a model card whose program changes over; UserError for a pipeline that does not call back."""
        call = next((text for name, text in CALLS.items() if name in takes), None)
        if call is None:
            raise UserError("export: this pipeline's call takes no callback, and cannot change between two experts")
        kind = type(self.backbone.network).__name__
        names = {"network": network, "kind": kind, "folder": SECOND, "first": self.first, "count": self.count}
        start, line, rest = readme.partition("prompt = ")
        end = "    generator=generator,\n"
        head, imported, tail = start.partition("from diffusers import ")
        pipeline, newline, tail = tail.partition("\n")
        start = head + imported + f"{pipeline}, {kind}" + newline + tail
        return start + LOAD.format(**names, last=self.count - 1) + line + rest.replace(end, end + call, 1)


def second_expert(student: RoutedExperts, times: Collection[float]) -> SecondExpert | None:
    """Return the second expert of a student that samples at ``times``; None where it has not started or is not used.

    Raises UserError for one that is no network of a pipeline.
    """
    first = sum(t > student.cut + 1e-6 * abs(student.cut) for t in times)
    if not student.started or first == len(times):
        return None
    layers = student.low.backbone if isinstance(student.low, NetworkDenoiser) else None
    made = layers.layers.merged(layers.inner) if isinstance(layers, ExpertBackbone) else None
    if not isinstance(made, PipelineBackbone):
        raise UserError("export: the second expert is no part of a diffusers pipeline")
    return SecondExpert(made, first, len(times))


__all__ = ["SECOND", "SecondExpert", "second_expert"]
