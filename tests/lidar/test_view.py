"""Pictures and pages of point clouds: where points land, which are seen, and what a page holds."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.core.errors import UserError
from fewstep.lidar.view.colours import decode, encode, places, scale_bytes, scale_linear, scale_oklab
from fewstep.lidar.view.html import MAX_ERROR_M, pack, write_viewer
from fewstep.lidar.view.preview import GAP, MARGIN, TILE, bev_rows
from fewstep.lidar.view.raster import draw_panels, shared_look
from fewstep.lidar.view.scene import GROUND, Look, PerspectiveCamera, TopCamera, render
from fewstep.lidar.view.verb import view, view_arguments

SIZE = 160
LOOK = Look(low=-2.0, high=3.0, ground=-1.7, max_range=40.0, ring_step=0.0)
TOP = TopCamera(SIZE, 40.0)
BEHIND = PerspectiveCamera(SIZE, 100, 40.0)
NOTHING = np.zeros((0, 3))


def scatter(n=2000, seed=0, extent=(30.0, 30.0, 2.0)):
    return np.random.default_rng(seed).uniform(-1, 1, (n, 3)) * extent


def drawn(picture):
    """Rows and columns of the pixels that are not background."""
    return np.argwhere((picture != np.array(GROUND, np.uint8)).any(-1))


# The colour scale


def test_colours_are_lighter_the_higher():
    luminance = scale_linear().astype(np.float64) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > 0).all()
    assert luminance[0] > 5 * (decode(GROUND) @ [0.2126, 0.7152, 0.0722])  # the lowest stands out from the background


def test_colours_change_in_even_steps():
    steps = np.linalg.norm(np.diff(scale_oklab(), axis=0), axis=1)
    assert steps.max() < 1.02 * steps.min()


def test_colour_bytes_and_linear_light_are_inverse():
    assert (encode(decode((0, 7, 255))) == [0, 7, 255]).all()
    assert (
        encode(np.array([0.0, 0.2140411, 1.0])) == [0, 127, 255]
    ).all()  # the standard's own middle gray, 0.5 -> 0.214


def test_places_grow_with_height_and_stop_at_the_ends():
    z = np.linspace(-10, 10, 999)
    rows = places(z, -2.0, 3.0).astype(int)
    assert (np.diff(rows) >= 0).all()
    assert rows[0] == 0
    assert rows[-1] == 255
    assert places(np.array([1e30, -1e30]), -2.0, 3.0).tolist() == [255, 0]


# Where a point lands


@pytest.mark.parametrize("point", [(0, 0, 0), (30, 0, 1), (0, 20, 1), (-25.2, -17.7, 0.5)])
def test_top_view_puts_a_point_where_the_formula_says(point):
    scale = SIZE / (2 * 1.03 * 40)
    pixels = drawn(render(np.array([point], float), TOP, LOOK))
    expected = np.array([SIZE / 2 - scale * point[0], SIZE / 2 - scale * point[1]])  # forward is up, left is left
    assert np.abs(pixels.mean(0) + 0.5 - expected).max() <= 0.6
    assert len(pixels) <= 9


@pytest.mark.parametrize("camera", [TOP, BEHIND])
def test_forward_is_up_and_left_is_left(camera):
    origin, forward, left = (
        drawn(render(np.array([p]), camera, LOOK)).mean(0) for p in [(0.0, 0, 0), (15.0, 0, 0), (0, 8.0, 0)]
    )
    assert forward[0] < origin[0] - 5
    assert forward[1] == pytest.approx(origin[1], abs=1)
    assert left[1] < origin[1] - 5


def test_perspective_is_a_pinhole():
    right, down, into = BEHIND.axes
    assert np.allclose(BEHIND.axes @ BEHIND.axes.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(BEHIND.axes) == pytest.approx(1)
    assert right[2] == pytest.approx(0)  # the horizon is level
    assert down[2] < 0
    for distance, across, below in [(10.0, 0.0, 0.0), (10.0, 2.0, -1.0), (40.0, 2.0, -1.0)]:
        point = BEHIND.eye + distance * into + across * right + below * down
        column, row, depth = BEHIND.project(point[None])
        focal = SIZE / 2 / np.tan(np.radians(32))
        assert column[0] == pytest.approx(SIZE / 2 + focal * across / distance)
        assert row[0] == pytest.approx(50 + focal * below / distance)
        assert depth[0] == pytest.approx(distance)
        pixels = drawn(render(point[None], BEHIND, LOOK))
        assert np.abs(pixels.mean(0) + 0.5 - [row[0], column[0]]).max() <= 0.6


def test_discs_shrink_with_distance_to_one_pixel():
    into = BEHIND.axes[2]
    areas = [len(drawn(render((BEHIND.eye + d * into)[None], BEHIND, LOOK))) for d in (2.0, 5.0, 40.0)]
    assert areas[0] > areas[1] > areas[2]
    assert areas[2] <= 4


# Which point is seen


@pytest.mark.parametrize(("above", "below"), [(2.0, -1.5), (2.0, 1.0), (-0.5, -1.5), (0.2, 0.0), (0.0, -0.2)])
def test_the_higher_point_hides_the_lower_from_above(above, below):
    high, low = np.array([[5.0, 3.0, above]]), np.array([[5.0, 3.0, below]])
    both = np.concatenate((high, low))
    assert (render(both, TOP, LOOK) == render(high, TOP, LOOK)).all()
    assert (render(low, TOP, LOOK) != render(high, TOP, LOOK)).any()


def test_the_nearer_point_hides_the_farther_on_its_ray():
    ray = BEHIND.axes[2] + 0.1 * BEHIND.axes[0]
    near, far = (BEHIND.eye + 8 * ray)[None], (BEHIND.eye + 16 * ray)[None]
    assert (render(np.concatenate((near, far)), BEHIND, LOOK) == render(near, BEHIND, LOOK)).all()
    assert (render(far, BEHIND, LOOK) != render(near, BEHIND, LOOK)).any()


@pytest.mark.parametrize("camera", [TOP, BEHIND])
def test_the_order_of_points_does_not_matter(camera):
    cloud = scatter().round(0) + 0.25  # many in one pixel and at one depth
    picture = render(cloud, camera, LOOK)
    for seed in range(3):
        assert (render(np.random.default_rng(seed).permutation(cloud), camera, LOOK) == picture).all()


def test_a_plane_has_one_colour_and_a_step_darkens_only_its_foot():
    grid = np.stack(np.meshgrid(np.arange(-20, 20, 0.1), np.arange(-20, 20, 0.1)), -1).reshape(-1, 2)
    flat = np.column_stack((grid, np.full(len(grid), 0.0)))
    inner = slice(SIZE // 2 - 20, SIZE // 2 + 20)
    plain = render(flat, TOP, LOOK)[inner, inner]
    assert (plain == plain[0, 0]).all()
    assert (plain[0, 0] == scale_bytes()[places(np.array(0.0), -2.0, 3.0)]).all()
    flat[grid[:, 1] > 0.0, 2] = 1.5  # the left half
    step = render(flat, TOP, LOOK)[inner, inner].astype(int)
    low, high = step[0, -1], step[0, 0]
    assert (step[:, :19] == high).all()
    assert (step.sum(-1) < low.sum() - 5).sum(1).min() >= 1
    assert (step[:, 24:] == low).all()


# What is left out


@pytest.mark.parametrize("camera", [TOP, BEHIND])
def test_points_beyond_the_range_are_left_out(camera):
    angle = np.linspace(0, 2 * np.pi, 400)
    for radius in (40.1, 60.0, 1e7):
        ring = np.column_stack((radius * np.cos(angle), radius * np.sin(angle), np.zeros(400)))
        assert len(drawn(render(ring, camera, LOOK))) == 0
    assert len(drawn(render(ring * (39.9 / radius), camera, LOOK))) > 0


@pytest.mark.parametrize(("across", "below"), [(1.0, 0), (-1.0, 0), (0, 1.0), (0, -1.0)])
def test_points_beside_the_picture_do_not_come_back_on_the_other_side(across, below):
    right, down, into = BEHIND.axes
    focal, wide = BEHIND.focal, Look(-2.0, 3.0, -1.7, max_range=1e4, ring_step=0.0)
    for beyond, seen in [(-3.0, True), (0.4, True), *((float(d), False) for d in range(6, 40)), (1e9, False)]:
        x, y = across * (SIZE / 2 + beyond) / focal, below * (50 + beyond) / focal
        pixels = drawn(render((BEHIND.eye + 6 * (into + x * right + y * down))[None], BEHIND, wide))
        assert (len(pixels) > 0) == seen
        if seen:
            edge = {(1, 0): SIZE - 1 - pixels[:, 1], (-1, 0): pixels[:, 1]}.get((across, below))
            edge = edge if edge is not None else (99 - pixels[:, 0] if below > 0 else pixels[:, 0])
            assert edge.max() <= 7


def test_points_behind_the_camera_are_not_seen():
    behind = BEHIND.eye - 5 * BEHIND.axes[2]
    assert len(drawn(render(behind[None], BEHIND, Look(-2.0, 3.0, -1.7, 1e4, 0.0)))) == 0


@pytest.mark.parametrize("camera", [TOP, BEHIND])
def test_range_rings_lie_on_the_ground_at_their_distance(camera):
    plain, ringed = (render(NOTHING, camera, Look(-2.0, 3.0, -1.7, 40.0, step)) for step in (0.0, 10.0))
    assert (plain == np.array(GROUND, np.uint8)).all()
    angle = np.linspace(0, 2 * np.pi, 50)
    for radius, ink in [(10.0, True), (20.0, True), (40.0, True), (15.0, False), (25.0, False)]:
        ring = np.column_stack((radius * np.cos(angle), radius * np.sin(angle), np.full(50, -1.7)))
        column, row, depth = camera.project(ring)
        inside = np.isfinite(depth) & (column > 0) & (column < camera.width) & (row > 0) & (row < camera.height)
        found = ringed[row[inside].astype(int), column[inside].astype(int)] != np.array(GROUND, np.uint8)
        assert inside.any()
        assert found.any(-1).all() if ink else not found.any(-1).all()


# Sheets


def test_a_sheet_has_a_column_per_cloud_under_one_camera_and_scale(tmp_path):
    cloud = scatter()
    file = draw_panels([("a", cloud), ("b", NOTHING), ("c", cloud)], tmp_path / "new" / "sheet.png", size=SIZE)
    sheet = np.asarray(Image.open(file).convert("RGB"))
    dark = np.flatnonzero((sheet[sheet.shape[0] // 3] != 255).any(-1))
    starts = dark[np.flatnonzero(np.diff(dark, prepend=-9) > 1)]
    assert len(starts) == 3
    first, second, third = (sheet[30:-40, s : s + SIZE] for s in starts)
    below = slice(SIZE, None)  # the perspective, which has no scale bar
    assert (first[below] == third[below]).all()
    assert (first != second).any()
    assert [f.name for f in file.parent.iterdir()] == ["sheet.png"]


def test_the_same_clouds_give_the_same_bytes(tmp_path):
    cloud = scatter()
    first = draw_panels([("a", cloud)], tmp_path / "1.png", size=SIZE).read_bytes()
    assert draw_panels([("a", cloud[::-1])], tmp_path / "2.png", size=SIZE).read_bytes() == first


def test_only_the_views_asked_for_are_drawn(tmp_path):
    heights = [
        Image.open(draw_panels([("a", scatter())], tmp_path / "v.png", views, size=SIZE)).height
        for views in (("top",), ("perspective",), ("top", "perspective"))
    ]
    assert heights[0] - heights[1] == SIZE - round(0.62 * SIZE)
    assert 0 < heights[2] - heights[0] - round(0.62 * SIZE) < 10


def test_clouds_that_are_all_empty_make_a_sheet(tmp_path):
    assert Image.open(draw_panels([("nothing", NOTHING)], tmp_path / "empty.png", size=SIZE)).width > SIZE


def test_a_long_label_is_cut_to_its_panel(tmp_path):
    short, long = (
        draw_panels([(label, NOTHING)] * 2, tmp_path / "l.png", size=SIZE).read_bytes()
        and Image.open(tmp_path / "l.png")
        for label in ("a", "a" * 400)
    )
    assert short.size == long.size


def test_one_stray_cloud_does_not_change_what_the_others_look_like():
    clouds = [scatter(seed=s) for s in range(3)]
    ours, strayed = (
        shared_look(clouds),
        shared_look([*clouds, 1000 * clouds[0], clouds[0] + np.array([0.0, 0.0, 90.0]), NOTHING]),
    )
    assert strayed.max_range == ours.max_range
    assert strayed.low == pytest.approx(ours.low, abs=0.2)
    assert strayed.high == pytest.approx(ours.high, abs=0.2)


def test_a_flat_cloud_and_a_single_point_have_a_scale():
    for cloud in (scatter(extent=(30, 30, 0)), np.zeros((1, 3)), NOTHING):
        look = shared_look([cloud])
        assert look.high - look.low >= 1.0
        assert look.max_range >= 1.0


@pytest.mark.parametrize(
    ("panels", "options", "message"),
    [
        ([], {}, "0 clouds to draw"),
        ([("a", NOTHING)] * 13, {}, "13 clouds to draw: give 1 to 12"),
        ([("odd", np.zeros((4, 2)))], {}, r"odd: points have the shape \(4, 2\)"),
        ([("bad", np.array([[0, 0, np.nan], [0, 0, 1], [np.inf, 0, 0]]))], {}, "bad: 2 of 3 points are not finite"),
        ([("far", np.full((1, 3), 1e200))], {}, "far: has points farther than"),
        ([("a", NOTHING)], {"views": ("topp",)}, "no view 'topp': did you mean 'top'"),
        ([("a", NOTHING)], {"views": ()}, "no view to draw"),
        ([("a", NOTHING)], {"size": 10}, "a panel of 10 pixels: give 64 to 2048"),
        ([("a", NOTHING)], {"max_range": 0.0}, "a range of 0.0 m"),
        ([("a", NOTHING)], {"max_range": float("nan")}, "a range of nan m"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(tmp_path, panels, options, message):
    with pytest.raises(UserError, match=message) as caught:
        draw_panels(panels, tmp_path / "x.png", **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    for write in (draw_panels, write_viewer):
        target = tmp_path / "file" / "x.out"
        with pytest.raises(UserError, match=r"x\.out: cannot be written \(.+\); give another place"):
            (write([("a", NOTHING)], target) if write is draw_panels else write(target, [("a", NOTHING)]))


# Rows for the report


def test_rows_hold_at_most_five_scenes_each_on_its_place(tmp_path):
    scenes = torch.from_numpy(np.stack([scatter(500, seed) for seed in range(7)]))
    file = bev_rows([("student", scenes), ("ground truth", scenes[1:2])], tmp_path / "new" / "step-0.5")
    assert file == tmp_path / "new" / "step-0.5.png"
    sheet = np.asarray(Image.open(file))
    height = 2 * MARGIN + 2 * (TILE + GAP) - GAP
    assert sheet.shape[0] == height
    gutter = sheet.shape[1] - MARGIN - 5 * (TILE + GAP) + GAP
    tile = [sheet[MARGIN : MARGIN + TILE, gutter + i * (TILE + GAP) :][:, :TILE] for i in range(5)]
    below = sheet[MARGIN + TILE + GAP :, gutter:][:TILE, :TILE]
    assert (below == tile[1]).all()
    assert (below != tile[0]).any()
    assert (sheet[MARGIN + TILE + GAP :, gutter + TILE + GAP :] == 255).all()


def test_rows_without_scenes_or_with_nan_are_refused(tmp_path):
    for rows, message in [
        ([], "nothing to draw"),
        ([("a", torch.zeros(0, 4, 3))], "nothing to draw"),
        ([("student", torch.full((1, 4, 3), float("nan")))], "student: 4 of 4 points are not finite"),
    ]:
        with pytest.raises(UserError, match=message):
            bev_rows(rows, tmp_path / "x")


def test_half_precision_scenes_on_a_graph_are_drawn(tmp_path):
    scenes = torch.from_numpy(scatter(100)[None]).to(torch.bfloat16).requires_grad_()
    assert bev_rows([("a", scenes)], tmp_path / "x").is_file()


# The page


class Page(HTMLParser):
    """What a browser makes of a page: the text of each element, and which were left open."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.ids, self.attributes = [], [], set(), []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        self.ids |= {value for key, value in attrs if key == "id"}
        if tag not in ("meta", "input", "hr"):
            self.open.append(tag)
        if tag == "script":
            self.texts.append((tag, dict(attrs).get("type"), ""))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", None, data))

    def script(self):
        return next(text for tag, _, text in reversed(self.texts) if tag == "script" and "WebGL" not in text and text)

    def title(self):
        return next(text for tag, _, text in self.texts if tag == "title")

    def data(self):
        return json.loads(next(text for tag, _, text in self.texts if tag == "script" and text.startswith("{")))


