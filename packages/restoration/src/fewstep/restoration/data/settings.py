"""Settings of restoration's data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fewstep.core.errors import check
from fewstep.restoration.degradations.config import preset

BICUBIC = "bicubic-matlab"
MAX_CROP = 4096
MAX_CACHED = 100_000


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where good pictures come from, and how training pairs are made of them.

    ``source``: ``photos`` that came with the package; a ``folder`` of pictures, searched to its bottom; a ``list`` in a
    text file, of pictures or of "hr, lr" pairs; ``pairs``, two folders of which one holds the low-quality pictures.
    ``path``: the folder, the list, or for pairs the folder of good pictures or the one above both. ``also``: a folder
    of pictures that are trained on beside the photos. ``root``: where a list's relative paths start, by default its own
    folder. ``lr_path`` and ``template``: of pairs, where they cannot be found by their usual names; ``{}x4`` says that
    the partner of 0001.png is called 0001x4. ``held_out``: the share of pictures that are evaluated on and never
    trained on, unless ``held_out_path`` (``held_out_lr_path``) names others.
    ``crop``: pixels of a good crop, a multiple of every scale. ``degradation``: a preset; pairs need none.
    ``min_gradient``: crops whose luma changes less from pixel to pixel, of 1, are flat, and up to ``tries`` places are
    tried for a better one (0: every crop is taken). ``flip``: mirror half of the crops; ``rotate``: by quarter turns.
    ``shrink``: training crops are those of a picture made smaller by a random factor from 1 to this, as the pictures of
    several sizes that Real-ESRGAN was trained on: more to learn from few pictures.
    ``jitter``: training crops get their channels in a random order and up to this share less contrast, tinted (0: no).
    ``sharpen``: good crops by unsharp masking before anything else, as Real-ESRGAN does, but not those held out.
    ``max_bad_share``: of files that may be missing or unreadable. ``cache_pictures``: how many stay in memory, decoded.
    ``captions``: the share of training samples that a Stable Diffusion is told their own caption of, in NAME.txt beside
    the good picture; the others, and pictures without one, are told ``domain.prompt`` (0: all of them).
    """

    source: Literal["photos", "folder", "pairs", "list"] = "photos"
    path: str = ""
    also: str = ""
    root: str = ""
    lr_path: str = ""
    template: str = ""
    held_out: float = 0.05
    held_out_path: str = ""
    held_out_lr_path: str = ""
    crop: int = 96
    degradation: str = BICUBIC
    min_gradient: float = 0.005
    tries: int = 4
    flip: bool = True
    rotate: bool = False
    shrink: float = 1.0
    jitter: float = 0.0
    sharpen: bool = False
    max_bad_share: float = 0.01
    cache_pictures: int = 64
    captions: float = 0.0

    def __post_init__(self) -> None:
        self._check_places()
        preset(self.degradation)
        check(1 <= self.crop <= MAX_CROP, f"domain.data.crop must lie in 1..{MAX_CROP} pixels, got {self.crop}")
        check(
            0 < self.held_out <= 0.5, f"domain.data.held_out must be a share above 0, at most 0.5, got {self.held_out}"
        )
        check(
            0 <= self.min_gradient < 1, f"domain.data.min_gradient must be at least 0, below 1, got {self.min_gradient}"
        )
        check(1 <= self.tries <= 100, f"domain.data.tries must lie in 1..100, got {self.tries}")
        check(
            0 <= self.max_bad_share <= 1, f"domain.data.max_bad_share must be a share in 0..1, got {self.max_bad_share}"
        )
        check(0 <= self.captions <= 1, f"domain.data.captions must be a share in 0..1, got {self.captions:g}")
        check(
            0 <= self.cache_pictures <= MAX_CACHED,
            f"domain.data.cache_pictures must lie in 0..{MAX_CACHED}, got {self.cache_pictures}",
        )

    def _check_places(self) -> None:
        given = self.source != "photos"
        check(
            given == bool(self.path),
            "domain.data.path belongs to data of your own: give it with source folder, list or pairs, and only there "
            "(beside the photos: domain.data.also)",
        )
        check(not given or not self.also, "domain.data.also is learnt beside source=photos: put it into your own data")
        check(given or not self.held_out_path, "domain.data.held_out_path: the photos have pictures held out already")
        check(given or self.captions == 0, "domain.data.captions: the photos have none: give pictures of your own")
        check(self.source == "list" or not self.root, "domain.data.root belongs to source=list")
        paired = self.source == "pairs"
        for name in ("lr_path", "template", "held_out_lr_path"):
            check(paired or not getattr(self, name), f"domain.data.{name} belongs to source=pairs")
        check(
            bool(self.held_out_path) or not self.held_out_lr_path,
            "domain.data.held_out_lr_path needs held_out_path, the good pictures to those",
        )
        check(
            not self.template or self.template.count("{}") == 1,
            f"domain.data.template must hold {{}} once, for the name of the good picture, got '{self.template}'",
        )
        check(1 <= self.shrink <= 8, f"domain.data.shrink must lie in 1..8, got {self.shrink:g}")
        check(not paired or self.shrink == 1, "domain.data.shrink: pairs are learnt at their size; leave it 1")
        check(0 <= self.jitter < 1, f"domain.data.jitter must be a share in 0..1, below 1, got {self.jitter:g}")
        check(not paired or not self.sharpen, "domain.data.sharpen: good pictures of pairs are learnt as they are")
        check(
            not paired or self.degradation == BICUBIC,
            "domain.data.degradation: pairs are degraded already; remove it, or give source=folder",
        )
