"""Who plays in a run: the modules of the roles, and which of them a phase trains."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fewstep.core.denoiser import NetworkDenoiser
from fewstep.core.errors import UserError
from fewstep.core.networks.backbone import ExtensibleBackbone, listed_blocks
from fewstep.core.recipe import Actors, Phase, RoleSpec


def role_module(actors: Actors, name: str) -> nn.Module | None:
    """Return the module that holds a role's parameters; None for roles without any (exact teachers)."""
    role = actors.roles.get(name)
    if isinstance(role, NetworkDenoiser):
        return role.backbone
    return role if isinstance(role, nn.Module) else None


def networks_of(actors: Actors, specs: Sequence[RoleSpec]) -> dict[nn.Module, tuple[str, ...]]:
    """Return the networks behind the roles with the paths of their blocks, each once: views of one network share it."""
    found: dict[nn.Module, tuple[str, ...]] = {}
    for spec in specs:
        module = role_module(actors, spec.name)
        if isinstance(module, ExtensibleBackbone):
            found[module.network] = module.blocks()
        elif module is not None:
            found[module] = listed_blocks(module)
    return found


class Cast:
    """The modules of all roles of ``specs``, and the parameters each phase trains.

    A role's trainable parameters are those that require gradients when the cast is made. Raises UserError when a phase
    trains a role whose parameters are all frozen, or nothing at all.
    """

    def __init__(self, actors: Actors, specs: Sequence[RoleSpec], phases: Sequence[Phase]) -> None:
        found = {spec.name: role_module(actors, spec.name) for spec in specs}
        self.modules: dict[str, nn.Module] = {name: module for name, module in found.items() if module is not None}
        self.specs = {spec.name: spec for spec in specs}
        self.trains = {phase.name: phase.trains for phase in phases}
        trained = dict.fromkeys(name for phase in phases for name in phase.trains)
        self._own: dict[str, list[tuple[str, nn.Parameter]]] = {}
        for name in trained:
            if name not in self.modules:
                raise UserError(f"role '{name}' is to be trained and this domain gives it no parameters")
            own = [(path, p) for path, p in self.modules[name].named_parameters() if p.requires_grad]
            # none at all is fine: a discriminator may be a mean of features, and learn through its trunk only
            if not own and next(self.modules[name].parameters(), None) is not None:
                raise UserError(f"role '{name}' is to be trained and all its parameters are frozen")
            self._own[name] = own
        for phase in phases:
            if not self.parameters(phase.name):
                raise UserError(f"phase '{phase.name}' trains {', '.join(phase.trains)}, which have no parameters")
        self._everything = list(dict.fromkeys(p for module in self.modules.values() for p in module.parameters()))

    @property
    def trained(self) -> tuple[str, ...]:
        """The roles some phase trains."""
        return tuple(self._own)

    def saved(self) -> dict[str, nn.Module]:
        """Return the modules that belong in a checkpoint: all but the teacher as the domain gave it."""
        return {name: module for name, module in self.modules.items() if self.specs[name].init != "frozen"}

    def parameters(self, phase: str) -> list[tuple[str, nn.Parameter]]:
        """Return what a phase trains, each parameter once, named ``role.path``."""
        found = {p: f"{role}.{path}" for role in self.trains[phase] for path, p in self._own[role]}
        return [(name, p) for p, name in found.items()]

    def enter(self, phase: str) -> None:
        """Let gradients into exactly what the phase trains; its roles in train mode, all others in eval mode."""
        trained = self.trains[phase]
        for parameter in self._everything:
            parameter.requires_grad_(False)
        for _, parameter in self.parameters(phase):
            parameter.requires_grad_(True)
        # a discriminator may contain its trunk, so the trained ones come last
        for name in (*(each for each in self.modules if each not in trained), *trained):
            self.modules[name].train(name in trained)

    def rest(self) -> None:
        """Put every role in eval mode."""
        for module in self.modules.values():
            module.eval()
