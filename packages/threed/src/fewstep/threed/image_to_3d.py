"""From one picture to Gaussians and a mesh: the trained model as a folder, and its use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.data.writing import write_text
from fewstep.core.denoiser import Denoiser, NetworkDenoiser
from fewstep.core.errors import UserError, check, nearest
from fewstep.core.models.files import read_json
from fewstep.core.networks.adapters import merge
from fewstep.core.process import EDM
from fewstep.core.recipe import StepPlan
from fewstep.core.rng import Rng
from fewstep.core.sampling import run_plan
from fewstep.threed.fields.meshes import Mesh
from fewstep.threed.gaussians.parameters import Gaussians
from fewstep.threed.orbit.convention import orbit_condition
from fewstep.threed.orbit.decoder import GaussianDecoder
from fewstep.threed.orbit.network import OrbitUNet
from fewstep.threed.orbit.pixels import prepare, read_picture, to_latents
from fewstep.threed.orbit.reading import KarrasV
from fewstep.threed.orbit.supervision import OrbitGeometry, visible
from fewstep.threed.scenes.splats import GaussianScene

SHIPPED = Path(__file__).parent / "weights"
DEFAULT = "orbit"
MODEL_FILE = "orbit.json"
STUDENT, DECODER, TEACHER = "student", "decoder", "teacher"
FACTOR = 4  # pixels of a latent, along a side
ELEVATION = 15.0


@dataclass
class ImageTo3D:
    """A student of orbits, its plan, and the decoder of what it makes."""

    student: Denoiser
    plan: StepPlan
    decoder: GaussianDecoder
    geometry: OrbitGeometry
    views: int

    @torch.no_grad()
    def orbits(
        self, image: Float[Tensor, "b 3 h w"], elevation_deg: float = ELEVATION, seed: int = 0
    ) -> tuple[Float[Tensor, "b v c h w"], dict[str, Tensor]]:
        """Return the latents of the views of pictures in [0, 1], and their condition."""
        check(-89 <= elevation_deg <= 89, f"elevation {elevation_deg:g}: must lie between -89 and 89 degrees")
        size = self.geometry.size
        check(image.shape[1:] == (3, size, size), f"pictures {tuple(image.shape)}: this model sees 3x{size}x{size}")
        latent = to_latents(image, FACTOR)
        cond = orbit_condition(torch.full((len(image),), elevation_deg), self.views) | {"image": latent}
        rng = Rng.for_batch(seed, 0, len(image))
        noise = rng.normal("noise", (self.views, *latent.shape[1:]))
        return run_plan(self.student, self.plan, noise, cond, rng), cond

    @torch.no_grad()
    def gaussians(
        self, image: Float[Tensor, "b 3 h w"], elevation_deg: float = ELEVATION, seed: int = 0
    ) -> list[Gaussians]:
        """Return the Gaussians of each picture, in a world whose front is where the picture was taken from."""
        latents, cond = self.orbits(image, elevation_deg, seed)
        return self.decoder.gaussians(latents, self.geometry.cameras(cond["azimuth"], cond["polar"]))

    def save(self, folder: Path, card: Mapping[str, Any] | None = None, *, half: bool = False) -> None:
        """Write the model as a folder of safetensors and JSON; ``half``: weights in half precision.

        Raises UserError for a student that is no network of orbits.
        """
        student = self.student
        network = merge(student.backbone) if isinstance(student, NetworkDenoiser) else None
        if not isinstance(network, OrbitUNet) or not isinstance(student.process, EDM):
            raise UserError(f"a {type(student).__name__} is no student of orbits that can be saved: train recipe gsv3d")
        folder.mkdir(parents=True, exist_ok=True)
        (network.half() if half else network).save(folder / STUDENT)
        self.decoder.save(folder / DECODER, half=half)
        told = {
            "times": list(self.plan.times),
            "mode": self.plan.mode,
            "process": {"sigma_min": student.process.sigma_min, "sigma_max": student.process.sigma_max},
            "geometry": asdict(self.geometry),
            "card": {name: str(value) for name, value in (card or {}).items()},
        }
        write_text(folder / MODEL_FILE, json.dumps(told, indent=2) + "\n")


def model_folder(name: str) -> Path:
    """Return the folder a model's name means: one that is shipped, or a path; UserError where there is none."""
    shipped = sorted(path.parent.name for path in SHIPPED.glob(f"*/{MODEL_FILE}"))
    if name in shipped:
        return SHIPPED / name
    folder = Path(name).expanduser()
    if not (folder / MODEL_FILE).is_file():
        known = nearest(name, shipped)
        raise UserError(f"no model '{name}' from pictures to 3D: give a folder with {MODEL_FILE} ({known})")
    return folder


def load_image_to_3d(name: str = DEFAULT) -> ImageTo3D:
    """Return a model by name or folder, in float32 on the CPU; UserError for what cannot be read."""
    folder = model_folder(name)
    told = read_json(folder / MODEL_FILE)
    network = OrbitUNet.load(folder / STUDENT)
    try:
        process = EDM(sigma_data=1.0, **{key: float(told["process"][key]) for key in ("sigma_min", "sigma_max")})
        times = tuple(float(t) for t in told["times"])
        geometry = OrbitGeometry(**told["geometry"])
        mode = told["mode"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / MODEL_FILE}: not what a model is described by ({error!r}); export it again"
        ) from error
    check(mode in ("renoise", "deterministic"), f"{folder / MODEL_FILE}: mode '{mode}' must be renoise, deterministic")
    check(0 < len(times) <= 1000, f"{folder / MODEL_FILE}: {len(times)} times; give one or more, falling")
    student = NetworkDenoiser(network.requires_grad_(False), process, KarrasV())
    decoder = GaussianDecoder.load(folder / DECODER).requires_grad_(False)
    return ImageTo3D(student, StepPlan(times, mode=mode), decoder, geometry, network.views)


def generate(
    image: Path | Float[Tensor, "4 h w"],
    *,
    model: str | ImageTo3D = DEFAULT,
    elevation_deg: float = ELEVATION,
    seed: int = 0,
    fit: bool = False,
    resolution: int = 64,
) -> tuple[Gaussians, Mesh]:
    """Return Gaussians and a coloured mesh of the object in a picture with alpha, its front where the camera was.

    elevation_deg: of the camera that took it. fit: the object is put into the middle of the frame first. Raises
    UserError for a picture with no alpha or nothing in it, and where no surface comes of it.
    """
    picture, name = (read_picture(image), str(image)) if isinstance(image, Path) else (image, "image")
    used = load_image_to_3d(model) if isinstance(model, str) else model
    pixels = prepare(picture, used.geometry.size, fit=fit, name=name)
    cloud = used.gaussians(pixels[None], elevation_deg, seed)[0]
    return cloud, GaussianScene(visible(cloud)).mesh(resolution)
