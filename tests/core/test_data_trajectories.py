"""Key states of the teacher's trajectories on the disk: its own steps, the same bits after a stop, read as they are."""

from __future__ import annotations

import json

import pytest
import torch
from core.model_bed import teacher
from torch.testing import assert_close

from fewstep.core.cli.main import main
from fewstep.core.data import synthetic
from fewstep.core.data.cache import read_index
from fewstep.core.data.prepare import prepare
from fewstep.core.data.prepared import Prepared, fingerprint, key_times_at
from fewstep.core.data.source import TextSource
from fewstep.core.data.synthetic import Sampling
from fewstep.core.errors import UserError
from fewstep.core.grids import time_grid
from fewstep.core.guidance import Guided
from fewstep.core.process import times
from fewstep.core.recipe import STATES, TIMES, Actors
from fewstep.core.recipes.accvideo import AccVideo, AccVideoConfig
from fewstep.core.rng import Rng
from fewstep.core.sampling import initial_state
from fewstep.core.steps import ddim_step, first_order_step, level

PROMPTS = ["a red fox", "two boats", "a red fox"]
HOW = Sampling(steps=4, guidance_scale=3.0, seed=5, keys=2)


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    """Trajectories of a tiny video pipeline."""
    out = tmp_path_factory.mktemp("data") / "wan"
    cost = prepare(teacher("wan"), PROMPTS, out, sampling=HOW, batch=2, samples_per_shard=2)
    return out, cost


def test_states_are_those_of_the_teachers_steps_and_the_clean_one_is_its_sample(wan, tmp_path):
    found = teacher("wan")
    stored, texts = Prepared(wan[0], found), found.encode(PROMPTS)
    guided = Guided(found.denoiser(texts.null), HOW.guidance_scale)
    process, grid = guided.process, time_grid(guided.process, HOW.steps)
    x = initial_state(process, Rng(HOW.seed, 0, (0, 1, 2), "synthetic").normal("noise", found.shape), grid[0])
    expected = [x]
    with torch.no_grad():
        for i, now in enumerate(grid):
            clean = guided.clean(x, times(now, 3), texts.cond)
            last = i + 1 == len(grid)
            x = (
                first_order_step(clean, level(process, None, x))
                if last
                else ddim_step(clean, times(grid[i + 1], 3), process)
            )
            expected.append(x)
    states = stored.trajectories([0, 1, 2])
    assert_close(states, torch.stack(expected, 1)[:, ::2].float(), atol=1e-5, rtol=1e-4)
    prepare(found, PROMPTS, tmp_path / "clean", sampling=Sampling(4, 3.0, 5), batch=2, samples_per_shard=2)
    clean = Prepared(tmp_path / "clean", found)
    assert torch.equal(clean.latents([0, 1, 2])[1], states[:, -1])
    assert torch.equal(stored.latents([2, 0])[1], states[[2, 0], -1])
    with pytest.raises(UserError, match="clean latents only: prepare it with --keys"):
        clean.trajectories([0])


def test_the_index_says_how_they_were_made(wan):
    found = teacher("wan")
    grid = time_grid(found.reading()[0], 4)
    said = json.loads((wan[0] / "index.json").read_text())["origin"]["sampled"]
    assert said == {
        "solver": "ddim",
        "grid": list(grid),
        "keys": [0, 2, 4],
        "guidance_scale": 3.0,
        "seed": 5,
        "network": fingerprint(found.folder, [found.family.network]),
    }
    assert Prepared(wan[0]).key_times == grid[::2]


def test_data_without_trajectories_says_nothing_of_them(tmp_path):
    prepare(teacher("sd"), PROMPTS, tmp_path / "out", sampling=Sampling(1))
    assert "sampled" not in json.loads((tmp_path / "out" / "index.json").read_text())["origin"]
    assert str(Sampling(1)) == "Sampling(steps=1, guidance_scale=1.0, seed=0)", "a begun folder is known by this"
    batch = TextSource(*[Prepared(tmp_path / "out")] * 2).batch(Rng.for_batch(0, 0, 2), "cpu")
    assert not {STATES, TIMES} & batch.cond.keys()


def test_a_stopped_preparation_goes_on_to_the_same_bits(wan, tmp_path, monkeypatch):
    found, halves, drawn = teacher("wan"), tmp_path / "halves", synthetic.teacher_trajectory

    def breaks(*args, **kwargs):
        if 2 in args[3].ids:
            raise KeyboardInterrupt
        return drawn(*args, **kwargs)

    monkeypatch.setattr(synthetic, "teacher_trajectory", breaks)
    with pytest.raises(KeyboardInterrupt):
        prepare(found, PROMPTS, halves, sampling=HOW, samples_per_shard=2, batch=2)
    monkeypatch.setattr(synthetic, "teacher_trajectory", drawn)
    for other in (Sampling(4, 3.0, 5, keys=4), Sampling(4, 3.0, 5), Sampling(4, 2.0, 5, keys=2)):
        with pytest.raises(UserError, match="holds data prepared for"):
            prepare(found, PROMPTS, halves, sampling=other, samples_per_shard=2, batch=2)
    prepare(found, PROMPTS, halves, sampling=HOW, samples_per_shard=2, batch=2)
    assert files(halves) == files(wan[0])
    monkeypatch.setattr(synthetic, "teacher_trajectory", None)  # nothing is sampled again
    prepare(found, PROMPTS, halves, sampling=HOW, samples_per_shard=2, batch=2)
    assert files(halves) == files(wan[0])


