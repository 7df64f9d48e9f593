"""What a student leaves: a diffusers folder that samples exactly as ours does, where this package is not installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fewstep.core.boundary import ConsistencyFunction
from fewstep.core.denoiser import Denoiser, NetworkDenoiser, Plain, Reprocessed
from fewstep.core.errors import UserError
from fewstep.core.grids import time_grid
from fewstep.core.guidance import Guided
from fewstep.core.image.export import export_student
from fewstep.core.image.settings import ProcessConfig
from fewstep.core.image.teacher import read_scheduler, reading, scheduler_config
from fewstep.core.models.student import PLAN_FILE
from fewstep.core.networks.reference import MLPBackbone
from fewstep.core.networks.roles import RolesConfig, build_roles
from fewstep.core.networks.unet2d import UNet2DBackbone
from fewstep.core.prediction import Kind
from fewstep.core.process import EDM, VP, RectifiedFlow, TrigFlow
from fewstep.core.recipe import RoleSpec, StepPlan
from fewstep.core.rng import Rng
from fewstep.core.sampling import run_plan

CARD = {"name": "tiny", "recipe": "dmd2", "metrics": {"frechet": 1.25}, "odd": "a|b"}


def unet(seed: int = 0, classes: int = 3) -> UNet2DBackbone:
    made = UNet2DBackbone.make(1, 8, widths=(8, 16), num_classes=classes, seed=seed)
    noise = Rng.for_batch(seed, 0, 1)
    with torch.no_grad():  # fresh U-Nets end in small numbers: make outputs, and their errors, visible
        made.unet.conv_out.weight.mul_(8)
        made.unet.conv_out.bias.copy_(noise.normal("bias", (1,))[0])
    return made


def student(process: str = "vp-linear", prediction: str = "v") -> tuple[NetworkDenoiser, dict]:
    scheduler = scheduler_config(ProcessConfig(name=process, prediction=prediction))
    made, scaling = reading(scheduler)
    return NetworkDenoiser(unet().eval(), made, scaling), scheduler


class Scripted(Rng):
    """Gives prepared noise, one tensor after the other."""

    def normal_like(self, stream: str, x: torch.Tensor) -> torch.Tensor:
        return NOISE.pop(0)


NOISE: list[torch.Tensor] = []

PROGRAM = """
import sys
from pathlib import Path
sys.path = [p for p in sys.path if p] + [{site!r}]
try:
    import fewstep.core
    raise SystemExit("fewstep must not be importable here")
except ImportError:
    pass
import os, re
import numpy, torch
for folder in sorted(Path({root!r}).iterdir()):
    os.chdir(folder)
    code = re.search("```python.(.*?)```", Path("README.md").read_text(), re.DOTALL)[1]
    torch.manual_seed(0)
    names = dict()
    exec(code, names)
    numpy.save("x.npy", names["x"].numpy())
"""


def run_cards(root: Path) -> None:
    """Run the programs of the model cards under a folder, in a process without this package."""
    program = PROGRAM.format(site=sysconfig.get_paths()["purelib"], root=str(root))
    command = [sys.executable, "-S", "-W", "error::UserWarning", "-c", program]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr


def sampled_by_us(denoiser: Denoiser, plan: StepPlan) -> torch.Tensor:
    """Sample with the noise torch's generator gives the model card's program."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 1, 8, 8, generator=generator)
    NOISE[:] = [torch.randn(3, 1, 8, 8, generator=generator) for _ in plan.times[1:]]
    with torch.no_grad():
        return run_plan(denoiser, plan, noise, {"label": torch.arange(3)}, Scripted(0, 0, (0, 1, 2)))


def vp() -> Denoiser:
    return student()[0]


def flow() -> Denoiser:
    plain = student("rectified-flow", "flow")[0]
    return NetworkDenoiser(plain.backbone, RectifiedFlow(shift=3.0), plain.scaling)


def lcm() -> Denoiser:
    return ConsistencyFunction(vp(), "lcm")


def guidance_embedded() -> Denoiser:
    denoiser = student()[0]
    backbone = denoiser.backbone.with_extras(("guidance",), seed=1)
    with torch.no_grad():
        for parameter in backbone.extra_inputs.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(3)).mul_(0.3)
    return denoiser.with_backbone(backbone.eval())


def lora() -> Denoiser:
    roles = build_roles(vp(), (RoleSpec("student"),), RolesConfig(mode="lora", rank=2), 0)
    with torch.no_grad():
        for parameter in roles["student"].backbone.parameters():
            parameter.add_(0.05)
    return roles["student"]


def edm() -> Denoiser:
    return student("edm", "x0")[0]


