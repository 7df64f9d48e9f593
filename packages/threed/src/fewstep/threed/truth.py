"""What is known of a prompt of the world of solids: its pictures, and how near an asset comes to them."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from fewstep.threed.cameras import Camera
from fewstep.threed.metrics.pictures import psnr, silhouette_iou
from fewstep.threed.shapes.prompts import PROMPT, read
from fewstep.threed.shapes.rendering import Renders, render
from fewstep.threed.shapes.solids import Solid, build
from fewstep.threed.views import Views

INK = 0.06  # how far a colour is from white where something is


class Truth:
    """The solid of a prompt."""

    protocol: ClassVar[str] = "PSNR and silhouette IoU against exact pictures of the prompt's solid, over white"

    def __init__(self, solid: Solid) -> None:
        self.solid = solid

    def pictures(self, camera: Camera) -> Renders:
        """Return exact pictures."""
        one = camera.to("cpu")
        return render(self.solid, one.world_to_camera, one.intrinsics, one.width, one.height)

    def of_views(self, seen: Views, camera: Camera) -> dict[str, float]:
        """Return the mean PSNR and silhouette IoU of views over white."""
        true = self.pictures(camera)
        return {
            "psnr": float(psnr(seen.rgb.detach().cpu().clamp(0, 1), true.rgb).mean()),
            "silhouette_iou": float(silhouette_iou(seen.alpha.detach().cpu().clamp(0, 1), true.alpha).mean()),
            "saturation": float(saturation(seen.rgb.detach().cpu().clamp(0, 1), seen.alpha.detach().cpu())),
            "true_saturation": float(saturation(true.rgb, true.alpha)),
        }

    def of_pictures(self, rgb: Tensor, camera: Camera) -> dict[str, float]:
        """Return the same of pictures without alpha: what is not white counts as covered."""
        true = self.pictures(camera)
        rgb = rgb.detach().cpu()
        return {
            "psnr": float(psnr(rgb, true.rgb).mean()),
            "silhouette_iou": float(silhouette_iou(inked(rgb), inked(true.rgb)).mean()),
        }


def inked(rgb: Tensor) -> Tensor:
    """Return 1 where a colour is not white, "b 1 h w"."""
    return ((1 - rgb).amax(1, keepdim=True) > INK).to(rgb.dtype)


def saturation(rgb: Tensor, alpha: Tensor) -> Tensor:
    """Return the mean of max - min over the colour channels where something is, weighted by ``alpha``."""
    spread = rgb.amax(1, keepdim=True) - rgb.amin(1, keepdim=True)
    return (spread * alpha).sum() / alpha.sum().clamp_min(1e-9)


def find_truth(prompt: str) -> Truth | None:
    """Return the truth of a prompt of the grammar, None for any other text."""
    return Truth(build(read(prompt))) if PROMPT.fullmatch(prompt) else None
