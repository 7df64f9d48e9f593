"""A small network for vectors (and anything flattened): toys, tests, first experiments."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fewstep.core.denoiser import Cond
from fewstep.core.networks.backbone import ExtensibleBackbone, entry, join_channels, null_label
from fewstep.core.networks.embedding import ExtraInputs, sinusoid
from fewstep.core.rng import Rng


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.shift, self.outer = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        act = torch.nn.functional.silu
        out: Tensor = h + self.outer(act(self.inner(act(h)) + self.shift(embedding)))
        return out


class _MLP(nn.Module):
    """Residual blocks on a flat vector, shifted by an embedding of time and label."""

    def __init__(self, inputs: int, outputs: int, width: int, depth: int, labels: int, dropout: float) -> None:
        super().__init__()
        self.width = width
        self.time_embedding = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.class_embedding = nn.Embedding(labels, width) if labels else None
        self.stem, self.head = nn.Linear(inputs, width), nn.Linear(width, outputs)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, features: Tensor, label: Tensor | None) -> Tensor:
        embedding: Tensor = self.time_embedding(features)
        if self.class_embedding is not None:
            embedding = embedding + self.class_embedding(label)
        h: Tensor = self.stem(x)
        for block in self.blocks:
            h = block(h, embedding)
        out: Tensor = self.head(self.dropout(torch.nn.functional.silu(h)))
        return out


class MLPBackbone(ExtensibleBackbone):
    """A residual MLP on flattened samples of ``dim`` numbers, with label, time and extra inputs.

    ``num_classes`` > 0: needs cond["label"] in 0..num_classes-1; with ``null_class`` the index ``num_classes`` is the
    unconditional one. ``time_scale`` multiplies the time input before its sinusoid (1 suits times of 0..1000, 100
    angles and fractions). ``concat``: condition entries appended to the input, ``concat_dim`` numbers in all.
    """

    lora_targets: tuple[str, ...] = ("stem", "inner", "shift", "outer", "head")

    def __init__(
        self,
        dim: int,
        *,
        width: int = 64,
        depth: int = 3,
        num_classes: int = 0,
        null_class: bool = True,
        time_scale: float = 1.0,
        concat: tuple[str, ...] = (),
        concat_dim: int = 0,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"dim": dim, "width": width, "depth": depth, "num_classes": num_classes}
        self.config |= {"null_class": null_class, "time_scale": time_scale, "dropout": dropout}
        self.config |= {"concat": list(concat), "concat_dim": concat_dim}
        self.time_scale, self.concat = time_scale, tuple(concat)
        self.null_class = num_classes if num_classes and null_class else None
        self.num_labels = labels = num_classes + (self.null_class is not None)
        with Rng(seed, 0, ()).network_noise("init"):
            self.net = _MLP(dim + concat_dim, dim, width, depth, labels, dropout)
        self.extra_inputs: ExtraInputs | None = None

    @property
    def network(self) -> nn.Module:
        """The MLP itself."""
        return self.net

    def _call(self, inputs: Tensor, features: Tensor, label: Tensor | None, x: Tensor) -> Tensor:
        out: Tensor = self.net(inputs, features, label)
        return out.view_as(x)

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """Return an output shaped like ``x``; UserError when the condition lacks an entry."""
        who, flat = type(self).__name__, {name: cond[name].flatten(1) for name in self.concat if name in cond}
        inputs = join_channels(x.flatten(1), flat, self.concat, who)
        label = entry(cond, "label", who) if self.net.class_embedding is not None else None
        features = self._features(time).to(x.dtype)
        if self.extra_inputs is None:
            return self._call(inputs, features, label, x)
        added = self.extra_inputs(cond, self._features, who)
        handle = self.net.time_embedding.register_forward_hook(lambda module, args, out: out + added)
        try:
            return self._call(inputs, features, label, x)
        finally:
            handle.remove()

    def _features(self, time: Tensor) -> Tensor:
        return sinusoid(self.time_scale * time, self.net.width)

    def null(self, cond: Cond) -> Cond:
        """Return the condition of the unconditional prediction; UserError without a null class."""
        return null_label(cond, self.null_class, type(self).__name__)

    def with_extras(self, names: tuple[str, ...], seed: int) -> MLPBackbone:
        """Return a backbone around the same MLP with embeddings of ``names``."""
        out = copy.copy(self)
        out._modules = dict(self._modules)  # the copy gets a table of its own: what it adds is not seen by this one
        old = self.extra_inputs or ExtraInputs((), self.net.width, self.net.width, seed)
        out.extra_inputs = old.extended(names, seed).to(next(self.net.parameters()))
        out.extras = out.extra_inputs.names
        return out

    def taps(self, where: str = "bottleneck") -> tuple[str, ...]:
        """Return the last block, or all of them."""
        names = tuple(f"net.blocks.{i}" for i in range(len(self.net.blocks)))
        return names[-1:] if where == "bottleneck" else names

    def save(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors``."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {"_class_name": "MLPBackbone", **self.config, "extras": list(self.extras)}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / "model.safetensors")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> MLPBackbone:
        """Return an untrained backbone of a saved configuration."""
        settings = {key: value for key, value in config.items() if key not in ("_class_name", "extras")}
        made = cls(**(settings | {"concat": tuple(settings.get("concat", ()))}))
        extras = tuple(config.get("extras", ()))
        return made.with_extras(extras, seed=0) if extras else made
