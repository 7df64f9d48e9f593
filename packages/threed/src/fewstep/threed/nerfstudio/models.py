"""Scenes as models of nerfstudio: rendered by us, trained by a recipe of core, saved by its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras  # type: ignore[import-not-found]
from nerfstudio.cameras.rays import RayBundle  # type: ignore[import-not-found]
from nerfstudio.models.base_model import Model, ModelConfig  # type: ignore[import-not-found]
from nerfstudio.models.splatfacto import SplatfactoModel  # type: ignore[import-not-found]
from torch import Tensor, nn

from fewstep.core.errors import UserError
from fewstep.core.networks.roles import RolesConfig
from fewstep.core.recipes.rollout import StudentConfig
from fewstep.core.recipes.sds import SDSConfig
from fewstep.threed.gaussians.harmonics import to_rgb
from fewstep.threed.gaussians.parameters import Gaussians
from fewstep.threed.nerfstudio.poses import from_nerfstudio
from fewstep.threed.nerfstudio.training import SceneTraining
from fewstep.threed.nerfstudio.world import TO_Z_UP, to_y_up, to_z_up, turned
from fewstep.threed.scenes.field import FieldScene
from fewstep.threed.settings import SceneConfig, ThreedConfig
from fewstep.threed.truth import find_truth
from fewstep.threed.views import Views

SOLID = 0.5  # the least opacity that has a depth
BEHIND = 2.0  # how far behind the middle of the scene everything else is: exporters take it for free space
FAINT = 1e-3


@dataclass
class SceneModelConfig(ModelConfig):  # type: ignore[misc]
    """What is distilled: the ``prompt`` for the ``teacher`` into the ``scene``, by the ``recipe``.

    ``critic_rank``: of the LoRA factors that are VSD's critic over the teacher; 0: a copy of the teacher.
    """

    _target: type = field(default_factory=lambda: SceneModel)
    prompt: str | None = "a red cone"
    teacher: str = "solids"
    scene: SceneConfig = SceneConfig()
    recipe: StudentConfig = SDSConfig()
    critic_rank: int = 16

    def __post_init__(self) -> None:
        """Leave nerfstudio's own bounds of rays out: scenes know theirs."""
        self.enable_collider = False

    @property
    def sh_degree(self) -> int:
        """The degree of the harmonics, under the name nerfstudio's exporter reads."""
        return self.scene.degree

    def setup(self, **kwargs: Any) -> SceneModel:
        """Return the model; one of Gaussians is a SplatfactoModel too."""
        made: SceneModel = (SplatModel if self.scene.kind == "gaussians" else self._target)(self, **kwargs)
        return made

    def domain(self) -> ThreedConfig:
        """Return the same as a config of this package."""
        roles = RolesConfig(mode="lora", rank=self.critic_rank) if self.critic_rank else RolesConfig()
        return ThreedConfig(teacher=self.teacher, prompt=self.prompt or "", scene=self.scene, roles=roles)