def test_a_dry_run_says_what_it_takes(wan, tmp_path):
    found = teacher("wan")
    dry = prepare(found, PROMPTS, tmp_path / "out", sampling=HOW, samples_per_shard=2, dry_run=True)
    assert not (tmp_path / "out").exists()
    assert dry.evaluations == wan[1].evaluations == 3 * 4 * 2
    assert abs(dry.bytes - wan[1].bytes) < 0.25 * wan[1].bytes
    assert "3 trajectories of 3 states" in str(dry)
    assert "24 evaluations of the network" in str(dry)
    clean = prepare(found, PROMPTS, tmp_path / "out", sampling=Sampling(4, 3.0), dry_run=True)
    numbers = 3 * torch.Size(found.shape).numel() * 4
    more = prepare(found, PROMPTS, tmp_path / "out", sampling=HOW, dry_run=True).bytes - clean.bytes
    assert more == 2 * numbers


def test_batches_bring_trajectories_that_the_recipe_takes(wan):
    stored = Prepared(wan[0], teacher("wan"))
    rng = Rng.for_batch(0, 0, 2)
    batch = TextSource(stored, stored).batch(rng, "cpu")
    assert batch.x0 is not None
    assert torch.equal(batch.cond[STATES][:, -1], batch.x0)
    denoiser = teacher("wan").denoiser(stored.null)
    config = AccVideoConfig(student_steps=2, segment_steps=0, adversarial_weight=0.0)
    recipe = AccVideo(
        config, Actors({"student": denoiser, "teacher": denoiser}, denoiser.process, teacher("wan").shape)
    )
    assert recipe.grid == pytest.approx(stored.key_times)
    value = recipe.loss("student", batch, rng, 1).total()
    assert value.shape == (2,)
    assert bool(value.isfinite().all())
    assert key_times_at(wan[0]) == stored.key_times
    assert key_times_at(wan[0].parent) == ()


def test_a_teacher_with_other_weights_is_told_the_trajectories_are_not_its_own(wan, monkeypatch):
    from fewstep.core.data import prepared

    own = prepared.fingerprint
    network = teacher("wan").family.network
    monkeypatch.setattr(prepared, "fingerprint", lambda f, parts: "other" if parts == [network] else own(f, parts))
    with pytest.raises(UserError, match=f"trajectories of another {network} than this teacher's"):
        Prepared(wan[0], teacher("wan"))
    Prepared(wan[0])


@pytest.mark.parametrize(
    "sampled",
    [
        {},
        {"keys": [0, 2, 5]},
        {"keys": [2, 0, 4]},
        {"keys": [4]},
        {"keys": [-1, 4]},
        {"grid": "long"},
        {"network": None, "solver": None, "seed": "x"},
    ],
)
def test_a_strange_index_is_one_line(sampled, wan, tmp_path):
    index = json.loads((wan[0] / "index.json").read_text())
    index["origin"]["sampled"] = index["origin"]["sampled"] | sampled if sampled else {"keys": []}
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="not the index of prepared data") as caught:
        read_index(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--keys", "2"], "--keys belongs to --sample-steps"),
        (
            ["--sample-steps", "5", "--keys", "2"],
            "2 key states need a number of steps that is a multiple of them, got 5",
        ),
        (["--sample-steps", "4", "--keys", "0"], "not a whole number of at least 1"),
    ],
)
def test_mistakes_are_one_line(options, message, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox\n", encoding="utf-8")
    given = [
        "image",
        "prepare",
        "--teacher",
        "tiny:sd",
        "--data",
        str(prompts),
        "--out",
        str(tmp_path / "out"),
        *options,
    ]
    assert main(given) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_distilled_guidance_is_what_the_index_says(tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox\n", encoding="utf-8")
    given = [
        "--data",
        str(prompts),
        "--sample-steps",
        "2",
        "--keys",
        "1",
        "--guidance-scale",
        "5",
        "--out",
        str(tmp_path / "o"),
    ]
    assert main(["image", "prepare", "--teacher", "tiny:flux", *given]) == 0
    assert "1 trajectories of 2 states" in capsys.readouterr().out
    sampled = read_index(tmp_path / "o").origin.sampled
    assert sampled is not None
    assert (sampled.guidance_scale, sampled.keys) == (5.0, (0, 2))
