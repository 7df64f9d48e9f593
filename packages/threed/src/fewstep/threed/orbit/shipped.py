"""How the shipped weights are made: ``python -m fewstep.threed.orbit.shipped STAGE FOLDER [STEPS]``.

Stages, in order: ``teacher``, ``decoder`` (either first), ``student``. Each reads what it needs from FOLDER and writes
there; the student's ends with the model itself, in half precision, as ``FOLDER/orbit``.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from fewstep.core.denoiser import NetworkDenoiser
from fewstep.core.errors import check
from fewstep.core.networks.adapters import AdapterView
from fewstep.core.networks.roles import RolesConfig, build_roles
from fewstep.core.process import EDM
from fewstep.core.recipe import Actors
from fewstep.core.recipes.diffusion import Diffusion, DiffusionConfig
from fewstep.core.times import TimeConfig
from fewstep.threed.image_to_3d import ImageTo3D
from fewstep.threed.orbit.data import OrbitData
from fewstep.threed.orbit.decoder import DecoderConfig, GaussianDecoder
from fewstep.threed.orbit.fitting import fit
from fewstep.threed.orbit.network import OrbitUNet
from fewstep.threed.orbit.reading import KarrasV
from fewstep.threed.recipes.gsv3d import GSV3D, GSV3DConfig
from fewstep.threed.shapes import split_prompts

VIEWS, CHANNELS, SIDE = 8, 48, 8
PROCESS = EDM(sigma_min=0.002, sigma_max=80.0, sigma_data=1.0)
STAGES = {"teacher": 450, "decoder": 500, "student": 300}  # and their steps
CONFIG = GSV3DConfig(decoder=DecoderConfig(layers=3), weighting="uniform", weight_3d=1.0, train_decoder=True)
RANK = 16


def teacher_of(network: OrbitUNet) -> NetworkDenoiser:
    """Return the small network read as SVD's are."""
    return NetworkDenoiser(network, PROCESS, KarrasV())


def make(stage: str, folder: Path, steps: int) -> None:
    """Train one stage and write what it gives into ``folder``."""
    check(stage in STAGES, f"stage '{stage}': must be one of {', '.join(STAGES)}")
    data = OrbitData(split_prompts()[0], CONFIG.geometry, views=VIEWS)
    if stage == "teacher":
        make_teacher(data, folder, steps)
    elif stage == "decoder":
        make_decoder(data, folder, steps)
    else:
        make_student(data, folder, steps)


def make_teacher(data: OrbitData, folder: Path, steps: int) -> None:
    """Train the multi-view denoiser with core's plain diffusion recipe."""
    network = OrbitUNet.make(CHANNELS, SIDE, VIEWS, widths=(48, 64))
    config = DiffusionConfig(
        weighting="snr_plus_one", label_dropout=0.1, time=TimeConfig(law="lognormal", mean=0.7, std=1.6)
    )
    actors = Actors({"student": teacher_of(network)}, PROCESS, (VIEWS, CHANNELS, SIDE, SIDE))
    fit(Diffusion(config, actors), {"student": network}, data, steps=steps, batch=8, lr=1.5e-3, every=50)
    network.save(folder / "teacher")


def make_decoder(data: OrbitData, folder: Path, steps: int) -> None:
    """Train the decoder to Gaussians: stage 1 of the recipe."""
    config = replace(CONFIG, decoder_steps=steps)
    decoder = GaussianDecoder(config.decoder)
    roles = {"decoder": decoder, "student": decoder, "codec": decoder}  # this stage uses the decoder alone
    actors = Actors(roles, PROCESS, (VIEWS, CHANNELS, SIDE, SIDE))
    fit(GSV3D(config, actors), {"decoder": decoder}, data, steps=steps, batch=4, lr=1.5e-3, phase="decoder", every=50)
    decoder.save(folder / "decoder")


def make_student(data: OrbitData, folder: Path, steps: int) -> None:
    """Train the student of four steps, and the decoder with it: stage 2 of the recipe."""
    decoder = GaussianDecoder.load(folder / "decoder").requires_grad_(True)
    teacher = teacher_of(OrbitUNet.load(folder / "teacher"))
    specs = [spec for spec in GSV3D.role_specs(CONFIG) if spec.kind == "denoiser" or spec.name == "codec"]
    roles = build_roles(teacher, specs, RolesConfig(mode="lora", rank=RANK), 0) | {"decoder": decoder}
    student = roles["student"]
    assert isinstance(student, NetworkDenoiser)
    assert isinstance(student.backbone, AdapterView)
    actors = Actors(dict(roles), PROCESS, (VIEWS, CHANNELS, SIDE, SIDE))
    modules = {"student": student.backbone, "decoder": decoder}
    fit(GSV3D(CONFIG, actors), modules, data, steps=steps, batch=6, lr=1e-3, every=25)
    plan = GSV3D.plan(CONFIG, PROCESS, CONFIG.student_steps)
    made = ImageTo3D(student, plan, decoder, CONFIG.geometry, VIEWS)
    made.save(folder / "orbit", {"recipe": "gsv3d", "steps": steps}, half=True)


def main() -> None:
    """Make the stage named on the command line."""
    check(len(sys.argv) in (3, 4), "give a stage and a folder, and the number of steps if it is another")
    stage, folder = sys.argv[1], Path(sys.argv[2])
    make(stage, folder, int(sys.argv[3]) if len(sys.argv) == 4 else STAGES.get(stage, 0))


if __name__ == "__main__":
    main()
