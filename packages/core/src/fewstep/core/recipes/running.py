"""Running means over the global batch, for weights that a paper normalises by their batch mean.

A mean over the micro-batch at hand would make the numbers depend on memory and on the number of processes. Here each
step's mean over all samples of all processes moves an average, and samples are divided by the average of the steps
before: the same for every split of the batch, and restored from a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.core.errors import UserError, check


class RunningMeans:
    """Averages of several quantities, one per bin: ``value`` "bins", float64, starting at ``initial``."""

    def __init__(self, initial: Float[Tensor, " bins"], decay: float) -> None:
        check(0 <= decay < 1, f"a running mean's decay must lie in [0, 1), got {decay:g}")
        self.decay = decay
        self.value = initial.detach().double()
        self._sums = torch.zeros(2, len(initial), dtype=torch.float64)
        self._seen = False

    def of(self, index: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Return the averages in force for samples of the given bins."""
        return self.value.to(index.device)[index]

    def add(self, values: Float[Tensor, " b"], index: Int[Tensor, " b"]) -> None:
        """Count this step's values, detached, for bins ``index``."""
        device = values.device
        self._sums = self._sums.to(device)
        found = torch.stack([values.detach().double(), torch.ones_like(values, dtype=torch.float64)])
        self._sums = self._sums.index_add(1, index.to(device), found)
        self._seen = True

    def finish(self, total: Callable[[Tensor], Tensor] | None) -> None:
        """Move the averages by the means of this step, summed over processes by ``total``.

        Empty bins stay, and bins with a value that is not finite.
        """
        if not self._seen:
            return
        sums = self._sums if total is None else total(self._sums)
        old, (added, count) = self.value.to(sums.device), sums
        # this form leaves a mean that equals the average exactly where it is
        moved = old + (1 - self.decay) * (added / count.clamp_min(1) - old)
        # an update with a value that is not finite is skipped by the loop and must not live on here
        self.value = torch.where((count > 0) & added.isfinite(), moved, old)
        self._sums, self._seen = torch.zeros_like(self._sums), False

    def state(self) -> Tensor:
        """Return the averages."""
        return self.value.cpu()

    def load(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Restore the averages from ``state[name]`` and forget this step's values; UserError when it does not fit."""
        found = state.get(name)
        if found is None or found.shape != self.value.shape:
            raise UserError(f"the checkpoint has no running mean '{name}' of {len(self.value)} bins: another config?")
        self.value, self._seen = found.double(), False
        self._sums = torch.zeros(2, len(found), dtype=torch.float64)
