"""Video told its first frames: their latents, padded with zeros over time, and a mask join the noisy ones as channels.

A network sees ``[noisy, given, mask]``, 2c+1 channels, the mask 1 on given frames (Magic 1-For-1, arXiv 2502.07701).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond
from fewstep.core.errors import check
from fewstep.core.networks.backbone import entry

GIVEN, MASK = "given", "given_mask"


def told_channels(channels: int) -> int:
    """Return how many channels a network takes that is told frames of latents of ``channels``."""
    return 2 * channels + 1


def first_frames(given: Float[Tensor, "b c g h w"], frames: int) -> tuple[Tensor, Tensor]:
    """Return given frames followed by zeros, "b c f h w", and their mask "b f"; UserError for more than ``frames``."""
    count = given.shape[2]
    check(count <= frames, f"{count} given frames for a clip of {frames} latent frames: give fewer")
    padded = torch.nn.functional.pad(given, (0, 0, 0, 0, 0, frames - count))
    mask = (torch.arange(frames, device=given.device) < count).to(given.dtype)
    return padded, mask.expand(len(given), frames)


def drop_frames(given: Float[Tensor, "b c f h w"], counts: Tensor) -> dict[str, Tensor]:
    """Return the condition of samples that are given a number of leading frames each, ``counts`` "b"."""
    mask = torch.arange(given.shape[2], device=given.device) < counts.to(given.device)[:, None]
    return {GIVEN: given * mask[:, None, :, None, None], MASK: mask.to(given.dtype)}


def join_given(x: Float[Tensor, "b c f h w"], cond: Cond, who: str) -> Float[Tensor, "b d f h w"]:
    """Return ``[x, given, mask]``.

    ``cond["given"]``: latents of leading frames "b c g h w"; with ``cond["given_mask"]`` "b f" of the clip's length,
    and zero where the mask is. Raises UserError when their shapes do not fit ``x``.
    """
    given = entry(cond, GIVEN, who).to(x.dtype)
    check(
        given.ndim == x.ndim == 5 and given.shape[:2] == x.shape[:2] and given.shape[3:] == x.shape[3:],
        f"cond['{GIVEN}'] is {tuple(given.shape)} and cannot be the first frames of latents {tuple(x.shape)}",
    )
    if MASK in cond:
        mask = cond[MASK].to(x.dtype)
        check(
            given.shape == x.shape and mask.shape == (len(x), x.shape[2]),
            f"cond['{MASK}'] is {tuple(mask.shape)}: it marks frames of a cond['{GIVEN}'] as long as the clip",
        )
        given = torch.where(mask[:, None, :, None, None] > 0, given, torch.zeros_like(given))
    else:
        given, mask = first_frames(given, x.shape[2])
    return torch.cat([x, given, mask[:, None, :, None, None].expand(-1, 1, -1, *x.shape[3:])], 1)
