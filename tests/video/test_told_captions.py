"""Captions for the frame discriminator, from the config to the batch: each clip's own, each picture's own."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from fewstep.core.cli.main import domain_main
from fewstep.core.models.loading import Teacher
from fewstep.core.planning.plan import plan
from fewstep.core.recipes import find_recipe
from fewstep.core.rng import Rng
from fewstep.core.training.config import load_config
from fewstep.video.appearance.captions import caption_encoder, centred
from fewstep.video.domain import DOMAIN, find_teacher

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
TOLD = ["domain.captions=teacher", "recipe.appearance.discriminator.caption=32"]
CONFIG = "motion-consistency-modelscope-tiny"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[str]:
    """Two clips of the tiny teacher's, and pictures of one colour whose captions say which."""
    root = tmp_path_factory.mktemp("told")
    (root / "prompts.txt").write_text("a boat\na fox\n", encoding="utf-8")
    argv = ["--teacher", "tiny:modelscope", "--data", str(root / "prompts.txt"), "--sample-steps", "1"]
    assert domain_main("video", ["prepare", *argv, "--out", str(root / "latents")]) == 0
    (root / "pictures").mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (40, 30), colour).save(root / "pictures" / f"{name}.png")
        (root / "pictures" / f"{name}.txt").write_text(name, encoding="utf-8")
    return [f"domain.data.path={root / 'latents'}", f"domain.images.path={root / 'pictures'}"]


def test_clips_and_pictures_come_with_their_own_captions(data):
    config = load_config(CONFIG, [*data, *TOLD], domain=DOMAIN)
    specs = find_recipe(config.recipe_name).role_specs(config.recipe)
    problem = DOMAIN.build(config.domain, specs, 0, "cpu")
    shown = problem.conditions(1, 0)
    encoder = caption_encoder("teacher", find_teacher(config.domain), shown, "cpu", torch.float32)
    known = encoder.encode(list(COLOURS))
    assert_close(known.square().mean(1), torch.ones(3))
    assert torch.cdist(known, known).fill_diagonal_(9).min() > 0.1
    known = centred(known, [0, 1, 2])
    cond = problem.data.batch(Rng.for_batch(0, 0, 12), "cpu").cond
    shown = cond["images"].mean((-2, -1)).argmax(-1)  # which colour a picture has
    assert_close(cond["image_caption"], known[shown], atol=1e-5, rtol=1e-5)
    assert shown.unique().numel() == 3
    clips = centred(encoder.encode(["a boat", "a fox"]), [0, 1])
    assert torch.cdist(cond["caption"], clips).min(1).values.max() < 1e-4
    assert not any("caption" in name for name in problem.conditions(2, 0))  # students are sampled without


def test_how_a_set_words_its_captions_is_not_told():
    own = torch.randn(4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = [0, 0, 1, 2, 3, 3, 3]
    told = centred(own, rows)
    assert_close(told[rows].mean(0), torch.zeros(8, dtype=torch.float64))
    assert_close(told[rows].square().mean(), torch.ones((), dtype=torch.float64))
    assert_close(centred(own + torch.arange(8), rows), told)  # "... moves left", in every caption
    assert_close(centred(own[:1], [0, 0]), torch.zeros(1, 8, dtype=torch.float64))


def test_where_shapes_are_enough_nothing_is_encoded():
    teacher = Teacher.find("tiny:modelscope")
    cond = {"prompt_embeds": torch.zeros(1, 5, 32)}
    blank = caption_encoder("teacher", teacher, cond, "meta", torch.float32)
    assert torch.equal(blank.encode(["a", "b"]), torch.zeros(2, 32))


@pytest.mark.slow
def test_a_run_that_is_told_captions_is_planned_without_weights(data):
    told = plan(load_config(CONFIG, [*data, *TOLD], domain=DOMAIN))
    untold = plan(load_config(CONFIG, data, domain=DOMAIN))
    sizes = [{role.name: role.parameters for role in each.roles}["discriminator"] for each in (told, untold)]
    assert sizes[0] > sizes[1]  # it has the projection of captions besides


@pytest.mark.slow
def test_a_student_trains_with_a_discriminator_that_is_told(data, tmp_path):
    argv = ["train", "--config", CONFIG, "--out", str(tmp_path / "run"), *data, *TOLD, "train.preview_every=0"]
    assert domain_main("video", argv) == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["domain.captions=teacher"], "recipe.appearance.discriminator.caption=32"),
        (["recipe.appearance.discriminator.caption=32"], "domain.captions is missing"),
        ([TOLD[0], "recipe.appearance.weight=0"], "judges no single frames"),
        (["domain.captions=/nowhere", TOLD[1]], "domain.captions '/nowhere': no such folder"),
    ],
)
def test_captions_that_do_not_fit_are_one_line(overrides, message, data, tmp_path, capsys):
    argv = ["train", "--config", CONFIG, "--out", str(tmp_path / "run"), *data, *overrides]
    assert domain_main("video", argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_pictures_without_captions_are_refused(data, tmp_path, capsys):
    Image.new("RGB", (40, 30)).save(tmp_path / "black.png")
    argv = ["train", "--config", CONFIG, "--out", str(tmp_path / "run"), data[0], f"domain.images.path={tmp_path}"]
    assert domain_main("video", [*argv, *TOLD]) == 2
    assert "write it next to it, as .txt" in capsys.readouterr().err
