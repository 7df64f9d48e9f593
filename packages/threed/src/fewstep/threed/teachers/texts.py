"""Prompts read by a pipeline's own text encoders, which are let go as soon as they have read."""

from __future__ import annotations

from collections.abc import Sequence

from fewstep.core.denoiser import Cond
from fewstep.core.errors import check
from fewstep.core.models.files import quiet
from fewstep.core.models.loading import Teacher, TextEncoder

EMPTY = "an empty prompt says nothing of an object: give one, like 'a red cone'"


class PipelineTexts:
    """A pipeline's prompts. ``null``: one row of the unconditional condition, None where there is none."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher
        self._encoder: TextEncoder | None = teacher.text_encoder()  # until the first prompts: it is large
        self.null = self._encoder(["a"]).null

    def __call__(self, texts: Sequence[str]) -> Cond:
        """Return the conditions of prompts; UserError for one that is empty, or longer than the teacher reads."""
        check(bool(texts) and all(text.strip() for text in texts), EMPTY)
        encoder = self._encoder or self.teacher.text_encoder()
        self._encoder = None
        check_lengths(encoder, texts)
        return dict(encoder(texts).cond)


def check_lengths(encoder: TextEncoder, texts: Sequence[str]) -> None:
    """Raise UserError for a prompt that a CLIP tokenizer cuts: what it loses is its end, where the view stands."""
    for part in encoder.pipe.components.values():
        if not type(part).__name__.startswith("CLIPTokenizer"):
            continue
        with quiet():
            counts = [len(tokens) for tokens in part(list(texts)).input_ids]
        for text, count in zip(texts, counts, strict=True):
            check(
                count <= part.model_max_length,
                f"'{text[:80]}' has {count} tokens, the teacher reads {part.model_max_length}: shorten the "
                "prompt (what is said of the view behind it: domain.judge.directions.words)",
            )
