"""`compare`: the same place of every picture is the same pixel of its panel, on the sheet and on the page."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
from argparse import ArgumentParser
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from fewstep.core.errors import UserError
from fewstep.restoration.cli.comparing import compare, compare_arguments
from fewstep.restoration.comparison import html as page_module
from fewstep.restoration.comparison.panels import make_panels
from fewstep.restoration.comparison.sheet import CHECKS, MOST, SQUARE, on_checkerboard, shown_factor
from fewstep.restoration.pictures.reading import read_picture


def run(*words):
    parser = ArgumentParser()
    compare_arguments(parser)
    compare(parser.parse_args([str(word) for word in words]))


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def save(path, values):
    Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values).save(path)
    return path


def pixels(image) -> np.ndarray:
    return np.asarray(image)


@pytest.fixture
def pair(tmp_path):
    """A picture of 60 x 40 and one of a quarter of its sides."""
    return save(tmp_path / "large.png", noise(40, 60)), save(tmp_path / "small.png", noise(10, 15, seed=1))


def panels_of(*files, **settings):
    return make_panels([(file.stem, read_picture(file)) for file in files], **settings)


def test_the_largest_stays_as_it_is_and_nearest_repeats_pixels(pair):
    large, small = panels_of(*pair).panels
    assert np.array_equal(pixels(large.image), noise(40, 60))
    assert np.array_equal(pixels(small.image), noise(10, 15, seed=1).repeat(4, 0).repeat(4, 1))
    assert (large.size, small.size) == ((60, 40), (15, 10))


@pytest.mark.parametrize("enlarge", ["nearest", "bicubic"])
def test_a_crop_is_cut_out_of_the_whole(pair, enlarge):
    whole = panels_of(*pair, enlarge=enlarge)
    cut = panels_of(*pair, enlarge=enlarge, crop=(7, 5, 21, 13))
    for a, b in zip(whole.panels, cut.panels, strict=True):
        assert np.array_equal(pixels(a.image)[5:18, 7:28], pixels(b.image))
    assert cut.is_cut
    assert not whole.is_cut


def test_zoom_is_the_crop_of_the_middle(pair):
    assert panels_of(*pair, zoom=4).region == panels_of(*pair, crop=(22, 15, 15, 10)).region
    assert panels_of(*pair, zoom=1).region == (0, 0, 60, 40)


def test_a_low_quality_picture_may_lack_what_did_not_fill_its_last_pixel(tmp_path):
    large, small = save(tmp_path / "a.png", noise(343, 511)), save(tmp_path / "b.png", noise(85, 127))
    assert panels_of(large, small).panels[1].image.size == (511, 343)
    turned = save(tmp_path / "c.png", noise(127, 85))
    with pytest.raises(UserError, match="c has 85x127 pixels and the largest 511x343: give pictures of one shape"):
        panels_of(large, turned)


def test_modes_are_shown_as_what_they_are(tmp_path):
    gray = noise(12, 12, 1)
    clear = np.dstack([noise(12, 12), np.full((12, 12), 255, np.uint8)])
    files = [save(tmp_path / "gray.png", gray), save(tmp_path / "opaque.png", clear)]
    shown = panels_of(*files)
    assert [panel.image.mode for panel in shown.panels] == ["RGB", "RGB"]
    assert np.array_equal(pixels(shown.panels[0].image), gray.repeat(3, 2))
    assert not shown.has_alpha
    clear[3:, :, 3] = 0
    assert panels_of(files[0], save(tmp_path / "clear.png", clear)).has_alpha


def test_transparency_is_a_checkerboard(tmp_path):
    values = np.dstack([noise(32, 32), np.zeros((32, 32), np.uint8)])
    values[:8, :8, 3] = 255
    drawn = pixels(on_checkerboard(Image.fromarray(values)))
    assert np.array_equal(drawn[:8, :8], values[:8, :8, :3])
    for row, column in [(0, 1), (1, 0), (1, 1), (3, 2)]:
        square = drawn[row * SQUARE : (row + 1) * SQUARE, column * SQUARE : (column + 1) * SQUARE]
        assert (square == CHECKS[(row + column) % 2]).all()


def test_small_regions_are_magnified_by_whole_steps_and_large_ones_shrunk():
    assert shown_factor(48, 32) == 10
    assert shown_factor(512, 512) == 1
    assert shown_factor(1, 1) == 480
    assert shown_factor(4 * MOST, 100) == 0.25
    for side in range(1, 2000, 7):
        factor = shown_factor(side, side // 2 + 1)
        assert factor * side <= MOST + 1e-6
        assert factor < 1 or factor == round(factor)


def test_the_sheet_holds_the_pixels_of_every_picture(pair, tmp_path, capsys):
    out = tmp_path / "new" / "sheet.png"
    run(*pair, "-o", out, "--labels", "one,two")
    assert capsys.readouterr().out == f"{out}\n"
    sheet = pixels(Image.open(out))
    for panel in panels_of(*pair).panels:
        drawn = pixels(panel.image).repeat(8, 0).repeat(8, 1)
        corner = np.argwhere((sheet == drawn[0, 0]).all(-1))
        places = [(y, x) for y, x in corner if np.array_equal(sheet[y : y + 320, x : x + 480], drawn)]
        assert len(places) == 1


def test_a_dozen_with_long_labels_and_two_tiny_ones_are_drawn(tmp_path):
    files = [save(tmp_path / f"{'long name ' * 9}{i}.png", noise(30, 20, seed=i)) for i in range(12)]
    run(*files, "-o", tmp_path / "dozen.png")
    assert min(Image.open(tmp_path / "dozen.png").size) > 500
    tiny = [save(tmp_path / f"tiny{i}.png", noise(1, 1, seed=i)) for i in range(2)]
    run(*tiny, "-o", tmp_path / "tiny.png", "--html", tmp_path / "tiny.html")
    assert Image.open(tmp_path / "tiny.png").size[0] > 480


class Page(HTMLParser):
    """Addresses, ids and tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[str] = []
        self.ids: set[str] = set()
        self.others: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids |= {values["id"]} if "id" in values else set()
        if tag == "img":
            self.images.append(values["src"])
        elif {"src", "href"} & values.keys():
            self.others.append(tag)