def page_of(tmp_path, clouds, **options):
    return write_viewer(tmp_path / "page.html", clouds, **options).read_text(encoding="utf-8")


def unpack(cloud):
    raw = base64.b64decode(cloud["points"])
    stored = np.frombuffer(raw, "<u2" if cloud["bits"] == 16 else "<f4").reshape(-1, 3)
    assert len(stored) == cloud["count"]
    return np.array(cloud["origin"]) + np.array(cloud["step"]) * stored.astype(np.float64)


@pytest.mark.parametrize("name", ["scan", "map", "far away", "wide", "one point", "plane", "empty"])
def test_a_page_holds_the_points_to_the_error_it_states(tmp_path, name):
    cloud = {
        "scan": scatter(extent=(60, 60, 3)),
        "map": scatter(extent=(300, 300, 10)),
        "far away": scatter() + np.array([4.5e6, 3.2e5, 200.0]),
        "wide": scatter(extent=(5e4, 10, 10)),
        "one point": np.array([[1.5, 2.5, -1.0]]),
        "plane": scatter(extent=(50, 50, 0)),
        "empty": NOTHING,
    }[name]
    (stored,) = Page(page_of(tmp_path, [(name, cloud)])).data()["clouds"]
    assert stored["bits"] == (32 if name == "wide" else 16)
    assert stored["error"] <= MAX_ERROR_M
    if len(cloud):
        off = np.abs(unpack(stored) - cloud).max()
        assert off <= stored["error"] * (1 + 1e-6) + 1e-9
        assert name in ("one point", "wide") or off > stored["error"] / 4  # no worse claim than the truth


