"""An image set beside the clips: what frames are to look like."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.data.source import crop_to
from fewstep.core.domain import DataSource
from fewstep.core.image.pictures import Pictures
from fewstep.core.models.family import Size
from fewstep.core.recipe import Batch
from fewstep.core.rng import Rng
from fewstep.video.recipes.appearance import IMAGE_CAPTION, IMAGES


class WithImages:
    """A source of clips whose batches have random crops of pictures, too: ``cond["images"]`` "b n 3 h w" in [-1, 1].

    Which pictures, and where they are cropped, is a function of seed, step and sample. ``captions``: an embedding of
    each picture's caption, which then come along, ``cond["image_caption"]`` "b n e".
    """

    def __init__(
        self,
        clips: DataSource,
        pictures: Pictures,
        size: Size,
        each: int,
        captions: Float[Tensor, "m e"] | None = None,
    ) -> None:
        self.clips, self.pictures, self.size, self.each, self.captions = clips, pictures, size, each, captions

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.clips)

    def batch(self, rng: Rng, device: torch.device | str) -> Batch:
        """Return the clips' batch with ``each`` pictures per clip."""
        found = self.clips.batch(rng, device)
        drawn = rng.uniform("image", (self.each, 3)).cpu().flatten(0, 1)
        crops = torch.stack([self.crop(u) for u in drawn.tolist()]) * 2 - 1
        cond = {**found.cond, IMAGES: crops.reshape(found.size, self.each, *crops.shape[1:]).to(device)}
        if self.captions is not None:
            told = self.captions[[self.which(row[0]) for row in drawn.tolist()]]
            cond[IMAGE_CAPTION] = told.reshape(found.size, self.each, -1).to(device)
        return replace(found, cond=cond)

    def which(self, u: float) -> int:
        """Return the picture that a number in [0, 1) means."""
        return min(int(u * len(self.pictures)), len(self.pictures) - 1)

    def crop(self, u: list[float]) -> Float[Tensor, "3 h w"]:
        """Return a crop in [0, 1] of the picture and the place that three numbers in [0, 1) mean."""
        which, *corner = u
        picture, _ = self.pictures.get(self.which(which))
        return crop_to(picture, self.size, corner)


class BlankPictures:
    """Black pictures of a size: where only their shape matters."""

    classes: tuple[str, ...] = ()

    def __init__(self, size: Size) -> None:
        self.size = size

    def __len__(self) -> int:
        """Return 1."""
        return 1

    def get(self, index: int) -> tuple[Float[Tensor, "c h w"], int]:
        """Return a black picture."""
        return torch.zeros(3, self.size.height, self.size.width), 0