def page_of(tmp_path, *words):
    run(*words, "--html", tmp_path / "page.html")
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_page_embeds_every_pixel_and_names_nothing_outside(pair, tmp_path, capsys):
    text = page_of(tmp_path, *pair)
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "page.html")]  # no sheet was asked for
    page = Page(text)
    assert page.others == []
    assert not re.search(r"https?://|@import|url\(", re.sub(r'src="data:[^"]*"', "", text))
    assert "default-src 'none'" in text
    for address, panel in zip(page.images, panels_of(*pair).panels, strict=True):
        head, data = address.split(",")
        assert head == "data:image/png;base64"
        assert np.array_equal(pixels(Image.open(io.BytesIO(base64.b64decode(data)))), pixels(panel.image))
    assert "Smaller pictures are enlarged by nearest." in text


def test_labels_cannot_break_out_of_the_page(pair, tmp_path):
    text = page_of(tmp_path, *pair, "--labels", "<script>alert(1)</script>,\"'&")
    assert text.count("<script>") == 1
    assert "&lt;script&gt;" in text


def test_the_script_names_only_elements_that_exist_and_parses(pair, tmp_path):
    text = page_of(tmp_path, *pair)
    assert set(re.findall(r'\$\("(\w+)"\)', text)) <= Page(text).ids
    for words in ('role="slider"', 'aria-valuenow="50"', 'tabindex="0"', "prefers-color-scheme: dark"):
        assert words in text
    if node := shutil.which("node"):
        script = tmp_path / "page.js"
        script.write_text(re.findall(r"<script>(.*?)</script>", text, re.S)[0], encoding="utf-8")
        done = subprocess.run([node, "--check", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_a_page_is_bounded(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "MAX_SHOWN", 600)
    text = page_of(tmp_path, *pair)
    assert "Shrunk to 50 %" in text
    sizes = [Image.open(io.BytesIO(base64.b64decode(a.split(",")[1]))).size for a in Page(text).images]
    assert sizes == [(30, 20), (30, 20)]
    monkeypatch.setattr(page_module, "MAX_PAGE", 2000)
    (tmp_path / "page.html").unlink()
    with pytest.raises(UserError, match="choose a part by --crop"):
        page_of(tmp_path, *pair)
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["large.png"], "1 pictures to compare: give 2 to 12"),
        (["large.png"] * 13, "13 pictures"),
        (["large.png", "none.png"], "none.png cannot be read"),
        (["large.png", "small.png", "--labels", "a"], "names 1 pictures, 2 are given"),
        (["large.png", "small.png", "-o", "x.jpg"], "ends in .png"),
        (["large.png", "small.png", "--html", "x.png"], "ends in .html"),
        (["large.png", "small.png", "-o", "large.png"], "one of the pictures to compare"),
        (["large.png", "small.png", "--crop", "50,0,11,5"], "within the 60x40 pixels"),
        (["large.png", "small.png", "--crop", "0,0,0,5"], "within the 60x40 pixels"),
        (["large.png", "small.png", "--zoom", "65"], "must be 1 to 64"),
        (["large.png", "small.png", "-o", "large.png/x.png"], "cannot be written"),
        (["large.png", "small.png", "--html", "large.png/x.html"], "cannot be written"),
    ],
)
def test_mistakes_in_use_are_one_line(pair, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        run(*words)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large.png", "small.png"]


@pytest.mark.parametrize("crop", ["1,2,3", "a,b,c,d", "-1,0,5,5", "0,0,5.5,5", ""])
def test_a_crop_that_is_no_box_is_refused_by_the_parser(pair, crop, capsys):
    with pytest.raises(SystemExit):
        run(*pair, f"--crop={crop}")
    assert "is not x,y,w,h" in capsys.readouterr().err
