"""What `ns-train` lists: a method per recipe, for Gaussians or, with `--pipeline.model.scene.kind`, fields."""

from __future__ import annotations

try:
    from nerfstudio.engine.optimizers import AdamOptimizerConfig  # type: ignore[import-not-found]
    from nerfstudio.engine.trainer import TrainerConfig  # type: ignore[import-not-found]
    from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig  # type: ignore[import-not-found]
    from nerfstudio.plugins.types import MethodSpecification  # type: ignore[import-not-found]
except ModuleNotFoundError as missing:
    if missing.name is None or missing.name.partition(".")[0] != "nerfstudio":
        raise
    from fewstep.threed.nerfstudio.opening import NEEDED

    raise ModuleNotFoundError(NEEDED, name=missing.name) from None

from fewstep.core.recipes.generator import FakeScoreConfig
from fewstep.core.recipes.rollout import StudentConfig
from fewstep.core.recipes.sds import SDSConfig
from fewstep.core.recipes.vsd import VSDConfig
from fewstep.threed.nerfstudio.data import SceneCamerasConfig, ScenePipeline
from fewstep.threed.nerfstudio.models import SceneModelConfig

RATES = {"scene": 1e-2, "critic": 1e-3}


def method(name: str, recipe: StudentConfig, description: str) -> MethodSpecification:
    """Return a method of nerfstudio that trains a scene by ``recipe``."""
    config = TrainerConfig(
        method_name=name,
        experiment_name="fewstep",  # nerfstudio names experiments after their data, and there is none
        max_num_iterations=1000,
        steps_per_save=500,
        pipeline=VanillaPipelineConfig(
            _target=ScenePipeline, datamanager=SceneCamerasConfig(), model=SceneModelConfig(recipe=recipe)
        ),
        optimizers={
            group: {"optimizer": AdamOptimizerConfig(lr=rate, eps=1e-15), "scheduler": None}
            for group, rate in RATES.items()
        },
        vis="viewer",
    )
    return MethodSpecification(config, description)


SDS = method("fewstep-sds", SDSConfig(), "fewstep: score distillation of an image model into a scene, by prompt")
CSD = method("fewstep-csd", SDSConfig(variant="csd"), "fewstep: the same by classifier score distillation")
VSD = method(
    "fewstep-vsd",
    VSDConfig(guidance_scale=7.5, fake=FakeScoreConfig(weighting="snr")),
    "fewstep: the same by variational score distillation, with a critic of the scene",
)