def test_the_documented_errors():
    assert pack(np.array([[-60.0, 0, 0], [60.0, 0, 0]]))["error"] <= 0.00092
    assert pack(np.array([[0.0, 0, 0], [655.0, 0, 0]]))["bits"] == 16
    assert pack(np.array([[0.0, 0, 0], [656.0, 0, 0]]))["bits"] == 32


def test_four_full_clouds_fit_in_ten_megabytes(tmp_path):
    clouds = [(f"cloud {i}", scatter(180_000, i, (50, 50, 3))) for i in range(4)]
    assert len(page_of(tmp_path, clouds)) < 10e6


def test_a_page_needs_nothing_from_elsewhere(tmp_path):
    text = page_of(tmp_path, [("a", scatter(50))])
    page = Page(text)
    assert page.open == []
    assert {key for key, _ in page.attributes} & {"src", "href", "srcset", "action", "onload", "onclick"} == set()
    assert re.findall(r"https?:|//[a-z]+\.|src=|@import|url\(|import\(|fetch\(|XMLHttpRequest|{{|{%", text) == []


def test_titles_and_labels_cannot_run(tmp_path):
    evil = "</script><script>alert('1')</script><img src=x onerror=alert(1)>&\"'\u2028.ply"
    text = page_of(tmp_path, [(evil, scatter(5))], title=evil)
    page = Page(text)
    assert page.title() == evil
    assert page.data()["clouds"][0]["label"] == evil
    assert page.open == []
    assert text.count("<script") == 2
    assert "<img" not in text


