"""ResShift's denoiser: a U-Net of residual blocks with Swin attention, told the time and the low-quality picture.

The network of arXiv 2307.12348 for pictures of any size. Swin layers are added to what goes around them, which is the
identity at first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from fewstep.core.denoiser import Cond
from fewstep.core.errors import UserError, check
from fewstep.core.networks.backbone import entry
from fewstep.core.networks.embedding import sinusoid
from fewstep.core.networks.timed import TimedBackbone
from fewstep.core.rng import Rng
from fewstep.restoration.models.swin_blocks import Downsample, ResidualBlock, SwinLayer, Upsample, norm
from fewstep.restoration.models.swin_config import SwinConfig
from fewstep.restoration.models.weights import read_description, read_weights

KIND = "swin"
LQ_WIDTH = 16  # of the first convolution on a low-quality picture larger than the latent


class TimeEmbedding(nn.Module):
    """Two layers on sinusoids of the time."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.linear_1, self.act, self.linear_2 = nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width)

    def forward(self, features: Float[Tensor, "b f"]) -> Float[Tensor, "b e"]:
        """Return the embedding."""
        out: Tensor = self.linear_2(self.act(self.linear_1(features)))
        return out


class Stage(nn.Module):
    """A residual block, a Swin layer where the level has one, and twice the size where a level ends on the way up."""

    def __init__(self, config: SwinConfig, channels: int, out: int, *, attends: bool, enlarges: bool = False) -> None:
        super().__init__()
        self.residual = residual_block(config, channels, out)
        self.swin = swin_layer(config, out) if attends else None
        self.upsample = Upsample(out, learned=config.conv_resample) if enlarges else None

    def forward(self, x: Float[Tensor, "b c h w"], embedding: Float[Tensor, "b e"]) -> Tensor:
        """Return the stage's output."""
        x = self.residual(x, embedding)
        x = x if self.swin is None else self.swin(x)
        return x if self.upsample is None else self.upsample(x)


class Middle(nn.Module):
    """The lowest point: a residual block, a Swin layer, a residual block."""

    def __init__(self, config: SwinConfig, channels: int) -> None:
        super().__init__()
        self.first, self.last = residual_block(config, channels, channels), residual_block(config, channels, channels)
        self.swin = swin_layer(config, channels)

    def forward(self, x: Float[Tensor, "b c h w"], embedding: Float[Tensor, "b e"]) -> Float[Tensor, "b c h w"]:
        """Return the output at the same size."""
        out: Tensor = self.last(self.swin(self.first(x, embedding)), embedding)
        return out


def residual_block(config: SwinConfig, channels: int, out: int) -> ResidualBlock:
    """Return a residual block with the network's options."""
    width = 4 * config.model_channels
    return ResidualBlock(channels, out, width, dropout=config.dropout, scale_shift=config.use_scale_shift_norm)


def swin_layer(config: SwinConfig, channels: int) -> SwinLayer:
    """Return a Swin layer with the network's options."""
    return SwinLayer(
        channels,
        config.swin_embed_dim,
        heads=config.swin_embed_dim // config.num_head_channels,
        depth=config.swin_depth,
        side=config.window_size,
        mlp_ratio=config.mlp_ratio,
        dropout=config.dropout,
        patch_norm=config.patch_norm,
    )


def lq_features(factor: int) -> tuple[nn.Module, int]:
    """Return what brings a low-quality picture to the latent's size, and its channels: 3 of the picture, or 16 factor.

    Every convolution that halves the size doubles the channels.
    """
    if factor == 1:
        return nn.Identity(), 3
    layers: list[nn.Module] = [nn.Conv2d(3, LQ_WIDTH, 3, padding=1)]
    channels = LQ_WIDTH
    while channels < LQ_WIDTH * factor:
        layers += [nn.SiLU(), nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)]
        channels *= 2
    return nn.Sequential(*layers), channels


