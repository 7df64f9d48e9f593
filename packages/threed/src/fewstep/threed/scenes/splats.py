"""A scene of Gaussians."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fewstep.core.errors import UserError
from fewstep.core.rng import Rng
from fewstep.threed.cameras import Camera
from fewstep.threed.fields.fusion import FusedDepths, all_around, fuse
from fewstep.threed.fields.meshes import Mesh
from fewstep.threed.gaussians.geometry import front_views, views
from fewstep.threed.gaussians.parameters import Gaussians
from fewstep.threed.views import Scene, Views, mean_opacity

OPACITY = 0.3  # at the start: what lies behind still gets gradients
SEEN = 0.05  # of a Gaussian: below, it bounds no mesh
LOOKED, BAND = 256, 0.08  # pixels of the pictures a texture is made of, and how far from its point each may see
RATES = {"means": 0.3, "log_scales": 1.0, "quaternions": 1.0, "opacity_logits": 4.0, "harmonics": 1.0}
"""How fast each parameter moves under one learning rate: it is stored divided by this, which Adam undoes."""


class GaussianScene(Scene):
    """A cloud of Gaussians whose raw parameters are trained, each in units of its own rate (:data:`RATES`)."""

    def __init__(self, gaussians: Gaussians, backend: str = "auto", rates: Mapping[str, float] = RATES) -> None:
        super().__init__()
        self.rates, self.backend = dict(rates), backend
        self._seen: dict[str, Tensor] = {}
        self.stored = nn.ParameterDict(
            {name: nn.Parameter(getattr(gaussians, name).detach().clone() / rate) for name, rate in self.rates.items()}
        )

    @classmethod
    def ball(cls, count: int, radius: float, degree: int, seed: int, backend: str = "auto") -> GaussianScene:
        """Return ``count`` grey Gaussians spread evenly over a ball of ``radius``, each half as wide as its share."""
        rng = Rng.for_batch(seed, 0, count).fork("gaussians")
        direction = rng.normal("direction", (3,))
        direction = direction / direction.norm(dim=-1, keepdim=True)
        means = direction * (radius * rng.uniform("radius").float() ** (1 / 3))[:, None]
        spacing = radius * (4 * math.pi / 3 / count) ** (1 / 3)
        return cls(Gaussians.isotropic(means, spacing / 2, OPACITY, degree=degree), backend)

    def gaussians(self) -> Gaussians:
        """Return the cloud, with gradients to what is stored."""
        return Gaussians(**{name: self.stored[name] * rate for name, rate in self.rates.items()})

    def views(self, camera: Camera, background: float | Tensor = 1.0, rng: Rng | None = None) -> Views:
        """Return what ``camera`` sees; normals are the Gaussians' shortest axes."""
        seen = Views(*views(self.gaussians(), camera, background, self.backend))
        self._seen = {"opacity": mean_opacity(seen.alpha)}
        return seen

    def penalties(self, rng: Rng) -> dict[str, Tensor]:
        """Return ``opacity``, of the last render."""
        return dict(self._seen)

    def mesh(self, resolution: int = 96) -> Mesh:
        """Return the surface that the cloud's depths from all around agree on; UserError where there is none."""
        bound, radius = self._extent()
        return fuse(self._front, max(8, resolution * 3 // 4), size=64, bound=bound, radius=radius)  # fitted: fewer do

    def colour_field(self) -> Callable[[Tensor], Tensor]:
        """Return what pictures from all around show of points of the surface, their mean."""
        camera = all_around(LOOKED, self._extent()[1])
        with torch.no_grad():
            seen = [self._with_front_depth(camera.select(i, i + 1)) for i in range(len(camera))]
        parts = [torch.cat(found) for found in zip(*([v.rgb, v.alpha, v.depth, v.normal] for v in seen), strict=True)]
        return FusedDepths(Views(*parts), camera, BAND).colour

    def _with_front_depth(self, camera: Camera) -> Views:
        """Return what cameras see, the depth that of the surface, from a picture of a quarter of the size."""
        seen, front = self.views(camera), self._front(camera.resized(camera.width // 4, camera.height // 4))
        straight = front.depth / front.alpha.clamp_min(1e-6)
        return replace(seen, depth=interpolate(straight, size=(camera.height, camera.width)) * seen.alpha)

    def _front(self, camera: Camera) -> Views:
        return Views(*front_views(self.gaussians(), camera, 1.0, self.backend))

    def _extent(self) -> tuple[float, float]:
        """Return half the side of the cube, and the radius of the ball, that hold what can be seen of the cloud."""
        cloud = self.gaussians()
        seen = cloud.opacities > SEEN
        if not bool(seen.any()):
            raise UserError("nothing to make a mesh of: no Gaussian is opaque enough to be seen; train longer")
        means, wide = cloud.means.detach()[seen], 2 * cloud.scales.detach()[seen].amax(dim=1)
        bound = float((means.abs().amax(dim=1) + wide).max().clamp(0.1, 1.0))
        return bound, float((means.norm(dim=1) + wide).max().clamp(0.1, 3**0.5))

    def describe(self) -> dict[str, Any]:
        """Return what :meth:`rebuilt` needs besides the tensors."""
        return {"kind": "gaussians", "rates": self.rates}

    @classmethod
    def rebuilt(cls, about: Mapping[str, Any], state: Mapping[str, Tensor]) -> GaussianScene:
        """Return the scene that was described; KeyError, TypeError or UserError for what does not fit."""
        rates = {name: float(about["rates"][name]) for name in RATES}
        return cls(Gaussians(**{name: state[f"stored.{name}"] * rate for name, rate in rates.items()}), rates=rates)
