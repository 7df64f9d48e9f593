"""What text-to-image students are trained on and looked at under: prompts, captioned pictures, prepared latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from fewstep.core.data.captioned import Captioned, open_captioned
from fewstep.core.data.epochs import permutation
from fewstep.core.data.prepared import Prepared
from fewstep.core.data.prompts import read_prompts
from fewstep.core.data.reading import fit_channels
from fewstep.core.data.source import (
    EncodedPictures,
    Texts,
    TextSource,
    blank_source,
    crop_to,
    encode_texts,
    readable,
)
from fewstep.core.denoiser import Cond
from fewstep.core.errors import check
from fewstep.core.image.data import REFERENCE_SEED, DataConfig, split
from fewstep.core.image.pictures import Part, Pictures, digits, photos
from fewstep.core.image.settings import ImageConfig
from fewstep.core.models.loading import DTYPES, Teacher

SHOWN = 64  # different prompts students are looked at under, at most
MANY = 200  # prompts whose encoding takes long enough to show progress


class Labelled:
    """Pictures of classes with captions made of the class's name."""

    def __init__(self, pictures: Pictures, template: str) -> None:
        check("{}" in template, f"domain.data.caption '{template}': write {{}} where the class's name belongs")
        self.pictures, self.template = pictures, template
        self.identity = f"{template} {pictures.classes} {len(pictures)}"

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.pictures)

    def caption(self, index: int) -> str:
        """Return the caption of a picture's class."""
        return self.template.replace("{}", self.pictures.classes[self.pictures.get(index)[1]])

    def picture(self, index: int) -> Float[Tensor, "c h w"]:
        """Return a picture in [0, 1], in colour."""
        return fit_channels(self.pictures.get(index)[0], 3)


@dataclass
class TextData:
    """A source to train on, and the prompts to look at students under.

    ``pictures``: what the source's latents are of (None: prompts alone, or prepared latents). ``shown``: conditions of
    the different prompts in ``prompts``; ``labels``: their classes, where they have some.
    """

    source: TextSource
    teacher: Teacher
    null: Cond | None
    prompts: Sequence[str]
    shown: Cond
    labels: Sequence[int] | None
    pictures: Captioned | None
    about: str

    def prompt_at(self, index: int) -> str:
        """Return the prompt of an evaluation sample: all in turn."""
        return self.prompts[index % len(self.prompts)]

    def conditions(self, n: int) -> Cond:
        """Return the conditions of ``n`` evaluation samples on the CPU, with ``label`` where prompts name classes."""
        rows = torch.arange(n) % len(self.prompts)
        cond = {name: value[rows] for name, value in self.shown.items()}
        return cond if self.labels is None else cond | {"label": torch.tensor(list(self.labels))[rows]}

    def reference(self, most: int) -> Float[Tensor, "n c h w"]:
        """Return central crops of at most ``most`` pictures, in [-1, 1]."""
        assert self.pictures is not None
        chosen = permutation(REFERENCE_SEED, 0, len(self.pictures)).tolist()[:most]
        rows = [readable(self.pictures, index)[1] for index in chosen]
        return torch.stack([crop_to(row, self.teacher.size, (0.5, 0.5)) for row in rows]) * 2 - 1


def load_text_data(
    config: ImageConfig, teacher: Teacher, encode: Callable[[Tensor], Tensor], device: torch.device | str
) -> TextData:
    """Return the data of a config with its prompts encoded; text encoders are freed again.

    ``encode``: pixels in [-1, 1] to latents. On the device ``meta`` shapes take the place of data. Raises UserError for
    sources that say nothing to a text model, and for files that cannot be read.
    """
    data, dtype = config.data, DTYPES[config.model.dtype]
    if torch.device(device).type == "meta":
        blank, texts = blank_source(teacher, dtype, pictures=data.source != "prompts")
        return TextData(blank, teacher, texts.null, texts.captions, texts.cond, None, None, "shapes only")
    if data.source == "prepared":
        check(not data.flip, "domain.data.flip: prepared latents cannot be mirrored: leave it out, or use captions")
        prepared = Prepared(Path(data.path).expanduser(), teacher)
        source = TextSource(prepared, prepared if prepared.has_latents else None)
        return _shown(config, TextData(source, teacher, prepared.null, (), {}, None, None, data.path), prepared, device)
    pictures = _pictures(data)
    captions = read_prompts(data.path, data.column) if pictures is None else _captions(pictures)
    with tqdm(total=len(set(captions)), desc="prompts", disable=len(set(captions)) < MANY or None) as bar:
        texts = encode_texts(
            teacher, captions, device=device, dtype=dtype, done=lambda count: bar.update(count - bar.n) and None
        )
    latents = None if pictures is None else EncodedPictures(pictures, encode, teacher.size, data.flip)
    about = f"{len(captions)} samples of {data.path or data.source}"
    found = TextData(TextSource(texts, latents), teacher, texts.null, (), {}, None, pictures, about)
    return _shown(config, found, texts, device)


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


def _shown(config: ImageConfig, data: TextData, texts: Texts, device: torch.device | str) -> TextData:
    """Choose what students are looked at under: the given prompts, every class, or some of the data's captions."""
    if config.eval_prompts:
        data.prompts = read_prompts(config.eval_prompts)
        data.shown = data.teacher.encode(data.prompts, device, DTYPES[config.model.dtype]).cond
        return data
    order = list(permutation(REFERENCE_SEED, 1, len(texts.captions)))
    if isinstance(data.pictures, Labelled):
        classes = data.pictures.pictures.classes
        named = [data.pictures.template.replace("{}", name) for name in classes]
        number = {caption: row for row, caption in enumerate(texts.captions)}
        there = [index for index, caption in enumerate(named) if caption in number]
        data.labels, order = there, [number[named[index]] for index in there]
    rows = [int(row) for row in order[:SHOWN]]
    data.prompts, data.shown = [texts.captions[row] for row in rows], texts.conditions(rows)
    return data
