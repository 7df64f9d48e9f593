"""What pictures are said to show, as a Stable Diffusion is told it: embeddings by its own text encoder."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.restoration.models.stable import PROMPT, ConditionedTeacher

KEPT = 256  # embeddings of the captions used last, 0.2 MiB each for Stable Diffusion 1.x


class CaptionEncoder:
    """Encodes captions with the loaded text encoder of ``teacher``; the empty one is the teacher's prompt.

    Raises UserError for a folder without a text encoder.
    """

    def __init__(self, teacher: ConditionedTeacher, device: torch.device | str = "cpu") -> None:
        check(
            all(teacher.folder.has(part) for part in teacher.family.text),
            f"{teacher.folder.path}: no text encoder there, and captions need one: give a whole pipeline",
        )
        self.encoder = teacher.text_encoder(device)
        self._prompt = teacher.told()[0][0].cpu()
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = Lock()  # batches are made in a thread of their own

    def __call__(self, captions: Sequence[str]) -> dict[str, Float[Tensor, "b n d"]]:
        """Return the entry of the condition that holds the captions' embeddings, on the CPU, float32."""
        with self._lock:
            new = [caption for caption in dict.fromkeys(captions) if caption and caption not in self._kept]
            if new:
                self._kept |= zip(new, self.encoder(new).cond[PROMPT].float(), strict=True)
            for caption in filter(None, captions):
                self._kept.move_to_end(caption)
            found = [self._kept[caption] if caption else self._prompt for caption in captions]
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return {PROMPT: torch.stack(found)}