class SceneModel(Model):  # type: ignore[misc]
    """A scene that a judge of renders trains."""

    config: SceneModelConfig

    def populate_modules(self) -> None:
        """Make the scene, and what else is trained; the teacher is no part of the model and of its checkpoints."""
        seed = torch.initial_seed() % 2**63  # `--machine.seed`, which nerfstudio has just set
        self.training_of = SceneTraining(
            self.config.domain(), self.config.recipe, seed, self.kwargs.get("device") or "cpu"
        )
        self.scene = self.training_of.scene
        self.critic = nn.ParameterList(self.training_of.critic)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load as any module does."""
        return nn.Module.load_state_dict(self, state_dict, strict=strict, assign=assign)

    def get_param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the scene's parameters, and those of the critic where there is one."""
        groups = {"scene": list(self.scene.parameters()), "critic": list(self.critic)}
        return {name: parameters for name, parameters in groups.items() if parameters}

    def get_training_callbacks(self, training_callback_attributes: Any) -> list[Any]:
        """Nothing happens between steps."""
        return []

    def get_outputs(self, ray_bundle: RayBundle | Cameras) -> dict[str, Tensor]:
        """Return what a camera or rays see, by nerfstudio's names; nothing in training, where recipes render."""
        if self.training:
            return {}
        if isinstance(ray_bundle, RayBundle):
            return self.along_rays(ray_bundle)
        camera = from_nerfstudio(ray_bundle).to(self.device)
        with torch.no_grad():
            seen = self.scene.views(camera)
        origins, directions = camera.rays()
        forward = camera.world_to_camera[:, None, None, 2, :3]
        along = (directions * forward).sum(-1, keepdim=True)
        return _outputs(seen, origins[0], along[0])

    def along_rays(self, rays: RayBundle) -> dict[str, Tensor]:
        """Return what rays see of a field; UserError for Gaussians, which are seen by cameras only."""
        if not isinstance(self.scene, FieldScene):
            raise UserError("Gaussians are seen by cameras, not by rays: export them with `ns-export gaussian-splat`")
        origins, directions = to_y_up(rays.origins.reshape(-1, 3)), to_y_up(rays.directions.reshape(-1, 3))
        length = directions.norm(dim=-1, keepdim=True)
        with torch.no_grad():
            found = self.scene.along(origins, directions / length)
        shape = (*rays.shape, -1)
        alpha, normal = found.opacity[:, None], to_z_up(found.normal)
        values = {
            "rgb": found.rgb.clamp(0, 1),
            "accumulation": alpha,
            "depth": _depth(found.depth[:, None], alpha, origins) / length,
            "normals": (normal / normal.norm(dim=-1, keepdim=True).clamp_min(1e-9) + 1) / 2,
        }
        return {name: value.reshape(shape) for name, value in values.items()}

    @torch.no_grad()
    def get_outputs_for_camera(self, camera: Cameras, obb_box: Any = None) -> dict[str, Tensor]:
        """Return what one camera sees; boxes are not cut out."""
        was = self.training
        self.eval()
        try:
            return self.get_outputs(camera)
        finally:
            self.train(was)

    def get_rgba_image(self, outputs: dict[str, Tensor], output_name: str = "rgb") -> Tensor:
        """Return the colours without the white behind them, and the opacity."""
        alpha = outputs["accumulation"]
        rgb = (outputs[output_name] - (1 - alpha)) / alpha.clamp_min(FAINT)
        return torch.cat([rgb.clamp(0, 1), alpha], dim=-1)

    def get_metrics_dict(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        """Return nothing: there are no pictures to compare with in training."""
        return {}

    def get_loss_dict(self, outputs: Any, batch: dict[str, Any], metrics_dict: Any = None) -> dict[str, Tensor]:
        """Return the losses of the recipe's phases, seen from the batch's cameras."""
        return self.training_of.losses(batch["camera"], batch["step"])

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Return the picture; how near it comes to the exact one for prompts of solids, else how much it covers."""
        rgb, alpha, depth = (outputs[name].movedim(-1, 0)[None] for name in ("rgb", "accumulation", "depth"))
        truth = find_truth(self.config.prompt or "")
        metrics = {"coverage": float(alpha.mean())}
        if truth is not None:
            metrics |= truth.of_views(Views(rgb, alpha, depth, torch.zeros_like(rgb)), batch["camera"])
        return metrics, {"img": outputs["rgb"]}


class SplatModel(SceneModel, SplatfactoModel):  # type: ignore[misc]
    """A scene of Gaussians, and by name a SplatfactoModel, which `ns-export gaussian-splat` and the viewer ask for.

    The cloud's parts are those of nerfstudio's world, without gradient.
    """

    @property
    def cloud(self) -> Gaussians:
        """The Gaussians with z up."""
        with torch.no_grad():
            found = self.scene.gaussians()
            assert found is not None
            return turned(found, TO_Z_UP.to(found.means.device))

    @property
    def means(self) -> Tensor:
        """Centres, "n 3"."""
        return self.cloud.means

    @property
    def scales(self) -> Tensor:
        """Logarithms of the standard deviations, "n 3"."""
        return self.cloud.log_scales

    @property
    def quats(self) -> Tensor:
        """Quaternions w x y z, "n 4"."""
        return self.cloud.quaternions

    @property
    def opacities(self) -> Tensor:
        """Logits, "n 1"."""
        return self.cloud.opacity_logits[:, None]

    @property
    def features_dc(self) -> Tensor:
        """Harmonics of band 0, "n 3"."""
        return self.cloud.harmonics[:, 0]

    @property
    def features_rest(self) -> Tensor:
        """The other harmonics, "n k-1 3"."""
        return self.cloud.harmonics[:, 1:]

    @property
    def shs_0(self) -> Tensor:
        """Harmonics of band 0, "n 3"."""
        return self.features_dc

    @property
    def colors(self) -> Tensor:
        """The colours of band 0, "n 3"."""
        return to_rgb(self.features_dc)


def _outputs(seen: Views, origins: Tensor, along: Tensor) -> dict[str, Tensor]:
    """Return the first view, "h w c"; ``along``: what the pixels' rays move along the camera's z per length."""
    rgb, alpha, depth, normal = (value[0].movedim(0, -1) for value in (seen.rgb, seen.alpha, seen.depth, seen.normal))
    found = {"rgb": rgb.clamp(0, 1), "accumulation": alpha, "depth": _depth(depth / along, alpha, origins)}
    if bool(normal.any()):
        normal = to_z_up(normal)
        found["normals"] = (normal / normal.norm(dim=-1, keepdim=True).clamp_min(1e-9) + 1) / 2
    return found


def _depth(weighted: Tensor, alpha: Tensor, origins: Tensor) -> Tensor:
    """Return depths along rays from ones weighted by opacity; behind the scene where little is."""
    behind = origins.norm(dim=-1, keepdim=True) + BEHIND
    return torch.where(alpha > SOLID, weighted / alpha.clamp_min(SOLID), behind)
