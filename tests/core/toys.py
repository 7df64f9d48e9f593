"""A domain and recipes small enough that a whole run is a matter of milliseconds: vectors of four numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from fewstep.core.denoiser import Cond, Denoiser, NetworkDenoiser, Plain
from fewstep.core.domain import Problem
from fewstep.core.networks.reference import MLPBackbone
from fewstep.core.networks.roles import RolesConfig, build_roles
from fewstep.core.prediction import Kind
from fewstep.core.process import VP, Process
from fewstep.core.recipe import Actors, Batch, LossTerms, Phase, Recipe, RoleSpec, StepPlan
from fewstep.core.rng import Rng
from fewstep.core.tensors import sample_mean

DIM, CLASSES = 4, 3


def length(x0: Tensor, batch: Batch) -> Tensor:
    """Judge samples by how far they are from the origin."""
    return x0.flatten(1).norm(dim=1)


@dataclass(frozen=True, kw_only=True)
class ToyNetworkConfig:
    width: int = 16
    dropout: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ToyDomainConfig:
    network: ToyNetworkConfig = ToyNetworkConfig()
    roles: RolesConfig = RolesConfig(rank=2)
    dtype: Literal["float32", "float64"] = "float32"
    folder: Path | None = None
    sizes: tuple[int, ...] = (64,)


class ToyData:
    """A blob per class, drawn anew for every step."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __len__(self) -> int:
        return 0

    def batch(self, rng: Rng, device: torch.device | str) -> Batch:
        label = rng.integers("label", CLASSES)
        centre = torch.nn.functional.one_hot(label, DIM).to(self.dtype)
        x0 = centre + 0.1 * rng.normal("x0", (DIM,), self.dtype)
        return Batch(len(rng.ids), {"label": label.to(device)}, x0.to(device), device)


def network(config: ToyDomainConfig, seed: int) -> MLPBackbone:
    made = MLPBackbone(
        DIM, width=config.network.width, depth=1, num_classes=CLASSES, dropout=config.network.dropout, seed=seed
    )
    return made.to(getattr(torch, config.dtype))


def render(rows: Sequence[tuple[str, Tensor]], stem: Path) -> Path:
    """One pixel per number, its fraction: every change shows."""
    pixels = torch.cat([values.detach().float().cpu() for _, values in rows]).frac().abs()
    path = stem.with_suffix(".png")
    Image.fromarray((pixels * 255).byte().numpy()).save(path)
    return path


def evaluate(samples: Tensor, cond: Cond) -> dict[str, float]:
    centre = torch.nn.functional.one_hot(cond["label"], DIM).to(samples.dtype)
    return {"distance": float(sample_mean((samples - centre).square()).mean().sqrt())}


def export(student: Denoiser, plan: StepPlan, folder: Path, card: Mapping[str, Any]) -> None:
    assert isinstance(student, NetworkDenoiser)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(student.backbone.state_dict(), folder / "student.safetensors")
    (folder / "card.json").write_text(json.dumps({"times": plan.times, **card}), encoding="utf-8")


class ToyDomain:
    name = "toy"
    summary = "vectors of four numbers"
    config_type = ToyDomainConfig

    def __init__(self, configs: Path = Path(__file__).parent / "toy_configs") -> None:
        self.configs = configs

    def process(self, config: ToyDomainConfig) -> Process:
        return VP.linear(100, 1e-3, 0.2)

    def build(
        self, config: ToyDomainConfig, specs: Sequence[RoleSpec], seed: int, device: torch.device | str
    ) -> Problem:
        process = self.process(config)
        dtype = getattr(torch, config.dtype)
        teacher = NetworkDenoiser(network(config, 1234), process, Plain(Kind.EPS))
        roles = build_roles(
            teacher,
            specs,
            config.roles,
            seed,
            shape=(DIM,),
            cond={"label": torch.zeros(1, dtype=torch.long)},
            fresh=lambda seed: teacher.with_backbone(network(config, seed)),
        )
        for role in roles.values():
            (role.backbone if isinstance(role, NetworkDenoiser) else role).to(device, dtype)
        return Problem(
            actors=Actors(roles=roles, process=process, shape=(DIM,), dtype=dtype, judges={"length": length}),
            data=ToyData(dtype),
            conditions=lambda n, seed: {"label": torch.arange(n) % CLASSES},
            evaluate=evaluate,
            render=render,
            export=export,
            notes={"metric": "root mean square distance to the centre of the class"},
        )


@dataclass(frozen=True, kw_only=True)
class ToyRecipeConfig:
    critic_every: int = 1
    weight: float = 0.5
    target: float = 0.0
    times: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        from fewstep.core.errors import check

        check(self.critic_every >= 1, f"critic_every must be at least 1, got {self.critic_every}")


class ToyRecipe(Recipe):
    """Two trained roles, two phases, a state: denoising for the critic, the critic's view for the student."""

    name: ClassVar[str] = "toy"
    paper: ClassVar[str] = "none"
    summary: ClassVar[str] = "for tests"
    config_type: ClassVar[type] = ToyRecipeConfig

    def __init__(self, config: ToyRecipeConfig, actors: Actors) -> None:
        super().__init__(config, actors)
        self.count = torch.zeros(1, dtype=torch.float64)

    @classmethod
    def role_specs(cls, config: ToyRecipeConfig) -> tuple[RoleSpec, ...]:
        return (RoleSpec("teacher", init="frozen"), RoleSpec("student", ema=True), RoleSpec("critic"))

    @classmethod
    def phases(cls, config: ToyRecipeConfig) -> tuple[Phase, ...]:
        return (Phase("critic", ("critic",)), Phase("student", ("student",), every=config.critic_every))

    def loss(self, phase: str, batch: Batch, rng: Rng, step: int) -> LossTerms:
        role = self.actors.denoiser(phase)
        x0 = batch.clean_samples(self.name)
        t = role.process.unit_to_time(rng.uniform("t")).round()
        eps = rng.normal_like("eps", x0)
        x_t = role.process.add_noise(x0, eps, t)
        found = role.eps(x_t, t, batch.cond)
        if phase == "critic":
            return LossTerms({"denoising": sample_mean((found - eps).square())})
        with torch.no_grad():
            target = self.actors.denoiser("critic").eps(x_t, t, batch.cond)
        terms = {
            "match": sample_mean((found - target).square()),
            "pull": sample_mean((found - self.config.target).abs()),
        }
        return LossTerms(terms, {"pull": self.config.weight}, {"gap": sample_mean((found - target).abs()).detach()})

    @classmethod
    def plan(cls, config: ToyRecipeConfig, process: Process, num_steps: int) -> StepPlan:
        return StepPlan(tuple(process.t_max * (num_steps - i) / num_steps for i in range(num_steps)), "deterministic")

    def after_step(self, step: int) -> None:
        self.count += step + 1

    def state(self) -> dict[str, Tensor]:
        return {"count": self.count.clone()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.count = state["count"].clone()


__all__ = ["CLASSES", "DIM", "ToyData", "ToyDomain", "ToyRecipe"]
