"""Whether assets show what their prompts say, by a CLIP model the user gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check

PREFIX = "a photo of "
WEIGHT = 2.5  # of CLIPScore (arXiv 2104.08718)


class Embedder(Protocol):
    """Pictures in [-1, 1] and prompts as unit vectors of one space: ``fewstep.core.image.clip.ClipScore``."""

    def embed_pictures(self, pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n e"]:
        """Return the pictures' vectors."""

    def embed_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "n e"]:
        """Return the prompts' vectors."""


@dataclass(frozen=True)
class PromptScores:
    """``clip_score``: 2.5 max(cos, 0), the mean of an asset's views; ``r_precision``: the share of its views whose
    nearest prompt of all candidates is its own (Park et al. 2021, as in Dream Fields). ``protocol`` says how.
    """

    clip_score: Float[Tensor, " a"]
    r_precision: Float[Tensor, " a"]
    protocol: str


def prompt_scores(
    clip: Embedder,
    pictures: Float[Tensor, "a v 3 h w"],
    prompts: Sequence[str],
    candidates: Sequence[str],
    *,
    prefix: str = PREFIX,
) -> PromptScores:
    """Score views, in [0, 1], of assets against their ``prompts``, and those against all ``candidates``.

    Chance is 1 / (number of candidates): say how many with the number. Raises UserError where counts differ, a prompt
    is not among the candidates, or there are fewer than two.
    """
    known = list(dict.fromkeys(candidates))
    check(len(known) >= 2, f"R-precision: {len(known)} prompt to choose from says nothing; give two or more")
    seen = clip.embed_pictures(2 * pictures.flatten(0, 1).float() - 1)
    return seen_scores(clip, seen.reshape(*pictures.shape[:2], -1), prompts, known, prefix=prefix)


def seen_scores(
    clip: Embedder,
    seen: Float[Tensor, "a v e"],
    prompts: Sequence[str],
    candidates: Sequence[str],
    *,
    prefix: str = PREFIX,
) -> PromptScores:
    """Return what :func:`prompt_scores` does, of the vectors of views; among one candidate any view is right."""
    check(len(seen) == len(prompts), f"CLIP score: {len(seen)} assets and {len(prompts)} prompts")
    known = list(dict.fromkeys(candidates))
    for prompt in prompts:
        check(prompt in known, f"R-precision: the prompt '{prompt}' is not among the candidates; add it")
    views = seen.shape[1]
    cosine = seen @ clip.embed_prompts([prefix + each for each in known]).T
    own = torch.tensor([known.index(prompt) for prompt in prompts], device=cosine.device)
    mine = cosine.gather(2, own[:, None, None].expand(-1, views, 1))[..., 0]
    right = (cosine.argmax(2) == own[:, None]).to(mine.dtype)
    protocol = f"clip: 2.5 max(cosine, 0) after '{prefix}', mean of {views} views; R-precision of {len(known)} prompts"
    return PromptScores(WEIGHT * mine.clamp_min(0).mean(1), right.mean(1), protocol)
