"""Prepared data: the same bits whether killed or not, read in any order, refused where it does not belong."""

from __future__ import annotations

import io
import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from core.caption_bed import caption, make_folder, png
from core.model_bed import teacher
from safetensors.torch import load_file, save_file

from fewstep.core.cli.main import main
from fewstep.core.data import cache
from fewstep.core.data.cache import CacheWriter, read_index
from fewstep.core.data.captioned import open_captioned
from fewstep.core.data.prepare import prepare
from fewstep.core.data.prepared import Prepared, is_prepared
from fewstep.core.data.source import EncodedPictures, encode_texts
from fewstep.core.errors import TrainingError, UserError
from fewstep.core.image.preparing import Count
from fewstep.core.models.family import Size
from fewstep.core.rng import Rng

PROMPTS = [f"prompt {i}" for i in range(7)] + ["prompt 2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return open_captioned(make_folder(tmp_path_factory.mktemp("pictures"), 7))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, data):
    """Seven pictures, three captions, two of either in a shard."""
    out = tmp_path_factory.mktemp("prepared") / "out"
    prepare(teacher("sd"), data, out, samples_per_shard=2, batch=1)
    return out


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def copy(folder, to):
    to.mkdir()
    for name, content in files(folder).items():
        (to / name).write_bytes(content)
    return to


def test_what_is_prepared_is_what_the_teacher_makes_of_it(folder, data):
    found = Prepared(folder, teacher("sd"))
    found.verify()
    assert is_prepared(folder)
    assert not is_prepared(folder.parent)
    fresh = encode_texts(teacher("sd"), [data.caption(i) for i in range(7)])
    assert found.captions == fresh.captions == ["picture 0", "picture 1", "picture 2"]
    assert found.rows == fresh.rows == [0, 1, 2, 0, 1, 2, 0]
    assert torch.equal(found.null["prompt_embeds"], fresh.null["prompt_embeds"])
    # a text encoder may round otherwise in another batch, so the shards of two are compared closely and not bit for bit
    torch.testing.assert_close(found.conditions([2, 0])["prompt_embeds"], fresh.conditions([2, 0])["prompt_embeds"])
    samples, latents = found.latents(range(7))
    assert samples == list(range(7))
    assert latents.shape[1:] == teacher("sd").shape
    assert float(latents.std()) > 1e-3
    centre = _Centre(0, 0, tuple(range(7)))
    assert torch.equal(
        EncodedPictures(data, teacher("sd").vae().encode, teacher("sd").size).latents(range(7), centre)[1], latents
    )


class _Centre(Rng):
    """Crops in the middle."""

    def uniform(self, stream, shape=()):
        return torch.full((len(self.ids), *shape), 0.5, dtype=torch.float64)


def test_any_order_reads_what_the_whole_reads(folder):
    found = Prepared(folder)
    _, whole = found.latents(range(7))
    cond = found.conditions(range(3))["prompt_embeds"]
    for order in ([6, 0, 3, 3, 1], [5], [2, 4, 6, 1, 0]):
        samples, latents = found.latents(order)
        assert samples == order
        assert torch.equal(latents, whole[order])
        rows = [found.rows[sample] for sample in order]
        assert torch.equal(found.conditions(rows)["prompt_embeds"], cond[rows])


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_killed_preparation_goes_on_and_ends_with_the_same_bytes(tmp_path, monkeypatch, folder, data, where):
    """Killed at every shard in turn: before it is written, and after it is but before the index says so."""
    whole, noted = CacheWriter.write, CacheWriter._note
    state = {"left": 0, "seen": 0, "writing": False}

    def write(self, kind, name, tensors, refused=None):
        state["writing"] = True
        if where == "before" and state["seen"] == state["left"]:
            raise KeyboardInterrupt
        whole(self, kind, name, tensors, refused)
        state["writing"] = False
        state["seen"] += 1

    def note(self, *names):
        if where == "after" and state["writing"] and state["seen"] == state["left"]:
            raise KeyboardInterrupt
        noted(self, *names)

    monkeypatch.setattr(CacheWriter, "write", write)
    monkeypatch.setattr(CacheWriter, "_note", note)
    deaths, out = 0, tmp_path / "out"
    while True:
        try:
            prepare(teacher("sd"), data, out, samples_per_shard=2, batch=1)
            break
        except KeyboardInterrupt:
            deaths += 1
            assert not read_index(out).complete
            with pytest.raises(UserError, match="not complete; run the same"):
                Prepared(out)
            state |= {"left": 1, "seen": 0, "writing": False}  # every life writes one shard
    assert deaths >= 5  # two shards of captions and four of latents
    assert files(out) == files(folder)


def test_a_finished_folder_is_left_alone_and_a_lost_shard_made_again(tmp_path, folder, data):
    out = copy(folder, tmp_path / "out")
    before = {path: os.stat(path).st_mtime_ns for path in out.iterdir()}
    prepare(teacher("sd"), data, out, samples_per_shard=2, batch=1)
    assert {path: os.stat(path).st_mtime_ns for path in out.iterdir()} == before
    (out / "latents-00001.safetensors").unlink()
    (out / "text-00001.safetensors").write_bytes(b"short")
    prepare(teacher("sd"), data, out, samples_per_shard=2, batch=1)
    assert files(out) == files(folder)


def test_damaged_pictures_leave_no_sample_and_pairs_stay_together(tmp_path, folder):
    root = make_folder(tmp_path / "data", 7)
    for number in (2, 3, 6):  # a whole shard, and the only one of another
        (root / f"{number}.png").write_bytes(png(number)[:60])
    out = tmp_path / "out"
    prepare(teacher("sd"), open_captioned(root, max_bad_share=0.5), out, samples_per_shard=2, batch=1)
    found, whole = Prepared(out), Prepared(folder)
    assert [found.captions[row] for row in found.rows] == [caption(i) for i in (0, 1, 4, 5)]
    assert torch.equal(found.latents(range(4))[1], whole.latents([0, 1, 4, 5])[1])
    with pytest.raises(TrainingError, match=r"3 of 7 images cannot be read"):
        prepare(teacher("sd"), open_captioned(root, max_bad_share=0.4), tmp_path / "other")


def test_prompts_alone_are_prepared_without_latents(tmp_path):
    cost = prepare(teacher("sd"), PROMPTS, tmp_path / "out", samples_per_shard=16)
    found = Prepared(tmp_path / "out", teacher("sd"))
    fresh = encode_texts(teacher("sd"), PROMPTS)
    assert (len(found), cost.samples, cost.texts) == (8, 8, 7)
    assert found.rows == fresh.rows == [0, 1, 2, 3, 4, 5, 6, 2]
    assert torch.equal(found.conditions(found.rows)["prompt_embeds"], fresh.conditions(fresh.rows)["prompt_embeds"])
    assert not found.has_latents
    with pytest.raises(UserError, match="without pictures"):
        found.latents([0])


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_what_is_kept_has_the_chosen_dtype(tmp_path, data, dtype, folder):
    prepare(teacher("sd"), data, tmp_path / "out", dtype=dtype)
    found = Prepared(tmp_path / "out", teacher("sd"))
    kept = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    assert found.conditions([0])["prompt_embeds"].dtype == kept
    assert found.index.tensors["latents"]["latents"] == (str(kept).removeprefix("torch."), teacher("sd").shape)
    torch.testing.assert_close(found.latents([3])[1], Prepared(folder).latents([3])[1], atol=0.05, rtol=0.05)


def test_a_shard_of_another_length_or_kind_is_refused(tmp_path, folder):
    index = read_index(folder)
    writer = CacheWriter(tmp_path / "out", index.origin, ["a", "b", "c"], [0, 1, 2, 0], 2)
    name = "text-00000.safetensors"
    for rows in (1, 3):
        with pytest.raises(TrainingError, match=rf"\[{rows}\] rows for 2 of text"):
            writer.write("text", name, {"c": torch.zeros(rows, 4)})
    writer.write("text", name, {"c": torch.zeros(2, 4)})
    with pytest.raises(TrainingError, match="unlike the other shards"):
        writer.write("text", "text-00001.safetensors", {"c": torch.zeros(1, 5)})
    with pytest.raises(TrainingError, match="3 shards are not written yet"):
        writer.finish()


def test_numbers_that_are_not_finite_are_never_kept(tmp_path, data, monkeypatch):
    def overflow(self, vae, pixels):
        return torch.full((len(pixels), *teacher("sd").shape), torch.inf)

    monkeypatch.setattr(type(teacher("sd").family), "to_latents", overflow)
    with pytest.raises(TrainingError, match=r"latents-00000.*not finite: encode in fp32 or bf16"):
        prepare(teacher("sd"), data, tmp_path / "out")


# what does not belong


def test_another_teacher_size_or_negative_prompt_is_refused(tmp_path, folder, data):
    found = teacher("sd")
    large = replace(found, size=Size(32, 16))
    with pytest.raises(UserError, match=r"'tiny:sd' at 16x16, not for the sd teacher 'tiny:sd' at 32x16: prepare") as e:
        Prepared(folder, large)
    assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="not for the sd teacher 'tiny:sd' at 16x16 with the negative prompt 'blurry'"):
        Prepared(folder, replace(found, negative="blurry"))
    with pytest.raises(UserError, match=r"holds data prepared for sd teacher 'tiny:sd' at 16x16: give another --out"):
        prepare(large, data, folder, samples_per_shard=2)
    with pytest.raises(UserError, match="begun with 2 samples per shard"):
        prepare(found, data, folder, samples_per_shard=3)
    with pytest.raises(UserError, match="other data or dtype"):
        prepare(found, data, folder, samples_per_shard=2, dtype="bf16")


