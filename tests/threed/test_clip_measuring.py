"""CLIP's numbers of assets: from the command line they are those of the model itself, and what is left out is said."""

from __future__ import annotations

import json
import re

import pytest
import torch
from threed.clip_bed import SIZE, tiny_clip
from threed.scene_bed import threed
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.core.image.clip import ClipScore
from fewstep.threed.assets import read_asset, write_asset
from fewstep.threed.clip_measuring import PromptMeasure
from fewstep.threed.gaussians.parameters import Gaussians
from fewstep.threed.measuring import unseen_views
from fewstep.threed.metrics.janus import told_facing
from fewstep.threed.scenes.splats import GaussianScene

PROMPTS = ("a red thing", "a blue one")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    made = []
    for number, prompt in enumerate(PROMPTS):
        rgb = torch.eye(3)[[2 * number]].expand(5, 3)
        at = 0.4 * torch.randn(5, 3, generator=torch.Generator().manual_seed(number))
        folder = tmp_path_factory.mktemp("asset") / "a"
        write_asset(GaussianScene(Gaussians.isotropic(at, 0.2, 0.9, rgb)), folder, {}, prompt=prompt)
        made.append(folder)
    return made


def evaluated(out, *args):
    assert threed("eval", *args, "--views", 2, "--size", 8, "--out", out) == 0
    return json.loads(out.read_text())


def test_scores_are_those_of_the_model_and_precision_counts_among_all_prompts(clip, assets, tmp_path, capsys):
    more = tmp_path / "more.txt"
    more.write_text("a castle\na boat\n", encoding="utf-8")
    found = evaluated(tmp_path / "x.json", *assets, "--clip", clip, "--candidates", more)
    model = ClipScore(str(clip))
    texts = model.embed_prompts([f"a photo of {each}" for each in (*PROMPTS, "a castle", "a boat")])
    for number, (row, asset) in enumerate(zip(found["rows"], assets, strict=True)):
        with torch.no_grad():
            seen = read_asset(asset).scene.views(unseen_views(2, SIZE)).rgb.clamp(0, 1)
        cosine = model.embed_pictures(2 * seen - 1) @ texts.T
        assert row["clip_score"] == pytest.approx(2.5 * float(cosine[:, number].clamp_min(0).mean()), abs=1e-4)
        assert row["r_precision"] == float((cosine.argmax(1) == number).double().mean())
        assert -1 <= row["clip_facing"] <= 1
    assert len({row["clip_score"] for row in found["rows"]}) == 2
    assert any("R-precision of 4 prompts" in note for note in found["notes"])
    assert "r_precision" in capsys.readouterr().out


def test_of_one_prompt_only_the_score_is_given_and_it_is_said(clip, assets, tmp_path, capsys):
    (row,) = evaluated(tmp_path / "x.json", assets[0], "--clip", clip)["rows"]
    assert "clip_score" in row
    assert "r_precision" not in row
    assert "R-precision is left out" in capsys.readouterr().out
    (row,) = evaluated(tmp_path / "y.json", assets[0] / "splats.ply", "--clip", clip)["rows"]
    assert "clip_score" not in row
    assert "no prompt is known" in capsys.readouterr().out
    (row,) = evaluated(tmp_path / "z.json", assets[0] / "splats.ply", "--clip", clip, "--prompt", "a castle")["rows"]
    assert "clip_score" in row


def test_mistakes_are_told_in_one_line(clip, assets, tmp_path, capsys):
    other = tmp_path / "bert"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "bert"}), encoding="utf-8")
    for given, why in (
        (("--clip", tmp_path / "nowhere"), "--clip .*no such folder"),
        (("--clip", other), "--clip: .*bert, not CLIP"),
        (("--candidates", tmp_path / "x.txt"), "give --clip too"),
        (("--clip", clip, "--candidates", tmp_path / "x.txt"), "x.txt: cannot be read"),
        (("--prompt", "a castle"), "give --clip to measure"),
    ):
        assert threed("eval", assets[0], *given) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert re.search(why, told), told


class Colours:
    """A picture is its mean colour; the front is told as red, the back as blue."""

    def embed_pictures(self, pixels):
        return torch.nn.functional.normalize((pixels.mean((2, 3)) + 1) / 2, dim=1)

    def embed_prompts(self, prompts):
        return torch.stack([torch.tensor([1.0, 0, 0] if "front" in each else [0, 0, 1.0]) for each in prompts])


def two_faced(front, back):
    """A flat box of which one side shows towards +z, the other towards -z."""
    at = torch.tensor([[0.0, 0.0, 0.3], [0.0, 0.0, -0.3]])
    return GaussianScene(Gaussians.isotropic(at, 0.2, 0.99, torch.tensor([front, back])))


@pytest.mark.parametrize(("front", "back", "sign"), [("red", "blue", 1), ("blue", "red", -1), ("red", "red", 0)])
def test_the_front_is_found_by_words(front, back, sign):
    colour = {"red": [1.0, 0.0, 0.0], "blue": [0.0, 0.0, 1.0]}
    jury = PromptMeasure(Colours(), 8, 24)
    jury.look(two_faced(colour[front], colour[back]), "a thing")
    (row,), _ = jury.rows()
    assert row["clip_facing"] == pytest.approx(sign, abs=0.05)


def test_the_cosine_of_two_differences():
    torch.manual_seed(0)
    words = torch.randn(2, 6, dtype=torch.float64)
    seen = torch.randn(4, 6, dtype=torch.float64)
    azimuth = torch.tensor([10.0, 100.0, 190.0, 280.0])
    expected = torch.cosine_similarity(seen[0] - seen[2], words[0] - words[1], dim=0)
    assert_close(told_facing(seen, azimuth, *words), expected)
    assert_close(told_facing(seen.roll(2, 0), azimuth, *words), -expected)
    assert_close(told_facing(3 * seen + 7, azimuth, *words), expected)
    with pytest.raises(UserError, match="even number"):
        told_facing(seen[:3], azimuth[:3], *words)
    with pytest.raises(UserError, match="none of them from the front"):
        told_facing(seen[:2], azimuth[1::2], *words)
