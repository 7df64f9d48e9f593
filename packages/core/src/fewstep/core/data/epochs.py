"""Epochs: in which order samples are seen, as a function of (seed, step)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fewstep.core.rng import Rng


@lru_cache(maxsize=8)
def permutation(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    """Return the order of an epoch: a function of (seed, epoch)."""
    key = Rng(seed, epoch, (0,)).torch_seed("data-order")
    return np.random.Generator(np.random.Philox(key=key)).permutation(count)


def epoch_indices(rng: Rng, count: int) -> list[int]:
    """Return which of ``count`` samples each sample of a step is: epochs run on across steps.

    Without a known global batch every step is an epoch of its own (no sample twice in a step, up to ``count``).
    """
    return [int(permutation(rng.seed, epoch, count)[place]) for epoch, place in _places(rng, count)]


def epochs_of(rng: Rng, count: int) -> list[int]:
    """Return which epoch each sample of a step belongs to."""
    return [epoch for epoch, _ in _places(rng, count)]


def _places(rng: Rng, count: int) -> list[tuple[int, int]]:
    """Return the epoch of each sample of a step, and its place in that."""
    stride = rng.batch or count
    return [divmod(rng.step * stride + sample, count) for sample in rng.ids]