def test_the_script_names_only_elements_and_uniforms_that_exist(tmp_path):
    text = page_of(tmp_path, [("a", scatter(5))])
    page = Page(text)
    assert set(re.findall(r'\$\("(\w+)"\)', text)) <= page.ids
    uniforms = {n for line in re.findall(r"uniform (?:highp )?\w+ ([\w, ]+);", text) for n in line.split(", ")}
    assert set(re.findall(r'\.at\("(\w+)"\)', text)) == uniforms


@pytest.mark.skipif(shutil.which("node") is None, reason="no node to check the script with")
def test_the_script_parses(tmp_path):
    text = page_of(tmp_path, [("a", scatter(5))])
    script = tmp_path / "page.js"
    script.write_text(re.findall(r"<script>(.*?)</script>", text, re.S)[0], encoding="utf-8")
    done = subprocess.run(["node", "--check", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_a_page_cannot_show_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("fewstep.lidar.view.html.MAX_POINTS", 10)
    for clouds, message in [
        ([], "0 clouds to show"),
        ([("a", NOTHING)] * 13, "13 clouds to show"),
        ([("a", scatter(11))], "11 points to show: a page takes 10"),
        ([("a", np.full((1, 3), np.inf))], "a: 1 of 1 points are not finite"),
    ]:
        with pytest.raises(UserError, match=message):
            write_viewer(tmp_path / "x.html", clouds)
    assert list(tmp_path.iterdir()) == []


# The command


def command(*words):
    parser = ArgumentParser()
    view_arguments(parser)
    view(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    names = [tmp_path / "in" / f"{name}.npy" for name in ("000001", "000002")]
    for seed, name in enumerate(names):
        np.save(name, scatter(200, seed).astype(np.float32))
    return names


def test_the_command_writes_a_picture_and_a_page_and_says_where(files, tmp_path, capsys):
    command(*files, "--size", 64)
    assert capsys.readouterr().out.split() == ["000001.png", "000001.html"]
    assert {f.name for f in tmp_path.iterdir()} == {"in", "000001.png", "000001.html"}
    labels = [c["label"] for c in Page((tmp_path / "000001.html").read_text(encoding="utf-8")).data()["clouds"]]
    assert labels == ["000001", "000002"]


@pytest.mark.parametrize(
    ("out", "written"),
    [("new/dir", ["new/dir/000001.png", "new/dir/000001.html"]), ("a.PNG", ["a.PNG"]), ("b.html", ["b.html"])],
)
def test_out_is_a_folder_or_one_file(files, capsys, out, written):
    command(*files, "--out", out, "--labels", "partial,ground truth", "--size", 64, "--views", "top")
    assert capsys.readouterr().out.split("\n")[:-1] == written


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--labels", "one"], "--labels names 1 clouds, 2 files are given"),
        (["in/000001.npy"] * 11, "13 files: a sheet holds 12 clouds"),
        (["in/missing.npy"], "missing.npy"),
        (["--out", "in/000001.npy"], "000001.npy: a file; give a folder"),
    ],
)
def test_mistakes_are_told_in_one_line_and_nothing_is_written(files, tmp_path, words, message):
    with pytest.raises(UserError, match=message) as caught:
        command(*files, *words)
    assert "\n" not in str(caught.value)
    assert [f.name for f in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    "words",
    [
        ["--size", "9"],
        ["--size", "99999"],
        ["--size", "x"],
        ["--views", "side"],
        ["--max-range", "-1"],
        ["--max-range", "nan"],
    ],
)
def test_values_out_of_range_are_refused_by_the_parser(files, words, capsys):
    with pytest.raises(SystemExit) as caught:
        command(*files, *words)
    assert caught.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_listing_the_command_loads_no_library():
    code = "import sys, fewstep.lidar.view.verb; print({'numpy', 'torch', 'PIL', 'jinja2'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
