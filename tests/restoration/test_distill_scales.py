"""Scale distillation from the command line: the chain, and a short run of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from restoration.model_bed import restoration

from fewstep.core.errors import UserError
from fewstep.restoration.cli.scales import chain
from fewstep.restoration.model import load_model

SMALL = (
    "domain.data.crop=32",
    "domain.scales=[2]",
    "domain.network.local.widths=[8]",
    "domain.network.local.blocks=1",
    "domain.network.local.time_width=16",
)
QUICK = ("train.steps=2", "train.batch=2", "train.eval_every=0", "train.preview_every=0")


def test_each_student_is_the_next_teacher():
    first, second = chain((2, 4, 8), Path("runs/yonos"))
    assert first == (Path("runs/yonos/x4"), ("domain.scales=[4]", "domain.milder_scale=2"))
    assert second.run == Path("runs/yonos/x8")
    assert second.settings == ("domain.scales=[8]", "domain.milder_scale=4", "domain.teacher=runs/yonos/x4/export")


@pytest.mark.parametrize("scales", [(4,), (4, 2), (2, 2), (2, 4, 6)])
def test_scales_that_are_no_chain_are_refused(scales):
    with pytest.raises(UserError, match="--scales"):
        chain(scales, Path("runs"))


@pytest.mark.slow
def test_a_chain_is_trained_exported_and_gone_on_with(tmp_path, capsys):
    teacher, out = tmp_path / "teacher", tmp_path / "chain"
    assert restoration("train", "--config", "teacher-photos", "--out", teacher, *SMALL, *QUICK) == 0
    assert restoration("export", teacher) == 0
    run = ("distill-scales", "--out", out, *QUICK, "domain.data.crop=32", f"domain.teacher={teacher}")
    assert restoration(*run, "--scales", "2,4") == 0
    first = (out / "x4" / "export" / "model.safetensors").read_bytes()
    assert restoration(*run, "--scales", "2,4,8") == 0
    assert "x4: exported already" in capsys.readouterr().out
    assert (out / "x4" / "export" / "model.safetensors").read_bytes() == first
    models = [load_model(str(out / name)) for name in ("x4", "x8")]
    assert [model.scales for model in models] == [(4,), (8,)]
    assert all(model.plan is not None and len(model.plan.times) == 1 for model in models)
    assert restoration("distill-scales", "--config", "teacher-photos", "--out", out) == 2
    assert "scales are distilled by recipe yonos" in capsys.readouterr().err
