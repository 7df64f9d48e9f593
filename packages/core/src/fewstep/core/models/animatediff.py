"""AnimateDiff: a Stable Diffusion 1.5 with motion modules between its layers, ``UNetMotionModel``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.denoiser import Cond
from fewstep.core.errors import UserError, check
from fewstep.core.models.family import Config, Size
from fewstep.core.models.files import PipelineFolder, check_weights, download, quiet, read_json, readable
from fewstep.core.models.modelscope import FramewiseVideo
from fewstep.core.models.sd import StableDiffusion
from fewstep.core.models.student import replacing
from fewstep.core.models.tiny import clip_text, clip_tokenizer, save_pipeline, seeded, tiny_vae, visible

# what AnimateDiff's motion modules were trained on, whatever the pictures' network was
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "linear",
    "clip_sample": False,
    "timestep_spacing": "linspace",
    "steps_offset": 1,
}


class AnimateDiff(FramewiseVideo, StableDiffusion):
    """AnimateDiff on Stable Diffusion 1.5 (eps)."""

    name: ClassVar[str] = "animatediff"
    summary: ClassVar[str] = "AnimateDiff on Stable Diffusion 1.5"
    pipelines: ClassVar[tuple[str, ...]] = ("AnimateDiffPipeline",)
    network_classes: ClassVar[tuple[str, ...]] = ("UNetMotionModel",)
    # all that MCM's take (arXiv 2406.06890) but a motion module's proj_in and proj_out, called with an argument's name
    # that PEFT's layers do not know
    lora_targets: ClassVar[tuple[str, ...]] = (
        "to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2",
        *(f"attentions.{index}.proj_{way}" for index in range(3) for way in ("in", "out")),
        "conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
    )  # fmt: skip
    usual: ClassVar[Size] = Size(512, 512, 16)

    def check_folder(self, folder: PipelineFolder) -> None:
        """Raise UserError for SDXL's pictures, whose networks are told more."""
        told = folder.config(self.network).get("addition_embed_type")
        check(told is None, f"{folder.path}: its network is told '{told}', AnimateDiff on SDXL: use one on SD 1.5")

    def sample_shape(self, network: Config, vae: Config | None, size: Size) -> tuple[int, ...]:
        """Return "c f h w"; UserError for a size the network cannot take, and for more frames than it knows."""
        most = int(network.get("motion_max_seq_length") or 32)
        check(size.frames <= most, f"{size.frames} frames: this {self.name} model has places for {most}")
        return super().sample_shape(network, vae, size)

    def to_pipeline(self, x: Float[Tensor, "b *d"]) -> Tensor:
        """Return clips as they are."""
        return x

    def from_pipeline(self, x: Tensor, shape: Any) -> Float[Tensor, "b *d"]:
        """Return clips as they are."""
        return x

    def call(self, network: Any, x: Float[Tensor, "b *d"], time: Float[Tensor, " b"], cond: Cond) -> Tensor:
        """Return the U-Net's prediction; every frame reads the prompt."""
        embeds = cond.get("prompt_embeds")
        told = {} if embeds is None else {"prompt_embeds": embeds.repeat_interleave(x.shape[2], 0)}
        return self.unet(network, x, time, {**cond, **told}, None)

    def kept(self, network: nn.Module) -> tuple[str, ...]:
        """Return the motion modules outside the middle block, most of what a clip's activations are."""
        return tuple(
            path
            for path, part in network.named_modules()
            if type(part).__name__ == "AnimateDiffTransformer3D" and not path.startswith("mid_block")
        )

    def pipeline_options(self) -> dict[str, Any]:
        """Return the settings of a pipeline without image prompts."""
        return {"feature_extractor": None, "image_encoder": None}

    def tiny(self, folder: Path, seed: int) -> None:
        """Write an eps-prediction pipeline of 16x16 pixels."""
        from diffusers import AnimateDiffPipeline, DDIMScheduler, MotionAdapter, UNet2DConditionModel, UNetMotionModel

        with seeded(seed):
            pictures = UNet2DConditionModel(
                sample_size=8,
                in_channels=4,
                out_channels=4,
                block_out_channels=(16, 32),
                layers_per_block=2,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                cross_attention_dim=32,
                attention_head_dim=4,
                norm_num_groups=8,
            )
            adapter = MotionAdapter(
                block_out_channels=(16, 32),
                motion_layers_per_block=2,
                motion_num_attention_heads=2,
                motion_norm_num_groups=8,
            )
            network = visible(UNetMotionModel.from_unet2d(pictures, visible(adapter)))
            text, vae = clip_text(32), tiny_vae()
            save_pipeline(
                AnimateDiffPipeline,
                folder,
                vae=vae,
                text_encoder=text,
                tokenizer=clip_tokenizer(),
                unet=network,
                motion_adapter=adapter,
                scheduler=DDIMScheduler(**SCHEDULE),
                feature_extractor=None,
                image_encoder=None,
            )


def join(pictures: str, adapter: str, out: Path) -> None:
    """Write one AnimateDiff pipeline of a Stable Diffusion 1.5 and a motion adapter, each a folder or a hub id.

    The scheduler becomes the one motion modules are trained with (linear betas). Raises UserError for parts that
    cannot be read, are of another kind or do not fit together; nothing is left half-written.
    """
    with quiet():  # importing it tells what of it wants torchvision
        from diffusers import AnimateDiffPipeline, DDIMScheduler, UNetMotionModel

    base, motion = PipelineFolder.find(pictures), _motion_adapter(adapter)
    kind = base.parts.get("unet", ("", "none"))[1]
    check(
        kind == "UNet2DConditionModel" and base.pipeline in StableDiffusion.pipelines,
        f"{pictures}: a {base.pipeline} with a {kind}; motion modules go into a Stable Diffusion 1.5",
    )
    parts = {name: base.load(name) for name in ("vae", "text_encoder", "tokenizer", "unet")}
    try:
        with quiet():
            parts["unet"] = UNetMotionModel.from_unet2d(parts["unet"], motion)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{adapter} does not fit {pictures}: {str(error).splitlines()[0]}") from error
    with replacing(out) as aside:
        save_pipeline(
            AnimateDiffPipeline,
            aside,
            **parts,
            motion_adapter=motion,
            scheduler=DDIMScheduler(**SCHEDULE),
            feature_extractor=None,
            image_encoder=None,
        )


def _motion_adapter(name: str) -> Any:
    from diffusers import MotionAdapter

    given = Path(name).expanduser()
    folder = given if given.exists() else download(name, what="motion adapter")
    check((folder / "config.json").is_file(), f"{name}: no config.json there; give the folder of a motion adapter")
    kind = read_json(folder / "config.json").get("_class_name")
    check(kind == "MotionAdapter", f"{name}: holds a {kind}; give the folder of a motion adapter")
    check_weights(folder)
    with quiet(), readable(folder, "MotionAdapter"):
        return MotionAdapter.from_pretrained(folder, use_safetensors=True, local_files_only=True)
