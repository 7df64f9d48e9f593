"""What the tests of exported students share: students of tiny teachers, and stock diffusers in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any, NamedTuple

import torch
from core.model_bed import teacher
from safetensors.torch import save_file
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.models.loading import Teacher
from fewstep.core.networks.roles import Mode, RolesConfig, build_roles
from fewstep.core.recipe import StepPlan
from fewstep.core.recipes import find_recipe
from fewstep.core.rng import Rng
from fewstep.core.sampling import run_plan

PROMPT = "a small boat"
CARD = {"name": "tiny", "prompt": PROMPT, "metrics": {"frechet": 1.25}}
DISTILLED = {"flux": 3.5, "hunyuan-video": 6.0}  # told their guidance


class Case(NamedTuple):
    """A student: of whose teacher, made by which recipe under which settings, sampled in how many steps."""

    family: str
    mode: Mode
    recipe: str
    steps: int
    settings: dict[str, Any] = {}  # noqa: RUF012 (never changed)

    @property
    def name(self) -> str:
        """The folder it is exported to."""
        return "-".join([self.family, self.mode, self.recipe, str(self.steps), *map(str, self.settings.values())])


def found_teacher(family: str) -> Teacher:
    """The family's tiny teacher, told a guidance if it wants one."""
    return teacher(family, DISTILLED.get(family, 1.0))


def student_of(case: Case, seed: int = 1) -> tuple[Denoiser, StepPlan]:
    """A student some way off its teacher, as it is sampled from, and its plan."""
    found, kind = found_teacher(case.family), find_recipe(case.recipe)
    denoiser = found.denoiser(found.encode([PROMPT]).null)
    config = kind.config_type(**case.settings)
    specs = [spec for spec in kind.role_specs(config) if spec.name == "student"]
    role = build_roles(denoiser, specs, RolesConfig(mode=case.mode, rank=2), 0)["student"]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in role.backbone.parameters():
            spread = 0.1 if case.mode == "lora" else 0.1 * float(parameter.std(correction=0))
            parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)
    role.backbone.eval()
    return kind.student_view(config, role), kind.plan(config, role.process, case.steps)


UNFOLDED = ("modelscope",)  # pipelines that are called with clips, and fold their frames into the batch afterwards


class Scripted(Rng):
    """Gives prepared noise, one tensor after the other."""

    def __init__(self, noises: list[Tensor]) -> None:
        super().__init__(0, 0, (0,))
        self.noises = noises

    def normal_like(self, stream: str, x: Tensor) -> Tensor:
        """Return the next of them."""
        return self.noises.pop(0)


def prepared(case: Case) -> list[Tensor]:
    """Noise to start from, and for every step."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(1, *found_teacher(case.family).shape, generator=generator) for _ in range(case.steps + 1)]


def sampled_by_us(case: Case) -> tuple[Tensor, StepPlan]:
    """The student's sample from the prepared noise, and its plan."""
    denoiser, plan = student_of(case)
    start, *noises = prepared(case)
    with torch.no_grad():
        cond = found_teacher(case.family).encode([PROMPT]).cond
        return run_plan(denoiser, plan, start, cond, Scripted(noises)), plan


def give_noise(case: Case, folder: Path) -> None:
    """Write the prepared noise as the pipeline holds latents."""
    family = found_teacher(case.family).family
    held = {str(i): family.to_pipeline(noise).contiguous() for i, noise in enumerate(prepared(case))}
    if case.family in UNFOLDED:
        held["0"] = prepared(case)[0]
    save_file(held, folder / "noise.safetensors")


PROGRAM = """
import sys
from pathlib import Path
sys.path = [p for p in sys.path if p] + [{site!r}]
try:
    import fewstep.core
    raise SystemExit("fewstep must not be importable here")
except ImportError:
    pass
import functools, os, re
import diffusers, numpy, torch, transformers
for library in (diffusers, transformers):
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
from safetensors.torch import load_file, save_file
noises, seen = [], []
def watched(step):
    @functools.wraps(step)
    def spy(self, output, time, sample, *args, **kwargs):
        found = step(self, output, time, sample, *args, **kwargs)
        seen.append((float(time), found[0]))
        return found
    return spy
for name in ("LCM", "TCD", "DDIM", "FlowMatchEulerDiscrete"):
    kind = getattr(diffusers, name + "Scheduler")
    kind.step = watched(kind.step)
    sys.modules[kind.__module__].randn_tensor = lambda *args, **kwargs: noises.pop(0)
def begun(call):
    @functools.wraps(call)
    def start(self, *args, **kwargs):
        self.set_progress_bar_config(disable=True)
        return call(self, *args, latents=noises.pop(0), **kwargs)
    return start
begin = set()
for folder in sorted(Path({root!r}).iterdir()):
    os.chdir(folder)
    given = load_file("noise.safetensors")
    noises[:], seen[:] = [given[key] for key in sorted(given, key=int)], []
    code = re.search("```python.(.*?)```", Path("README.md").read_text(), re.DOTALL)[1]
    kind = getattr(diffusers, re.search(r"import (\\w+)", code[code.index("from diffusers"):])[1])
    if kind not in begin:
        begin.add(kind)
        kind.__call__ = begun(kind.__call__)
    names = dict()
    try:
        exec(code, names)
    except Exception as error:
        raise RuntimeError(folder.name) from error
    out = names["output"]
    shown = out.images if hasattr(out, "images") else out.frames[0]
    pictures = torch.tensor(numpy.stack([numpy.asarray(picture) for picture in shown])).contiguous()
    times = torch.tensor([time for time, _ in seen], dtype=torch.float64)
    save_file(dict(latents=seen[-1][1].contiguous(), times=times, pictures=pictures), "theirs.safetensors")
"""


def run_cards(root: Path) -> None:
    """Run the programs of the model cards under a folder, in a process without this package."""
    program = PROGRAM.format(site=sysconfig.get_paths()["purelib"], root=str(root))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-S", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
