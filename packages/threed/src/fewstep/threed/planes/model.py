"""A generator of planes small enough for a laptop, and as a folder: safetensors and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fewstep.core.denoiser import Cond, NetworkDenoiser, Plain
from fewstep.core.errors import UserError, check
from fewstep.core.models.files import read_json
from fewstep.core.models.student import PLAN_FILE, facts_table, plan_from, replacing, write_json, write_plan
from fewstep.core.prediction import Kind
from fewstep.core.process import VP
from fewstep.core.recipe import StepPlan
from fewstep.core.rng import Rng
from fewstep.core.sampling import run_plan
from fewstep.threed.planes.adapting import PLANES, adapt
from fewstep.threed.planes.decoders import TinyDecoder
from fewstep.threed.planes.field import FieldConfig, PlaneScene
from fewstep.threed.planes.generator import TOKENS, WEIGHTS_FILE, PlaneGenerator
from fewstep.threed.shapes.prompts import VOCABULARY
from fewstep.threed.teachers.backbone import Words

MODEL_FILE = "planes.json"
LARGEST = {"latents": 64, "side": 128, "features": 256, "width": 1024, "text_width": 4096, "rank": 256, "length": 512}
SOLIDS_FIELD = FieldConfig(
    bound=0.55, radius=0.35, hidden=32, layers=1, opacity="volsdf", sharpness=40.0, normals=False, sections=14, fine=10
)


@dataclass(frozen=True, kw_only=True)
class PlanesConfig:
    """A fresh generator of planes.

    ``latents`` channels of ``side`` x ``side``, and planes of ``features`` channels four times as wide. ``widths`` of
    the U-Net's levels, the last of which attend. ``width`` of the decoder. ``rank`` of the planes' own factors.
    ``text_width``: of a word's embedding, prompts of up to ``length`` words.
    """

    latents: int = 8
    side: int = 8
    features: int = 8
    widths: tuple[int, ...] = (32, 64)
    width: int = 32
    rank: int = 8
    text_width: int = 64
    length: int = 8
    field: FieldConfig = SOLIDS_FIELD

    def __post_init__(self) -> None:
        for name, most in LARGEST.items():
            check(1 <= getattr(self, name) <= most, f"planes.{name} must lie in 1..{most}, got {getattr(self, name)}")
        check(1 <= len(self.widths) <= 8, f"planes.widths: 1 to 8 levels, got {len(self.widths)}")
        check(
            all(w % 8 == 0 and 0 < w <= 4096 for w in self.widths), f"planes.widths: multiples of 8, got {self.widths}"
        )
        halvings = 2 ** (len(self.widths) - 1)
        check(self.side % halvings == 0, f"planes.side {self.side} cannot be halved so often: use fewer widths")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a sample."""
        return (PLANES, self.latents, self.side, self.side)


def make_generator(config: PlanesConfig, seed: int) -> PlaneGenerator:
    """Return an untrained generator, all of which trains, that reads prompts of the world of solids."""
    from diffusers import UNet2DConditionModel

    levels = len(config.widths)
    attends = [index >= min(1, levels - 1) for index in range(levels)]
    with Rng(seed, 0, ()).network_noise("init"):
        unet = UNet2DConditionModel(
            sample_size=config.side,
            in_channels=config.latents,
            out_channels=config.latents,
            block_out_channels=config.widths,
            layers_per_block=1,
            down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
            cross_attention_dim=config.text_width,
            attention_head_dim=4,  # diffusers counts heads by this name
            norm_num_groups=8,
        )
        words = Words(VOCABULARY, config.length, config.text_width)
        torch.nn.init.normal_(words.table.weight)
        decoder = TinyDecoder(config.latents, config.features, width=config.width)
        place = torch.nn.init.normal_(torch.empty(config.shape))
        adapted = adapt(unet, rank=config.rank, train_base=True, seed=seed)
        return PlaneGenerator(adapted, decoder, config.features, config.field, words=words, place=place)


def student_of(generator: PlaneGenerator) -> NetworkDenoiser:
    """Return the denoiser of a fresh generator: it predicts clean latents under Stable Diffusion's noise."""
    return NetworkDenoiser(generator, VP.scaled_linear(), Plain(Kind.X0))


def encode_prompts(generator: PlaneGenerator, texts: Sequence[str]) -> Cond:
    """Return the tokens of prompts; UserError for empty ones, unknown words and too many."""
    for text in texts:
        check(bool(text.strip()), "an empty prompt says nothing of an object: give one, like 'a red cone'")
    words = generator.words
    if not isinstance(words, Words):
        raise UserError("this generator reads embeddings of prompts, not words: encode them with its text encoder")
    return {TOKENS: words.tokens(texts)}


@dataclass(frozen=True)
class PlanesModel:
    """A trained generator with its plan."""

    student: NetworkDenoiser
    generator: PlaneGenerator
    config: PlanesConfig
    plan: StepPlan

    @torch.no_grad()
    def scenes(self, texts: Sequence[str], seed: int = 0) -> list[PlaneScene]:
        """Return one scene per prompt: a mesh, a cloud of Gaussians, views; UserError for prompts it cannot read."""
        cond = encode_prompts(self.generator, texts)
        rng = Rng.for_batch(seed, 0, len(texts))
        z: Tensor = run_plan(self.student, self.plan, rng.normal("noise", self.config.shape), cond, rng)
        field = self.generator.field(z)
        return [field.scene(index) for index in range(len(texts))]


def save_planes(
    generator: PlaneGenerator, config: PlanesConfig, plan: StepPlan, folder: Path, card: Mapping[str, Any]
) -> None:
    """Write a generator into ``folder``, replacing what was there; UserError where the disk refuses."""
    with replacing(folder) as aside:
        generator.save(aside)
        write_json(aside / MODEL_FILE, asdict(config))
        write_plan(aside, plan, card)
        text = f"# {card.get('name', 'planes')}\n\nSolids by prompt.\n\n| | |\n|---|---|\n{facts_table(card)}\n"
        (aside / "README.md").write_text(text, encoding="utf-8")


def load_planes(folder: Path) -> PlanesModel:
    """Return the model of a folder, on the CPU; UserError naming the file that is missing or damaged."""
    config = _config(folder / MODEL_FILE)
    plan = plan_from(read_json(folder / PLAN_FILE).get("plan"), folder / PLAN_FILE)
    generator = make_generator(config, 0)
    file = folder / WEIGHTS_FILE
    try:
        state = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: no readable tensors there; export the student again") from error
    found = {name: tuple(value.shape) for name, value in state.items()}
    expected = {name: tuple(value.shape) for name, value in generator.state_dict().items()}
    check(found == expected, f"{file}: does not fit {MODEL_FILE}; export the student again")
    check(all(bool(value.isfinite().all()) for value in state.values()), f"{file}: has numbers that are not finite")
    generator.load_state_dict(state)
    generator.eval().requires_grad_(False)
    return PlanesModel(student_of(generator), generator, config, plan)


def _config(file: Path) -> PlanesConfig:
    entries = read_json(file)
    try:
        inner = dict(entries.pop("field"))
        return PlanesConfig(**_tuples(entries, PlanesConfig), field=FieldConfig(**_tuples(inner, FieldConfig)))
    except (KeyError, TypeError, ValueError, UserError) as error:
        raise UserError(f"{file}: makes no sense ({error}); export the student again") from error


def _tuples(entries: Mapping[str, Any], kind: type) -> dict[str, Any]:
    known = {each.name for each in fields(kind)}
    unknown = sorted(entries.keys() - known)
    check(not unknown, f"unknown {', '.join(unknown)}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in entries.items()}
