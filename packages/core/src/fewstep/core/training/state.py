"""What of a run belongs in a checkpoint, and how it is put back: everything, or nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.errors import UserError
from fewstep.core.networks.ema import EMA
from fewstep.core.recipe import Recipe
from fewstep.core.training.cast import Cast
from fewstep.core.training.checkpoint import Refused, Snapshot
from fewstep.core.training.optim import like
from fewstep.core.training.phases import PhaseRunner
from fewstep.core.training.settings import RunConfig
from fewstep.core.training.world import full, is_sharded, local

SAMPLED = 64  # elements of each tensor that enter a fingerprint


def identity(config: RunConfig, cast: Cast, runners: Mapping[str, PhaseRunner]) -> dict[str, Any]:
    """Return what must agree between a checkpoint and the run that reads it."""
    return {
        "recipe": config.recipe_name,
        "domain": config.domain_name,
        "seed": config.seed,
        "optimizers": {name: runner.optim.name for name, runner in runners.items()},
        "frozen": {n: fingerprint(m) for n, m in cast.modules.items() if n not in cast.saved()},
    }


def fingerprint(module: nn.Module) -> str:
    """Return a hash of names, shapes and some elements of every tensor of a module: whether it is the same network."""
    digest = hashlib.sha256()
    network = getattr(module, "network", module)  # a view over a shared network has no state of its own
    for name, value in network.state_dict().items():
        if ".lora_" in name:
            continue  # other roles' factors, which move
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        flat = full(value).detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // SAMPLED)].cpu().contiguous()
        digest.update(some.view(torch.uint8).numpy().tobytes() if some.numel() else b"")
    return digest.hexdigest()


class RunState:
    """The moving parts of a run as a :class:`~fewstep.core.training.checkpoint.Snapshot`."""

    def __init__(
        self,
        config: RunConfig,
        recipe: Recipe,
        cast: Cast,
        runners: Mapping[str, PhaseRunner],
        emas: dict[str, EMA],
        main: bool = True,
    ) -> None:
        self.recipe, self.cast, self.runners, self.emas, self.main = recipe, cast, runners, emas, main
        self.identity = identity(config, cast, runners)

    def snapshot(self, extra: Mapping[str, Any]) -> Snapshot:
        """Return the state now, with ``extra`` (counts, running means) beside it; tensors on the main process only.

        All processes must ask together.
        """
        tensors: dict[str, dict[str, Tensor]] = {}
        for name, module in self.cast.saved().items():
            tensors[f"role.{name}"] = self._whole(module.state_dict())
        for name, ema in self.emas.items():
            tensors[f"ema.{name}"] = self._whole(ema.state_dict())
        for name, runner in self.runners.items():
            tensors[f"optimizer.{name}"] = self._whole(runner.stepper.tensors())
        tensors["recipe"] = dict(self.recipe.state())
        phases = {
            name: {"updates": r.updates, "scale": r.scale.value, "quiet": r.scale.quiet}
            for name, r in self.runners.items()
        }
        return Snapshot(tensors, {"identity": self.identity, "phases": phases, **extra})

    def _whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors, those in shards put together one by one, on the main process's CPU; none elsewhere."""
        found: dict[str, Tensor] = {}
        for name, value in tensors.items():
            whole = full(value).cpu() if is_sharded(value) else value
            if self.main:
                found[name] = whole
        return found

    def check_fit(self, snapshot: Snapshot) -> None:
        """Raise Refused when a snapshot belongs to another run: other names, shapes, settings or teacher."""
        found = snapshot.state.get("identity")
        if not isinstance(found, dict):
            raise Refused("it does not say which run it belongs to")
        for key, own in self.identity.items():
            if found.get(key) != own:
                what = "another teacher" if key == "frozen" else f"{key} {found.get(key)}, this run has {own}"
                raise Refused(f"it belongs to another run: {what}")
        for name, module in self.cast.saved().items():
            _check_module(module, snapshot.tensors.get(f"role.{name}"), name)
        for name, ema in self.emas.items():
            if f"ema.{name}" not in snapshot.tensors:
                raise Refused(f"it has no average of role '{name}'")
            _check_shapes(ema.state_dict(), snapshot.tensors[f"ema.{name}"], f"average of role '{name}'")
        try:
            for name, runner in self.runners.items():
                runner.stepper.check(snapshot.tensors.get(f"optimizer.{name}", {}), name)
        except UserError as error:
            raise Refused(str(error)) from None
        phases = snapshot.state.get("phases")
        if not isinstance(phases, dict) or phases.keys() != self.runners.keys():
            raise Refused("it belongs to another run: other phases")

    def restore(self, snapshot: Snapshot) -> None:
        """Put back a snapshot that fits."""
        for name, module in self.cast.saved().items():
            _copy_into(module, snapshot.tensors[f"role.{name}"])
        for name, ema in self.emas.items():
            own = ema.state_dict()
            ema.load_state_dict({key: like(value, own[key]) for key, value in snapshot.tensors[f"ema.{name}"].items()})
        for name, runner in self.runners.items():
            runner.stepper.restore(snapshot.tensors.get(f"optimizer.{name}", {}))
            phase = snapshot.state["phases"][name]
            runner.updates = int(phase["updates"])
            runner.scale.value, runner.scale.quiet = float(phase["scale"]), int(phase["quiet"])
        self.recipe.load_state(snapshot.tensors.get("recipe", {}))


def _check_module(module: nn.Module, found: Mapping[str, Tensor] | None, role: str) -> None:
    if found is None:
        raise Refused(f"it belongs to another run: no role '{role}'")
    _check_shapes(module.state_dict(), found, f"role '{role}'")


def _check_shapes(own: Mapping[str, Tensor], found: Mapping[str, Tensor], who: str) -> None:
    for name in own.keys() ^ found.keys():
        raise Refused(f"it belongs to another run: {who} has {'no' if name in own else 'a'} tensor '{name}' there")
    for name, value in own.items():
        if found[name].shape != value.shape or found[name].dtype != value.dtype:
            there, here = list(found[name].shape), list(value.shape)
            raise Refused(f"it belongs to another run: {who}: '{name}' is {there} {found[name].dtype}, here {here}")


@torch.no_grad()
def _copy_into(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, target in module.state_dict().items():
        local(target).copy_(local(like(values[name], target)))
