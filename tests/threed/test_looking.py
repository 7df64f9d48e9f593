"""Assets seen from all around: films, pages and sheets hold what the scene shows, and mistakes are told."""

from __future__ import annotations

import re

import pytest
import torch
from PIL import Image
from threed.scene_bed import threed

from fewstep.core.errors import UserError
from fewstep.threed.assets import write_asset
from fewstep.threed.cameras import orbit_angles
from fewstep.threed.looking import viewer
from fewstep.threed.looking.pictures import Ring, depths, frames, normals
from fewstep.threed.looking.writing import write_looks
from fewstep.threed.scenes.field import FieldScene
from fewstep.threed.scenes.splats import GaussianScene
from fewstep.threed.views import Views

RING = Ring(views=6, size=24)


@pytest.fixture(scope="module")
def scene():
    return GaussianScene.ball(40, 0.5, 0, seed=0)


@pytest.fixture(scope="module")
def asset(scene, tmp_path_factory):
    folder = tmp_path_factory.mktemp("assets") / "ball"
    write_asset(scene, folder, {"name": "ball"}, prompt='a "red" <ball>')
    return folder


def test_a_ring_starts_at_the_front_and_goes_round_once():
    azimuth, elevation, distance = orbit_angles(RING.camera())
    assert torch.allclose(azimuth % 360, torch.arange(6) * 60.0, atol=1e-3)
    assert torch.allclose(elevation, torch.full((6,), 15.0), atol=1e-3)
    assert torch.allclose(distance, torch.full((6,), RING.distance), atol=1e-5)


def test_every_view_is_a_frame(scene):
    seen = frames(scene, RING)
    assert [picture.size for picture in seen] == [(24, 24)] * 6
    assert min(seen[0].getpixel((0, 0))) > 250  # white where nothing is
    assert max(seen[0].getpixel((12, 12))) < 200


def test_all_forms_are_written(scene, tmp_path):
    paths = [tmp_path / f"x{suffix}" for suffix in (".gif", ".html", ".png")]
    write_looks(scene, paths, RING, Ring(views=3, size=16), title="x")
    with Image.open(paths[0]) as film:
        assert film.n_frames == 6
    page = paths[1].read_text(encoding="utf-8")
    assert not re.search(r"@[A-Z]+@", page)
    assert page.count("http") == 0  # nothing is fetched
    with Image.open(paths[2]) as sheet:
        assert sheet.width > sheet.height


def test_a_film_is_written_where_pyav_is(scene, tmp_path):
    av = pytest.importorskip("av")
    write_looks(scene, [tmp_path / "x.mp4"], Ring(views=5, size=33))
    with av.open(str(tmp_path / "x.mp4")) as film:
        found = list(film.decode(video=0))
    assert len(found) == 5
    assert (found[0].width, found[0].height) == (34, 34)  # even sides


def test_normals_and_depths_are_white_where_nothing_is():
    alpha = torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 2)
    seen = Views(torch.ones(1, 3, 1, 2), alpha, 2 * alpha, torch.tensor([0.0, 1.0, 0.0]).reshape(1, 3, 1, 1) * alpha)
    assert normals(seen)[0, :, 0, 1].tolist() == [1, 1, 1]
    assert normals(seen)[0, :, 0, 0].tolist() == [0.5, 1, 0.5]
    grey = depths(seen, 1.0, 3.0)
    assert grey[0, :, 0, 1].tolist() == [1, 1, 1]
    assert torch.allclose(grey[0, :, 0, 0], torch.full((3,), 0.5))


def test_the_command_writes_and_escapes(asset, tmp_path, capsys):
    page = tmp_path / "x.html"
    assert threed("render", asset, "-o", page, "--views", 3, "--size", 16) == 0
    assert str(page) in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert "<ball>" not in text
    assert "&lt;ball&gt;" in text


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (("-o", "x.bmp"), r"x\.bmp"),
        (("-o", "nowhere/x.gif"), "folder is not there"),
        (("-o", "x.gif", "--distance", "0.5"), "inside the object"),
        (("-o", "x.gif", "--size", "100000"), "size"),
    ],
)
def test_mistakes_are_told_in_one_line(given, why, asset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert threed("render", asset, *given) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert re.search(why, told)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_viewer_says_what_to_do(scene, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "viser", None)
    with pytest.raises(UserError, match="pip install"):
        viewer.serve(scene, 8080)


class FakeScene:
    """Keeps what a viewer is given."""

    def __init__(self):
        self.calls = {}

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.calls.update({name: (args, kwargs)})


class FakeServer:
    def __init__(self):
        self.scene = FakeScene()


def test_the_viewer_gets_gaussians_or_a_mesh(scene):
    server = FakeServer()
    viewer.add_scene(server, scene)
    splats = server.scene.calls["add_gaussian_splats"][1]
    assert splats["centers"].shape == (40, 3)
    assert splats["covariances"].shape == (40, 3, 3)
    assert splats["opacities"].shape == (40, 1)
    server = FakeServer()
    viewer.add_scene(server, FieldScene("volsdf", side=8, channels=4))
    assert len(server.scene.calls["add_mesh_trimesh"][0][1].faces) > 100
