"""Pairs of samples, ranked by a judge."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.core.errors import TrainingError, UserError
from fewstep.core.losses.preference import choose
from fewstep.core.recipe import Batch, Judge


class Pair(NamedTuple):
    """The better and the worse sample "b *d", whether the first was the better, and by how much, both "b"."""

    winner: Tensor
    loser: Tensor
    first_won: Tensor
    lead: Tensor


def ranked(judge: Judge, first: Tensor, second: Tensor, batch: Batch) -> Pair:
    """Return two samples "b *d" as a pair; the second wins ties. Labels are data: no gradient reaches the judge.

    Raises UserError when the judge does not give one number per sample, TrainingError when one of them is NaN.
    """
    scores = []
    with torch.no_grad():
        for x in (first, second):
            score = judge(x.detach(), batch)
            if tuple(score.shape) != (batch.size,):
                raise UserError(f"a judge must give one number per sample, [{batch.size}], got {list(score.shape)}")
            if bool(score.isnan().any()):
                bad = int((~x.flatten(1).isfinite().all(1)).sum())
                found = f"{bad} of the {len(x)} samples are not finite" if bad else "all samples are finite"
                raise TrainingError(f"a judge gives NaN, so pairs cannot be ranked ({found})")
            scores.append(score)
        first_won = scores[0] < scores[1]
        lead = (scores[0] - scores[1]).abs()
    return Pair(choose(first_won, first, second), choose(first_won, second, first), first_won, lead)
