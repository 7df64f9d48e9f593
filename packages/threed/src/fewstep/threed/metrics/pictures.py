"""Pictures of an asset against pictures of the truth from the same cameras, one value per view."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.core.tensors import precise, sample_sum


def silhouette_iou(alpha: Float[Tensor, "b 1 h w"], target: Float[Tensor, "b 1 h w"]) -> Float[Tensor, " b"]:
    """Return ``sum min(a, b) / sum max(a, b)`` of coverages in [0, 1]; 1 where both are empty.

    On coverages of 0 and 1 this is intersection over union. Raises UserError for shapes that differ.
    """
    _check_alike(alpha, target)
    a, b = precise(alpha), precise(target)
    both, either = sample_sum(torch.minimum(a, b)), sample_sum(torch.maximum(a, b))
    return torch.where(either > 0, both / either.clamp_min(torch.finfo(either.dtype).tiny), 1)


def psnr(
    image: Float[Tensor, "b c h w"],
    target: Float[Tensor, "b c h w"],
    weight: Float[Tensor, "b 1 h w"] | None = None,
) -> Float[Tensor, " b"]:
    """Return ``-10 log10`` of the mean squared difference of pictures in [0, 1], in dB; infinite for equal ones.

    Without ``weight`` over all pixels, background included, which a large background makes high. With the truth's alpha
    as ``weight`` over the object alone. Raises UserError for shapes that differ, and weights that sum to 0.
    """
    _check_alike(image, target)
    square = (precise(image) - precise(target)).square().mean(1, keepdim=True)
    if weight is None:
        return -10 * torch.log10(square.flatten(1).mean(1))
    check(
        weight.shape == square.shape, f"weights {tuple(weight.shape)} of pictures {tuple(image.shape)}: one per pixel"
    )
    total = sample_sum(precise(weight))
    check(bool((total > 0).all()), "PSNR of an object: a view shows none of it (its weights sum to 0); leave it out")
    return -10 * torch.log10(sample_sum(square * precise(weight)) / total)


def _check_alike(a: Tensor, b: Tensor) -> None:
    check(a.shape == b.shape, f"pictures {tuple(a.shape)} and {tuple(b.shape)} to compare: shapes must be equal")
