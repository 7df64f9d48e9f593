"""Where a teacher comes from, and how its process is written down as a diffusers scheduler."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from fewstep.core.denoiser import EDMScaling, NetworkDenoiser, Plain, Scaling
from fewstep.core.errors import UserError, check, nearest
from fewstep.core.image.settings import ImageConfig, NetworkConfig, ProcessConfig
from fewstep.core.models.files import INDEX, read_json
from fewstep.core.models.student import SCHEDULER_FILE
from fewstep.core.networks.unet2d import UNet2DBackbone
from fewstep.core.prediction import Kind
from fewstep.core.process import EDM, Process, process_from_scheduler

SHIPPED = Path(__file__).parent / "weights"


def shipped_teachers() -> list[str]:
    """Return the names of the U-Nets that come with the package."""
    found = sorted(path.parent.parent.name for path in SHIPPED.glob(f"*/scheduler/{SCHEDULER_FILE}"))
    return [name for name in found if name not in shipped_pipelines()]


def shipped_pipelines() -> list[str]:
    """Return the names of the text-to-image pipelines that come with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{INDEX}"))


def teacher_folder(name: str) -> Path:
    """Return the folder with ``unet`` and ``scheduler`` that a config's ``teacher`` means.

    A run's own folder stands for what the run exported. Raises UserError when there is no such folder.
    """
    if name in shipped_teachers():
        return SHIPPED / name
    given = Path(name).expanduser()
    for folder in (given, given / "export"):
        if (folder / "unet").is_dir() and (folder / "scheduler" / SCHEDULER_FILE).is_file():
            _check_whole(folder)
            return folder
    if (given / "checkpoints").is_dir():
        raise UserError(f"teacher '{name}': this run has exported nothing yet; run `fewstep image export {name}` first")
    if given.exists():
        raise UserError(
            f"teacher '{name}': no {INDEX}, and no unet/ with scheduler/ there; give a whole diffusers pipeline, or a "
            "run's folder"
        )
    raise UserError(f"no teacher '{name}': give the path of a folder, or a name ({nearest(name, shipped_teachers())})")


def _check_whole(folder: Path) -> None:
    file = folder / "unet" / "config.json"
    kind = read_json(file).get("_class_name") if file.is_file() else None
    check(
        kind in (None, "UNet2DModel") or (folder / INDEX).is_file(),
        f"{folder}: its unet is a {kind}, part of a pipeline with text, and there is no {INDEX} there; give the folder "
        "of a whole diffusers pipeline",
    )


def scheduler_config(process: ProcessConfig) -> dict[str, Any]:
    """Return the config of the stock diffusers scheduler that describes a process and its prediction."""
    if process.name == "rectified-flow":
        return {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": process.shift}
    if process.name == "edm":
        ramp = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": process.sigma_data, "rho": 7.0}
        return {"_class_name": "EDMEulerScheduler", "prediction_type": "epsilon"} | ramp
    linear = process.name == "vp-linear"
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 1e-4 if linear else 0.00085,
        "beta_end": 2e-2 if linear else 0.012,
        "beta_schedule": "linear" if linear else "scaled_linear",
        "prediction_type": {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}[process.prediction],
        "clip_sample": False,
        "set_alpha_to_one": True,
        "timestep_spacing": "trailing",
    }


def read_scheduler(folder: Path) -> dict[str, Any]:
    """Return the scheduler config of a diffusers folder; UserError when it is damaged."""
    file = folder / "scheduler" / SCHEDULER_FILE
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as JSON; export the teacher again") from error
    check(isinstance(config, dict), f"{file}: must hold a JSON object; export the teacher again")
    return dict(config)


def reading(scheduler: dict[str, Any]) -> tuple[Process, Scaling]:
    """Return the process, and how a network is read through it, that a scheduler config describes."""
    process, kind = process_from_scheduler(scheduler)
    if isinstance(process, EDM):
        return process, EDMScaling(process.sigma_data)
    return process, Plain(Kind(kind))


def domain_scheduler(config: ImageConfig) -> dict[str, Any]:
    """Return the scheduler config of the configured teacher, or of the process untrained networks are read through."""
    return read_scheduler(teacher_folder(config.teacher)) if config.teacher else scheduler_config(config.process)


def load_teacher(name: str, device: torch.device | str = "cpu") -> NetworkDenoiser:
    """Return a teacher in float32, as it was saved; of the device ``meta`` its shapes, nothing else is moved there.

    Raises UserError for what cannot be read.
    """
    folder = teacher_folder(name)
    process, scaling = reading(read_scheduler(folder))
    backbone = UNet2DBackbone.load(folder / "unet", shapes=torch.device(device).type == "meta")
    return NetworkDenoiser(backbone.float(), process, scaling)


def fresh_denoiser(
    network: NetworkConfig, scheduler: dict[str, Any], shape: tuple[int, int, int], num_classes: int, seed: int
) -> NetworkDenoiser:
    """Return an untrained network for images of ``shape``, read through a scheduler config's process.

    With classes it also has an unconditional one, for guidance.
    """
    process, scaling = reading(scheduler)
    check(shape[1] == shape[2], f"images must be square, got {shape[1]}x{shape[2]}")
    backbone = UNet2DBackbone.make(
        shape[0],
        shape[1],
        widths=network.widths,
        layers=network.layers,
        attention=network.attention,
        num_classes=num_classes,
        dropout=network.dropout,
        seed=seed,
    )
    return NetworkDenoiser(backbone, process, scaling)


def check_fits(teacher: NetworkDenoiser, name: str, shape: tuple[int, int, int], num_classes: int) -> None:
    """Raise UserError when a teacher was made for other images or another number of classes than the data has."""
    backbone = teacher.backbone
    if not isinstance(backbone, UNet2DBackbone):
        return
    config = backbone.unet.config
    made_for = (config.out_channels, config.sample_size)
    check(
        made_for == (shape[0], shape[1]),
        f"teacher '{name}' makes {made_for[1]}x{made_for[1]} images of {made_for[0]} channel(s), and the data has "
        f"{shape[1]}x{shape[1]} of {shape[0]}: set domain.data.size and domain.data.channels",
    )
    check(
        backbone.num_classes in (0, num_classes),
        f"teacher '{name}' knows {backbone.num_classes} classes and the data has {num_classes}: give matching data",
    )
