"""Discriminators: small heads on features of a denoiser, or a small network on the samples themselves.

All of them answer ``logits(x_t, t, cond)``, one number per sample, positive for "real"; ``patch_logits`` gives every
position of every head, for losses that are averaged after their nonlinearity.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from fewstep.core.denoiser import Backbone, Cond, Denoiser, NetworkDenoiser, batch_of
from fewstep.core.errors import check
from fewstep.core.networks.backbone import ExtensibleBackbone, entry
from fewstep.core.networks.embedding import ScalarMLP, sinusoid
from fewstep.core.networks.taps import backbone_of, features, tap_root
from fewstep.core.networks.time_head import TimeAwareHead
from fewstep.core.process import Process, times
from fewstep.core.rng import Rng
from fewstep.core.tensors import expand_to, precise, sample_mean

TIME_FEATURES = 32


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """What a discriminator looks at and how.

    ``source``: ``features`` of the denoiser the recipe names, or the ``samples`` themselves (flattened, small problems
    only). ``taps``: the network's ``bottleneck``, all ``blocks``, or module names (``name:1``: the second output).
    ``head``: ``learned`` convolutions (or per-token layers); ``time_aware`` ones, whose logits do not depend on
    anything at first (TAD-SR, arXiv 2408.07476); or ``mean``, the channel mean of the features, without parameters
    (SiDA, arXiv 2410.14919). ``width`` of learned heads, and logits per position of time-aware ones. ``time`` and
    ``label`` conditioning and ``spectral_norm`` are choices of learned heads; time-aware ones have the first and the
    last, and no label.
    """

    source: Literal["features", "samples"] = "features"
    taps: Literal["bottleneck", "blocks"] | tuple[str, ...] = "bottleneck"
    head: Literal["learned", "time_aware", "mean"] = "learned"
    width: int = 64
    time: bool = True
    label: bool = True
    spectral_norm: bool = False

    def __post_init__(self) -> None:
        check(self.width >= 8 and self.width % 8 == 0, f"discriminator.width must be a multiple of 8, got {self.width}")
        check(len(self.taps) > 0, "discriminator.taps names no module: use bottleneck, blocks or a list")


class Discriminator(nn.Module, ABC):
    """Tells real samples from generated ones at a noise level; parameters are its own heads only."""

    @abstractmethod
    def patch_logits(self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond) -> Float[Tensor, "b p"]:
        """Return the logit of every position of every head."""

    def logits(self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond) -> Float[Tensor, " b"]:
        """Return one logit per sample: the mean over positions and heads."""
        return sample_mean(self.patch_logits(x_t, t, cond))

    def log_ratio(self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond) -> Float[Tensor, " b"]:
        """Return the estimate of ``log(p_real / p_fake)`` at ``x_t``: the logit, if trained with the softplus loss."""
        return self.logits(x_t, t, cond)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Return :meth:`logits`."""
        return self.logits(x_t, t, cond)


