"""Two experts in one network, each for its own range of noise levels.

The first is the network as it is. The second is the same network while a small set of layers acts: LoRA factors beside
some of its layers and copies of its own in place of others (DCM, arXiv 2506.03123: the embedding of the time and the
output). The network itself is never changed, so one checkpoint holds both. Which layers act is decided for the length
of one forward, and again where activations are recomputed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fewstep.core.denoiser import Backbone, Cond, Denoiser, NetworkDenoiser
from fewstep.core.errors import UserError, check, nearest
from fewstep.core.networks.adapters import AdapterView, merge
from fewstep.core.networks.backbone import ExtensibleBackbone
from fewstep.core.networks.freezing import trainable_copy
from fewstep.core.networks.roles import lora_targets
from fewstep.core.prediction import Prediction
from fewstep.core.rng import Rng
from fewstep.core.tensors import compute_dtype

# where diffusers' networks embed the time and where they end
OUTER = (
    "time_embedding",
    "time_embed",
    "time_text_embed",
    "condition_embedder",
    "norm_out",
    "proj_out",
    "conv_norm_out",
    "conv_out",
)
KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, kw_only=True)
class ExpertConfig:
    """What the second expert has of its own; defaults of DCM's scripts.

    ``rank`` and ``alpha`` of the factors, which act times alpha/rank; ``targets``: names or suffixes of layers (empty:
    what the backbone recommends, or all linear and convolution layers). ``private``: layers it has copies of: those of
    the time embedding and the output (``outer``), ``none``, or module names.
    """

    rank: int = 128
    alpha: float = 256.0
    targets: tuple[str, ...] = ()
    private: Literal["outer", "none"] | tuple[str, ...] = "outer"

    def __post_init__(self) -> None:
        check(self.rank >= 1, f"detail.rank must be at least 1, got {self.rank}")
        check(self.alpha > 0, f"detail.alpha must be positive, got {self.alpha:g}")


def network_of(backbone: Backbone) -> nn.Module:
    """Return the module behind a backbone that its own library knows."""
    return backbone.network if isinstance(backbone, ExtensibleBackbone) else backbone


class ExpertLayers(nn.Module):
    """The layers of a second expert; empty until :meth:`attach`, without effect until they are trained.

    ``started``: whether they are in use; whoever trains them sets it.
    """

    def __init__(self, config: ExpertConfig, seed: int) -> None:
        super().__init__()
        self.config, self.seed, self.started = config, seed, False
        self.down, self.up, self.private = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()

    def attach(self, backbone: Backbone) -> None:
        """Make the layers for a backbone: factors of no effect, and copies; UserError for names it does not have."""
        network = network_of(backbone)
        for path in self._private_paths(network):
            self.private[_key(path)] = trainable_copy(network.get_submodule(path))
        with Rng(self.seed, 0, ()).network_noise("experts"):
            for path, layer in self._targets(backbone, network).items():
                down, up = _factors(layer, self.config.rank)
                self.down[_key(path)], self.up[_key(path)] = down, up

    def _private_paths(self, network: nn.Module) -> tuple[str, ...]:
        wanted = self.config.private
        if wanted == "none":
            return ()
        modules = dict(network.named_modules())
        if wanted == "outer":
            return tuple(path for path in OUTER if path in modules)
        for path in wanted:
            check(path in modules, f"detail.private: the network has no module '{path}': {nearest(path, modules)}")
        return tuple(wanted)

    def _targets(self, backbone: Backbone, network: nn.Module) -> dict[str, nn.Module]:
        names = self.config.targets or lora_targets(backbone)
        private = tuple(f"{_path(key)}." for key in self.private)
        found: dict[str, nn.Module] = {}
        for name, part in network.named_modules():
            path = name.removesuffix(".base_layer")  # where other roles' factors are injected
            plain = isinstance(part, KINDS) and ".lora_" not in name and getattr(part, "groups", 1) == 1
            own = f"{path}.".startswith(private)
            if plain and not own and any(f".{path}".endswith(f".{each}") for each in names):
                found[path] = part
        check(bool(found), f"detail.targets: no layer of this network is called {', '.join(names)}")
        return found

    def follow(self, backbone: Backbone) -> None:
        """Copy the backbone's present weights into the private layers."""
        network = network_of(backbone)
        for key, own in self.private.items():
            own.load_state_dict(network.get_submodule(_path(key)).state_dict())

    def forward(self, backbone: Backbone, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """Return what the backbone says while these layers act."""
        with self.acting(backbone):
            out: Tensor = backbone(x, time, cond)
            return out

    @contextmanager
    def acting(self, backbone: Backbone) -> Iterator[None]:
        """Let the layers act for what is inside; the network is itself again afterwards, whatever happens."""
        network = network_of(backbone)
        with ExitStack() as stack:
            if torch.is_grad_enabled():
                self._follow_recomputation(backbone, network, stack)
            for key, own in self.private.items():
                parent, _, name = _path(key).rpartition(".")
                children = network.get_submodule(parent)._modules
                stack.callback(children.__setitem__, name, children[name])
                children[name] = own
            scale = self.config.alpha / self.config.rank
            for key in self.down:
                hook = _adding(self.down[key], self.up[key], scale)
                stack.callback(network.get_submodule(_path(key)).register_forward_hook(hook).remove)
            yield

    def _follow_recomputation(self, backbone: Backbone, network: nn.Module, stack: ExitStack) -> None:
        """Parts that recompute activations in the backward pass do so with these layers acting."""

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), self.acting(backbone)

        def checkpointed(function: Callable[..., Any], *args: Any) -> Any:
            return checkpoint(function, *args, use_reentrant=False, context_fn=contexts)

        for name, part in network.named_modules():
            if not getattr(part, "gradient_checkpointing", False):
                continue
            check(
                hasattr(part, "_gradient_checkpointing_func") and not isinstance(backbone, AdapterView),
                f"{name or type(part).__name__} checkpoints activations in a way a second expert cannot follow: turn "
                "roles.checkpointing off, or make the student a full copy (roles.overrides: {student: full})",
            )
            entries = part.__dict__
            stack.callback(entries.__setitem__, "_gradient_checkpointing_func", part._gradient_checkpointing_func)
            entries["_gradient_checkpointing_func"] = checkpointed

    def merged(self, backbone: Backbone) -> Backbone:
        """Return a copy of the backbone that is the second expert by itself: factors added to weights, copies in."""
        made = merge(backbone)
        network = network_of(made)
        with torch.no_grad():
            for key in self.down:
                weight = cast(Tensor, network.get_submodule(_path(key)).weight)
                down, up = (cast(Tensor, part[key].weight).to(weight) for part in (self.down, self.up))
                product = up.flatten(1) @ down.flatten(1)
                weight.add_(product.view_as(weight), alpha=self.config.alpha / self.config.rank)
        for key, own in self.private.items():
            network.set_submodule(_path(key), trainable_copy(own))
        return made


