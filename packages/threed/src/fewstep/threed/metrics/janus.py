"""The Janus problem, an asset with its front on several sides, measured on rings of views (ours).

A ring is an even number n >= 2 of pictures from cameras at one height, evenly around the upright axis: the view
opposite to i is ``i + n / 2``. All measures compare differences of opposite views, so that what is alike on all sides
cancels: two with those of the truth, one, where none is known, with how CLIP's words for front and back differ.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.core.tensors import precise


def likeness(ring: Float[Tensor, "n c h w"], truth: Float[Tensor, "n c h w"]) -> Float[Tensor, " m"]:
    """Return ``1 - |g_i - g_opp| / |t_i - t_opp|`` of the n / 2 pairs: how much too alike opposite views are.

    0: as different as the truth's, in any orientation; 1: the two views are the same picture; negative: more different.
    Noise and colours too strong hide a second face, faded ones feign it. Raises UserError for rings that do not match,
    and a truth that is alike from two opposite sides.
    """
    mine, true = _differences(ring, truth)
    alike: Tensor = 1 - mine.norm(dim=1) / true.norm(dim=1)
    return alike


def facing(ring: Float[Tensor, "n c h w"], truth: Float[Tensor, "n c h w"]) -> Float[Tensor, " m"]:
    """Return ``<g_i - g_opp, t_i - t_opp> / |t_i - t_opp|^2`` of the n / 2 pairs.

    1: each side shows what it should; 0: both the same; -1: back to front. Where views are mixed with their opposites,
    ``(1 - s) t_i + s t_opp``, it is ``1 - 2 s``. Noise in the pictures leaves its mean alone. Raises as
    :func:`likeness` does.
    """
    mine, true = _differences(ring, truth)
    return (mine * true).sum(1) / true.square().sum(1)


def told_facing(
    seen: Float[Tensor, "n e"], azimuth_deg: Float[Tensor, " n"], front: Float[Tensor, " e"], back: Float[Tensor, " e"]
) -> Float[Tensor, ""]:
    """Return the cosine of ``g_i - g_opp`` and ``front - back``, mean over the views within 45 degrees of azimuth 0.

    g: vectors of views, front and back: of words for them, in one space (CLIP's). Above 0: front and back differ as the
    words do; below: back to front; near 0: two fronts, an object without any, or words the model cannot tell apart.
    Raises UserError for an odd number of views, and a ring none of whose views is from the front.
    """
    count = len(seen)
    check(count >= 2 and count % 2 == 0, f"a ring of {count} views: opposite ones need an even number")
    ahead = torch.cos(torch.deg2rad(azimuth_deg)) > math.cos(math.pi / 4)
    check(bool(ahead.any()), f"a ring of {count} views, none of them from the front: use more")
    mine, words = precise(seen - torch.roll(seen, count // 2, dims=0))[ahead], precise(front - back)
    size = mine.norm(dim=1) * words.norm()
    return torch.where(size > 0, mine @ words / size.clamp_min(torch.finfo(size.dtype).tiny), 0.0).mean()


def _differences(ring: Tensor, truth: Tensor) -> tuple[Float[Tensor, "m d"], Float[Tensor, "m d"]]:
    check(ring.shape == truth.shape, f"rings of views {tuple(ring.shape)} and {tuple(truth.shape)}: must be equal")
    check(len(ring) >= 2 and len(ring) % 2 == 0, f"a ring of {len(ring)} views: opposite ones need an even number")
    half = len(ring) // 2
    mine, true = ((x[:half] - x[half:]).flatten(1) for x in (precise(ring), precise(truth)))
    check(bool((true.norm(dim=1) > 0).all()), "Janus measure: the truth looks the same from two opposite sides")
    return mine, true
