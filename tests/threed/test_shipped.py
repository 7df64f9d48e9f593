"""What ships with the package: a teacher that knows its prompts, and a student that makes solids of them at once."""

from __future__ import annotations

import pytest
import torch
from threed.scene_bed import threed

from fewstep.threed.judges import ViewJudge, repeated
from fewstep.threed.measuring import measure, unseen_views
from fewstep.threed.metrics.pictures import psnr, silhouette_iou
from fewstep.threed.planes.shipped import find_planes
from fewstep.threed.shapes.split import split_prompts
from fewstep.threed.teachers.view_model import SHIPPED, load_model
from fewstep.threed.truth import find_truth

LIMIT = 5 * 2**20


def test_what_ships_is_small():
    for folder in SHIPPED.iterdir():
        assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < LIMIT, folder


def test_the_teacher_tells_prompts_and_views_apart():
    """Its clean prediction of a noisy picture is nearest to the truth under the right prompt and camera."""
    judge = ViewJudge(load_model("solids"))
    prompts = ["a red cone", "a blue box", "a green torus"]
    ring = unseen_views(2, judge.size)
    true = torch.cat([find_truth(prompt).pictures(ring).rgb for prompt in prompts])
    t = torch.full((len(true),), 600.0)
    eps = torch.randn(true.shape, generator=torch.Generator().manual_seed(0))
    x_t = judge.process.add_noise(2 * true - 1, eps, t)

    def quality(texts, camera_of):
        told = [judge.told(camera_of, repeated(judge.encode([text]), 2)) for text in texts]
        cond = {name: torch.cat([each[name] for each in told]) for name in told[0]}
        with torch.no_grad():
            return float(psnr(judge.pictures(judge.teacher.x0(x_t, t, cond)), true).mean())

    right = quality(prompts, ring)
    assert right > 22
    assert quality([*prompts[1:], prompts[0]], ring) < right - 3


@pytest.mark.parametrize("part", [0, 1])
def test_the_student_makes_what_it_was_trained_on_and_what_was_held_out(part):
    prompts = [str(prompt) for prompt in split_prompts()[part]][::4]
    model = find_planes()
    ring = unseen_views(4, 48)
    for prompt, scene in zip(prompts, model.scenes(prompts), strict=True):
        with torch.no_grad():
            seen = scene.views(ring)
        true = find_truth(prompt).pictures(ring)
        assert float(silhouette_iou(seen.alpha.clamp(0, 1), true.alpha).mean()) > 0.75, prompt
        assert float(psnr(seen.rgb.clamp(0, 1), true.rgb).mean()) > 18, prompt


def test_its_mesh_and_gaussians_are_the_solid():
    (scene,) = find_planes().scenes(["a yellow sphere"])
    found = measure(scene, find_truth("a yellow sphere"), views=2, size=32).values
    assert found["chamfer"] < 0.05
    assert found["normal_consistency"] > 0.9
    assert len(scene.gaussians()) > 1000


def test_an_asset_is_made_from_the_command_line(tmp_path):
    assert threed("generate", "--prompt", "a purple cylinder", "-o", tmp_path / "x.glb", "--resolution", 32) == 0
    assert (tmp_path / "x.glb").read_bytes()[:4] == b"glTF"
