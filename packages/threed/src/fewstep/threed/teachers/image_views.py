"""Teachers that are shown one picture of an object and draw it from elsewhere: Zero123, and SV3D's orbits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fewstep.core.denoiser import Cond, NetworkDenoiser, Plain
from fewstep.core.errors import UserError, check
from fewstep.core.image.teacher import reading
from fewstep.core.models.files import INDEX, PipelineFolder, check_weights, read_json
from fewstep.core.models.sd import StableDiffusion
from fewstep.core.networks.backbone import entry
from fewstep.core.networks.timed import UNetBackbone
from fewstep.core.process import Process
from fewstep.core.rng import Rng
from fewstep.core.tensors import precise
from fewstep.threed.cameras import AZIMUTH_OFFSETS_DEG, Camera, ViewRanges, orbit_angles
from fewstep.threed.cameras.conventions import zero123_condition
from fewstep.threed.judges import Judge
from fewstep.threed.orbit.convention import orbit_cameras, orbit_condition
from fewstep.threed.orbit.reading import karras_process
from fewstep.threed.orbit.video import NETWORK, VideoOrbits, clip_embeds
from fewstep.threed.teachers.spaces import Latents, resized
from fewstep.threed.teachers.view_model import to_rgb
from fewstep.threed.views import Views

IMAGE, EMBEDS, TURN, SHOWN = "image", "image_embeds", "turn", "shown"
TURN_NUMBERS = 4
Picture = Callable[[int], Float[Tensor, "3 n n"]]
PROJECTION = "cc_projection"
ZERO123 = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "image_encoder": ("transformers", "CLIPVisionModelWithProjection"),
    "scheduler": ("diffusers", "DDIMScheduler"),
}


class Zero123Backbone(UNetBackbone):
    """A U-Net that is shown a picture and told how far to turn from it (Zero-1-to-3, arXiv 2303.11328).

    Reads cond["image"] "b c h w", the picture's unscaled latent, appended to the sample's channels;
    cond["image_embeds"] "b d" and cond["turn"] "b 4" (:func:`~fewstep.threed.cameras.conventions.zero123_condition`),
    projected together to the one token it attends to. Unconditional, cond["shown"] 0: latent and token are zeros.
    """

    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")

    def __init__(self, unet: Any, projection: nn.Linear) -> None:
        super().__init__()
        config = unet.config
        check(
            config.in_channels == 2 * config.out_channels,
            f"a network of Zero123's kind takes 2 x {config.out_channels} channels, this one {config.in_channels}",
        )
        check(
            config.cross_attention_dim == projection.out_features,
            f"{PROJECTION} makes {projection.out_features} numbers, the U-Net attends to {config.cross_attention_dim}",
        )
        self.unet, self.projection, self.extra_inputs = unet, projection, None

    def forward(self, x: Float[Tensor, "b c h w"], time: Float[Tensor, " b"], cond: Cond) -> Tensor:
        """Return the raw output, shaped like ``x``; UserError when the condition lacks an entry."""
        who = type(self).__name__
        image, embeds, turn, shown = (entry(cond, name, who).to(x.dtype) for name in (IMAGE, EMBEDS, TURN, SHOWN))
        token = self.projection(torch.cat([embeds, turn], 1)) * shown[:, None]
        joined = torch.cat([x, image * shown[:, None, None, None]], 1)
        with self.adding_extras(cond):
            out: Tensor = self.unet(joined, time, encoder_hidden_states=token[:, None], return_dict=False)[0]
        return out

    def null(self, cond: Cond) -> Cond:
        """Return the condition with nothing shown."""
        return dict(cond) | {SHOWN: torch.zeros_like(entry(cond, SHOWN, type(self).__name__))}

    def save(self, folder: Path) -> None:
        """Raise UserError: nothing that learns from it is a network of its kind."""
        raise UserError(f"{folder}: a network of Zero123's kind is a teacher here, students of it are not written")


def zero123_folder(path: Path) -> PipelineFolder:
    """Return a folder of Zero123 with the stock classes of its parts; what it brings as code is not looked at.

    Besides ``unet``, ``vae``, ``image_encoder`` and ``scheduler`` there is ``cc_projection``, a linear layer.
    """
    for part in (*ZERO123, PROJECTION):
        check((path / part).is_dir(), f"{path}: no {part}/ there, which Zero123 has: download the folder again")
    return PipelineFolder(path, "Zero123", ZERO123, {}, str(path))


def zero123_process(folder: PipelineFolder) -> Process:
    """Return the process of its scheduler."""
    return reading(folder.config("scheduler"))[0]


def load_projection(folder: Path) -> nn.Linear:
    """Return the linear layer of a folder's safetensors; UserError for what is none."""
    check_weights(folder)
    file = sorted(folder.glob("*.safetensors"))[0]
    try:
        state = {name.rpartition(".")[2]: value for name, value in load_file(file).items()}
        weight, bias = state["weight"].float(), state["bias"].float()
        out = nn.Linear(weight.shape[1], weight.shape[0])
        out.load_state_dict({"weight": weight, "bias": bias})
    except (OSError, SafetensorError, KeyError, IndexError, RuntimeError) as error:
        raise UserError(f"{file}: is no linear layer of weight and bias; download the folder again") from error
    return out


