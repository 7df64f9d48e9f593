"""What text-to-image students are trained on and looked at under: prompts, captioned pictures, prepared latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.data.captioned import Captioned, open_captioned
from fewstep.core.data.damage import BadFiles
from fewstep.core.data.epochs import permutation
from fewstep.core.data.prepared import Prepared, key_times_at
from fewstep.core.data.prompts import read_prompts
from fewstep.core.data.reading import fit_channels
from fewstep.core.data.shown import Shown, encode_captions, shown_prompts, shown_rows
from fewstep.core.data.source import EncodedPictures, Texts, TextSource, blank_source, crop_to, readable
from fewstep.core.denoiser import Cond
from fewstep.core.errors import check
from fewstep.core.image.data import REFERENCE_SEED, DataConfig, split
from fewstep.core.image.pictures import Part, Pictures, digits, photos
from fewstep.core.image.settings import ImageConfig
from fewstep.core.models.loading import DTYPES, Teacher


class Labelled:
    """Pictures of classes with captions made of the class's name."""

    def __init__(self, pictures: Pictures, template: str) -> None:
        check("{}" in template, f"domain.data.caption '{template}': write {{}} where the class's name belongs")
        self.pictures, self.template = pictures, template
        self.identity = f"{template} {pictures.classes} {len(pictures)}"
        self.bad = BadFiles(template, len(pictures), 0.0)

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.pictures)

    def caption(self, index: int) -> str:
        """Return the caption of a picture's class."""
        return self.caption_of(self.pictures.get(index)[1])

    def caption_of(self, label: int) -> str:
        """Return the caption of a class."""
        return self.template.replace("{}", self.pictures.classes[label])

    def picture(self, index: int) -> Float[Tensor, "c h w"]:
        """Return a picture in [0, 1], in colour."""
        return fit_channels(self.pictures.get(index)[0], 3)


@dataclass(frozen=True)
class TextData:
    """A source to train on, its unconditional condition, and the prompts students are looked at under.

    ``pictures``: what the source's latents are of (None: prompts alone, or prepared latents).
    """

    source: TextSource
    null: Cond | None
    shown: Shown
    pictures: Captioned | None
    about: str

    def reference(self, teacher: Teacher, most: int) -> Float[Tensor, "n c h w"]:
        """Return central crops of at most ``most`` pictures, in [-1, 1], at the teacher's size."""
        assert self.pictures is not None
        chosen = permutation(REFERENCE_SEED, 0, len(self.pictures)).tolist()[:most]
        rows = [readable(self.pictures, index)[1] for index in chosen]
        return torch.stack([crop_to(row, teacher.size, (0.5, 0.5)) for row in rows]) * 2 - 1


def load_text_data(
    config: ImageConfig, teacher: Teacher, encode: Callable[[Tensor], Tensor], device: torch.device | str
) -> TextData:
    """Return the data of a config with its prompts encoded; text encoders are freed again.

    ``encode``: pixels in [-1, 1] to latents. On the device ``meta`` shapes take the place of data. Raises UserError for
    sources that say nothing to a text model, and for files that cannot be read.
    """
    data = config.data
    if torch.device(device).type == "meta":
        keys = key_times_at(data.path) if data.source == "prepared" else ()
        blank, nothing = blank_source(
            teacher, DTYPES[config.model.dtype], pictures=data.source != "prompts", key_times=keys
        )
        return TextData(blank, nothing.null, shown_rows(nothing, [0]), None, "shapes only")
    if data.source == "prepared":
        check(not data.flip, "domain.data.flip: prepared latents cannot be mirrored: leave it out, or use captions")
        prepared = Prepared(data.path, teacher)
        source = TextSource(prepared, prepared if prepared.has_latents else None)
        shown = shown_prompts(prepared, config.eval_prompts, teacher, config.model, device)
        return TextData(source, prepared.null, shown, None, data.path)
    pictures = _pictures(data)
    captions = read_prompts(data.path, data.column) if pictures is None else _captions(pictures)
    texts = encode_captions(teacher, captions, config.model, device)
    latents = None if pictures is None else EncodedPictures(pictures, encode, teacher.size, data.flip)
    if isinstance(pictures, Labelled) and not config.eval_prompts:
        shown = _classes(texts, pictures)
    else:
        shown = shown_prompts(texts, config.eval_prompts, teacher, config.model, device)
    about = f"{len(captions)} samples of {data.path or data.source}"
    return TextData(TextSource(texts, latents), texts.null, shown, pictures, about)


def _captions(pictures: Captioned) -> list[str]:
    return [pictures.caption(index) for index in range(len(pictures))]


def _pictures(data: DataConfig) -> Captioned | None:
    if data.source == "prompts":
        return None
    if data.source == "captions":
        return open_captioned(data.path, data.column, data.max_bad_share)
    check(
        data.source in ("digits", "photos"),
        f"domain.data.source '{data.source}' has no captions for a text-to-image teacher: use prompts, captions, "
        "prepared, or digits with domain.data.caption",
    )
    whole: Pictures = digits() if data.source == "digits" else photos(3, data.resize or data.size)
    _, kept = split(len(whole), data.holdout)
    return Labelled(Part(whole, kept), data.caption)


def _classes(texts: Texts, pictures: Labelled) -> Shown:
    """Return the captions of all classes in turn, with their labels."""
    number = {caption: row for row, caption in enumerate(texts.captions)}
    named = [(label, pictures.caption_of(label)) for label in range(len(pictures.pictures.classes))]
    there = [(label, number[caption]) for label, caption in named if caption in number]
    return shown_rows(texts, [row for _, row in there], [label for label, _ in there])
