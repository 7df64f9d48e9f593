"""A view- and prompt-conditioned image model as a folder: network, words, scheduler, and the cameras it knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.core.denoiser import Cond, Denoiser, NetworkDenoiser
from fewstep.core.errors import UserError, check, nearest
from fewstep.core.image.teacher import read_scheduler, reading
from fewstep.core.models.files import read_json
from fewstep.core.models.student import SCHEDULER_FILE, facts_table, replacing, unwrap, write_json, write_plan
from fewstep.core.networks.adapters import merge
from fewstep.core.recipe import StepPlan
from fewstep.threed.cameras import Camera, ViewRanges
from fewstep.threed.cameras.conventions import mvdream_condition
from fewstep.threed.teachers.backbone import CAMERA, TOKENS, ViewBackbone

SHIPPED = Path(__file__).parent.parent / "weights"
ABOUT = "view_model.json"
KEPT = ("azimuth_deg", "elevation_deg", "fov_y_deg", "relative_distance")


@dataclass(frozen=True)
class ViewModel:
    """A denoiser of pictures "3 size size" in [-1, 1], its scheduler's config, and the cameras it knows."""

    denoiser: NetworkDenoiser
    scheduler: Mapping[str, Any]
    cameras: ViewRanges
    size: int

    @property
    def backbone(self) -> ViewBackbone:
        """The network."""
        backbone = self.denoiser.backbone
        assert isinstance(backbone, ViewBackbone)
        return backbone

    def encode(self, texts: Sequence[str]) -> Cond:
        """Return the prompts' part of the condition; UserError for words it does not know, and for empty prompts."""
        for text in texts:
            check(bool(text.strip()), "an empty prompt says nothing of an object: give one, like 'a red cone'")
        return {TOKENS: self.backbone.words.tokens(texts)}

    def seen_from(self, camera: Camera) -> Cond:
        """Return the cameras' part of the condition."""
        return {CAMERA: camera_numbers(camera)}


def camera_numbers(camera: Camera) -> Tensor:
    """Return what a view network reads of cameras, "b 16"."""
    return mvdream_condition(camera, azimuth_offset_deg=0.0)


def shipped_models() -> list[str]:
    """Return the names of the view models that come with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{ABOUT}"))


def find_folder(name: str) -> Path:
    """Return the folder a name means: a shipped model, a folder, or what a run's folder exported; or UserError."""
    if name in shipped_models():
        return SHIPPED / name
    given = Path(name).expanduser()
    for folder in (given, given / "export"):
        if (folder / ABOUT).is_file():
            return folder
    if (given / "checkpoints").is_dir():
        raise UserError(
            f"teacher '{name}': this run has exported nothing yet; run `fewstep threed export {name}` first"
        )
    if given.exists():
        raise UserError(f"teacher '{name}': no {ABOUT} there; give a folder that a view model was exported to")
    raise UserError(f"no teacher '{name}': give the path of a folder, or a name ({nearest(name, shipped_models())})")


def load_model(name: str) -> ViewModel:
    """Return a view model by name or folder, in float32; UserError naming the file for what cannot be read."""
    folder = find_folder(name)
    about, scheduler = read_json(folder / ABOUT), read_scheduler(folder)
    process, scaling = reading(scheduler)
    try:
        kept: dict[str, Any] = {name: tuple(map(float, about["cameras"][name])) for name in KEPT}
        cameras = ViewRanges(**kept)
        size = int(about["size"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / ABOUT}: says no cameras and size; export the teacher again") from error
    return ViewModel(NetworkDenoiser(ViewBackbone.load(folder), process, scaling), scheduler, cameras, size)


def export_model(
    student: Denoiser,
    plan: StepPlan,
    folder: Path,
    card: Mapping[str, Any],
    made_for: ViewModel,
    *,
    half: bool = False,
) -> None:
    """Write a view model into ``folder``, replacing what was there; ``half``: its weights in half precision."""
    denoiser, plan, _ = unwrap(student, plan)
    backbone = merge(denoiser.backbone)
    if not isinstance(backbone, ViewBackbone):
        raise UserError(f"export: a {type(backbone).__name__} is no view network")
    cameras = {name: list(value) for name, value in asdict(made_for.cameras).items() if name in KEPT}
    with replacing(folder) as aside:
        (backbone.half() if half else backbone).save(aside)
        (aside / "scheduler").mkdir()
        write_json(aside / "scheduler" / SCHEDULER_FILE, dict(made_for.scheduler))
        write_json(aside / ABOUT, {"size": made_for.size, "cameras": cameras})
        write_plan(aside, plan, card)
        facts = facts_table(card)
        text = (
            f"# {card.get('name', 'view model')}\n\nPictures of a prompt from a camera.\n\n| | |\n|---|---|\n{facts}\n"
        )
        (aside / "README.md").write_text(text, encoding="utf-8")


def fresh_model(
    words: Sequence[str], scheduler: Mapping[str, Any], cameras: ViewRanges, size: int, seed: int, **network: Any
) -> ViewModel:
    """Return an untrained view model; ``network``: arguments of :meth:`ViewBackbone.make`."""
    process, scaling = reading(dict(scheduler))
    backbone = ViewBackbone.make(words, size=size, seed=seed, **network)
    return ViewModel(NetworkDenoiser(backbone, process, scaling), scheduler, cameras, size)


def to_samples(rgb: Tensor) -> Tensor:
    """Return colours in [0, 1] as a view model's samples, in [-1, 1]."""
    return 2 * rgb - 1


def to_rgb(samples: Tensor) -> Tensor:
    """Return a view model's samples as colours in [0, 1], values outside cut off."""
    return ((samples + 1) / 2).clamp(0, 1)