class Zero123Judge(Judge):
    """Zero123 judging each view alone; its prompt is a picture, the object's front.

    picture: gives it "3 n n" in [0, 1] at a number of pixels. ``elevation_deg``: that the picture was taken from. What
    prompts say is not read. ``size``: pixels of renders (0: the network's own). Raises UserError for parts that do not
    fit together.
    """

    views = 1

    def __init__(
        self,
        folder: PipelineFolder,
        picture: Picture,
        ranges: ViewRanges,
        *,
        elevation_deg: float = 10.0,
        size: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        process, scaling = reading(folder.config("scheduler"))
        check(isinstance(scaling, Plain), f"{folder.path}: a scheduler of Zero123 is one of DDPM's kind")
        unet, vae = folder.load("unet", dtype), folder.load("vae")
        projection = load_projection(folder.path / PROJECTION).to(dtype)
        self.teacher = NetworkDenoiser(Zero123Backbone(unet, projection), process, scaling)
        self.space = zero123_space(folder, vae, size)
        self.size, self.shape, self.ranges, self.elevation_deg = (
            self.space.size,
            self.space.shape,
            ranges,
            elevation_deg,
        )
        given, encoder = picture(self.space.side)[None], folder.load("image_encoder")
        with torch.no_grad():
            embeds = clip_embeds(encoder, given)
            told = {IMAGE: vae.encode(2 * given - 1).latent_dist.mode(), EMBEDS: embeds, SHOWN: torch.ones(1)}
        needed = embeds.shape[1] + TURN_NUMBERS
        check(
            projection.in_features == needed,
            f"{folder.path}: {PROJECTION} takes {projection.in_features} numbers, its encoder and a turn are {needed}",
        )
        self.picture = told

    def encode(self, texts: Sequence[str]) -> Cond:
        """Return the picture for every prompt, whatever it says."""
        return {name: value.expand(len(texts), *value.shape[1:]).clone() for name, value in self.picture.items()}

    def told(self, camera: Camera, cond: Cond) -> Cond:
        """Return the picture, and how far cameras are turned from it."""
        turn = zero123_condition(
            camera,
            reference_azimuth_deg=AZIMUTH_OFFSETS_DEG["zero123"],
            reference_elevation_deg=self.elevation_deg,
        )
        return {**cond, TURN: turn}

    def x0(self, seen: Views, camera: Camera) -> Tensor:
        """Return the renders' latents."""
        return self.space.of(seen, camera)

    def pictures(self, samples: Tensor) -> Tensor:
        """Return what latents decode to."""
        return self.space.pictures(samples)


def zero123_space(folder: PipelineFolder, vae: Any, size: int) -> Latents:
    """Return the latents of its autoencoder, at the size its U-Net was made for."""
    family, unet, codec = StableDiffusion(), folder.config("unet"), folder.config("vae")
    side = int(unet["sample_size"])
    return Latents(vae, family, side * family.compression(codec), (int(unet["out_channels"]), side, side), size)


class FrameLatents(Latents):
    """Latents whose decoder sees the frames of a clip together, as Stable Video Diffusion's does."""

    frames: int = 1

    @torch.no_grad()
    def pictures(self, samples: Tensor) -> Tensor:
        """Return what latents decode to."""
        if type(self.vae).__name__ != "AutoencoderKLTemporalDecoder":
            return super().pictures(samples)
        latents = self.family.unscale(self.vae.to(samples.device), samples).to(self.vae.dtype)
        pixels = self.vae.decode(latents, num_frames=self.frames).sample
        return resized(to_rgb(precise(pixels)), self.size)


class OrbitJudge(Judge):
    """SV3D judging whole orbits; its prompt is a picture, the object's front and the orbit's last view.

    picture, ``elevation_deg``, ``size``: as for :class:`Zero123Judge`. Its cameras are those of the orbit at the
    picture's elevation, with the middle distance and angle of ``ranges``.
    """

    def __init__(
        self,
        orbits: VideoOrbits,
        picture: Picture,
        ranges: ViewRanges,
        *,
        elevation_deg: float = 10.0,
        size: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        unet, vae, family = orbits.folder.config("unet"), orbits.vae(), StableDiffusion()
        side, self.views = int(unet["sample_size"]), int(unet["num_frames"])
        pixels = side * family.compression(orbits.folder.config("vae"))
        self.space = FrameLatents(vae, family, pixels, (int(unet["out_channels"]), side, side), size)
        self.space.frames = self.views
        self.teacher, self.ranges, self.elevation_deg = orbits.denoiser(dtype), ranges, elevation_deg
        self.size, self.shape = self.space.size, (self.views, *self.space.shape)
        self.picture = orbits.condition(picture(pixels)[None], vae)

    def encode(self, texts: Sequence[str]) -> Cond:
        """Return the picture for every prompt, whatever it says."""
        return {name: value.expand(len(texts), *value.shape[1:]).clone() for name, value in self.picture.items()}

    def told(self, camera: Camera, cond: Cond) -> Cond:
        """Return the picture, and the angles of the views."""
        azimuth, elevation, _ = (each.reshape(-1, self.views) for each in orbit_angles(camera))
        return {**cond, "azimuth": torch.deg2rad(azimuth % 360), "polar": torch.deg2rad(90 - elevation)}

    def x0(self, seen: Views, camera: Camera) -> Tensor:
        """Return the renders' latents "b v c h w"."""
        return self.space.of(seen, camera).reshape(-1, *self.shape)

    def pictures(self, samples: Tensor) -> Tensor:
        """Return what latents decode to, an orbit's views adjacent."""
        return self.space.pictures(samples.flatten(0, 1))

    def cameras(self, rng: Rng, ranges: ViewRanges | None = None) -> Camera:
        """Return the orbit for every sample of ``rng``."""
        law = ranges or self.ranges
        told = orbit_condition(torch.full((len(rng.ids),), self.elevation_deg), self.views)
        fov = sum(law.fov_y_deg) / 2
        distance = sum(law.relative_distance) / 2 / math.tan(math.radians(fov) / 2)
        return orbit_cameras(told["azimuth"], told["polar"], self.size, distance=distance, fov_y_deg=fov)


def picture_teacher(name: str) -> str:
    """Return which image-conditioned pipeline a folder holds: ``zero123``, ``orbit``, or "" for neither."""
    path = Path(name).expanduser()
    if (path / PROJECTION).is_dir():
        return "zero123"
    if (path / INDEX).is_file() and read_json(path / INDEX).get("unet", [None])[-1] == NETWORK:
        return "orbit"
    return ""


def picture_process(name: str, kind: str) -> Process:
    """Return the process of such a pipeline."""
    path = Path(name).expanduser()
    if kind == "zero123":
        return zero123_process(zero123_folder(path))
    return karras_process(PipelineFolder.open(path).config("scheduler"))
