"""All set metrics against one reference, in a declared feature space, with the protocol beside every number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.core.errors import check
from fewstep.core.metrics.diversity import class_accuracy, diversity
from fewstep.core.metrics.frechet import frechet_distance, moments
from fewstep.core.metrics.kernel import mmd
from fewstep.core.metrics.neighbours import neighbourhood
from fewstep.core.metrics.sliced import sliced_wasserstein


@dataclass(frozen=True)
class FeatureSpace:
    """Where features come from. ``protocol`` says it in words good enough to make the same numbers elsewhere.

    ``extract``: samples "n *d" to features "n f". ``classify``: samples to logits "n k", where there is a classifier.
    """

    name: str
    protocol: str
    extract: Callable[[Tensor], Tensor]
    classify: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Measurement:
    """One number, with what it takes to read it."""

    name: str
    value: float
    samples: int
    reference: int
    protocol: str
    better: str  # "lower" or "higher", or "1" where the reference's own value is 1


class Reference:
    """A reference set in a feature space; :meth:`measure` compares generated samples with it.

    ``samples``: "n *d"; ``labels``: "n" or None. Distances use everything given, so fix ``n`` when comparing models.
    """

    def __init__(
        self, space: FeatureSpace, samples: Float[Tensor, "n *d"], labels: Int[Tensor, " n"] | None = None
    ) -> None:
        check(samples.shape[0] >= 2, f"a reference needs at least 2 samples, got {samples.shape[0]}")
        self.space, self.samples, self.labels = space, samples, labels
        self.features = self._extract(samples)
        self.moments = moments(self.features)

    def measure(
        self, samples: Float[Tensor, "n *d"], labels: Int[Tensor, " n"] | None = None, *, neighbours: int = 5
    ) -> list[Measurement]:
        """Return Frechet distance, KID, sliced Wasserstein, diversity, precision, recall, coverage and class accuracy.

        ``neighbours``: k of the k-NN metrics (left out when 0, or when there are too few samples). Raises UserError
        for samples that are not finite, since every number would be.
        """
        check(bool(samples.isfinite().all()), "cannot evaluate: some samples are not finite")
        features = self._extract(samples)
        sizes = (samples.shape[0], self.samples.shape[0])

        def made(name: str, value: float, better: str, how: str) -> Measurement:
            return Measurement(name, value, *sizes, how, better)

        where = self.space.name
        found = [
            made("frechet", frechet_distance(moments(features), self.moments), "lower", f"Gaussian fit to {where}"),
            made("kid", mmd(features, self.features), "lower", f"cubic kernel on {where}, unbiased"),
            made(
                "sliced_wasserstein", sliced_wasserstein(samples, self.samples), "lower", "values, p=2, 256 directions"
            ),
        ]
        same = labels is not None and self.labels is not None
        own, real = (labels, self.labels) if same else (None, None)
        spread = diversity(features, self.features, own, real)
        found.append(made("diversity", spread, "1", f"mean distance within a class over the data's, {where}"))
        if 0 < neighbours < min(sizes):
            near = neighbourhood(self.features, features, neighbours)
            how = f"{neighbours} nearest neighbours in {where}"
            found += [made(name, getattr(near, name), "higher", how) for name in ("precision", "recall", "coverage")]
        if self.space.classify is not None and labels is not None:
            logits = _in_pieces(self.space.classify, samples)
            found.append(made("accuracy", class_accuracy(logits, labels.cpu()), "higher", f"classifier of {where}"))
        return found

    def _extract(self, samples: Tensor) -> Tensor:
        return _in_pieces(self.space.extract, samples).double()


@torch.no_grad()
def _in_pieces(function: Callable[[Tensor], Tensor], samples: Tensor, size: int = 1024) -> Tensor:
    return torch.cat([function(piece).cpu() for piece in torch.split(samples, size)])
