"""A model ready to restore pictures, or parts of them: the same result wherever a picture is cut."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fewstep.core.errors import UserError, check
from fewstep.core.grids import time_grid
from fewstep.core.recipe import StepPlan
from fewstep.core.rng import Rng
from fewstep.core.sampling import initial_state, run_plan
from fewstep.core.solvers import Counted, solve
from fewstep.core.tensors import find_device
from fewstep.restoration.model import Model, load_model
from fewstep.restoration.models.captions import CaptionEncoder
from fewstep.restoration.models.local import LocalUNet

Precision = Literal["fp32", "bf16"]
Sampler = Literal["auto", "deterministic", "ancestral"]
SOLVERS = {"auto": "ddim", "deterministic": "ddim", "ancestral": "ddpm"}
BLOCK = 64  # positions of a sample that share a generator
TENSORS = 10  # of its widest level alive at once in a network's forward; the shipped ones were seen to need 8


@dataclass(frozen=True)
class PlaceRng(Rng):
    """Noise as a function of (seed, stream, position in the whole picture): tiles that overlap see the same.

    ``place``: row and column of the sample's first position; ``strength``: what noise is multiplied with.
    """

    place: tuple[int, int] = (0, 0)
    strength: float = 1.0

    def normal(self, stream: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Float[Tensor, "b *d"]:
        """Return the part of the endless field of unit noise that lies at ``place``; ``shape``: "c h w"."""
        channels, height, width = shape
        if self.strength == 0:
            return torch.zeros(len(self.ids), *shape, dtype=dtype, device=self.device)
        top, left = self.place
        rows, columns = _blocks(top, height), _blocks(left, width)
        parts = []
        for row in rows:
            own = Rng(self.seed, row, tuple(columns), f"{self.scope}/place", "cpu")
            found = own.normal(stream, (channels, BLOCK, BLOCK))
            parts.append(torch.cat(list(found), 2))
        field = torch.cat(parts, 1)
        top, left = top - rows[0] * BLOCK, left - columns[0] * BLOCK
        cut = field[:, top : top + height, left : left + width].to(self.device, dtype)
        return self.strength * cut[None].expand(len(self.ids), *shape)


def _blocks(start: int, length: int) -> range:
    return range(start // BLOCK, (start + length - 1) // BLOCK + 1)


class Restorer:
    """A model on a device. ``steps``: None for what it was made for, all levels for a teacher.

    ``sampler``: ``auto`` walks a student's own plan, and is ``deterministic`` for teachers. ``noise``: its strength,
    None for what the model recommends, 1 as trained; less gives smoother pictures, 0 starts from the low-quality one
    itself. ``evaluations`` counts runs of the network, per part of a picture.
    """

    def __init__(
        self,
        model: Model,
        *,
        name: str = "model",
        device: torch.device | str = "cpu",
        precision: Precision = "fp32",
        steps: int | None = None,
        sampler: Sampler = "auto",
        noise: float | None = None,
        seed: int = 0,
    ) -> None:
        noise = model.noise if noise is None else noise
        check(0 <= noise <= 1, f"noise has a strength of 0 to 1, got {noise:g}")
        self.model, self.name, self.device = model, name, torch.device(device)
        self.precision, self.sampler, self.noise, self.seed = precision, sampler, noise, seed
        self.scales = model.scales
        self.counted = Counted(model.denoiser)
        model.denoiser.backbone.to(self.device).eval()
        model.space.to(self.device)
        walks = model.plan is not None and sampler == "auto"
        process = model.denoiser.process
        made_for = len(model.plan.times) if walks and model.plan is not None else None
        self.steps = steps or made_for or (round(process.t_max) + 1 if process.has_anchor else 50)
        self.plan: StepPlan | None = None
        if walks and model.plan is not None:
            same = self.steps == made_for
            check(
                same or model.plan.start == "noise",
                f"--model {name} takes the picture for a noisy one of a fixed level, in one step: leave --steps out",
            )
            self.plan = model.plan if same else replace(model.plan, times=time_grid(process, self.steps))
        self.grid = time_grid(process, self.steps)  # UserError for more steps than levels
        self._encoder: CaptionEncoder | None = None
        self._told: dict[str, Tensor] = {}

    @classmethod
    def load(
        cls,
        model: str,
        *,
        device: torch.device | str = "cpu",
        precision: Precision = "fp32",
        steps: int | None = None,
        sampler: Sampler = "auto",
        noise: float | None = None,
        seed: int = 0,
    ) -> Restorer:
        """Return a model by name or folder, ready; UserError for one that cannot be loaded, or not on that device."""
        place = find_device(device)  # now, and not after the weights have been read
        return cls(
            load_model(model),
            name=model,
            device=place,
            precision=precision,
            steps=steps,
            sampler=sampler,
            noise=noise,
            seed=seed,
        )

    def tell(self, caption: str) -> None:
        """Say what the next pictures show, "" for nothing but the model's own prompt.

        Raises UserError for a model that reads no words, or whose text encoder is missing.
        """
        told = self.check_words()([caption]) if caption else {}
        self._told = {name: value.to(self.device) for name, value in told.items()}

    @property
    def reads_words(self) -> bool:
        """Whether the model is told something in words about a picture."""
        return self.model.stable is not None

    def check_words(self) -> CaptionEncoder:
        """Return what encodes captions for the model, loaded when it is first asked for; raises as :meth:`tell`."""
        if self.model.stable is None:  # as `reads_words` says
            raise UserError(f"--model {self.name} reads no words: leave --prompt and --captions out")
        self._encoder = self._encoder or CaptionEncoder(self.model.stable, self.device)
        return self._encoder

    @property
    def evaluations(self) -> int:
        """Runs of the network so far."""
        return self.counted.rows

    @property
    def unit(self) -> int:
        """Sides of the magnified picture are filled up to multiples of this."""
        return self.model.space.factor * int(getattr(self.model.denoiser.backbone, "multiple", 1))

    def multiple(self, scale: int) -> int:
        """Return what starts of tiles must be multiples of, in pixels of the input."""
        return self.unit // math.gcd(self.unit, scale)

    def reach(self, scale: int) -> int:
        """Return the pixels of input beyond which nothing matters to a result; 0: everything may."""
        network = self.model.denoiser.backbone
        if not isinstance(network, LocalUNet):
            return 0
        # every step reaches on from where the last one did; bicubic enlargement takes two pixels more
        return math.ceil(network.reach * self.steps * self.model.space.factor / scale) + 2

    def bytes_per_pixel(self, scale: int) -> float:
        """Return what a pixel of a tile takes at the peak."""
        network = self.model.denoiser.backbone
        widest = max(network.config.widths[0], 2 * network.channels) if isinstance(network, LocalUNet) else 1024
        return TENSORS * 4.0 * widest * (scale / self.model.space.factor) ** 2

    @torch.no_grad()
    def __call__(
        self, lq: Float[Tensor, "b 3 h w"], scale: int, *, top: int = 0, left: int = 0
    ) -> Float[Tensor, "b 3 k l"]:
        """Return pictures in [0, 1], or a part of them that starts at ``top, left``, magnified; not clamped, float32.

        Raises UserError for a scale the model was not made for, and a start that is no multiple of :meth:`multiple`.
        """
        self.check_scale(scale)
        step = self.multiple(scale)
        check(top % step == 0 and left % step == 0, f"a tile starts at ({top}, {left}), no multiples of {step}")
        height, width = (side * scale for side in lq.shape[2:])
        lq = lq.to(self.device, torch.float32)
        up = F.interpolate(lq, size=(height, width), mode="bicubic", align_corners=False)
        space, unit = self.model.space, self.unit
        anchor = space.encode(2 * F.pad(up, (0, -width % unit, 0, -height % unit), mode="replicate") - 1)
        # a network may ask for the low-quality picture itself
        rest = (-(-height // unit) * unit // scale - lq.shape[2], -(-width // unit) * unit // scale - lq.shape[3])
        cond = {"anchor": anchor, "lq": 2 * F.pad(lq, (0, max(rest[1], 0), 0, max(rest[0], 0)), mode="replicate") - 1}
        cond |= {name: value.expand(len(lq), *value.shape[1:]) for name, value in self._told.items()}
        rng = PlaceRng(
            self.seed,
            0,
            tuple(range(len(lq))),
            "restore",
            self.device,
            place=(top * scale // space.factor, left * scale // space.factor),
            strength=self.noise,
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            z = self._sample(cond, rng)
        pixels = (space.decode(z.float()) + 1) / 2
        return pixels[:, :, :height, :width].float()

    def check_scale(self, scale: int) -> None:
        """Raise UserError for a scale the model was not made for."""
        listed = " or ".join(map(str, self.scales))
        check(scale in self.scales, f"--model {self.name} magnifies by {listed}, not by {scale}: choose another")

    def _sample(self, cond: dict[str, Tensor], rng: PlaceRng) -> Tensor:
        noise = rng.normal_like("noise", cond["anchor"])
        if self.plan is not None:
            return run_plan(self.counted, self.plan, noise, cond, rng)
        x = initial_state(self.counted.process, noise, self.grid[0], cond)
        return solve(self.counted, x, self.grid, cond, SOLVERS[self.sampler], rng=rng).x
