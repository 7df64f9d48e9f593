"""The prompts students are looked at under, the same ones throughout a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from fewstep.core.data.epochs import permutation
from fewstep.core.data.prompts import read_prompts
from fewstep.core.data.source import EncodedTexts, Texts, encode_texts
from fewstep.core.denoiser import Cond
from fewstep.core.models.loading import DTYPES, Teacher
from fewstep.core.models.settings import ModelConfig

SHOWN = 64  # different prompts, at most
MANY = 200  # prompts whose encoding takes long enough to show progress
ORDER_SEED = 20_231_118  # of the choice: fixed, so that pictures compare across runs


@dataclass(frozen=True)
class Shown:
    """Prompts with one row of a condition each, on the CPU, and their classes where they have some."""

    prompts: Sequence[str]
    cond: Cond
    labels: Sequence[int] | None = None

    def prompt_at(self, index: int) -> str:
        """Return the prompt of a sample: all in turn."""
        return self.prompts[index % len(self.prompts)]

    def conditions(self, n: int) -> Cond:
        """Return the conditions of ``n`` samples, with ``label`` where prompts name classes."""
        rows = torch.arange(n) % len(self.prompts)
        cond = {name: value[rows] for name, value in self.cond.items()}
        return cond if self.labels is None else cond | {"label": torch.tensor(list(self.labels))[rows]}


def shown_prompts(texts: Texts, file: str, teacher: Teacher, model: ModelConfig, device: torch.device | str) -> Shown:
    """Return the prompts in ``file``, or, where none is given, some of the captions of the data."""
    if file:
        prompts = read_prompts(file)
        return Shown(prompts, teacher.encode(prompts, device, DTYPES[model.dtype]).cond)
    rows = permutation(ORDER_SEED, 1, len(texts.captions)).tolist()[:SHOWN]
    return shown_rows(texts, rows)


def shown_rows(texts: Texts, rows: Sequence[int], labels: Sequence[int] | None = None) -> Shown:
    """Return chosen captions of the data."""
    return Shown([texts.captions[row] for row in rows], texts.conditions(rows), labels)


def encode_captions(
    teacher: Teacher, captions: Sequence[str], model: ModelConfig, device: torch.device | str
) -> EncodedTexts:
    """Return the encoded captions of samples, with a progress bar for many; text encoders are freed again."""
    different = len(set(captions))
    with tqdm(total=different, desc="prompts", disable=different < MANY or None) as bar:

        def done(count: int) -> None:
            bar.update(count - bar.n)

        return encode_texts(teacher, captions, device=device, dtype=DTYPES[model.dtype], done=done)
