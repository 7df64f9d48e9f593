"""Assets in numbers: the truth itself is perfect, and fusing its depths gives its surface back."""

from __future__ import annotations

import math

import pytest
import torch
from threed.scene_bed import around

from fewstep.threed.fields.fusion import fuse
from fewstep.threed.fields.meshes import Mesh
from fewstep.threed.measuring import measure, sample_mesh
from fewstep.threed.shapes import build, extract_mesh, read, render
from fewstep.threed.truth import Truth, find_truth, saturation
from fewstep.threed.views import Scene, Views


class TrueScene(Scene):
    """A solid as a scene."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.solid = build(read(text))

    def views(self, camera, background=1.0, rng=None):
        seen = render(self.solid, camera.world_to_camera, camera.intrinsics, camera.width, camera.height)
        return Views(seen.rgb, seen.alpha, seen.depth * seen.alpha, seen.normal * seen.alpha)

    def mesh(self, resolution=64):
        found = extract_mesh(self.solid, resolution)
        return Mesh(found.vertices.float(), found.faces, found.colours.float())

    def describe(self):
        return {}

    @classmethod
    def rebuilt(cls, about, state):
        raise TypeError


def test_the_truth_is_measured_as_perfect():
    found = measure(TrueScene("a red box"), find_truth("a red box"), views=4, size=32).values
    assert found["psnr"] == math.inf
    assert found["silhouette_iou"] == 1
    assert found["saturation"] == pytest.approx(found["true_saturation"])
    assert found["facing"] == pytest.approx(1)
    assert found["chamfer"] < 0.03
    assert found["normal_consistency"] > 0.9
    assert found["view_consistency"] > 15  # neighbours of a ring of 4 share little but edges


def test_another_solid_is_measured_as_worse():
    right = measure(TrueScene("a red box"), find_truth("a red cone"), views=4, size=32).values
    assert right["silhouette_iou"] < 0.8
    assert right["psnr"] < 20


def test_without_a_truth_numbers_are_left_out_and_it_is_said():
    found = measure(TrueScene("a red box"), find_truth("a castle"), views=4, size=32)
    assert set(found.values) == {"view_consistency"}
    assert any("no truth" in line for line in found.left_out)


@pytest.mark.parametrize("text", ["a red sphere", "a green torus"])
def test_depths_from_all_around_fuse_into_the_surface(text):
    scene, truth = TrueScene(text), Truth(build(read(text)))

    def look(camera):
        seen = render(truth.solid, camera.world_to_camera, camera.intrinsics, camera.width, camera.height, samples=1)
        return Views(seen.rgb, seen.alpha, seen.depth, seen.normal)

    mesh = fuse(look, resolution=48, size=48, radius=0.75)
    true = scene.mesh()
    assert abs(mesh.volume() / true.volume() - 1) < 0.12
    assert float((truth.solid.distance(mesh.vertices)).abs().mean()) < 0.03
    colours = mesh.colours.mean(0)
    assert int(colours.argmax()) == (0 if "red" in text else 1)


def test_points_of_a_mesh_lie_on_it_evenly():
    mesh = TrueScene("a blue sphere").mesh()
    points, normals = sample_mesh(mesh, 4000)
    truth = build(read("a blue sphere"))
    assert float(truth.distance(points).abs().max()) < 0.02
    assert float((normals.norm(dim=1) - 1).abs().max()) < 1e-5
    above = points[:, 1] > float(points[:, 1].median())
    assert abs(float(above.double().mean()) - 0.5) < 0.02


def test_saturation_is_the_spread_of_the_channels_where_something_is():
    rgb, alpha = torch.ones(1, 3, 2, 2), torch.zeros(1, 1, 2, 2)
    rgb[0, :, 0, 0], alpha[0, 0, 0, 0] = torch.tensor([0.9, 0.2, 0.1]), 1.0
    assert float(saturation(rgb, alpha)) == pytest.approx(0.8)


def test_rings_of_cameras_stand_outside():
    around(4, 8).check_outside(1.0)
