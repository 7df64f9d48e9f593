"""Prepared targets: the teacher's samples of what is stored, whole however they were made, refused when not theirs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from fewstep.core.denoiser import NetworkDenoiser, Plain
from fewstep.core.domain import DataSource
from fewstep.core.errors import TrainingError, UserError
from fewstep.core.networks.reference import MLPBackbone
from fewstep.core.prediction import Kind
from fewstep.core.process import ResidualShift
from fewstep.core.recipe import Actors, Batch
from fewstep.core.rng import Rng
from fewstep.restoration.recipes.rollout import TeacherConfig, rollout, start_at_noise
from fewstep.restoration.recipes.tad_sr import TADSR, TADSRConfig
from fewstep.restoration.targets import Preparation, TargetSource, prepare_targets, read_index

SHAPE = (2, 3)
HOW = Preparation(samples=10, batch=4, per_shard=4, teacher=TeacherConfig(teacher_steps=3))


class Pairs:
    """Clean samples and anchors, each a function of its id."""

    def __init__(self, scale=1.0):
        self.scale, self.asked = scale, []

    def __len__(self):
        return 5

    def batch(self, rng, device):
        self.asked.append(rng.ids)
        x0 = self.scale * rng.normal("x0", SHAPE)
        cond = {"anchor": x0 + 0.1 * rng.normal("y", SHAPE), "label": torch.tensor(rng.ids)}
        return Batch(len(rng.ids), cond, x0, device)


def teacher_of(process=None, seed=0):
    net = MLPBackbone(6, width=8, depth=1, concat=("anchor",), concat_dim=6, seed=seed)
    return NetworkDenoiser(net, process or ResidualShift(), Plain(Kind.X0))


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("targets") / "set"
    prepare_targets(teacher_of(), Pairs(), folder, HOW)
    return folder


def everything(source):
    rng = Rng(3, 0, tuple(range(len(source))), "data", batch=len(source))
    batch = source.batch(rng, "cpu")
    order = batch.cond["label"].argsort()
    return Batch(batch.size, {name: value[order] for name, value in batch.cond.items()}, batch.x0[order])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_targets_are_the_teacher_s_samples_of_what_is_stored(dtype, tmp_path):
    teacher = teacher_of()
    prepare_targets(teacher, Pairs(), tmp_path / "set", replace(HOW, dtype=dtype))
    batch = everything(TargetSource(tmp_path / "set", teacher))
    actors = Actors({}, teacher.process, SHAPE)
    start = start_at_noise(actors, batch, Rng.for_batch(99, 0, 10))
    wanted = rollout(teacher, start, 3, Rng.for_batch(99, 0, 10))
    precision = {"float16": 1e-3, "float32": 1e-6}[dtype]  # of storing the result; its inputs are those stored
    assert_close(batch.cond["target"], wanted, atol=precision, rtol=precision)
    assert batch.x0.dtype == batch.cond["target"].dtype == batch.cond["noise"].dtype == torch.float32
    assert batch.cond["label"].tolist() == list(range(10))
    assert len({tuple(row.flatten().tolist()) for row in batch.x0}) == 10


def test_the_recipe_sees_the_same_loss_as_with_the_teacher_at_hand(made):
    teacher, student = teacher_of(), teacher_of(seed=1)
    batch = everything(TargetSource(made))
    losses = []
    for target, drop in (("prepared", ()), ("deterministic", ("target",))):
        config = TADSRConfig(target=target, teacher_steps=3, gan_weight=0.0)
        recipe = TADSR(config, Actors({"student": student, "teacher": teacher}, teacher.process, SHAPE))
        cond = {name: value for name, value in batch.cond.items() if name not in drop}
        found = recipe.loss("student", Batch(10, cond, batch.x0), Rng.for_batch(0, 0, 10), 0)
        losses.append(found.terms["mse"])
    assert_close(losses[0], losses[1], atol=1e-3, rtol=1e-3)


def test_shards_do_not_depend_on_the_batch_nor_on_interruptions(made, tmp_path):
    prepare_targets(teacher_of(), Pairs(), tmp_path / "ones", replace(HOW, batch=3))
    one, other = (everything(TargetSource(folder)) for folder in (made, tmp_path / "ones"))
    assert torch.equal(one.x0, other.x0)
    assert torch.equal(one.cond["noise"], other.cond["noise"])
    assert_close(one.cond["target"], other.cond["target"], atol=2e-3, rtol=2e-3)

    class Stops(Pairs):
        def batch(self, rng, device):
            if rng.ids[0] >= 8:
                raise KeyboardInterrupt
            return super().batch(rng, device)

    folder, later = tmp_path / "begun", Pairs()
    with pytest.raises(KeyboardInterrupt):
        prepare_targets(teacher_of(), Stops(), folder, HOW)
    with pytest.raises(UserError, match="1 shards are missing"):
        TargetSource(folder)
    seen = []
    prepare_targets(teacher_of(), later, folder, HOW, progress=lambda done, total: seen.append((done, total)))
    assert later.asked == [(8, 9)]
    assert seen == [(10, 10)]
    assert content(folder) == content(made)
    prepare_targets(teacher_of(), later, folder, HOW)
    assert later.asked == [(8, 9)], "nothing left to do"


def test_batches_are_epochs_and_a_function_of_the_step(made):
    source = TargetSource(made, teacher_of())
    assert isinstance(source, DataSource)
    assert len(source) == 10
    assert "10 prepared targets (deterministic, 3 steps)" in source.about()
    seen = []
    for step in range(5):
        rng = Rng(0, step, (0, 1, 2, 3), "data", batch=4)
        batch = source.batch(rng, "cpu")
        again = source.batch(rng.select(1, 3), "cpu")
        assert torch.equal(batch.cond["target"][1:3], again.cond["target"])
        seen += batch.cond["label"].tolist()
    assert sorted(seen) == sorted(2 * list(range(10)))
    source.verify()


def test_another_teacher_schedule_or_sampler_is_named(made, tmp_path):
    with pytest.raises(UserError, match="another teacher"):
        TargetSource(made, teacher_of(seed=1))
    with pytest.raises(UserError, match="another noise schedule"):
        TargetSource(made, teacher_of(ResidualShift(num_steps=4, min_noise=0.2)))
    for other in (replace(HOW, seed=1), replace(HOW, samples=11), replace(HOW, teacher=TeacherConfig(teacher_steps=2))):
        with pytest.raises(UserError, match="holds other targets"):
            prepare_targets(teacher_of(), Pairs(), made, other)
    (tmp_path / "note").write_text("mine")
    with pytest.raises(UserError, match="something else"):
        prepare_targets(teacher_of(), Pairs(), tmp_path, HOW)
    with pytest.raises(UserError, match="not made by sampling"):
        prepare_targets(teacher_of(), Pairs(), tmp_path / "x", replace(HOW, teacher=TeacherConfig(target="data")))
    with pytest.raises(TrainingError, match="not finite"):
        prepare_targets(teacher_of(), Pairs(scale=1e6), tmp_path / "large", HOW)


def damaged(folder, change):
    found = json.loads((folder / "index.json").read_text())
    change(found)
    (folder / "index.json").write_text(json.dumps(found))


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f.update(samples=2**60),
        lambda f: f.update(per_shard=0),
        lambda f: f.update(format=9),
        lambda f: f.update(samples="many"),
        lambda f: f["origin"].update(dtype="float8"),
        lambda f: f["origin"].update(guidance_scale="1"),
        lambda f: f["origin"].pop("teacher"),
        lambda f: f["files"].update({"../../elsewhere": [1, "0"]}),
        lambda f: f.pop("files"),
    ],
)
def test_a_damaged_index_is_a_user_error(change, made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "set")
    damaged(folder, change)
    with pytest.raises(UserError, match=r"index\.json"):
        read_index(folder)


def test_damaged_shards_are_user_errors(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "set")
    shard = folder / "targets-00001.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(UserError, match="copy the folder again"):
        TargetSource(folder)
    shard.write_bytes(b"\xff" * 16 + whole[16:])
    with pytest.raises(UserError, match="SHA-256"):
        TargetSource(folder).verify()
    with pytest.raises(UserError, match="cannot be read"):
        everything(TargetSource(folder))
    with pytest.raises(UserError, match=r"no index\.json"):
        TargetSource(tmp_path)


def test_the_data_must_not_bring_such_entries_itself(made, tmp_path):
    class Twice(Pairs):
        def batch(self, rng, device):
            batch = super().batch(rng, device)
            return Batch(batch.size, {**batch.cond, "target": batch.x0}, batch.x0)

    with pytest.raises(UserError, match="'target' already"):
        prepare_targets(teacher_of(), Twice(), tmp_path / "set", HOW)


def test_ancestral_targets_are_repeatable_and_others(made, tmp_path):
    how = replace(HOW, teacher=TeacherConfig(target="ancestral", teacher_steps=3))
    for name in ("a", "b"):
        prepare_targets(teacher_of(), Pairs(), tmp_path / name, how)
    first, second = (everything(TargetSource(tmp_path / name)) for name in ("a", "b"))
    plain = everything(TargetSource(made))
    assert torch.equal(first.cond["target"], second.cond["target"])
    assert torch.equal(first.cond["noise"], plain.cond["noise"])
    assert not torch.equal(first.cond["target"], plain.cond["target"])
