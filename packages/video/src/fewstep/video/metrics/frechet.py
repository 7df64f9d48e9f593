"""Frechet and kernel distances of clips to clips, and of frames to a set of images, in a declared feature space."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.core.metrics.frechet import frechet_distance, moments
from fewstep.core.metrics.kernel import mmd
from fewstep.core.metrics.measure import FeatureSpace, Measurement
from fewstep.video.metrics.similarity import spread

Batches = Tensor | Iterable[Tensor]
"""Samples at once, or batch by batch, so that a set of clips need not fit into memory."""


def features(space: FeatureSpace, samples: Batches) -> Float[Tensor, "n d"]:
    """Return the features of samples, float64 on the CPU; UserError for none, and for values that are not finite."""
    found = []
    for batch in [samples] if isinstance(samples, Tensor) else samples:
        check(bool(batch.isfinite().all()), f"{space.name}: some samples are not finite, and every distance would be")
        found.append(space.extract(batch).detach().double().cpu())
    check(bool(found), f"{space.name}: no samples given")
    return torch.cat(found)


class ClipSet:
    """A set of reference clips in a feature space; :meth:`measure` compares others with it.

    ``clips``: "n c f h w" in [-1, 1], or batches of them. Raises UserError for fewer than two clips.
    """

    def __init__(self, space: FeatureSpace, clips: Batches) -> None:
        self.space = space
        self.features = _reference(space, clips)

    def measure(self, clips: Batches) -> list[Measurement]:
        """Return the Frechet video distance in this space, and the unbiased kernel distance.

        The first is biased upwards for few clips, so compare at equal numbers only; the second is not.
        """
        return distances(self.space, features(self.space, clips), self.features, "video", "clips")


class PictureSet:
    """A set of images in a feature space of pictures; :meth:`measure` compares the frames of clips with it.

    ``pictures``: "n c h w" in [-1, 1], or batches of them; ``frames``: how many of each clip, spread evenly. Raises
    UserError for fewer than two images.
    """

    def __init__(self, space: FeatureSpace, pictures: Batches, *, frames: int = 4) -> None:
        check(frames >= 1, f"a distance of frames needs at least 1 of each clip, got {frames}")
        self.space, self.frames = space, frames
        self.features = _reference(space, pictures)

    def measure(self, clips: Batches) -> list[Measurement]:
        """Return the Frechet and kernel distances of the frames of clips "n c f h w" to the images.

        Frames are taken for independent, which those of one clip are not; neither number sees motion.
        """
        batches = [clips] if isinstance(clips, Tensor) else clips
        found = features(self.space, (frames_of(batch, self.frames) for batch in batches))
        return distances(self.space, found, self.features, "frame", f"frames, at most {self.frames} of a clip")


def frames_of(clips: Float[Tensor, "n c f h w"], count: int) -> Float[Tensor, "m c h w"]:
    """Return ``count`` frames (or all) of every clip, spread evenly, as pictures."""
    return clips[:, :, spread(clips.shape[2], count)].transpose(1, 2).flatten(0, 1)


def distances(
    space: FeatureSpace, samples: Float[Tensor, "n d"], reference: Float[Tensor, "m d"], kind: str, unit: str
) -> list[Measurement]:
    """Return ``frechet_<kind>`` and ``kernel_<kind>`` between features; UserError for fewer than two on a side."""
    sizes = (samples.shape[0], reference.shape[0])
    frechet = frechet_distance(moments(samples), moments(reference))
    where = f"{space.name}: {space.protocol}; {sizes[0]} against {sizes[1]} {unit}"
    rank = "" if min(sizes) > samples.shape[1] else f"; below {samples.shape[1] + 1} samples the bias is large"
    return [
        Measurement(f"frechet_{kind}", frechet, *sizes, f"Gaussian fit in {where}{rank}", "lower"),
        Measurement(f"kernel_{kind}", mmd(samples, reference), *sizes, f"cubic kernel, unbiased, in {where}", "lower"),
    ]


def _reference(space: FeatureSpace, samples: Batches) -> Tensor:
    found = features(space, samples)
    check(len(found) >= 2, f"{space.name}: a reference needs at least 2 samples, got {len(found)}")
    return found
