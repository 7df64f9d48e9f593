"""Parameter-efficient adaptation of a U-Net to six planes (PRD, arXiv 2503.21694).

Self-attention gets six sets of LoRA factors, one per plane, and its tokens are those of all six planes; cross-attention
gets one set that the planes share, and convolutions get LoCon (a convolution of the layer's own kernel down to the
rank, one of 1x1 up again). Down factors start as N(0, 1/rank^2), up factors at zero.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.errors import check
from fewstep.core.rng import Rng

PLANES = 6
SELF_ATTENTION = "attn1"  # diffusers' name of it in transformer blocks; attn2 is cross-attention
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
SHARED_TARGETS = (
    "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0", "conv_in", "conv_out", "conv1", "conv2",
    "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv",
)  # fmt: skip


class PlaneLinear(nn.Module):
    """A linear layer with LoRA factors of its own for each of six planes.

    Inputs are "6b n c" or, where planes attend jointly, "b 6n c": the same numbers in the same order.
    """

    def __init__(self, base: nn.Linear, rank: int, joint: bool) -> None:
        super().__init__()
        check(rank >= 1, f"LoRA factors need a rank of at least 1, got {rank}")
        self.base, self.joint = base, joint
        like = base.weight
        self.down = nn.Parameter(torch.empty(PLANES, base.in_features, rank, device=like.device))
        nn.init.normal_(self.down, std=1 / rank)
        self.up = nn.Parameter(torch.zeros(PLANES, rank, base.out_features, device=like.device))

    def forward(self, x: Float[Tensor, "k n c"]) -> Float[Tensor, "k n d"]:
        """Return the layer's output plus that of the factors of each token's plane."""
        out: Tensor = self.base(x)
        tokens = x.shape[1] // PLANES if self.joint else x.shape[1]
        own = x.reshape(-1, PLANES, tokens, x.shape[2]).to(self.down.dtype)
        return out + (own @ self.down @ self.up).reshape(out.shape).to(out.dtype)


class JointPlanes:
    """An attention processor under which the tokens of an object's six planes attend to each other."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the inner processor's output on "b 6n c"."""
        rows, tokens, width = hidden_states.shape
        joined = hidden_states.reshape(rows // PLANES, PLANES * tokens, width)
        out: Tensor = self.inner(attn, joined, *args, **kwargs)
        return out.reshape(rows, tokens, width)


def join_attention(unet: nn.Module) -> None:
    """Let planes attend jointly in every self-attention of a U-Net's transformer blocks."""
    for name, part in unet.named_modules():
        if name.endswith(f".{SELF_ATTENTION}"):
            attention = cast(Any, part)
            attention.set_processor(JointPlanes(attention.processor))


def adapt(unet: nn.Module, *, rank: int, joint: bool = True, train_base: bool = False, seed: int = 0) -> nn.Module:
    """Return the U-Net with factors injected in place; at the start, with ``joint`` off, its outputs are unchanged.

    ``joint``: whether self-attention is over all six planes. ``train_base``: whether the U-Net's own weights train (a
    fresh one), which then needs no factors but those that tell planes apart. Raises UserError for a U-Net without
    transformer blocks.
    """
    from peft import LoraConfig, inject_adapter_in_model

    found = [name for name, _ in unet.named_modules() if name.endswith(f".{SELF_ATTENTION}")]
    check(bool(found), f"{type(unet).__name__} has no transformer blocks to adapt to planes: take a conditional U-Net")
    own = dict.fromkeys(unet.parameters())
    with Rng(seed, 0, ()).network_noise("planes/lora"):
        if not train_base:
            shared = list(SHARED_TARGETS)
            config = LoraConfig(r=rank, lora_alpha=rank, target_modules=shared, init_lora_weights="gaussian")
            inject_adapter_in_model(config, unet, adapter_name="planes")
        for name in found:
            for path in PROJECTIONS:
                base = cast(nn.Linear, unet.get_submodule(f"{name}.{path}"))
                unet.set_submodule(f"{name}.{path}", PlaneLinear(base, rank, joint))
    for parameter in unet.parameters():
        parameter.requires_grad_(train_base or parameter not in own)
    if joint:
        join_attention(unet)
    return unet
