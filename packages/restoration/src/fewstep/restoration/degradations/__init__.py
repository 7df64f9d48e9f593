"""Degradations: good pictures made bad as cameras and the web do, with every stage usable alone."""

from fewstep.restoration.degradations.config import (
    PRESETS,
    BicubicConfig,
    DegradationConfig,
    FaceConfig,
    JitterConfig,
    KernelConfig,
    NoiseConfig,
    StageConfig,
    TwoStageConfig,
    preset,
)
from fewstep.restoration.degradations.images import mod_crop, to_8_bit
from fewstep.restoration.degradations.jitter import adjust, jitter
from fewstep.restoration.degradations.jpeg import jpeg
from fewstep.restoration.degradations.kernels import blur, gaussian_kernel, pulse_kernel, sinc_kernel
from fewstep.restoration.degradations.nested import nested_pair
from fewstep.restoration.degradations.noise import gaussian_noise, poisson_noise
from fewstep.restoration.degradations.pipeline import add_noise, degrade
from fewstep.restoration.degradations.resize import imresize, resize
from fewstep.restoration.degradations.sharpening import sharpen

__all__ = [
    "PRESETS",
    "BicubicConfig",
    "DegradationConfig",
    "FaceConfig",
    "JitterConfig",
    "KernelConfig",
    "NoiseConfig",
    "StageConfig",
    "TwoStageConfig",
    "add_noise",
    "adjust",
    "blur",
    "degrade",
    "gaussian_kernel",
    "gaussian_noise",
    "imresize",
    "jitter",
    "jpeg",
    "mod_crop",
    "nested_pair",
    "poisson_noise",
    "preset",
    "pulse_kernel",
    "resize",
    "sharpen",
    "sinc_kernel",
    "to_8_bit",
]
