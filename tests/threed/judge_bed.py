"""Small teachers of every kind as folders, and views for them to judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from threed.scene_bed import TINY, around
from torch import Tensor, nn

from fewstep.core.image.settings import ProcessConfig
from fewstep.core.image.teacher import scheduler_config
from fewstep.core.models.files import quiet
from fewstep.core.models.loading import Teacher
from fewstep.core.models.tiny import save_pipeline, seeded, tiny_vae
from fewstep.core.recipe import StepPlan
from fewstep.threed.cameras import Camera, orbit
from fewstep.threed.settings import SOLIDS_CAMERAS
from fewstep.threed.shapes import build, read, render
from fewstep.threed.shapes.prompts import VOCABULARY
from fewstep.threed.teachers.view_model import ViewModel, export_model, fresh_model
from fewstep.threed.views import Views

QUIET = ("train.eval_every=0", "train.preview_every=0", "train.log_every=1", "train.batch=2", "train.steps=2")
SMALL = ("domain.scene.count=40", "domain.scene.sections=8", "domain.scene.planes=[8,4]")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stirred(network: nn.Module, seed: int = 0, scale: float = 0.1) -> None:
    """Move every weight, so that what starts at 0 acts."""
    with torch.no_grad():
        for index, parameter in enumerate(network.parameters()):
            parameter.add_(scale * normal(*parameter.shape, seed=1000 * seed + index))


def camera_at(*angles: tuple[float, float], size: int = 16, distance: float = 3.2) -> Camera:
    """Cameras at azimuths and elevations."""
    azimuth, elevation = torch.tensor(angles).T
    full = torch.ones_like(azimuth)
    return orbit(azimuth, elevation, full * distance, full * 40.0, size, size)


def true_views(prompt: str, camera: Camera) -> Views:
    """A solid as a scene would render it."""
    seen = render(
        build(read(prompt)), camera.world_to_camera, camera.intrinsics, camera.width, camera.height, samples=1
    )
    return Views(seen.rgb, seen.alpha, seen.depth, seen.normal)


def view_model(views: int = 1, kind: Any = "pictures", size: int = 16, seed: int = 0) -> ViewModel:
    """An untrained view model whose outputs are not 0."""
    scheduler = scheduler_config(ProcessConfig(name="vp-scaled-linear"))
    model = fresh_model(VOCABULARY, scheduler, SOLIDS_CAMERAS, size, seed, views=views, kind=kind, **TINY)
    stirred(model.backbone, seed)
    return model


def view_folder(folder: Path, views: int, kind: Any = "pictures") -> Path:
    """The folder of :func:`view_model`."""
    model = view_model(views, kind)
    export_model(model.denoiser, StepPlan((999.0,)), folder, {"name": "tiny"}, model)
    return folder


def small_unet(**changes: Any) -> Any:
    from diffusers import UNet2DConditionModel

    settings: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    }
    with seeded(0):
        unet = UNet2DConditionModel(**settings | changes).eval()
    stirred(unet)
    return unet


def camera_pipeline(folder: Path) -> Path:
    """A Stable Diffusion pipeline whose U-Net is told cameras, as MVDream's is."""
    from diffusers import StableDiffusionPipeline

    found = Teacher.find("tiny:sd")
    parts = {name: found.folder.load(name) for name in ("vae", "text_encoder", "tokenizer", "scheduler")}
    unet = small_unet(class_embed_type="projection", projection_class_embeddings_input_dim=16)
    rest = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    save_pipeline(StableDiffusionPipeline, folder, unet=unet, **parts, **rest)
    return folder


def tiny_clip_vision(width: int) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
        projection_dim=width,
    )
    with seeded(0):
        return CLIPVisionModelWithProjection(config)


def zero123(folder: Path, width: int = 16) -> Path:
    """Zero123's parts, its linear layer under the name diffusers' community pipeline gives it."""
    from diffusers import DDIMScheduler

    with quiet(), seeded(0):
        small_unet(in_channels=8).save_pretrained(folder / "unet", safe_serialization=True)
        tiny_vae().save_pretrained(folder / "vae", safe_serialization=True)
        tiny_clip_vision(width).save_pretrained(folder / "image_encoder", safe_serialization=True)
        DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False).save_pretrained(folder / "scheduler")
    (folder / "cc_projection").mkdir()
    state = {"projection.weight": normal(32, 20, seed=5), "projection.bias": normal(32, seed=6)}
    save_file(state, str(folder / "cc_projection" / "diffusion_pytorch_model.safetensors"))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "Zero1to3StableDiffusionPipeline"}))
    return folder


def picture(file: Path, size: int = 48) -> Path:
    """A picture of a cone with its alpha."""
    import numpy as np
    from PIL import Image

    seen = true_views("a red cone", around(1, size))
    rgba = torch.cat([seen.rgb, seen.alpha], 1)[0].movedim(0, -1)
    Image.fromarray(np.asarray((rgba * 255).round().byte())).save(file)
    return file
