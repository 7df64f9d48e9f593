"""What cameras see of a scene, and what a scene is: anything that is rendered with gradient and can leave as a file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.errors import UserError
from fewstep.core.rng import Rng
from fewstep.threed.cameras import Camera
from fewstep.threed.fields.meshes import Mesh
from fewstep.threed.gaussians.parameters import Gaussians


@dataclass(frozen=True)
class Views:
    """Pictures of a batch of cameras: ``rgb`` in [0, 1] over the background, and what covers it.

    ``depth`` along the camera's z and ``normal``, in the world, are weighted by ``alpha`` and not divided by it.
    """

    rgb: Float[Tensor, "b 3 h w"]
    alpha: Float[Tensor, "b 1 h w"]
    depth: Float[Tensor, "b 1 h w"]
    normal: Float[Tensor, "b 3 h w"]


class Scene(nn.Module, ABC):
    """Something in the cube [-1, 1]^3 that cameras look at from outside."""

    @abstractmethod
    def views(self, camera: Camera, background: float | Tensor = 1.0, rng: Rng | None = None) -> Views:
        """Return what ``camera`` sees, with gradient; ``background``: one grey, or colours "b 3".

        rng: draws what rendering may leave to chance in training; None renders without chance.
        """

    @abstractmethod
    def mesh(self, resolution: int = 96) -> Mesh:
        """Return a coloured mesh; UserError where there is no surface."""

    def gaussians(self) -> Gaussians | None:
        """Return the scene's Gaussians, None where it has none."""
        return None

    def colour_field(self) -> Callable[[Tensor], Tensor]:
        """Return a function from points "n 3" of the surface to colours, for textures; UserError if there is none."""
        raise UserError("this scene has colours at its vertices only: leave the texture out")

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what :meth:`rebuilt` needs besides the tensors, as JSON has it."""

    @classmethod
    @abstractmethod
    def rebuilt(cls, about: Mapping[str, Any], state: Mapping[str, Tensor]) -> Scene:
        """Return the scene that was described, with the tensors of its ``state_dict``.

        Raises KeyError, TypeError, ValueError, RuntimeError or UserError for what does not fit.
        """

    def penalties(self, rng: Rng) -> dict[str, Tensor]:
        """Return what can be held against the scene itself after a render, named numbers with gradient; or nothing."""
        return {}


def mean_opacity(alpha: Float[Tensor, "b 1 h w"]) -> Float[Tensor, ""]:
    """Return the mean of sqrt(alpha^2 + 0.01): its slope is least where nothing is, and what is there stays."""
    return (alpha.square() + 0.01).sqrt().mean()
