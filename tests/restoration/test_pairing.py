"""Restored pictures find their references by stem, by a magnification at the end, or by a template."""

from __future__ import annotations

import pytest
from PIL import Image

from fewstep.core.errors import UserError
from fewstep.restoration.pairing import find_pairs


def make(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2)).save(path)
    return root


def names(found):
    return [(pair.name, pair.restored.name, pair.reference.name) for pair in found.pairs]


def test_two_files_are_a_pair_whatever_they_are_called(tmp_path):
    make(tmp_path, "a.png", "b.bmp")
    assert names(find_pairs(tmp_path / "a.png", tmp_path / "b.bmp")) == [("a.png", "a.png", "b.bmp")]


@pytest.mark.parametrize("suffix", ["", "x4", "_x4", "-x2", "_X8"])
def test_folders_pair_by_relative_path_and_stem(tmp_path, suffix):
    hr = make(tmp_path / "hr", "0001.png", "sub/0001.png", "only.png")
    ours = make(tmp_path / "ours", f"0001{suffix}.bmp", f"sub/0001{suffix}.png", "other.png")
    found = find_pairs(ours, hr)
    assert names(found) == [
        ("0001", f"0001{suffix}.bmp", "0001.png"),
        ("sub/0001", f"0001{suffix}.png", "0001.png"),
    ]
    assert found.pairs[1].restored.parent.name == "sub"
    assert [line.split(": ")[1] for line in found.alone] == ["no restored picture", "no reference"]


def test_a_template_names_the_restored(tmp_path):
    hr = make(tmp_path / "hr", "sub/a.png", "a.png")
    ours = make(tmp_path / "ours", "sub/out-a-final.png", "out-a-final.png", "a.png")
    found = find_pairs(ours, hr, "out-{}-final")
    assert names(found) == [("a", "out-a-final.png", "a.png"), ("sub/a", "out-a-final.png", "a.png")]
    assert len(found.alone) == 1


def test_an_equal_stem_comes_before_a_magnified_one(tmp_path):
    hr = make(tmp_path / "hr", "a.png", "ax2.png")
    ours = make(tmp_path / "ours", "a.png", "ax2.png", "ax4.png")
    assert names(find_pairs(ours, hr)) == [("a", "a.png", "a.png"), ("ax2", "ax2.png", "ax2.png")]


@pytest.mark.parametrize(
    ("ours", "hr", "template", "message"),
    [
        (["a.png"], ["b.png"], None, "share no stems"),
        (["a_x2.png", "a_x4.png"], ["a.png"], None, "two restored pictures, a_x4 and a_x2: give --template"),
        (["a.png", "a.bmp"], ["a.png"], None, "have one stem"),
        (["a.png"], ["a.png"], "x4", "must hold {} once"),
        (["a.png"], ["a.png"], "sub/{}", "no /"),
        (["a.png"], ["a.png"], "{}x4", "share no stems"),
        ([], ["a.png"], None, "holds no images"),
    ],
)
def test_what_has_no_answer_is_refused(tmp_path, ours, hr, template, message):
    (tmp_path / "ours").mkdir()
    make(tmp_path / "ours", *ours)
    make(tmp_path / "hr", *hr)
    with pytest.raises(UserError, match=message):
        find_pairs(tmp_path / "ours", tmp_path / "hr", template)


def test_a_file_and_a_folder_and_what_is_not_there_are_refused(tmp_path):
    hr = make(tmp_path / "hr", "a.png")
    with pytest.raises(UserError, match="a file and a folder"):
        find_pairs(hr / "a.png", hr)
    with pytest.raises(UserError, match="does not exist"):
        find_pairs(hr, tmp_path / "none")
