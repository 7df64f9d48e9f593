"""Any family's network behind a denoiser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.denoiser import Cond
from fewstep.core.errors import UserError
from fewstep.core.models.family import Family
from fewstep.core.networks.timed import TimedBackbone


class PipelineBackbone(TimedBackbone):
    """The network of a diffusers pipeline, called as its family knows.

    ``null_cond``: one row of the unconditional condition (None: none is known). ``guidance``: the scale an embedded
    guidance input is given when the condition has no ``guidance``.
    """

    def __init__(self, network: nn.Module, family: Family, null_cond: Cond | None, guidance: float = 1.0) -> None:
        super().__init__()
        self.model, self.family, self.guidance = network, family, guidance
        self.null_cond = dict(null_cond) if null_cond is not None else None
        self.lora_targets = family.lora_targets
        self.extra_inputs = None

    @property
    def network(self) -> nn.Module:
        """The diffusers model."""
        model: nn.Module = self.model
        return model

    @property
    def time_embedding(self) -> Any:
        """The model's ``TimestepEmbedding``."""
        return self.model.get_submodule(self.family.time_embedder)

    @property
    def time_features(self) -> Callable[[Tensor], Tensor]:
        """The model's sinusoids."""
        features: Callable[[Tensor], Tensor] = self.model.get_submodule(self.family.time_proj)
        return features

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """Return the prediction, shaped like ``x``; UserError when the condition lacks an entry."""
        given = {name: value.to(x.dtype) if value.is_floating_point() else value for name, value in cond.items()}
        if self.family.takes_guidance(self.model) and "guidance" not in given:
            given["guidance"] = torch.full((len(x),), self.guidance, dtype=x.dtype, device=x.device)
        with self.adding_extras(given):
            return self.family.call(self.model, x, time, given)

    def null(self, cond: Cond) -> Cond:
        """Return the unconditional condition; UserError for a guidance-distilled model."""
        if self.null_cond is None:
            raise UserError(
                f"this {self.family.name} teacher is guidance-distilled and has no unconditional prediction: set "
                "recipe.guidance_scale=1 (and no guidance_max), and the scale it is told by domain.model.guidance"
            )
        rows = len(next(iter(cond.values())))

        def row(value: Tensor) -> Tensor:
            return value.expand(rows, *value.shape[1:])

        own = {name: row(v.to(cond[name].device, cond[name].dtype)) for name, v in self.null_cond.items()}
        return dict(cond) | own

    def with_extras(self, names: tuple[str, ...], seed: int) -> PipelineBackbone:
        """Return a backbone around the same network that understands ``names``; a built-in guidance input is used."""
        new = names
        if self.family.takes_guidance(self.model):
            new = tuple(name for name in names if name != "guidance")
        made = super().with_extras(new, seed) if new else self
        return made

    def taps(self, where: str = "bottleneck") -> tuple[str, ...]:
        """Return the family's feature taps, relative to this module."""
        return tuple(f"model.{path}" for path in self.family.taps(self.model, where))

    def blocks(self) -> tuple[str, ...]:
        """Return the family's blocks."""
        return self.family.blocks(self.model)

    def kept(self) -> tuple[str, ...]:
        """Return the parts whose activations the family says diffusers' checkpointing would keep."""
        return self.family.kept(self.model)

    def save(self, folder: Path) -> None:
        """Write the model as diffusers does."""
        model: Any = self.model
        model.save_pretrained(folder, safe_serialization=True)