class _Conditioning(nn.Module):
    """What heads are told besides the features: a time embedding and a label embedding, each optional."""

    def __init__(self, width: int, time: bool, labels: int) -> None:
        super().__init__()
        self.time = ScalarMLP(TIME_FEATURES, 2 * width) if time else None
        self.label = nn.Embedding(labels, width) if labels else None

    def film(self, unit_time: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return scale and shift "b width" of the fraction of the natural clock, zero at first."""
        if self.time is None:
            return None
        scale, shift = self.time(sinusoid(10.0 * unit_time, TIME_FEATURES)).chunk(2, 1)
        return scale, shift


class Head(nn.Module):
    """Two layers on maps, tokens or vectors, FiLM by time in between, a logit per position plus a projection on the
    label.

    ``logit = w.h + <E(label), mean_over_positions(h)>/sqrt(width)`` (projection conditioning, arXiv 1802.05637).
    """

    def __init__(self, channels: int, maps: bool, width: int, time: bool, labels: int, spectral: bool) -> None:
        super().__init__()

        def layer(inputs: int, outputs: int, size: int) -> nn.Module:
            made = nn.Conv2d(inputs, outputs, size, padding=size // 2) if maps else nn.Linear(inputs, outputs)
            return spectral_norm(made) if spectral else made

        def norm() -> nn.Module:
            return nn.GroupNorm(8, width) if maps else nn.LayerNorm(width)

        self.maps = maps
        self.first, self.first_norm = layer(channels, width, 3), norm()
        self.second, self.second_norm = layer(width, width, 3), norm()
        self.out = layer(width, 1, 1)
        self.conditioning = _Conditioning(width, time, labels)

    def forward(self, x: Tensor, unit_time: Tensor, label: Tensor | None) -> Tensor:
        """Return logits "b p" of features "b c h w", "b n c" or "b c"."""
        act, x = torch.nn.functional.silu, x.to(next(self.first_norm.parameters()).dtype)

        def place(value: Tensor) -> Tensor:  # "b c" to the layout of the features
            return value[:, :, None, None] if self.maps else value if x.ndim == 2 else value[:, None]

        h = self.first_norm(self.first(x))
        film = self.conditioning.film(unit_time)
        if film is not None:
            h = h * (1 + place(film[0])) + place(film[1])
        h = act(self.second_norm(self.second(act(h))))
        logits: Tensor = self.out(h).flatten(1)
        if self.conditioning.label is not None:
            label = entry({} if label is None else {"label": label}, "label", "the discriminator")
            pooled = h.flatten(2).mean(2) if self.maps else h if h.ndim == 2 else h.mean(1)
            logits = logits + (self.conditioning.label(label) * pooled).sum(1, keepdim=True) / pooled.shape[1] ** 0.5
        return logits


class FeatureDiscriminator(Discriminator):
    """Heads on features of a denoiser; the trunk's weights belong to the role it is, not to this module.

    Made by :func:`make_discriminator`. Gradients flow through the trunk to ``x_t``, and into its weights where they
    require it. Features are maps "b c h w", videos "b c f h w", tokens "b n c" or vectors "b c"; frames may be folded
    into the batch.
    """

    def __init__(self, trunk: Denoiser, taps: Sequence[str], heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.trunk, self.taps = trunk, tuple(taps)  # a denoiser is no module: the trunk is not registered here
        self.heads = nn.ModuleList(heads)

    def head_logits(self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond) -> list[Tensor]:
        """Return the logits "b p" of every head."""
        return self.feature_logits(self.features(x_t, t, cond), t, cond)

    def features(self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond) -> list[Tensor]:
        """Return the trunk's features, one tensor per head."""
        return features(self.trunk, self.taps, x_t, t, cond)

    def feature_logits(self, found: Sequence[Tensor], t: Float[Tensor, " b"], cond: Cond) -> list[Tensor]:
        """Return the logits "b p" of every head on features at ``t``."""
        unit, label, out = self.trunk.process.time_to_unit(t), cond.get("label"), []
        for head, feature in zip(self.heads, found, strict=True):
            folded = _fold_frames(feature)
            frames = len(folded) // len(t)
            labels = None if label is None else label.repeat_interleave(frames)
            out.append(head(folded, unit.repeat_interleave(frames), labels).reshape(len(t), -1))
        return out

    def patch_logits(self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond) -> Float[Tensor, "b p"]:
        """Return the logits of all positions of all heads."""
        return torch.cat(self.head_logits(x_t, t, cond), 1)

    def logits(self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond) -> Float[Tensor, " b"]:
        """Return one logit per sample: the mean over positions, then over heads."""
        return torch.stack([sample_mean(x) for x in self.head_logits(x_t, t, cond)]).mean(0)


def _fold_frames(feature: Tensor) -> Tensor:
    return feature.transpose(1, 2).flatten(0, 1) if feature.ndim == 5 else feature


class MeanHead(nn.Module):
    """The mean over channels as the logit of a position: no parameters, the trunk itself learns to discriminate."""

    def forward(self, x: Tensor, unit_time: Tensor, label: Tensor | None) -> Tensor:
        """Return "b p" of features "b c h w", "b n c" or "b c"."""
        return precise(x).mean(1 if x.ndim == 4 else -1).reshape(len(x), -1)


class SampleDiscriminator(Discriminator):
    """A small MLP on flattened noised samples, their noise level and label: for vectors and toys."""

    def __init__(self, process: Process, dim: int, *, width: int = 64, labels: int = 0, seed: int = 0) -> None:
        super().__init__()
        self.process = process
        with Rng(seed, 0, ()).network_noise("discriminator"):
            self.conditioning = _Conditioning(width, True, labels)
            self.first, self.second = nn.Linear(dim, width), nn.Linear(width, width)
            self.out = nn.Linear(width, 1)

    def patch_logits(self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond) -> Float[Tensor, "b p"]:
        """Return one logit per sample, "b 1"."""
        act, c = torch.nn.functional.silu, self.process.coefficients(t)
        x = (x_t / expand_to(torch.hypot(c.alpha, c.sigma), x_t)).flatten(1).to(self.out.weight.dtype)
        h = self.first(x)
        film = self.conditioning.film(self.process.time_to_unit(t))
        if film is not None:
            h = h * (1 + film[0]) + film[1]
        h = act(self.second(act(h)))
        if self.conditioning.label is not None:
            h = h + self.conditioning.label(entry(cond, "label", type(self).__name__))
        logits: Tensor = self.out(act(h))
        return logits


def make_discriminator(
    trunk: Denoiser, config: DiscriminatorConfig, shape: Sequence[int], cond: Cond, seed: int
) -> Discriminator:
    """Return a discriminator for samples of ``shape``; ``cond`` is an example condition of at least one row.

    Sizes of features are read off one run of the trunk. Raises UserError when the trunk has no features, or for a name
    it does not have.
    """
    if config.source == "samples":
        labels = getattr(trunk, "num_labels", 0)
        if isinstance(trunk, NetworkDenoiser) and isinstance(trunk.backbone, ExtensibleBackbone):
            labels = trunk.backbone.num_labels
        dim = math.prod(shape)
        labels = labels if config.label else 0
        return SampleDiscriminator(trunk.process, dim, width=config.width, labels=labels, seed=seed)
    backbone = backbone_of(trunk)
    extensible = backbone if isinstance(backbone, ExtensibleBackbone) else None
    taps = config.taps
    if isinstance(taps, str):
        check(extensible is not None, f"{type(backbone).__name__} names no feature taps: list module names in taps")
        taps = cast(ExtensibleBackbone, extensible).taps(taps)
    labels = extensible.num_labels if extensible and config.label else 0
    with Rng(seed, 0, ()).network_noise("discriminator"):
        heads = [_make_head(feature, labels, config) for feature in _example(trunk, backbone, taps, shape, cond)]
    return FeatureDiscriminator(trunk, taps, heads)


def _example(
    trunk: Denoiser, backbone: Backbone, taps: Sequence[str], shape: Sequence[int], cond: Cond
) -> list[Tensor]:
    """Return the features of one blank sample halfway up the process's clock."""
    like = next(tap_root(backbone).parameters())
    x = torch.zeros(1, *shape, dtype=like.dtype, device=like.device)
    t = trunk.process.round(trunk.process.unit_to_time(times(0.5, 1, like.device)))
    extras = {name: torch.zeros(1, dtype=like.dtype, device=like.device) for name in getattr(backbone, "extras", ())}
    one = {name: value.to(like.device) for name, value in batch_of(cond, 0, 1).items()}
    with torch.no_grad():
        return features(trunk, taps, x, t, {**extras, **one})


def _make_head(feature: Tensor, labels: int, config: DiscriminatorConfig) -> nn.Module:
    if config.head == "mean":
        return MeanHead()
    maps = feature.ndim >= 4
    channels = feature.shape[1] if maps else feature.shape[-1]
    if config.head == "time_aware":
        return TimeAwareHead(channels, maps, config.width).to(device=feature.device)
    head = Head(channels, maps, config.width, config.time, labels, config.spectral_norm)
    return head.to(device=feature.device)
