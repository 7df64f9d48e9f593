"""The networks of a recipe's roles, made from one teacher: full copies, or LoRA adapters over one frozen base."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import nn

from fewstep.core.denoiser import Backbone, Cond, Denoiser, NetworkDenoiser
from fewstep.core.errors import UserError, check, nearest
from fewstep.core.networks.adapters import AdapterView, SharedNetwork
from fewstep.core.networks.backbone import ExtensibleBackbone
from fewstep.core.networks.checkpointing import enable_checkpointing
from fewstep.core.networks.discriminator import DiscriminatorConfig, make_discriminator
from fewstep.core.networks.freezing import freeze, thaw, trainable_copy
from fewstep.core.recipe import RoleSpec
from fewstep.core.rng import Rng

BASE = ""  # the key of the shared base among the views: no role is called that
Mode = Literal["full", "lora"]
Role = Denoiser | nn.Module


@dataclass(frozen=True, kw_only=True)
class RolesConfig:
    """How roles that start from the teacher get their weights.

    ``full``: a copy each. ``lora``: factors of ``rank`` over one frozen base shared with the teacher; ``overrides``
    names roles that do otherwise. ``alpha``: the factors act times alpha/rank (0: alpha = rank). ``targets``: names or
    suffixes of layers (empty: what the backbone recommends, or all linear and convolution layers). ``checkpointing``:
    recompute activations in the backward pass.
    """

    mode: Mode = "full"
    overrides: dict[str, Mode] = field(default_factory=dict)
    rank: int = 32
    alpha: float = 0.0
    targets: tuple[str, ...] = ()
    dropout: float = 0.0
    checkpointing: bool = False
    discriminator: DiscriminatorConfig = DiscriminatorConfig()

    def __post_init__(self) -> None:
        check(self.rank >= 1, f"roles.rank must be at least 1, got {self.rank}")
        check(self.alpha >= 0, f"roles.alpha must be positive, or 0 for the rank, got {self.alpha:g}")
        check(0 <= self.dropout < 1, f"roles.dropout must lie in [0, 1), got {self.dropout:g}")

    def mode_of(self, role: str) -> Mode:
        """Return how one role is made."""
        return self.overrides.get(role, self.mode)


def build_roles(
    teacher: Denoiser,
    specs: Sequence[RoleSpec],
    config: RolesConfig,
    seed: int,
    *,
    shape: Sequence[int] = (),
    cond: Cond | None = None,
    fresh: Callable[[int], NetworkDenoiser] | None = None,
) -> dict[str, Role]:
    """Return the roles of ``specs`` by name; the teacher's weights are frozen in the process.

    ``shape`` of a sample and an example condition of any number of rows are needed for discriminators only;
    ``fresh(seed)`` makes the untrained networks of roles with ``init="fresh"``. Raises UserError for what a teacher of
    this kind cannot give.
    """
    names = [spec.name for spec in specs]
    for name in config.overrides:
        check(name in names, f"roles.overrides: no role '{name}' in this recipe: {nearest(name, names)}")
    denoisers = [spec for spec in specs if spec.kind == "denoiser"]
    copied = [spec for spec in denoisers if spec.init == "teacher"]
    roles: dict[str, Role] = {}
    for spec in copied:  # first: the base gets its adapters afterwards, and copies must not
        if config.mode_of(spec.name) == "full":
            roles[spec.name] = _copy(spec, teacher, _seed(seed, spec.name))
    adapted = [spec for spec in copied if config.mode_of(spec.name) == "lora"]
    roles |= _adapted(adapted, teacher, config, seed)
    for spec in denoisers:
        if spec.init == "frozen":
            roles[spec.name] = roles[BASE] if BASE in roles else _frozen(teacher)
        elif spec.init == "fresh":
            roles[spec.name] = _fresh(spec, fresh, _seed(seed, spec.name))
    for spec in specs:
        if spec.kind == "module":
            roles[spec.name] = _module(spec, _seed(seed, spec.name))
    if config.checkpointing:
        _checkpoint(roles)
    for spec in specs:  # last: their trunks are among the roles
        if spec.kind == "discriminator":
            roles[spec.name] = _discriminator(spec, roles, config, _seed(seed, spec.name), tuple(shape), cond or {})
    return {name: roles[name] for name in names}


def _seed(seed: int, name: str) -> int:
    return Rng(seed, 0, ()).torch_seed(f"role/{name}")


def _network_teacher(spec: RoleSpec, teacher: Denoiser) -> NetworkDenoiser:
    if not isinstance(teacher, NetworkDenoiser):
        raise UserError(
            f"role '{spec.name}' starts from the teacher's weights, and a {type(teacher).__name__} has none: "
            "give a network as the teacher"
        )
    return teacher


def _frozen(teacher: Denoiser) -> Denoiser:
    if isinstance(teacher, NetworkDenoiser):
        freeze(teacher.backbone)
    return teacher


def _copy(spec: RoleSpec, teacher: Denoiser, seed: int) -> NetworkDenoiser:
    source = _network_teacher(spec, teacher)
    return source.with_backbone(_extended(trainable_copy(source.backbone), spec, seed))


def _fresh(spec: RoleSpec, fresh: Callable[[int], NetworkDenoiser] | None, seed: int) -> NetworkDenoiser:
    if fresh is None:
        raise UserError(f"role '{spec.name}' starts from fresh weights, and this domain makes no untrained networks")
    made = fresh(seed)
    return made.with_backbone(_extended(thaw(made.backbone), spec, seed))


def _extended(backbone: Backbone, spec: RoleSpec, seed: int) -> Backbone:
    if not spec.extras:
        return backbone
    if not isinstance(backbone, ExtensibleBackbone):
        raise UserError(
            f"role '{spec.name}' needs the extra inputs {', '.join(spec.extras)}, "
            f"and a {type(backbone).__name__} takes none"
        )
    return backbone.with_extras(spec.extras, seed)


def _adapted(specs: Sequence[RoleSpec], teacher: Denoiser, config: RolesConfig, seed: int) -> dict[str, Role]:
    """Return views over one base, and under ``BASE`` the base itself; empty when no role is a LoRA."""
    if not specs:
        return {}
    source = _network_teacher(specs[0], teacher)
    shared = SharedNetwork(source.backbone)
    targets = config.targets or lora_targets(source.backbone)
    for spec in specs:
        shared.add(
            spec.name,
            rank=config.rank,
            alpha=config.alpha or float(config.rank),
            targets=targets,
            dropout=config.dropout,
            seed=_seed(seed, spec.name),
        )
    views: dict[str, Role] = {BASE: source.with_backbone(freeze(AdapterView(shared, None)))}
    for spec in specs:
        view = AdapterView(shared, spec.name, spec.extras, _seed(seed, spec.name))
        views[spec.name] = source.with_backbone(view)
    return views


def lora_targets(backbone: Backbone) -> tuple[str, ...]:
    """Return the layers a backbone recommends for LoRA factors, or the paths of all linear and convolution layers."""
    if isinstance(backbone, ExtensibleBackbone) and backbone.lora_targets:
        return backbone.lora_targets
    network = backbone.network if isinstance(backbone, ExtensibleBackbone) else backbone
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return tuple(name for name, part in network.named_modules() if isinstance(part, kinds))


def _module(spec: RoleSpec, seed: int) -> nn.Module:
    if spec.build is None:
        raise UserError(f"role '{spec.name}': a module needs a way to build it")
    return spec.build(seed)


def _checkpoint(roles: Mapping[str, Role]) -> None:
    for name, role in roles.items():
        if not isinstance(role, NetworkDenoiser):
            continue
        backbone = role.backbone
        network = backbone.network if isinstance(backbone, ExtensibleBackbone) else backbone
        left_out = backbone.kept() if isinstance(backbone, ExtensibleBackbone) else ()
        enable_checkpointing(network, _blocks(backbone), name, left_out)
        if isinstance(backbone, AdapterView):
            backbone.shared.find_checkpointing()


def _blocks(backbone: Backbone) -> tuple[str, ...]:
    return backbone.blocks() if isinstance(backbone, ExtensibleBackbone) else ()


def _discriminator(
    spec: RoleSpec, roles: Mapping[str, Role], config: RolesConfig, seed: int, shape: tuple[int, ...], cond: Cond
) -> nn.Module:
    trunk = roles.get(spec.features_of)
    if not isinstance(trunk, Denoiser):
        raise UserError(
            f"role '{spec.name}' reads features of '{spec.features_of}', which is no denoiser of this recipe"
        )
    check(bool(shape), f"role '{spec.name}': a discriminator needs the shape of a sample")
    settings = replace(config.discriminator, taps=spec.taps) if spec.taps else config.discriminator
    return make_discriminator(trunk, settings, shape, cond, seed)
