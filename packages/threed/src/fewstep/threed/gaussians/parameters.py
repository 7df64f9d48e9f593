"""A cloud of Gaussians as it is stored and trained: raw, unbounded numbers, and what they mean once activated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.core.errors import check
from fewstep.threed.gaussians.harmonics import coefficient_count, degree_of, from_rgb


@dataclass(frozen=True)
class Gaussians:
    """Raw parameters of n Gaussians; UserError when their shapes do not fit.

    means: "n 3".  log_scales: "n 3", standard deviations along the Gaussian's own axes.  quaternions: "n 4", w x y z of
    any length, from its own axes to the world's.  opacity_logits: "n".  harmonics: "n k 3", k of 1, 4, 9, 16.
    """

    means: Float[Tensor, "n 3"]
    log_scales: Float[Tensor, "n 3"]
    quaternions: Float[Tensor, "n 4"]
    opacity_logits: Float[Tensor, " n"]
    harmonics: Float[Tensor, "n k 3"]

    def __post_init__(self) -> None:
        n = len(self.means)
        shapes = {"means": (n, 3), "log_scales": (n, 3), "quaternions": (n, 4), "opacity_logits": (n,)}
        for name, shape in shapes.items():
            found = tuple(getattr(self, name).shape)
            check(found == shape, f"Gaussians: {name} must have shape {shape}, got {found}")
        found = tuple(self.harmonics.shape)
        check(len(found) == 3 and found[::2] == (n, 3), f"Gaussians: harmonics must be ({n}, k, 3), got {found}")
        degree_of(found[1])

    def __len__(self) -> int:
        return len(self.means)

    @property
    def degree(self) -> int:
        """Degree of the spherical harmonics."""
        return degree_of(self.harmonics.shape[1])

    @property
    def scales(self) -> Float[Tensor, "n 3"]:
        """Standard deviations along the Gaussian's own axes."""
        return self.log_scales.exp()

    @property
    def opacities(self) -> Float[Tensor, " n"]:
        """Opacity at the centre, between 0 and 1."""
        return self.opacity_logits.sigmoid()

    @property
    def rotations(self) -> Float[Tensor, "n 4"]:
        """Unit quaternions, w x y z."""
        return F.normalize(self.quaternions, dim=-1)

    @classmethod
    def isotropic(
        cls,
        means: Float[Tensor, "n 3"],
        scale: float,
        opacity: float = 0.1,
        rgb: Float[Tensor, "n 3"] | None = None,
        degree: int = 0,
    ) -> Gaussians:
        """Return balls of one size and opacity, grey unless ``rgb`` says otherwise; UserError for impossible ones."""
        check(scale > 0, f"scale {scale}: must be above 0")
        check(0 < opacity < 1, f"opacity {opacity}: must be between 0 and 1")
        n = len(means)
        harmonics = means.new_zeros(n, coefficient_count(degree), 3)
        if rgb is not None:
            harmonics[:, 0] = from_rgb(rgb)
        upright = means.new_tensor([1.0, 0.0, 0.0, 0.0]).expand(n, 4).clone()
        logit = torch.logit(torch.tensor(opacity, dtype=torch.float64)).item()
        sizes = means.new_full((n, 3), scale).log()
        return cls(means, sizes, upright, means.new_full((n,), logit), harmonics)


class GaussianParameters(nn.Module):
    """A cloud to be trained: ``params`` holds the raw tensors under the names gsplat's strategies look for."""

    def __init__(self, start: Gaussians) -> None:
        super().__init__()
        self.params = nn.ParameterDict({name: _leaf(values) for name, values in named(start).items()})

    def forward(self) -> Gaussians:
        """Return the cloud, with gradients to the parameters."""
        params = {name: self.params[name] for name in self.params}
        harmonics = torch.cat([params["sh0"], params["shN"]], dim=1)
        return Gaussians(params["means"], params["scales"], params["quats"], params["opacities"], harmonics)


def named(gaussians: Gaussians) -> dict[str, Tensor]:
    """Return the raw tensors under the names gsplat's strategies look for."""
    return {
        "means": gaussians.means,
        "scales": gaussians.log_scales,
        "quats": gaussians.quaternions,
        "opacities": gaussians.opacity_logits,
        "sh0": gaussians.harmonics[:, :1],
        "shN": gaussians.harmonics[:, 1:],
    }


def _leaf(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach().clone())
