"""Several roles in one network: LoRA factors over one frozen base, one view per role.

PEFT injects the factors; which of them act is decided here, for the length of one forward. PEFT's own switch also turns
``requires_grad`` on and off, which would undo what a training loop has set, so only the list of active names is
changed.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fewstep.core.denoiser import Backbone, Cond
from fewstep.core.errors import UserError, check
from fewstep.core.networks.backbone import ExtensibleBackbone
from fewstep.core.networks.freezing import freeze, thaw, trainable_copy, upcast
from fewstep.core.rng import Rng
from fewstep.core.tensors import compute_dtype

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

FACTORS = ("lora_A", "lora_B")


class SharedNetwork:
    """A frozen network with named LoRA adapters, one of which (or none) acts at a time.

    Not a module itself: the views below register what is theirs, and nobody owns the base twice.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = freeze(backbone)
        self.network: nn.Module = backbone.network if isinstance(backbone, ExtensibleBackbone) else backbone
        self.layers: dict[str, LoraLayer] = {}
        self.active: str | None = None
        self.strength = 1.0  # of what acts
        self._scales: dict[str, float] = {}  # alpha/rank of each adapter
        self._acting: list[str] = []  # what PEFT calls the active adapters: one list that all layers refer to
        taken = [name for name, _ in self.network.named_parameters() if ".lora_" in name]
        check(not taken, "this network has LoRA adapters already: merge them, or load the teacher afresh")
        self.find_checkpointing()

    def add(self, name: str, *, rank: int, alpha: float, targets: Sequence[str], dropout: float, seed: int) -> None:
        """Inject an adapter whose effect is zero until it is trained; UserError when no layer has a target's name."""
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

        flags = {parameter: parameter.requires_grad for parameter in self.network.parameters()}
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), lora_dropout=dropout)
        try:
            with Rng(seed, 0, ()).network_noise(f"lora/{name}"), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are the point
                shapes = any(p.is_meta for p in flags)  # a base without weights needs none in its adapters
                inject_adapter_in_model(config, self.network, adapter_name=name, low_cpu_mem_usage=shapes)
        except ValueError as error:
            raise UserError(f"LoRA targets {', '.join(targets)}: {str(error).splitlines()[0]}") from error
        for parameter in self.network.parameters():
            parameter.requires_grad_(flags.get(parameter, True))
        self.layers = {key: m for key, m in self.network.named_modules() if isinstance(m, LoraLayer)}
        self._scales[name] = alpha / rank
        for layer in self.layers.values():  # PEFT gives factors the base's dtype; what trains stays precise
            for factor in FACTORS:
                if name in (made := getattr(layer, factor)):
                    made[name].to(compute_dtype(made[name].weight))
            layer._active_adapter = self._acting
        self._activate(None)

    def _activate(self, name: str | None, strength: float = 1.0) -> None:
        for touched, factor in ((self.active, 1.0), (name, strength)):
            if touched is not None and (self.strength, strength) != (1.0, 1.0):
                for layer in self.layers.values():
                    if touched in layer.scaling:
                        layer.scaling[touched] = self._scales[touched] * factor
        self._acting[:] = [] if name is None else [name]
        self.active, self.strength = name, strength

    @contextmanager
    def acting(self, name: str | None, strength: float = 1.0) -> Iterator[None]:
        """Let one adapter act, or none, for what is inside; the one before acts again afterwards, whatever happens.

        ``strength``: the share of its factors' product that is added to the weights.
        """
        before, now = (self.active, self.strength), (name, strength)
        if now != before:
            self._activate(*now)
        try:
            yield
        finally:
            if now != before:
                self._activate(*before)

    def checkpointed(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run a part of the network without keeping activations; its recomputation sees the adapter that acts now.

        The recomputation happens in the backward pass, when another role's adapter may act.
        """
        name, strength = self.active, self.strength

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), self.acting(name, strength)

        return checkpoint(function, *args, use_reentrant=False, context_fn=contexts)

    def find_checkpointing(self) -> None:
        """Look for the parts of the network that can checkpoint activations."""
        self._checkpointing = [(n, m) for n, m in self.network.named_modules() if hasattr(m, "gradient_checkpointing")]

    def guard_checkpointing(self) -> None:
        """Route the network's own activation checkpointing through :meth:`checkpointed`.

        Raises UserError where a part checkpoints in a way that cannot be redirected.
        """
        for name, part in self._checkpointing:
            if not part.gradient_checkpointing:
                continue
            check(
                hasattr(part, "_gradient_checkpointing_func"),
                f"{name or type(part).__name__} checkpoints activations in its own way, which LoRA roles over a shared "
                "network cannot follow: turn its checkpointing off, or use roles.mode=full",
            )
            part._gradient_checkpointing_func = self.checkpointed


class _Branch(nn.Module):
    """A node of the tree of factors; its children carry the names the network uses."""


def _adapter_tree(shared: SharedNetwork, name: str) -> nn.Module:
    """Return the factors (and dropout) of one adapter as a module; its state has PEFT's names."""
    root = _Branch()
    for path, layer in shared.layers.items():
        if name not in layer.lora_A:
            continue
        node: nn.Module = root
        for part in path.split("."):
            if part not in node._modules:
                node.add_module(part, _Branch())
            node = cast(nn.Module, node._modules[part])
        for factor in (*FACTORS, "lora_dropout"):
            node.add_module(factor, getattr(layer, factor)[name])
    return root


class AdapterView(ExtensibleBackbone):
    """A role over a shared network: its forward lets exactly its adapter act; ``adapter`` None is the untouched base.

    Parameters, state, train/eval and gradients concern the role's own factors and extra inputs only; moving it to a
    device or dtype moves the shared network along.
    """

    _inner: Backbone
    shared: SharedNetwork
    _moody: list[nn.Module]

    def __init__(self, shared: SharedNetwork, adapter: str | None, extras: tuple[str, ...] = (), seed: int = 0) -> None:
        super().__init__()
        self.shared, self.adapter_name, self.strength = shared, adapter, 1.0
        self.extra_inputs = None
        inner = shared.backbone
        if adapter is not None:
            self.adapter = _adapter_tree(shared, adapter)
        if extras:
            check(isinstance(inner, ExtensibleBackbone), f"{type(inner).__name__} takes no extra inputs: {extras}")
            inner = cast(ExtensibleBackbone, inner).with_extras(extras, seed)
            if inner.extra_inputs is not None:  # else the network has inputs of these names itself
                # the base may have had embeddings before: this role trains copies of its own
                inner.extra_inputs = trainable_copy(inner.extra_inputs)
                self.extra_inputs = inner.extra_inputs
        if isinstance(inner, ExtensibleBackbone):
            self.extras, self.num_labels = inner.extras, inner.num_labels
        # past nn.Module's bookkeeping: the base is not this view's to train, save or switch
        object.__setattr__(self, "_inner", inner)
        dropouts = [part for part in self.modules() if isinstance(part, nn.Dropout)]
        self._moody = [*dropouts, *([self.extra_inputs] if self.extra_inputs is not None else [])]

    @property
    def inner(self) -> Backbone:
        """The backbone behind the view, shared with other roles; tap names are relative to it."""
        return self._inner

    @property
    def network(self) -> nn.Module:
        """The shared network, adapters of all roles inside."""
        return self.shared.network

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """Return the backbone's raw output with this role's adapter acting."""
        if torch.is_grad_enabled():
            self.shared.guard_checkpointing()
        with self.shared.acting(self.adapter_name, self.strength):
            out: Tensor = self._inner(x, time, cond)
            return out

    def weakened(self, strength: float) -> AdapterView:
        """Return a view in which the same adapter acts by ``strength``: 1 is this role, 0 the untouched base.

        Raises UserError for a view with extra inputs, which cannot be weakened alike.
        """
        check(not self.extras, f"extra inputs {', '.join(self.extras)} cannot act in part: leave them out")
        view = copy.copy(self)
        view.strength = strength
        return view

    def train(self, mode: bool = True) -> AdapterView:
        """Switch what behaves differently in training: dropout and extra inputs; factors are linear maps."""
        self.training = mode
        for part in self._moody:
            part.train(mode)
        return self

    def null(self, cond: Cond) -> Cond:
        """Return the backbone's unconditional condition."""
        return self._inner.null(cond)

    def with_extras(self, names: tuple[str, ...], seed: int) -> ExtensibleBackbone:
        """Return a view of the same adapter with extra inputs of its own."""
        return AdapterView(self.shared, self.adapter_name, names, seed)

    def taps(self, where: str = "bottleneck") -> tuple[str, ...]:
        """Return the backbone's feature taps."""
        if not isinstance(self._inner, ExtensibleBackbone):
            return super().taps(where)
        return self._inner.taps(where)

    def blocks(self) -> tuple[str, ...]:
        """Return the blocks of the shared network, which are those of its backbone."""
        return self._inner.blocks() if isinstance(self._inner, ExtensibleBackbone) else super().blocks()

    def kept(self) -> tuple[str, ...]:
        """Return the parts of the shared network whose activations its own checkpointing would keep."""
        return self._inner.kept() if isinstance(self._inner, ExtensibleBackbone) else ()

    def save(self, folder: Path) -> None:
        """Write the merged network, as the backbone itself is saved; UserError for a backbone that cannot be."""
        merged = merge(self)
        if not isinstance(merged, ExtensibleBackbone):
            raise UserError(f"{type(merged).__name__} cannot be saved as a folder")
        merged.save(folder)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AdapterView:
        self.shared.backbone._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def merge(backbone: Backbone) -> Backbone:
    """Return a trainable copy without adapters in it: a view's factors are added to the weights, others dropped.

    A backbone that is no view is copied. The result is what the backbone's own library made, and saves as such.
    """
    if not isinstance(backbone, AdapterView):
        return trainable_copy(backbone)
    name, paths = backbone.adapter_name, list(backbone.shared.layers)
    merged = upcast(copy.deepcopy(backbone.inner))
    network = merged.network if isinstance(merged, ExtensibleBackbone) else merged
    for path in paths:
        layer = cast("LoraLayer", network.get_submodule(path))
        if name is not None and name in layer.lora_A:
            layer.merge(adapter_names=[name])
        network.set_submodule(path, layer.get_base_layer())
    network.__dict__.pop("peft_config", None)
    for part in network.modules():
        if part.__dict__.pop("_gradient_checkpointing_func", None) is not None:
            part.__dict__["gradient_checkpointing"] = False
    return thaw(merged)


def lora_state(view: AdapterView, prefix: str = "unet") -> dict[str, Tensor]:
    """Return a role's factors under diffusers' names ``prefix.<layer>.lora_A.weight``, ready for ``load_lora_weights``.

    The factor alpha/rank is multiplied into ``lora_B``: such files are read with alpha equal to the rank. Raises
    UserError for a view without adapter, or with extra inputs, which no LoRA file can carry.
    """
    name = view.adapter_name
    if name is None:
        raise UserError("the frozen teacher has no LoRA factors to save")
    check(
        not view.extras, f"extra inputs {', '.join(view.extras)} do not fit in a LoRA file: export the merged network"
    )
    out: dict[str, Tensor] = {}
    for path, layer in view.shared.layers.items():
        if name not in layer.lora_A:
            continue
        out[f"{prefix}.{path}.lora_A.weight"] = layer.lora_A[name].weight.detach().clone().contiguous()
        out[f"{prefix}.{path}.lora_B.weight"] = (layer.lora_B[name].weight.detach() * layer.scaling[name]).contiguous()
    return out


def save_lora(view: AdapterView, path: Path, prefix: str = "unet") -> None:
    """Write :func:`lora_state` as safetensors."""
    save_file(lora_state(view, prefix), path, metadata={"format": "pt"})
