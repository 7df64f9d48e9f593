"""Options of ResShift's denoiser, under the names its configuration files use (arXiv 2307.12348)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from fewstep.core.errors import UserError, check, nearest
from fewstep.restoration.models.swin_blocks import GROUPS

MAX_LEVELS, MAX_BLOCKS, MAX_CHANNELS = 8, 32, 8192


@dataclass(frozen=True, kw_only=True)
class SwinConfig:
    """A U-Net of residual blocks with Swin attention; the defaults are the conference model's (118.6 M parameters).

    ``image_size``: side of the latents it is trained on; ``attention_resolutions``: the sides, on the way down from it,
    of the levels with Swin layers. ``in_channels`` counts the latent alone: with ``cond_lq`` the low-quality picture
    (3 channels, ``lq_size`` on a side) is concatenated, as it is where the sides agree, through convolutions where it
    is larger. ``num_res_blocks``: one number, or one per level. ``conv_resample``: sizes change through convolutions.
    ``patch_norm``: embedded positions are normalised. ``dims``, ``use_fp16``, ``resblock_updown`` and
    ``swin_attn_type`` take one value each. Raises UserError for what cannot be built.
    """

    image_size: int = 64
    in_channels: int = 3
    model_channels: int = 160
    out_channels: int = 3
    attention_resolutions: tuple[int, ...] = (64, 32, 16, 8)
    dropout: float = 0.0
    channel_mult: tuple[int, ...] = (1, 2, 2, 4)
    num_res_blocks: int | tuple[int, ...] = 2
    conv_resample: bool = True
    dims: Literal[2] = 2
    use_fp16: bool = False
    num_head_channels: int = 32
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    swin_depth: int = 2
    swin_embed_dim: int = 192
    window_size: int = 8
    patch_norm: bool = False
    cond_lq: bool = True
    lq_size: int = 64
    mlp_ratio: float = 4.0
    swin_attn_type: Literal["swin"] = "swin"

    def __post_init__(self) -> None:
        _check_supported(self)
        _check_sizes(self)
        _check_relations(self)

    @classmethod
    def from_mapping(cls, found: Mapping[str, Any], where: object) -> SwinConfig:
        """Return the options a JSON or YAML mapping gives; UserError naming ``where`` for unknown or ill-typed ones."""
        known = {each.name: each for each in fields(cls)}
        for name, value in found.items():
            if name not in known:
                raise UserError(f"{where}: unknown option '{name}': {nearest(name, known)}")
            listed = name in ("attention_resolutions", "channel_mult", "num_res_blocks")
            good = _fits(value, type(known[name].default)) or (listed and _all_whole(value))
            check(good, f"{where}: {name} cannot be {value!r}")
        lists: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in found.items()
        }
        try:
            return cls(**lists)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error

    @property
    def blocks(self) -> tuple[int, ...]:
        """Return the number of residual blocks of every level."""
        given = self.num_res_blocks
        return (given,) * len(self.channel_mult) if isinstance(given, int) else given

    @property
    def lq_factor(self) -> int:
        """Return how many pixels of the low-quality picture a latent position stands for, along one side."""
        return self.lq_size // self.image_size

    @property
    def multiple(self) -> int:
        """Return what the network pads the sides of latents to: a whole window at the lowest level."""
        return int(self.window_size * 2 ** (len(self.channel_mult) - 1))

    def attends(self, level: int) -> bool:
        """Return whether a level has Swin layers."""
        return self.image_size // 2**level in self.attention_resolutions


def _fits(value: object, kind: type) -> bool:
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, int | float if kind is float else kind)


def _all_whole(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(n, int) and not isinstance(n, bool) for n in value)


def _check_supported(config: SwinConfig) -> None:
    check(config.dims == 2, f"dims: only pictures (2) are supported, got {config.dims}")
    check(not config.use_fp16, "use_fp16: weights are kept in float32, and the run chooses its precision: set it false")
    check(
        not config.resblock_updown,
        "resblock_updown: sizes change between residual blocks only: set it false (conv_resample has convolutions)",
    )
    check(config.swin_attn_type == "swin", f"swin_attn_type: only 'swin' is supported, got '{config.swin_attn_type}'")


def _check_sizes(config: SwinConfig) -> None:
    def within(name: str, value: int, least: int, most: int) -> None:
        check(least <= value <= most, f"{name} must be {least} to {most}, got {value}")

    within("channel_mult: its length", len(config.channel_mult), 1, MAX_LEVELS)
    check(
        len(config.blocks) == len(config.channel_mult),
        f"num_res_blocks has {len(config.blocks)} entries for {len(config.channel_mult)} levels",
    )
    for count in config.blocks:
        within("num_res_blocks", count, 1, MAX_BLOCKS)
    for factor in config.channel_mult:
        within("channel_mult", factor, 1, 64)
    within("model_channels", config.model_channels, GROUPS, MAX_CHANNELS)
    within("in_channels", config.in_channels, 1, MAX_CHANNELS)
    within("out_channels", config.out_channels, 1, MAX_CHANNELS)
    within("image_size", config.image_size, 1, 65536)
    within("lq_size", config.lq_size, 1, 65536)
    within("swin_depth", config.swin_depth, 1, MAX_BLOCKS)
    within("swin_embed_dim", config.swin_embed_dim, 1, MAX_CHANNELS)
    within("num_head_channels", config.num_head_channels, 1, config.swin_embed_dim)
    within("window_size", config.window_size, 1, 64)
    check(0 <= config.dropout < 1, f"dropout must lie in [0, 1), got {config.dropout:g}")
    check(0 < config.mlp_ratio <= 16, f"mlp_ratio must lie in (0, 16], got {config.mlp_ratio:g}")


def _check_relations(config: SwinConfig) -> None:
    check(
        config.model_channels % GROUPS == 0,
        f"model_channels must be a multiple of {GROUPS} (groups are normalised), got {config.model_channels}",
    )
    check(
        config.swin_embed_dim % config.num_head_channels == 0,
        f"swin_embed_dim {config.swin_embed_dim} is no multiple of num_head_channels {config.num_head_channels}",
    )
    levels = len(config.channel_mult)
    check(
        config.image_size % 2 ** (levels - 1) == 0,
        f"image_size {config.image_size} cannot be halved {levels - 1} times: use fewer levels (channel_mult)",
    )
    sides = [config.image_size // 2**level for level in range(levels)]
    for side in config.attention_resolutions:
        check(side in sides, f"attention_resolutions: no level has the side {side}; the levels' are {sides}")
    factor = config.lq_factor
    check(
        not config.cond_lq or (config.lq_size == factor * config.image_size and factor & (factor - 1) == 0 < factor),
        f"lq_size must be image_size ({config.image_size}) times a power of two, got {config.lq_size}",
    )
