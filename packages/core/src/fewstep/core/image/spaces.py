"""Feature spaces of the image domain, each with its protocol."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.image.classifier import shipped_classifier
from fewstep.core.image.data import ImageData
from fewstep.core.metrics.measure import FeatureSpace

PRINCIPAL = 64


def feature_space(source: str, data: ImageData) -> FeatureSpace:
    """Return the classifier's space for digits, and principal components of the reference's pixels for all else."""
    if source == "digits":
        model = shipped_classifier()
        protocol = (
            "64 penultimate activations of a small classifier shipped with fewstep-core, trained on four fifths of "
            f"scikit-learn's digits with noise; reference: {data.about}"
        )
        return FeatureSpace("digits-classifier-64", protocol, model.features, model)
    return pixel_space(data.reference, data.about)


def pixel_space(reference: Float[Tensor, "n *d"], about: str) -> FeatureSpace:
    """Return the space of the principal components of a reference's pixels."""
    mean, axes = principal_axes(reference)
    kept = axes.shape[1]
    protocol = f"{kept} principal components of the reference's pixels in [-1, 1]; reference: {about}"
    return FeatureSpace(f"pixels-pca-{kept}", protocol, lambda x: (x.cpu().double().flatten(1) - mean) @ axes)


def principal_axes(x: Float[Tensor, "n *d"], most: int = PRINCIPAL) -> tuple[Tensor, Tensor]:
    """Return the mean "e" and the first principal axes "e k" of flattened samples, float64; k is at most ``most``."""
    flat = x.double().flatten(1)
    mean = flat.mean(0)
    axes: Tensor = torch.linalg.svd(flat - mean, full_matrices=False).Vh[:most].T
    return mean, axes
