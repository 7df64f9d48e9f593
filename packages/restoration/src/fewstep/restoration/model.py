"""A whole model of restoration: a network, how it is read, the space it works in, the scales it was made for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fewstep.core.denoiser import NetworkDenoiser
from fewstep.core.errors import UserError, check, nearest
from fewstep.core.models.student import plan_from
from fewstep.core.networks.unet2d import UNet2DBackbone
from fewstep.core.recipe import StepPlan
from fewstep.restoration.models.files import describe, load_network
from fewstep.restoration.models.local import LocalUNet
from fewstep.restoration.models.spaces import PixelSpace, Space, find_space
from fewstep.restoration.models.stable import ConditionedTeacher, is_stable, open_stable
from fewstep.restoration.models.stable_export import exported_scales, read_plan
from fewstep.restoration.models.swin import SwinBackbone
from fewstep.restoration.models.weights import CONFIG
from fewstep.restoration.process import read_network
from fewstep.restoration.settings import NetworkConfig, ProcessConfig, SpaceConfig

SHIPPED = Path(__file__).parent / "weights"
AUTOENCODER = "autoencoder"


@dataclass(frozen=True)
class Model:
    """``denoiser`` predicts in ``space`` and restores pictures magnified by ``scales``; students have a ``plan``.

    ``noise``: the strength of the noise it is best started from. ``stable``: the pipeline it comes from, where it is a
    Stable Diffusion; ``process`` and ``space_config`` then say nothing.
    """

    denoiser: NetworkDenoiser
    space: Space
    scales: tuple[int, ...]
    process: ProcessConfig = ProcessConfig()
    space_config: SpaceConfig = SpaceConfig()
    plan: StepPlan | None = None
    stable: ConditionedTeacher | None = None
    noise: float = 1.0

    def facts(self) -> dict[str, Any]:
        """Return what ``model.json`` says besides the network."""
        # where its autoencoder lay is nobody's business: a copy goes along
        space = asdict(self.space_config) | ({} if self.space_config.kind == "pixel" else {"path": AUTOENCODER})
        facts = {"scales": list(self.scales), "process": asdict(self.process), "space": space}
        return facts if self.noise == 1 else facts | {"noise": self.noise}


def shipped() -> list[str]:
    """Return the names of the networks that come with the package."""
    return sorted(file.parent.name for file in SHIPPED.glob(f"*/{CONFIG}"))


def find_model(name: str) -> Path:
    """Return the folder of a network by its name, or of a run's export; UserError when there is none."""
    if name in shipped():
        return SHIPPED / name
    given = Path(name).expanduser()
    for folder in (given, given / "export"):
        if (folder / CONFIG).is_file():
            describe(folder)
            return folder
    if (given / "checkpoints").is_dir():
        raise UserError(f"{name}: this run has exported nothing yet; run `fewstep restoration export {name}` first")
    raise UserError(f"no model '{name}': give the path of a folder, or a name ({nearest(name, shipped())})")


def fresh_network(
    config: NetworkConfig, space: Space, crop: int, seed: int
) -> LocalUNet | SwinBackbone | UNet2DBackbone:
    """Return an untrained network for samples of ``space``; ``crop``: pixels of training crops, for diffusers' file."""
    if config.kind == "local":
        return LocalUNet(space.channels, config.local, seed)
    if config.kind == "swin":
        check(
            config.swin.in_channels == config.swin.out_channels == space.channels,
            f"domain.network.swin.in_channels and out_channels must be the space's {space.channels}",
        )
        return SwinBackbone(config.swin, seed)
    return UNet2DBackbone.make(
        space.channels,
        crop // space.factor,
        widths=config.widths,
        layers=config.layers,
        concat=("anchor",),
        concat_channels=space.channels,
        seed=seed,
    )


def open_space(config: SpaceConfig) -> Space:
    """Return the space a config names; UserError for an autoencoder that cannot be read."""
    return PixelSpace(config.factor) if config.kind == "pixel" else find_space(config.kind, config.path, config.factor)


def load_stable(name: str, scales: tuple[int, ...] = (), prompt: str | None = None) -> Model:
    """Return a Stable Diffusion told low-quality pictures; ``scales`` (): any up to 16, or those of its own plan.

    Raises UserError for what is none.
    """
    teacher = open_stable(name, prompt=prompt)
    plan = read_plan(teacher.folder.path)
    made_for = scales or exported_scales(teacher.folder.path) or tuple(range(1, 17))
    return Model(teacher.denoiser(None), teacher.space(), made_for, plan=plan, stable=teacher)


def load_model(name: str) -> Model:
    """Return a model by name or folder, in float32; UserError for one that makes no sense."""
    for given in (name, str(Path(name).expanduser() / "export")):
        if name not in shipped() and is_stable(given):
            return load_stable(given)
    folder = find_model(name)
    found, file = describe(folder), folder / CONFIG
    space = _section(found, "space", SpaceConfig, file)
    if space.kind != "pixel":  # its own copy lies beside it, wherever the folder has been moved
        space = SpaceConfig(kind=space.kind, factor=space.factor, path=str(folder / AUTOENCODER))
    process = _section(found, "process", ProcessConfig, file)
    scales = found.get("scales")
    good = isinstance(scales, list) and scales and all(isinstance(s, int) and 1 <= s <= 16 for s in scales)
    check(bool(good), f"{file}: 'scales' must list magnifications from 1 to 16, got {scales}")
    network, opened = load_network(folder), open_space(space)
    denoiser = read_network(network, process, pixels=space.kind == "pixel")
    noise = found.get("noise", 1.0)
    check(isinstance(noise, int | float) and 0 <= noise <= 1, f"{file}: noise must be 0 to 1, got {noise!r}")
    plan = _plan(found, denoiser, file)
    return Model(denoiser, opened, tuple(scales or ()), process, space, plan, noise=float(noise))


def _section(found: Mapping[str, Any], name: str, kind: type[Any], file: Path) -> Any:
    entries = found.get(name)
    try:
        check(isinstance(entries, dict), "missing")
        return kind(**dict(entries or {}))
    except (TypeError, ValueError, UserError) as error:
        raise UserError(f"{file}: '{name}' makes no sense ({error}); export the model again") from error


def _plan(found: Mapping[str, Any], denoiser: NetworkDenoiser, file: Path) -> StepPlan | None:
    entry = found.get("sampling")
    if entry is None:
        return None
    plan, (low, high) = plan_from(entry, f"{file}: 'sampling'"), (denoiser.process.t_min, denoiser.process.t_max)
    check(all(low <= t <= high for t in plan.times), f"{file}: 'sampling' has times beyond {low:g} to {high:g}")
    return plan
