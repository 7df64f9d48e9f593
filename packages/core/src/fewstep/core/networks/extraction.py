"""LoRA factors of a network trained in full: the closest low-rank stand-in for what training changed.

Of the difference between two weights the factors of rank r keep the r largest singular values, the best that rank can
do (Eckart and Young). What training changed outside linear and convolution layers has no factors, and is told.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.core.errors import check

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


@dataclass(frozen=True)
class Extracted:
    """Factors by diffusers' names ``prefix.<layer>.lora_A.weight``, to be read with alpha equal to the rank.

    ``kept``: the share of the squared change in the weights that they have; ``lost``: the share that belongs to
    parameters no LoRA has factors for (biases, norms, embeddings, grouped convolutions).
    """

    state: dict[str, Tensor]
    kept: float
    lost: float


@torch.no_grad()
def extract_lora(base: nn.Module, tuned: nn.Module, rank: int, prefix: str = "unet") -> Extracted:
    """Return factors of at most ``rank`` that take ``base`` towards ``tuned``, float32; unchanged layers have none.

    Raises UserError for networks of other architectures, and for two that are equal.
    """
    check(rank >= 1, f"a LoRA's rank must be at least 1, got {rank}")
    before, after = dict(base.named_parameters()), dict(tuned.named_parameters())
    for name in before.keys() ^ after.keys():
        check(False, f"only one of the two networks has a parameter '{name}': extract from a network and its own copy")
    squares, kept, state = dict[str, float](), 0.0, dict[str, Tensor]()
    for name, value in before.items():
        check(value.shape == after[name].shape, f"'{name}' is {list(value.shape)} and {list(after[name].shape)}")
        squares[name] = float((after[name].double() - value.double()).square().sum())
    total = sum(squares.values())
    check(total > 0, "the two networks are equal: there is nothing to extract")
    within = 0.0
    for path, layer in base.named_modules():
        name = f"{path}.weight" if path else "weight"
        if not _has_factors(layer) or squares.get(name, 0.0) == 0:
            continue
        within += squares[name]
        change = after[name].double() - before[name].double()
        down, up, found = _factors(change, min(rank, *change.flatten(1).shape))
        kept += found
        state[f"{prefix}.{path}.lora_A.weight"] = down
        state[f"{prefix}.{path}.lora_B.weight"] = up
    return Extracted(state, kept / total, 1 - within / total)


def _has_factors(layer: nn.Module) -> bool:
    return isinstance(layer, Layer) and getattr(layer, "groups", 1) == 1


def _factors(change: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Return "r in *k" and "out r *1" whose product is the best approximation, and its squared norm."""
    u, s, v = torch.linalg.svd(change.flatten(1), full_matrices=False)
    root = s[:rank].sqrt()  # both factors alike: neither is out of range in half precision
    down = (root[:, None] * v[:rank]).reshape(rank, *change.shape[1:])
    up = (u[:, :rank] * root).reshape(len(change), rank, *[1] * (change.ndim - 2))
    return down.float().contiguous(), up.float().contiguous(), float(s[:rank].square().sum())