class SwinUNet(nn.Module):
    """The U-Net; sides must be multiples of ``config.multiple``.

    On the way down and up, the first stage of a level that attends has its Swin layer; the middle always has one.
    """

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        base, widths = config.model_channels, [config.model_channels * factor for factor in config.channel_mult]
        self.gradient_checkpointing = False
        self.time_embedding = TimeEmbedding(base, 4 * base)
        told = 0
        if config.cond_lq:
            self.lq, told = lq_features(config.lq_factor)
        self.conv_in = nn.Conv2d(config.in_channels + told, widths[0], 3, padding=1)
        channels, skips, last = widths[0], [widths[0]], len(widths) - 1
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            for i in range(config.blocks[level]):
                attends = i == 0 and config.attends(level)
                self.encoder.append(Stage(config, channels, width, attends=attends))
                channels = width
                skips.append(width)
            if level < last:
                self.encoder.append(Downsample(width, learned=config.conv_resample))
                skips.append(width)
        self.middle = Middle(config, channels)
        for level in range(last, -1, -1):
            count, width = config.blocks[level] + 1, widths[level]
            for i in range(count):
                attends, enlarges = i == 0 and config.attends(level), i == count - 1 and level > 0
                stage = Stage(config, channels + skips.pop(), width, attends=attends, enlarges=enlarges)
                self.decoder.append(stage)
                channels = width
        self.norm_out, self.conv_out = norm(channels), nn.Conv2d(channels, config.out_channels, 3, padding=1)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the activations of every stage in the backward pass."""
        self.gradient_checkpointing = True
        self._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)

    def forward(
        self, x: Float[Tensor, "b c h w"], features: Float[Tensor, "b f"], lq: Float[Tensor, "b 3 k l"] | None
    ) -> Float[Tensor, "b o h w"]:
        """Return the output; ``features``: sinusoids of the time."""
        embedding = self.time_embedding(features.to(x.dtype))
        if lq is not None:
            x = torch.cat([x, self.lq(lq)], 1)
        x = self.conv_in(x)
        skips = [x]
        for stage in self.encoder:
            x = self._run(stage, x, embedding)
            skips.append(x)
        x = self._run(self.middle, x, embedding)
        for stage in self.decoder:
            x = self._run(stage, torch.cat([x, skips.pop()], 1), embedding)
        out: Tensor = self.conv_out(functional.silu(self.norm_out(x)))
        return out

    def _run(self, stage: nn.Module, x: Tensor, embedding: Tensor) -> Tensor:
        again = self.gradient_checkpointing and torch.is_grad_enabled()
        out: Tensor = self._gradient_checkpointing_func(stage, x, embedding) if again else stage(x, embedding)
        return out


def pad_ends(x: Float[Tensor, "b c h w"], bottom: int, right: int) -> Float[Tensor, "b c h2 w2"]:
    """Return ``x`` continued below and to the right: mirrored as far as it goes, then by its last row and column."""
    for axis, more in ((2, bottom), (3, right)):
        mirrored = min(more, x.shape[axis] - 1)
        for count, mode in ((mirrored, "reflect"), (more - mirrored, "replicate")):
            if count:
                x = functional.pad(x, (0, 0, 0, count) if axis == 2 else (0, count, 0, 0), mode=mode)
    return x


class SwinBackbone(TimedBackbone):
    """The U-Net behind a denoiser: latents "b c h w" of any size.

    Condition: ``lq`` "b 3 k l" in [-1, 1], the low-quality picture, ``config.lq_factor`` times the latent's size (where
    ``config.cond_lq``). Latents are padded to multiples of :attr:`multiple` and the result is cropped.
    """

    lora_targets: tuple[str, ...] = (
        "to_qkv", "to_out", "fc1", "fc2", "embed", "unembed", "conv1", "conv2", "shortcut", "time_proj",
        "linear_1", "linear_2",
    )  # fmt: skip

    def __init__(self, config: SwinConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        with Rng(seed, 0, ()).network_noise("init"):
            self.unet = SwinUNet(config)
        self.extra_inputs = None

    @property
    def network(self) -> nn.Module:
        """The U-Net."""
        return self.unet

    @property
    def time_embedding(self) -> Any:
        """The U-Net's time embedding."""
        return self.unet.time_embedding

    @property
    def time_features(self) -> Callable[[Tensor], Tensor]:
        """Sinusoids of an unscaled index."""
        return partial(sinusoid, width=self.config.model_channels)

    @property
    def multiple(self) -> int:
        """Return what the sides of latents are padded to."""
        return self.config.multiple

    def forward(self, x: Float[Tensor, "b c h w"], time: Float[Tensor, " b"], cond: Cond) -> Float[Tensor, "b o h w"]:
        """Return the raw output; UserError for a condition without ``lq``, or with one of another size."""
        height, width = x.shape[-2:]
        bottom, right = -height % self.multiple, -width % self.multiple
        lq = self._lq(x, cond, bottom, right) if self.config.cond_lq else None
        with self.adding_extras(cond):
            out: Tensor = self.unet(pad_ends(x, bottom, right), self.time_features(time), lq)
        return out[..., :height, :width]

    def _lq(self, x: Tensor, cond: Cond, bottom: int, right: int) -> Tensor:
        lq, factor = entry(cond, "lq", type(self).__name__).to(x.dtype), self.config.lq_factor
        wanted = (len(x), 3, factor * x.shape[2], factor * x.shape[3])
        check(
            lq.shape == wanted,
            f"cond['lq'] is {tuple(lq.shape)}, and latents of {tuple(x.shape)} need {wanted}: this network takes "
            f"low-quality pictures {factor} times the latent's size (lq_size / image_size)",
        )
        return pad_ends(lq, factor * bottom, factor * right)

    def taps(self, where: str = "bottleneck") -> tuple[str, ...]:
        """Return the middle, or the encoder's levels and the middle: its downsamplers, its last stage, the middle."""
        encoder = self.unet.encoder
        downs = [i for i, stage in enumerate(encoder) if isinstance(stage, Downsample)]
        levels = tuple(f"unet.encoder.{i}" for i in (*downs, len(encoder) - 1))
        return (*levels, "unet.middle") if where == "blocks" else ("unet.middle",)

    def save(self, folder: Path) -> None:
        """Write ``model.json`` and ``model.safetensors``."""
        from fewstep.restoration.models.files import save_network  # which knows this class

        save_network(self, folder)

    @classmethod
    def load(cls, folder: Path) -> SwinBackbone:
        """Return the network of a folder in float32; UserError for a folder that holds none."""
        found, file = read_description(folder, KIND)
        config = SwinConfig.from_mapping(found.get("network", {}), f"{file}: network")
        extras = tuple(found.get("extras", ()))

        def make() -> SwinBackbone:
            try:
                return cls(config).with_extras(extras, seed=0) if extras else cls(config)
            except UserError as error:
                raise UserError(f"{file}: {error}") from error

        with torch.device("meta"):
            shapes = {name: value.shape for name, value in make().state_dict().items()}
        tensors = read_weights(folder, shapes)
        made = make()
        made.load_state_dict(tensors)
        return made.eval()