CASES = {
    "one-step": (vp, StepPlan(times=(999.0,))),
    "one-step-from-the-middle": (vp, StepPlan(times=(439.0,))),
    "renoise": (vp, StepPlan(times=(999.0, 749.0, 499.0, 249.0))),
    "renoise-odd-times": (vp, StepPlan(times=(999.0, 700.0, 123.0))),
    "deterministic": (vp, StepPlan(times=(999.0, 749.0, 499.0, 249.0), mode="deterministic")),
    "deterministic-to-least-noise": (vp, StepPlan(times=(999.0, 499.0), mode="deterministic", end="t_min")),
    "flow-renoise": (flow, StepPlan(times=(1.0, 0.9, 0.5))),
    "flow-deterministic": (flow, StepPlan(times=(1.0, 0.9, 0.5), mode="deterministic")),
    "edm-on-karras-grid": (edm, StepPlan(times=time_grid(EDM(), 5), mode="deterministic")),
    "lcm-boundary-at-index-3": (lcm, StepPlan(times=(999.0, 3.0))),  # where the boundary's skip is 3e-4
    "constant-extra-input": (guidance_embedded, StepPlan(times=(999.0, 499.0), extras={"guidance": 2.5})),
    "lora": (lora, StepPlan(times=(999.0,))),
}
SCHEDULERS = {"flow": ("rectified-flow", "flow"), "edm": ("edm", "x0")}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """All cases exported and sampled by stock diffusers, in one process: importing it takes seconds."""
    root = tmp_path_factory.mktemp("exported")
    for name, (make, plan) in CASES.items():
        kind = SCHEDULERS.get(name.split("-")[0], ("vp-linear", "v"))
        export_student(
            make(), plan, root / name, CARD, scheduler_config(ProcessConfig(name=kind[0], prediction=kind[1]))
        )
    run_cards(root)
    return root


@pytest.mark.parametrize("name", CASES)
def test_students_sample_as_ours_without_this_package(exported, name):
    make, plan = CASES[name]
    denoiser = make()
    theirs = torch.from_numpy(np.load(exported / name / "x.npy"))
    assert_close(theirs, sampled_by_us(denoiser, plan), atol=3e-4, rtol=1e-3)
    assert theirs.std() > 0.1


def test_an_export_leaves_the_student_as_it_was(tmp_path):
    plan = CASES["lora"][1]
    for make in (lora, vp):
        denoiser = make()
        before = sampled_by_us(denoiser, plan)
        export_student(denoiser, plan, tmp_path / "out", CARD, student()[1])
        assert torch.equal(sampled_by_us(denoiser, plan), before)


def test_plans_that_stock_schedulers_do_not_walk_are_refused(tmp_path):
    extra = guidance_embedded()
    karras = CASES["edm-on-karras-grid"][1]
    odd = StepPlan(times=(999.0, 500.0, 100.0), mode="deterministic")
    near = ConsistencyFunction(vp(), "edm")
    export_student(near, StepPlan(times=(999.0,)), tmp_path / "fine", CARD, student()[1])
    cases = [
        (edm(), replace(karras, mode="renoise"), "Karras"),
        (near, CASES["lcm-boundary-at-index-3"][1], "edm boundary"),
        (extra, StepPlan(times=(999.0,), end_time=True), "changes from step to step"),
        (Guided(vp(), 2.0), StepPlan(times=(999.0,)), "Guided"),
        (vp(), odd, "uniform steps"),
        (NetworkDenoiser(unet(), TrigFlow(), Plain(Kind.V)), StepPlan(times=(1.0,)), "TrigFlow"),
        (NetworkDenoiser(MLPBackbone(2), EDM(), Plain(Kind.X0)), StepPlan(times=(80.0,)), "MLPBackbone"),
    ]
    for wrong, plan, named in cases:
        with pytest.raises(UserError, match=named):
            export_student(wrong, plan, tmp_path / "out", CARD, student()[1])
    assert [path.name for path in tmp_path.iterdir()] == ["fine"]


def test_a_student_read_through_another_process_leaves_in_its_networks_times(tmp_path):
    denoiser, scheduler = student()
    view = Reprocessed(denoiser, TrigFlow())
    export_student(view, StepPlan(times=(TrigFlow().t_max, 1.1), mode="renoise"), tmp_path / "out", CARD, scheduler)
    plan = json.loads((tmp_path / "out" / PLAN_FILE).read_text())["plan"]
    tau = TrigFlow().tau(torch.tensor([1.1], dtype=torch.float64))
    assert plan["times"] == [999.0, float(denoiser.process.round(denoiser.process.time_from_tau(tau)))]


def test_an_export_is_a_teacher_for_the_next_run(tmp_path):
    denoiser, scheduler = student(prediction="eps")
    export_student(denoiser, CASES["one-step"][1], tmp_path / "out", CARD, scheduler)
    process, scaling = reading(read_scheduler(tmp_path / "out"))
    assert isinstance(process, VP)
    assert_close(process.alphas_cumprod, denoiser.process.alphas_cumprod, atol=1e-6, rtol=0)
    assert scaling == Plain(Kind.EPS)
    again = UNet2DBackbone.load(tmp_path / "out" / "unet")
    assert again.num_classes == 3
    for name, value in again.state_dict().items():
        assert torch.equal(value, denoiser.backbone.state_dict()[name])


def test_card_and_plan_carry_the_facts_and_replace_the_old_ones(tmp_path):
    denoiser, scheduler = student()
    out = tmp_path / "out"
    out.mkdir()
    (out / "stale.txt").write_text("old")
    export_student(denoiser, CASES["renoise"][1], out, CARD, scheduler)
    assert sorted(path.name for path in out.iterdir()) == ["README.md", PLAN_FILE, "scheduler", "unet"]
    card = (out / "README.md").read_text()
    assert "| metrics | frechet 1.25 |" in card
    assert "| odd | a/b |" in card
    assert json.loads((out / PLAN_FILE).read_text())["plan"]["times"] == [999.0, 749.0, 499.0, 249.0]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
