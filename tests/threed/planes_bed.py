"""Generators of planes of a few thousand numbers, and teachers whose words are known."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fewstep.core.denoiser import Backbone, Denoiser, NetworkDenoiser, Plain
from fewstep.core.prediction import Kind, Prediction
from fewstep.core.process import VP, Process
from fewstep.threed.cameras import ViewRanges
from fewstep.threed.judges import Judge
from fewstep.threed.planes.field import FieldConfig
from fewstep.threed.planes.generator import PlaneGenerator
from fewstep.threed.planes.model import PlanesConfig

FIELD = FieldConfig(hidden=8, layers=1, bound=0.6, radius=0.35, sections=8, fine=6, opacity="volsdf", sharpness=40.0)
TINY = PlanesConfig(latents=4, side=4, features=4, widths=(8, 16), width=8, rank=2, text_width=8, field=FIELD)


def small_unet(**changes):
    """A conditional U-Net of 4-channel 8x8 latents, as it is."""
    from diffusers import UNet2DConditionModel

    settings = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    }
    torch.manual_seed(0)
    return UNet2DConditionModel(**settings | changes).eval()


class Says(Denoiser):
    """A teacher whose noise is any function of (x_t, t, cond)."""

    def __init__(self, function: Callable[..., Tensor], process: Process | None = None) -> None:
        self.function, self.process = function, process or VP.scaled_linear()

    def null(self, cond):
        return dict(cond) | {"label": torch.full_like(cond["label"], -1)}

    def predict(self, x_t, t, cond):
        return Prediction(self.function(x_t, t, cond), Kind.EPS)


class ColourJudge(Judge):
    """Sees renders as they are, or ``views`` of them jointly, under any teacher."""

    def __init__(self, teacher: Denoiser, size: int = 8, views: int = 1) -> None:
        self.teacher, self.size, self.views = teacher, size, views
        self.shape = (3, size, size) if views == 1 else (views, 3, size, size)
        self.ranges = ViewRanges(fov_y_deg=(40.0, 40.0), relative_distance=(1.1, 1.1))

    def encode(self, texts):
        return {"label": torch.arange(len(texts))}

    def told(self, camera, cond):
        return cond

    def x0(self, seen, camera):
        return seen.rgb if self.views == 1 else seen.rgb.unflatten(0, (-1, self.views))

    def pictures(self, samples):
        return samples.flatten(0, -4)


class LinearPlanes(Backbone):
    """A student of one matrix and bias: the toy of the sheet."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.map = nn.Linear(numbers, numbers)
        self.double()

    def forward(self, x, time, cond):
        return self.map(x.flatten(1)).reshape(x.shape)


def linear_student(numbers: int) -> NetworkDenoiser:
    torch.manual_seed(0)
    return NetworkDenoiser(LinearPlanes(numbers), VP.scaled_linear(), Plain(Kind.X0))


def student_of_planes(generator: PlaneGenerator) -> NetworkDenoiser:
    return NetworkDenoiser(generator, VP.scaled_linear(), Plain(Kind.X0))
