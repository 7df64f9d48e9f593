"""What is prepared for a teacher: samples with a caption each, their pixels at the one size that is encoded."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from fewstep.core.data.captioned import Captioned
from fewstep.core.data.damage import BadFiles
from fewstep.core.data.source import crop_to
from fewstep.core.models.family import Size


@runtime_checkable
class Samples(Protocol):
    """Samples with captions, by index.

    ``identity``: a digest of which samples these are and how they are cut; ``cut``: the latter in words, as far as it
    is for a person to choose. ``kind``: the word for them. ``bad``: the files that cannot be read; ``per_file``: how
    many samples each file gives, one after the other.
    """

    identity: str
    cut: str
    kind: str
    bad: BadFiles
    per_file: int

    def __len__(self) -> int:
        """Return the number of samples, damaged ones included."""

    def caption(self, index: int) -> str:
        """Return a caption."""

    def pixels(self, index: int) -> Float[Tensor, "c *s"]:
        """Return pixels in [-1, 1], "c h w" or "c f h w": a function of the index and the file alone.

        :class:`.damage.Damaged` for a sample that cannot be read, TrainingError once there are too many of those.
        """


class CentreCrops:
    """Captioned pictures as samples: the largest central crop of each, at ``size``."""

    def __init__(self, pictures: Captioned, size: Size) -> None:
        self.pictures, self.size = pictures, size
        self.identity, self.cut, self.kind, self.bad, self.per_file = pictures.identity, "", "pictures", pictures.bad, 1

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.pictures)

    def caption(self, index: int) -> str:
        """Return a caption."""
        return self.pictures.caption(index)

    def pixels(self, index: int) -> Float[Tensor, "c h w"]:
        """Return a crop; Damaged or TrainingError as in :class:`Samples`."""
        return crop_to(self.pictures.picture(index), self.size, (0.5, 0.5)) * 2 - 1
