"""Diversity: how far apart the samples of one class are, beside the data's own spread."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.core.errors import check
from fewstep.core.metrics.kernel import squared_distances


def mean_pairwise_distance(features: Float[Tensor, "n d"]) -> float:
    """Return the mean Euclidean distance between different samples; UserError for fewer than two."""
    n = features.shape[0]
    check(n >= 2, f"a pairwise distance needs at least 2 samples, got {n}")
    x = features.detach().double().cpu()
    distances = squared_distances(x, x).sqrt()
    return float((distances.sum() - distances.diagonal().sum()) / (n * (n - 1)))


def diversity(
    features: Float[Tensor, "n d"],
    reference: Float[Tensor, "m d"],
    labels: Int[Tensor, " n"] | None = None,
    reference_labels: Int[Tensor, " m"] | None = None,
) -> float:
    """Return the spread within a class over the reference's in the same class, averaged over classes.

    1 is the data's diversity, 0 a collapse to one sample per class. Without labels everything is one class. Raises
    UserError when no class has two samples on both sides, or labels are given for one side only.
    """
    check((labels is None) == (reference_labels is None), "diversity needs labels on both sides or on neither")
    if labels is None or reference_labels is None:
        return mean_pairwise_distance(features) / mean_pairwise_distance(reference)
    ratios = []
    for label in torch.unique(labels).tolist():
        own, real = features[labels == label], reference[reference_labels == label]
        if min(len(own), len(real)) >= 2:
            ratios.append(mean_pairwise_distance(own) / mean_pairwise_distance(real))
    check(bool(ratios), "diversity: no class has two samples on both sides; draw more samples")
    return sum(ratios) / len(ratios)


def class_accuracy(logits: Float[Tensor, "n k"], labels: Int[Tensor, " n"]) -> float:
    """Return the share of samples a classifier puts into the class they were asked for."""
    return float((logits.argmax(1) == labels).double().mean())
