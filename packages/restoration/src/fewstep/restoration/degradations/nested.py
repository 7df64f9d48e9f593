"""Two degradations of one picture, the harsher made from the milder: what a distillation between scales needs."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.core.rng import Rng
from fewstep.restoration.degradations.config import BicubicConfig, DegradationConfig
from fewstep.restoration.degradations.pipeline import degrade
from fewstep.restoration.degradations.resize import resize


def nested_pair(
    hr: Float[Tensor, "b 3 h w"],
    config: DegradationConfig,
    rng: Rng,
    scale: int,
    milder_scale: int,
    *,
    further: DegradationConfig | None = None,
) -> tuple[Float[Tensor, "b 3 n m"], Float[Tensor, "b 3 k l"]]:
    """Return ``hr`` (RGB, in [0, 1]) degraded at ``scale`` and at ``milder_scale``, the first a function of the second.

    The milder one is :func:`degrade`'s; what is left of the scale is ``further`` degraded, by default antialiased
    bicubic. Under a config that goes ``back_to_size`` both have the size of ``hr``. UserError for scales that do not
    nest, a ``further`` that goes back to size, and what :func:`degrade` refuses.
    """
    check(
        1 <= milder_scale < scale and scale % milder_scale == 0,
        f"milder_scale: must be a proper divisor of the scale {scale}, got {milder_scale}",
    )
    further = BicubicConfig() if further is None else further
    check(not getattr(further, "back_to_size", False), "degradation: what follows the milder one must change the size")
    height, width = hr.shape[-2:]
    fits = height % scale == 0 and width % scale == 0
    check(fits, f"degradation: {height}x{width} is not a multiple of the scale {scale}; crop it first")
    milder = degrade(hr, config, rng, milder_scale)
    full = milder.shape[-2:] == hr.shape[-2:]  # back to size, or a milder scale of 1
    harsher = degrade(milder, further, rng.fork("nested"), scale if full else scale // milder_scale)
    if getattr(config, "back_to_size", False):
        harsher = resize(harsher, (height, width), "bicubic").clamp(0, 1)
    return harsher, milder