def _key(path: str) -> str:
    return path.replace(".", "/")  # names of modules have no dots


def _path(key: str) -> str:
    return key.replace("/", ".")


def _factors(layer: nn.Module, rank: int) -> tuple[nn.Module, nn.Module]:
    """Return the way down to ``rank`` channels, as the layer moves over its input, and the way up, zero."""
    found: Any = layer
    if isinstance(layer, nn.Linear):
        down: Any = nn.Linear(layer.in_features, rank, bias=False)
        up: Any = nn.Linear(rank, layer.out_features, bias=False)
    else:
        kind, options = type(found), {"padding_mode": found.padding_mode, "bias": False}
        shape = (found.kernel_size, found.stride, found.padding, found.dilation)
        down = kind(found.in_channels, rank, *shape, **options)
        up = kind(rank, found.out_channels, 1, bias=False)
    nn.init.zeros_(up.weight)
    place = {"device": found.weight.device, "dtype": compute_dtype(found.weight)}
    return down.to(**place), up.to(**place)


def _adding(down: nn.Module, up: nn.Module, scale: float) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def hook(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        moved: Tensor = out + (scale * up(down(args[0].to(next(down.parameters()).dtype)))).to(out.dtype)
        return moved

    return hook


class ExpertBackbone(Backbone):
    """A backbone with a second expert's layers acting in it."""

    def __init__(self, inner: Backbone, layers: ExpertLayers) -> None:
        super().__init__()
        self.inner, self.layers = inner, layers

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """Return the raw output."""
        out: Tensor = self.layers(self.inner, x, time, cond)
        return out

    def null(self, cond: Cond) -> Cond:
        """Return the backbone's unconditional condition."""
        return self.inner.null(cond)


class TwoExperts(NetworkDenoiser):
    """A network's denoiser, the first expert, that knows the layers of the second."""

    def __init__(self, first: NetworkDenoiser, layers: ExpertLayers) -> None:
        super().__init__(first.backbone, first.process, first.scaling)
        self.layers = layers

    def second(self, layers: ExpertLayers | None = None) -> NetworkDenoiser:
        """Return the second expert, by other layers where they are given (an average of them)."""
        return self.with_backbone(ExpertBackbone(self.backbone, layers or self.layers))


class RoutedExperts(Denoiser):
    """One denoiser of two: samples above the time ``cut`` go to ``high``, others to ``low``, each by itself.

    A ``low`` whose layers have not started is left out: ``high`` answers for all times.
    """

    def __init__(self, high: Denoiser, low: Denoiser, cut: float) -> None:
        self.high, self.low, self.cut, self.process = high, low, cut, high.process

    def predict(self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond) -> Prediction:
        """Return every sample's prediction by its expert; UserError when they predict different things."""
        # the cut itself may have been through float32
        above = (t.double() > self.cut + 1e-6 * abs(self.cut)).cpu()
        if bool(above.all()) or not self.started:
            return self.high.predict(x_t, t, cond)
        if not bool(above.any()):
            return self.low.predict(x_t, t, cond)
        rows = [torch.nonzero(each)[:, 0].to(x_t.device) for each in (above, ~above)]
        parts = [
            expert.predict(x_t[own], t[own.to(t.device)], {name: value[own] for name, value in cond.items()})
            for expert, own in zip((self.high, self.low), rows, strict=True)
        ]
        if parts[0].kind is not parts[1].kind:
            raise UserError(f"the experts predict {parts[0].kind.name} and {parts[1].kind.name}: make them one kind")
        order = torch.cat(rows).argsort()
        return Prediction(torch.cat([part.value for part in parts])[order], parts[0].kind)

    @property
    def started(self) -> bool:
        """Whether ``low`` takes part."""
        backbone = self.low.backbone if isinstance(self.low, NetworkDenoiser) else None
        return not isinstance(backbone, ExpertBackbone) or backbone.layers.started

    def null(self, cond: Cond) -> Cond:
        """Return the first expert's unconditional condition."""
        return self.high.null(cond)


__all__ = ["ExpertBackbone", "ExpertConfig", "ExpertLayers", "RoutedExperts", "TwoExperts"]
