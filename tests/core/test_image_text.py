"""Text-to-image teachers in the image domain: their data, what is kept in memory, how students are looked at."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest
import torch
from core.model_bed import teacher
from torch.testing import assert_close

from fewstep.core.data.crops import cover
from fewstep.core.data.epochs import epoch_indices
from fewstep.core.data.prepare import prepare
from fewstep.core.data.prompts import read_prompts
from fewstep.core.data.reading import fit_channels, read_image
from fewstep.core.denoiser import NetworkDenoiser
from fewstep.core.domain import Problem, find_domain
from fewstep.core.errors import UserError
from fewstep.core.image.clip import ClipScore
from fewstep.core.image.pictures import digits
from fewstep.core.models.loading import Teacher
from fewstep.core.networks.adapters import AdapterView
from fewstep.core.recipe import RoleSpec
from fewstep.core.rng import Rng
from fewstep.core.training.config import load_config

SPECS = (RoleSpec("student"), RoleSpec("teacher", init="frozen"), RoleSpec("fake_score"))
DIGITS = ("domain.data.source=digits", "domain.data.caption=the digit {}")


def problem(*overrides: str, name: str = "sd", specs: tuple[RoleSpec, ...] = SPECS) -> Problem:
    """The image domain's problem of a tiny teacher."""
    domain = find_domain("image")
    given = [f"domain.teacher=tiny:{name}", "recipe.name=dmd2", *overrides]
    return domain.build(load_config(None, given, domain=domain).domain, specs, 0, "cpu")


def write_prompts(folder: Path, *prompts: str) -> Path:
    """A file of prompts."""
    file = folder / "prompts.txt"
    file.write_text("\n".join(prompts), encoding="utf-8")
    return file


def test_prompts_alone_give_batches_without_pictures(tmp_path):
    file = write_prompts(tmp_path, "a red fox", "two boats", "a red fox")
    found = problem("domain.data.source=prompts", f"domain.data.path={file}")
    batch = found.data.batch(Rng.for_batch(0, 0, 4), "cpu")
    assert batch.x0 is None
    expected = teacher("sd").encode(["a red fox", "two boats"]).cond["prompt_embeds"]
    for row in batch.cond["prompt_embeds"]:
        assert any(torch.equal(row, one) for one in expected)
    with pytest.raises(UserError, match="needs clean samples"):
        batch.clean_samples("consistency")


def test_captioned_digits_are_latents_of_their_pictures():
    found = problem(*DIGITS)
    batch = found.data.batch(Rng.for_batch(0, 0, 3), "cpu")
    assert batch.x0 is not None
    assert batch.x0.shape == (3, 4, 8, 8)
    pictures, codec = digits(), teacher("sd").vae()
    for row, index in zip(batch.x0, epoch_indices(Rng.for_batch(0, 0, 3), len(pictures)), strict=True):
        picture = cover(fit_channels(pictures.get(index)[0], 3), 16, 16)
        assert_close(row, codec.encode(picture[None] * 2 - 1)[0])
    assert set(batch.cond) == {"prompt_embeds"}


def test_evaluation_conditions_are_the_classes_in_turn():
    found = problem(*DIGITS)
    cond = found.conditions(12, 0)
    assert cond["label"].tolist() == [*range(10), 0, 1]
    expected = teacher("sd").encode([f"the digit {i}" for i in range(10)]).cond["prompt_embeds"]
    assert_close(cond["prompt_embeds"][:10], expected)
    assert torch.equal(cond["prompt_embeds"][10], cond["prompt_embeds"][0])


def test_chosen_prompts_to_look_at(tmp_path):
    file = write_prompts(tmp_path, "one", "two")
    found = problem(*DIGITS, f"domain.eval_prompts={file}")
    assert_close(found.conditions(2, 0)["prompt_embeds"], teacher("sd").encode(["one", "two"]).cond["prompt_embeds"])
    assert "label" not in found.conditions(2, 0)


def test_prepared_data_is_the_same_data(tmp_path):
    file = write_prompts(tmp_path, "a red fox", "two boats", "three")
    prepare(teacher("sd"), read_prompts(file), tmp_path / "cache")
    plain = problem("domain.data.source=prompts", f"domain.data.path={file}")
    cached = problem("domain.data.source=prepared", f"domain.data.path={tmp_path / 'cache'}")
    for step in range(3):
        one, other = (each.data.batch(Rng.for_batch(0, step, 2), "cpu").cond for each in (plain, cached))
        assert torch.equal(one["prompt_embeds"], other["prompt_embeds"])
    student, same = (each.actors.denoiser("student").null(each.conditions(1, 0)) for each in (plain, cached))
    assert torch.equal(student["prompt_embeds"], same["prompt_embeds"])


@pytest.mark.slow
def test_text_encoders_are_gone_after_the_prompts_are_encoded():
    from transformers import CLIPTextModel

    def alive() -> int:
        gc.collect()
        return sum(type(each) is CLIPTextModel for each in gc.get_objects())

    before = alive()
    found = problem(*DIGITS)
    assert alive() == before
    assert found.from_text is not None
    assert_close(found.from_text(["a fox"])["prompt_embeds"], teacher("sd").encode(["a fox"]).cond["prompt_embeds"])
    assert alive() == before


