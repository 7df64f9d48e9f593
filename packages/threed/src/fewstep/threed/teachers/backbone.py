"""A network that draws pictures of a prompt from a camera: diffusers' ``UNet2DConditionModel``, told both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from fewstep.core.denoiser import Cond
from fewstep.core.errors import UserError, check
from fewstep.core.models.files import read_json
from fewstep.core.networks.backbone import entry
from fewstep.core.networks.timed import UNetBackbone
from fewstep.core.rng import Rng

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

CAMERA, TOKENS = "camera", "tokens"
CAMERA_NUMBERS = 16
WORDS_FILE, TABLE_FILE = "words.json", "words.safetensors"


class Words(nn.Module):
    """A table of embeddings of a small vocabulary, and one for each place of a word in the prompt.

    Token 0 is the empty place; a prompt of nothing else is the unconditional one.
    """

    def __init__(self, words: Sequence[str], length: int, width: int) -> None:
        super().__init__()
        check(len(set(words)) == len(words) > 0, "a vocabulary needs words, each once")
        self.words, self.length = tuple(words), length
        self.table = nn.Embedding(len(words) + 1, width)
        self.places = nn.Parameter(nn.init.normal_(torch.empty(length, width), std=0.02))

    def tokens(self, texts: Sequence[str]) -> Int[Tensor, "b n"]:
        """Return prompts as tokens; UserError for a word that is not known, and for too many."""
        known = {word: index for index, word in enumerate(self.words, 1)}
        out = torch.zeros(len(texts), self.length, dtype=torch.long)
        for row, text in enumerate(texts):
            words = text.split()
            check(len(words) <= self.length, f"'{text[:80]}' has {len(words)} words, the teacher reads {self.length}")
            for place, word in enumerate(words):
                if word not in known:
                    raise UserError(f"'{text[:80]}': the teacher does not know '{word[:40]}', only {', '.join(known)}")
                out[row, place] = known[word]
        return out

    def forward(self, tokens: Int[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        """Return the embeddings of tokens in their places."""
        out: Tensor = self.table(tokens) + self.places
        return out


class ViewBackbone(UNetBackbone):
    """A diffusers ``UNet2DConditionModel`` that reads cond["tokens"] through its own words and cond["camera"].

    The camera's 16 numbers (:func:`fewstep.threed.cameras.conventions.mvdream_condition`) enter as the network's class
    embedding of type ``projection``, as in MVDream (arXiv 2308.16512). Samples are pictures "b c h w"; the network sees
    blocks of ``patch`` x ``patch`` pixels as channels. Raises UserError for a network that does not fit.
    """

    lora_targets: tuple[str, ...] = (
        "to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "time_emb_proj", "conv_shortcut", "linear_1", "linear_2",
        "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out",
    )  # fmt: skip

    def __init__(self, unet: UNet2DConditionModel, words: Words, patch: int = 1) -> None:
        super().__init__()
        config = unet.config
        check(config.class_embed_type == "projection", "a view network needs class_embed_type 'projection'")
        numbers = config.projection_class_embeddings_input_dim
        check(numbers == CAMERA_NUMBERS, f"a view network reads {CAMERA_NUMBERS} numbers of a camera, not {numbers}")
        check(config.in_channels % patch**2 == 0, f"{config.in_channels} channels are no blocks of {patch}x{patch}")
        self.unet, self.words, self.patch = unet, words, patch
        self.extra_inputs = None

    @classmethod
    def make(
        cls,
        words: Sequence[str],
        *,
        size: int = 32,
        channels: int = 3,
        patch: int = 2,
        widths: Sequence[int] = (64, 64, 64),
        attention: Sequence[bool] = (False, True, True),
        layers: int = 1,
        text_width: int = 64,
        length: int = 8,
        seed: int = 0,
    ) -> ViewBackbone:
        """Return an untrained network for pictures "channels size size"; UserError for sizes that do not halve."""
        from diffusers import UNet2DConditionModel

        side, levels = size // patch, len(widths)
        check(size % patch == 0, f"pictures of {size} pixels are no blocks of {patch}")
        check(side % 2 ** (levels - 1) == 0, f"{side} blocks cannot be halved {levels - 1} times: use fewer widths")
        check(len(attention) == levels, f"attention has {len(attention)} entries for {levels} widths")
        check(all(width % 8 == 0 for width in widths), f"widths must be multiples of 8, got {list(widths)}")
        with Rng(seed, 0, ()).network_noise("init"):
            unet = UNet2DConditionModel(
                sample_size=side,
                in_channels=channels * patch**2,
                out_channels=channels * patch**2,
                block_out_channels=tuple(widths),
                layers_per_block=layers,
                down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention),
                up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
                cross_attention_dim=text_width,
                norm_num_groups=8,
                attention_head_dim=2,  # diffusers counts heads by this name
                class_embed_type="projection",
                projection_class_embeddings_input_dim=CAMERA_NUMBERS,
            )
            return cls(unet, Words(words, length, text_width), patch)

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """Return the raw output "b c h w"; UserError when the condition lacks an entry."""
        who = type(self).__name__
        told = self.words(entry(cond, TOKENS, who)).to(x.dtype)
        camera = entry(cond, CAMERA, who).to(x.dtype)
        with self.adding_extras(cond):
            blocks = pixel_unshuffle(x, self.patch)
            out = self.unet(blocks, time, encoder_hidden_states=told, class_labels=camera, return_dict=False)[0]
        return pixel_shuffle(out, self.patch)

    def null(self, cond: Cond) -> Cond:
        """Return the condition of the empty prompt; the camera stays."""
        return dict(cond) | {TOKENS: torch.zeros_like(entry(cond, TOKENS, type(self).__name__))}

    def save(self, folder: Path) -> None:
        """Write the UNet as stock diffusers does, and the words beside it."""
        self.unet.save_pretrained(folder / "unet", safe_serialization=True)
        about = {"words": list(self.words.words), "length": self.words.length, "patch": self.patch}
        (folder / WORDS_FILE).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        state = {name: value.contiguous() for name, value in self.words.state_dict().items()}
        save_file(state, str(folder / TABLE_FILE))

    @classmethod
    def load(cls, folder: Path) -> ViewBackbone:
        """Return the network of a folder in float32; UserError naming the file that is missing or damaged."""
        from diffusers import UNet2DConditionModel

        about = read_json(folder / WORDS_FILE)
        try:
            words, length, patch = [str(w) for w in about["words"]], int(about["length"]), int(about["patch"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{folder / WORDS_FILE}: says no words, length and patch; export the teacher again"
            ) from error
        try:
            state = load_file(folder / TABLE_FILE)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{folder / TABLE_FILE}: no readable tensors there; export the teacher again") from error
        try:
            unet = UNet2DConditionModel.from_pretrained(folder / "unet", use_safetensors=True, local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{folder / 'unet'}: cannot be loaded ({str(error)[:120]}); export the teacher again"
            ) from None
        table = Words(words, length, unet.config.cross_attention_dim)
        found = {name: tuple(value.shape) for name, value in state.items()}
        expected = {name: tuple(value.shape) for name, value in table.state_dict().items()}
        check(found == expected, f"{folder / TABLE_FILE}: does not fit {WORDS_FILE}; export the teacher again")
        table.load_state_dict(state)
        return cls(unet.float(), table.float(), patch)
