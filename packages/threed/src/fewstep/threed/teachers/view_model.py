"""A view- and prompt-conditioned image model as a folder: network, words, scheduler, and the cameras it knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

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
from fewstep.threed.teachers.multi_view import JointBackbone

SHIPPED = Path(__file__).parent.parent / "weights"
ABOUT = "view_model.json"
Kind = Literal["pictures", "maps"]
CHANNELS: dict[Kind, int] = {"pictures": 3, "maps": 4}
MOST_VIEWS = 64
KEPT = ("azimuth_deg", "elevation_deg", "fov_y_deg", "relative_distance")


@dataclass(frozen=True)
class ViewModel:
    """A denoiser of pictures "3 size size" in [-1, 1], its scheduler's config, and the cameras it knows.

    ``views``: that it sees jointly, "v 3 size size" (1: each alone, without that axis). ``kind`` ``maps``: its samples
    are maps of geometry of 4 channels, not pictures.
    """

    denoiser: NetworkDenoiser
    scheduler: Mapping[str, Any]
    cameras: ViewRanges
    size: int
    views: int = 1
    kind: Kind = "pictures"

    @property
    def backbone(self) -> ViewBackbone:
        """The network of single views."""
        backbone = self.denoiser.backbone
        backbone = backbone.inner if isinstance(backbone, JointBackbone) else backbone
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
        size, views, kind = int(about["size"]), int(about.get("views", 1)), about.get("kind", "pictures")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / ABOUT}: says no cameras and size; export the teacher again") from error
    kinds = get_args(Kind)
    check(kind in kinds, f"{folder / ABOUT}: kind '{kind}' is none of {', '.join(kinds)}; upgrade fewstep")
    check(1 <= views <= MOST_VIEWS, f"{folder / ABOUT}: {views} views at once; between 1 and {MOST_VIEWS} are read")
    backbone = ViewBackbone.load(folder)
    channels, needed = backbone.unet.config.in_channels // backbone.patch**2, CHANNELS[kind]
    check(channels == needed, f"{folder / 'unet'}: its samples have {channels} channels, {kind} have {needed}")
    network = JointBackbone(backbone, views) if views > 1 or kind == "maps" else backbone
    return ViewModel(NetworkDenoiser(network, process, scaling), scheduler, cameras, size, views, kind)


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
    backbone = backbone.inner if isinstance(backbone, JointBackbone) else backbone
    if not isinstance(backbone, ViewBackbone):
        raise UserError(f"export: a {type(backbone).__name__} is no view network")
    cameras = {name: list(value) for name, value in asdict(made_for.cameras).items() if name in KEPT}
    with replacing(folder) as aside:
        (backbone.half() if half else backbone).save(aside)
        (aside / "scheduler").mkdir()
        write_json(aside / "scheduler" / SCHEDULER_FILE, dict(made_for.scheduler))
        about = {"size": made_for.size, "views": made_for.views, "kind": made_for.kind, "cameras": cameras}
        write_json(aside / ABOUT, about)
        write_plan(aside, plan, card)
        facts = facts_table(card)
        text = (
            f"# {card.get('name', 'view model')}\n\nPictures of a prompt from a camera.\n\n| | |\n|---|---|\n{facts}\n"
        )
        (aside / "README.md").write_text(text, encoding="utf-8")


def fresh_model(
    words: Sequence[str],
    scheduler: Mapping[str, Any],
    cameras: ViewRanges,
    size: int,
    seed: int,
    *,
    views: int = 1,
    kind: Kind = "pictures",
    **network: Any,
) -> ViewModel:
    """Return an untrained view model; ``network``: arguments of :meth:`ViewBackbone.make`."""
    process, scaling = reading(dict(scheduler))
    single = ViewBackbone.make(words, size=size, seed=seed, channels=CHANNELS[kind], **network)
    backbone = JointBackbone(single, views) if views > 1 or kind == "maps" else single
    return ViewModel(NetworkDenoiser(backbone, process, scaling), scheduler, cameras, size, views, kind)


def to_samples(rgb: Tensor) -> Tensor:
    """Return colours in [0, 1] as a view model's samples, in [-1, 1]."""
    return 2 * rgb - 1


def to_rgb(samples: Tensor) -> Tensor:
    """Return a view model's samples as colours in [0, 1], values outside cut off."""
    return ((samples + 1) / 2).clamp(0, 1)