def test_frozen_weights_are_kept_in_half_precision_and_those_that_train_are_not():
    lora = problem(*DIGITS, "domain.model.dtype=bf16", "domain.roles.mode=lora").actors
    view = lora.roles["student"].backbone
    assert isinstance(view, AdapterView)
    assert {p.dtype for p in view.parameters()} == {torch.float32}
    base = {p.dtype for n, p in view.network.named_parameters() if ".lora_" not in n}
    assert base == {torch.bfloat16}
    full = problem(*DIGITS, "domain.model.dtype=bf16").actors
    assert {p.dtype for p in full.module("student").parameters()} == {torch.float32}
    assert {p.dtype for p in full.module("teacher").parameters()} == {torch.bfloat16}
    x, t = torch.randn(2, 4, 8, 8), torch.full((2,), 500.0, dtype=torch.float64)
    cond = problem(*DIGITS).conditions(2, 0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for actors in (lora, full):
            assert_close(
                actors.denoiser("student").x0(x, t, cond), actors.denoiser("teacher").x0(x, t, cond), atol=0.05, rtol=0
            )


def test_an_offloaded_teacher_says_the_same():
    found = problem(*DIGITS, "domain.model.offload=[teacher, vae]")
    plain = problem(*DIGITS)
    x, t = torch.randn(2, 4, 8, 8), torch.full((2,), 500.0, dtype=torch.float64)
    cond = plain.conditions(2, 0)
    with torch.no_grad():
        assert torch.equal(
            found.actors.denoiser("teacher").x0(x, t, cond), plain.actors.denoiser("teacher").x0(x, t, cond)
        )
    with pytest.raises(UserError, match="leave 'teacher' out"):
        problem(*DIGITS, "domain.model.offload=[teacher]", "domain.roles.mode=lora")


def test_an_untrained_network_of_the_teachers_architecture():
    specs = (RoleSpec("student", init="fresh"),)
    one, again = (problem(*DIGITS, specs=specs).actors.module("student") for _ in range(2))
    taught = teacher("sd").folder.load("unet")
    for (name, a), b in zip(one.network.named_parameters(), again.network.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert any(not torch.equal(a, b) for a, b in zip(one.network.parameters(), taught.parameters(), strict=True))


def test_metrics_of_latents_are_those_of_their_pictures():
    found = problem(*DIGITS)
    cond = found.conditions(40, 0)
    latents = torch.randn(40, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    measured = found.evaluate(latents, cond)
    pixels = teacher("sd").vae().decode(latents)
    assert_close(measured["contrast"], float(pixels.std()), atol=1e-5, rtol=1e-4)
    assert {"frechet", "accuracy", "precision"} <= measured.keys()


def test_rows_are_drawn_as_pictures(tmp_path):
    found = problem(*DIGITS)
    file = found.render([("teacher", torch.zeros(2, 4, 8, 8)), ("student", torch.ones(2, 4, 8, 8))], tmp_path / "rows")
    assert read_image(file, 3).shape[0] == 3


def test_clip_similarity_is_the_cosine_of_the_models_embeddings(tmp_path):
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    from fewstep.core.models.tiny import CHARACTERS, clip_tokenizer, seeded

    words = 2 * len(CHARACTERS) + 2
    text = CLIPTextConfig(
        vocab_size=words, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, bos_token_id=words - 2, eos_token_id=words - 1, pad_token_id=words - 1,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    with seeded(0):
        config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
        model = CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    clip_tokenizer().save_pretrained(tmp_path)
    found = ClipScore(str(tmp_path))
    pixels = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    prompts = ["a fox", "two boats", "7"]
    mean, std = torch.tensor((0.48145466, 0.4578275, 0.40821073)), torch.tensor((0.26862954, 0.26130258, 0.27577711))
    unit = ((pixels + 1) / 2 - mean[:, None, None]) / std[:, None, None]
    tokens = clip_tokenizer()(prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        image = model.get_image_features(pixel_values=unit)
        words_of = model.get_text_features(**tokens)
    image, words_of = (getattr(each, "pooler_output", each) for each in (image, words_of))
    expected = 100 * torch.cosine_similarity(image, words_of).clamp_min(0).mean()
    assert_close(found.score(pixels, prompts), float(expected), atol=1e-3, rtol=1e-3)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}), encoding="utf-8")
    with pytest.raises(UserError, match=r"domain\.clip"):
        ClipScore(str(tmp_path))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("domain.data.source=folder", "domain.data.path=."), "has no captions"),
        (("domain.data.source=prompts",), r"domain\.data\.path is missing"),
        (("domain.data.source=prompts", "domain.data.path=/nowhere/prompts.txt"), "cannot be read"),
        ((*DIGITS[:1], "domain.data.caption=no class"), "where the class's name belongs"),
        ((*DIGITS, "domain.sample_set=4"), "sample_set"),
        ((*DIGITS, "domain.model.height=18", "domain.model.width=18"), "multiples of"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(overrides, message):
    with pytest.raises(UserError, match=message) as error:
        problem(*overrides)
    assert "\n" not in str(error.value)


def test_sources_of_text_say_nothing_to_a_teacher_without_text(tmp_path):
    file = write_prompts(tmp_path, "a fox")
    with pytest.raises(UserError, match="text-to-image teachers"):
        problem("domain.teacher=digits", "domain.data.source=prompts", f"domain.data.path={file}")


def test_a_guidance_scale_told_to_the_model_is_the_pipelines():
    found = problem(*DIGITS, "domain.model.guidance=3.5", name="flux").actors.denoiser("teacher")
    assert isinstance(found, NetworkDenoiser)
    x = torch.randn(1, *Teacher.find("tiny:flux").shape)
    t, cond = torch.full((1,), 0.5, dtype=torch.float64), problem(*DIGITS, name="flux").conditions(1, 0)
    with torch.no_grad():
        told = found.predict(x, t, dict(cond) | {"guidance": torch.tensor([3.5])}).value
        other = found.predict(x, t, dict(cond) | {"guidance": torch.tensor([1.0])}).value
        assert torch.equal(found.predict(x, t, cond).value, told)
    assert not torch.equal(told, other)