def tuned(path, part):
    """A copy of the tiny pipeline, one component a little different."""

    shutil.copytree(teacher("sd").folder.path, path)
    file = next((path / part).glob("*.safetensors"))
    weights = load_file(file)
    for value in weights.values():
        value.mul_(1.01)
    save_file(weights, file, {"format": "pt"})
    return replace(teacher("sd"), folder=type(teacher("sd").folder).open(path))


def test_fine_tuned_encoders_are_another_teacher_and_networks_are_not(tmp_path, folder):
    Prepared(folder, tuned(tmp_path / "unet", "unet"))
    for part in ("vae", "text_encoder"):
        with pytest.raises(UserError, match="not for the sd teacher"):
            Prepared(folder, tuned(tmp_path / part, part))


@pytest.mark.parametrize("name", ["latents-00001.safetensors", "text-00000.safetensors", "captions.jsonl"])
def test_damage_is_noticed(tmp_path, folder, name):
    out = copy(folder, tmp_path / "out")
    content = (out / name).read_bytes()
    (out / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=f"{name}: (damaged, its SHA-256 differs|cannot be read)"):
        Prepared(out).verify()
    (out / name).write_bytes(content[:-5])
    with pytest.raises(UserError, match=f"{name}: truncated or changed"):
        Prepared(out)
    (out / name).unlink()
    with pytest.raises(UserError, match=f"{name}: missing"):
        Prepared(out)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"samples": 2**50},
        {"samples": -1},
        {"texts": "many"},
        {"per_shard": 0},
        {"origin": {}},
        {"tensors": {"text": {"prompt_embeds": ["dtype", [1]]}}},
        {"files": {}},
        {"counts": None},
    ],
)
def test_an_index_that_makes_no_sense_is_refused(tmp_path, folder, change):
    out = copy(folder, tmp_path / "out")
    (out / "index.json").write_text(json.dumps(json.loads((out / "index.json").read_text()) | change))
    with pytest.raises(UserError, match=r"index\.json: (not the index|format 2)") as caught:
        Prepared(out)
    assert "\n" not in str(caught.value)
    (out / "index.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="not the index"):
        Prepared(out)


def test_a_folder_with_something_else_is_not_touched(tmp_path, data):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"holds something else \(thesis\.tex\)"):
        prepare(teacher("sd"), data, tmp_path)
    with pytest.raises(UserError, match="is a file"):
        prepare(teacher("sd"), data, tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_full_disk_is_said_in_one_line(tmp_path, data, monkeypatch):
    def full(path, tensors):
        if "latents" in path.name:
            raise OSError(28, "No space left on device")
        whole(path, tensors)

    whole = cache.write_tensors
    monkeypatch.setattr(cache, "write_tensors", full)
    with pytest.raises(TrainingError, match="the disk is full; run it again"):
        prepare(teacher("sd"), data, tmp_path / "out")
    monkeypatch.setattr(cache, "write_tensors", whole)
    prepare(teacher("sd"), data, tmp_path / "out")
    Prepared(tmp_path / "out").verify()


# the command


def command(*arguments):
    return main(["image", "prepare", "--teacher", "tiny:sd", *map(str, arguments)])


def test_the_command_prepares_and_says_what_it_takes(tmp_path, capsys):
    root, out = make_folder(tmp_path / "data", 7), tmp_path / "out"
    given = ("--data", root, "--out", out, "--samples-per-shard", 2, "--device", "cpu", "--size", "16x32")
    assert command(*given, "--dry-run") == 0
    said = capsys.readouterr()
    assert "7 pictures, 3 different captions" in said.out
    assert not out.exists()
    assert command(*given) == 0
    said = capsys.readouterr()
    assert "pictures: 7/7" in said.err
    assert said.out.startswith(f"{out}: 7 pictures, 3 different captions: ")
    assert Prepared(out).latents([0])[1].shape == (1, 4, 8, 16)


def test_the_dry_run_is_about_right(tmp_path, data):
    large = [f"{prompt} {'x' * 50}" for prompt in PROMPTS]
    for what in (data, large):
        guessed = prepare(teacher("sd"), what, tmp_path / "none", dry_run=True).bytes
        taken = prepare(teacher("sd"), what, tmp_path / str(type(what).__name__)).bytes
        assert taken / 2 < guessed < 2 * taken + 2**14


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--data", "absent"), "this is not there"),
        (("--data", "a.txt", "--size", "16"), "--size: a.txt has no pictures"),
        (("--data", "a.txt", "--column", "text"), "no column 'text'"),
        (("--data", "a.txt", "--device", "abacus"), "--device abacus"),
        (("--data", "a.txt", "--size", "big"), "'big' is not a size"),
        (("--data", "a.txt", "--max-bad-share", "2"), "is not a share"),
        (("--data", "data", "--size", "17"), "takes multiples of 4"),
    ],
)
def test_mistakes_end_the_command_with_one_line(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a fox")
    make_folder(tmp_path / "data", 1)
    try:
        code = command(*arguments)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "prepared").exists()


def test_progress_is_a_line_where_no_person_looks():
    stream = io.StringIO()
    count = Count(stream)
    for done in range(1, 101):
        count("captions", done, 100)
    count("pictures", 5, 5)
    count.close()
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("captions: 1/100")
    assert lines[-2].startswith("captions: 100/100")
    assert lines[-1].startswith("pictures: 5/5")
    assert len(lines) < 10
