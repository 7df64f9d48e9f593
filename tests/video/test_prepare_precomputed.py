"""Latents and embeddings made elsewhere become prepared data as if they had been made here."""

from __future__ import annotations

import json

import pytest
import torch
from core.model_bed import teacher
from safetensors.torch import save_file

from fewstep.core.cli.main import main
from fewstep.core.data.prepared import Prepared
from fewstep.core.rng import Rng

CAPTIONS = ["a bar", "a boat", "a bar"]
SHAPE = teacher("wan").shape


def values():
    return Rng(0, 0, (0, 1, 2)).normal("latents", SHAPE)


def make(root, captions=CAPTIONS):
    """Three samples, two captions."""
    root.mkdir()
    cond = teacher("wan").encode(captions).cond["prompt_embeds"]
    rows = []
    for number, (latent, embeds, caption) in enumerate(zip(values(), cond, captions, strict=True)):
        file = f"{number}.safetensors"
        save_file({"latents": latent.clone(), "prompt_embeds": embeds.clone(), "more": torch.zeros(2)}, root / file)
        rows.append({"file": file, "caption": caption})
    (root / "latents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def prepare(data, out, *options):
    given = ["--teacher", "tiny:wan", "--data", data, "--out", out, "--device", "cpu", *options]
    return main(["video", "prepare", *map(str, given)])


def test_they_are_taken_as_they_are_and_belong_to_the_teacher(tmp_path, capsys):
    data = make(tmp_path / "data")
    assert prepare(data, tmp_path / "out", "--dry-run") == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'out'}: 3 latents, 2 different captions: ")
    assert not (tmp_path / "out").exists()
    assert prepare(data, tmp_path / "out", "--samples-per-shard", 2) == 0
    found = Prepared(tmp_path / "out", teacher("wan"))
    found.verify()
    assert found.captions == ["a bar", "a boat"]
    assert found.rows == [0, 1, 0]
    assert torch.equal(found.latents([2, 0, 1])[1], values()[[2, 0, 1]])
    fresh = teacher("wan").encode(CAPTIONS)
    assert torch.equal(found.conditions([0, 1])["prompt_embeds"], fresh.cond["prompt_embeds"][:2])
    assert torch.equal(found.null["prompt_embeds"], fresh.null["prompt_embeds"])


def test_it_goes_on_where_it_was_and_takes_a_given_unconditional_prompt(tmp_path):
    data, out = make(tmp_path / "data"), tmp_path / "out"
    null = torch.full(teacher("wan").encode(["x"]).cond["prompt_embeds"].shape[1:], 0.5)
    save_file({"prompt_embeds": null}, data / "null.safetensors")
    assert prepare(data / "latents.jsonl", out, "--samples-per-shard", 2) == 0
    assert torch.equal(Prepared(out).null["prompt_embeds"][0], null)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "latents-00001.safetensors").unlink()
    assert prepare(data, out, "--samples-per-shard", 2) == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.safetensors": b"\xff" * 64}, "0.safetensors: cannot be read as safetensors"),
        ({"latents.jsonl": b'{"file": "5.safetensors", "caption": "x"}'}, "row 1: no file"),
        ({"latents.jsonl": b'{"file": "../x", "caption": "x"}'}, "leads out of"),
        ({"latents.jsonl": b'{"caption": "x"}'}, "line 1: no column"),
        ({"latents.jsonl": b""}, "no row in it"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, capsys, change, message):
    data = make(tmp_path / "data")
    for name, content in change.items():
        (data / name).write_bytes(content)
    assert prepare(data, tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_tensors_of_another_teacher_or_size_are_refused(tmp_path, capsys):
    data = make(tmp_path / "data")
    assert prepare(data, tmp_path / "out", "--size", "16x16x5") == 2
    assert "'latents' is (4, 3, 4, 4), and this teacher's are (4, 2, 4, 4): give its --size" in capsys.readouterr().err
    assert prepare(data, tmp_path / "out", "--fps", 8) == 2
    assert "--fps: " in capsys.readouterr().err
    save_file({"latents": values()[0].clone()}, data / "0.safetensors")
    assert prepare(data, tmp_path / "out") == 2
    assert "0.safetensors: no 'prompt_embeds' in it, only latents" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
