"""The command line: what each verb does, exit codes, light help."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml
from PIL import Image

from fewstep.core.cli.main import DONE, FAULT, INTERRUPTED, TRAINING_ERROR, USER_ERROR, Parser, guarded, main
from fewstep.core.cli.symptoms import (
    critic_keeps_up,
    diversity_kept,
    finite_numbers,
    guidance_convention,
    read_metrics,
)
from fewstep.core.cli.verbs import DOMAIN_VERBS, TOP_VERBS
from fewstep.core.domain import find_domain
from fewstep.core.errors import TrainingError, UserError
from fewstep.core.report.tables import cell, table
from fewstep.core.training import world
from fewstep.core.training.config import config_names, load_config

# a diffusion model too small to learn anything, trained for two steps
TINY = (
    "recipe.name=diffusion", "domain.teacher=", "domain.network.widths=[8]", "train.steps=2", "train.batch=4",
    "train.log_every=1", "train.sample_steps=[2]", "domain.neighbours=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["image", "train", "--out", str(folder), *TINY]) == DONE
    return folder


def test_help_is_light_and_lists_everything(capsys):
    assert main(["--help"]) == DONE
    text = capsys.readouterr().out
    assert all(name in text for name in [*TOP_VERBS, *(point.name for point in entry_points(group="fewstep.domains"))])
    assert main(["image", "--help"]) == DONE
    text = capsys.readouterr().out
    assert all(name in text for name in [*DOMAIN_VERBS, "classifier"])
    code = (
        "import sys; from fewstep.core.cli.main import main; main(['--help']); main(['image', '--help']); "
        "main(['image', 'train', '--help']); main(['demo', '--help']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_every_verb_has_help(capsys):
    for command in [*([name] for name in TOP_VERBS), *(["image", name] for name in DOMAIN_VERBS)]:
        assert main([*command, "--help"]) == DONE
        assert "exit codes" in capsys.readouterr().out.replace("\n", " ")


def test_version_and_no_command(capsys):
    assert main(["--version"]) == DONE
    assert capsys.readouterr().out.startswith("fewstep 0.")
    assert main([]) == DONE
    assert "usage" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code"),
    [(UserError("x"), USER_ERROR), (TrainingError("x"), TRAINING_ERROR), (RuntimeError("x\ny"), FAULT)],
)
def test_errors_are_one_line_and_a_code(error, code, capsys, monkeypatch):
    def fail() -> None:
        raise error

    assert guarded(fail) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("fewstep: ")
    assert said.err.count("\n") == 1
    monkeypatch.setenv("FEWSTEP_DEBUG", "1")
    with pytest.raises(type(error)):
        guarded(fail)


@pytest.mark.parametrize(
    ("error", "left"), [(None, True), (UserError("x"), True), (TrainingError("x"), True), (RuntimeError("x"), False)]
)
def test_the_processes_of_a_run_part_where_they_end_together(error, left, monkeypatch):
    def work(argv: list[str]) -> None:
        if error is not None:
            raise error

    calls = list[str]()
    monkeypatch.setattr("fewstep.core.cli.main.run_command", work)
    monkeypatch.setattr(world, "PARTING", 0.0)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: calls.append("left"))
    main([])
    assert calls == ["left"] * left
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: False)
    main([])
    assert calls == ["left"] * left  # alone, there is no group to leave


def test_an_interruption_has_its_own_code(capsys):
    def interrupt() -> None:
        raise KeyboardInterrupt

    assert guarded(interrupt) == INTERRUPTED


def test_a_closed_pipe_is_no_error():
    code = "from fewstep.core.cli.main import main; import sys; sys.exit(main(['list']))"
    done = subprocess.run(
        f'{sys.executable} -c "{code}" | head -n 1', shell=True, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout == "recipes\n"


def test_the_parser_speaks_in_one_line():
    parser = Parser(prog="fewstep x")
    parser.add_argument("run")
    with pytest.raises(UserError, match=r"required.*`fewstep x --help`"):
        parser.parse_args([])


def test_print_config_is_read_back_to_the_same_settings(tmp_path, capsys):
    assert (
        main(["image", "train", "--config", "teacher-digits", "--print-config", "train.steps=7", "--seed", "3"]) == DONE
    )
    first = capsys.readouterr().out
    assert yaml.safe_load(first)["train"]["steps"] == 7
    assert yaml.safe_load(first)["seed"] == 3
    (tmp_path / "c.yaml").write_text(first)
    assert main(["image", "train", "--config", str(tmp_path / "c.yaml"), "--print-config"]) == DONE
    assert capsys.readouterr().out == first


@pytest.mark.parametrize("name", config_names(find_domain("image")))
def test_shipped_configs_resolve(name, capsys):
    assert main(["image", "train", "--config", name, "--print-config"]) == DONE


def test_a_run_is_sampled_measured_and_exported(run, tmp_path, capsys):
    picture, numbers, artefact = tmp_path / "s.png", tmp_path / "e.json", tmp_path / "export"
    assert main(["image", "sample", str(run), "-n", "12", "--steps", "1,2", "--out", str(picture)]) == DONE
    assert Image.open(picture).height > 4 * 56  # two rows of ten for each step count
    capsys.readouterr()
    assert main(["image", "eval", str(run), "-n", "20", "--out", str(numbers)]) == DONE
    said = capsys.readouterr().out
    found = json.loads(numbers.read_text())
    assert found["rows"][0]["steps"] == 2
    assert found["rows"][0]["NFE"] == 2
    assert found["step"] == 2
    assert found["notes"]["metric"]
    assert "frechet" in said
    assert main(["image", "export", str(run), "--steps", "4", "--out", str(artefact)]) == DONE
    assert json.loads((artefact / "fewstep.json").read_text())["plan"]["times"] == [999.0, 749.0, 499.0, 249.0]


def test_an_exported_run_is_a_teacher_and_students_are_measured_beside_it(run, tmp_path, capsys):
    out = tmp_path / "student"
    assert main(["image", "export", str(run)]) == DONE
    settings = [f"domain.teacher={run}", "recipe.name=consistency", "train.steps=1", "train.batch=4"]
    assert main(["image", "train", "--out", str(out), *settings, "domain.neighbours=0"]) == DONE
    assert main(["image", "eval", str(out), "-n", "12", "--teacher-steps", "1,3", "--solver", "heun"]) == DONE
    rows = json.loads((out / "evaluation.json").read_text())["rows"]
    assert [row["sampler"] for row in rows[-2:]] == ["teacher, heun", "teacher, heun"]
    assert [row["NFE"] for row in rows[-2:]] == [1, 5]  # the last Heun step ends at clean data: one evaluation


def test_a_run_goes_on_and_can_be_made_longer(run, tmp_path, capsys):
    folder = tmp_path / "copy"
    assert main(["image", "train", "--out", str(folder), *TINY, "train.checkpoint_every=1"]) == DONE
    assert main(["image", "resume", str(folder), "train.steps=3"]) == DONE
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == ["step-2", "step-3"]
    assert len(read_metrics(folder / "metrics.jsonl")) == 3
    capsys.readouterr()
    assert main(["doctor", str(folder)]) == DONE
    assert "all weights finite" in capsys.readouterr().out


def test_list_names_recipes_papers_and_configs(capsys):
    assert main(["list"]) == DONE
    text = capsys.readouterr().out
    for word in ("dmd2", "arXiv 2405.14867", "consistency", "image", "teacher-digits"):
        assert word in text


def test_doctor_looks_at_the_machine(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["doctor"]) == DONE
    text = capsys.readouterr().out
    assert "torch" in text
    assert "domain image" in text
    assert list(tmp_path.iterdir()) == []


def test_bench_relates_recipes_to_a_plain_step(capsys):
    assert main(["bench", "consistency", "--batch", "2", "--repeat", "1"]) == DONE
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["diffusion", "consistency"]
    assert lines[2].split()[-1] == "1"


# symptoms


def levels(findings) -> list[str]:
    return [finding.level for finding in findings]


def test_symptoms_are_told_from_health():
    assert levels(finite_numbers([{"step": 1, "a": 1.0}])) == ["ok"]
    assert levels(finite_numbers([{"step": 1, "a": float("nan"), "bad_updates": 2.0}])) == ["warn", "warn"]
    assert levels(diversity_kept([{"eval/1/diversity": 0.9}])) == ["ok"]
    assert levels(diversity_kept([{"eval/1/diversity": 0.9}, {"eval/1/diversity": 0.5}])) == ["warn"]
    assert levels(diversity_kept([{"eval/1/diversity": 0.1}])) == ["fail"]
    assert levels(diversity_kept([{"eval/1/diversity": 0.1, "eval/8/diversity": 0.8}])) == ["ok"]
    steady, rising = (
        [{"loss/fake_score/denoise": v} for v in values] for values in ([0.3] * 12, [0.2] * 6 + [0.4] * 6)
    )
    assert levels(critic_keeps_up(steady)) == ["ok"]
    assert levels(critic_keeps_up(rising)) == ["warn"]


def test_a_guidance_scale_of_the_other_convention_is_noticed():
    def found(scale: float) -> list[str]:
        settings = ["recipe.name=tdm", f"recipe.guidance_scale={scale}"]
        return levels(guidance_convention(load_config(None, settings, domain=find_domain("image"))))

    assert found(0.5) == ["note"]
    assert found(1.0) == found(4.0) == []


def test_metrics_cut_off_by_a_kill_are_still_read(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"step": 1, "a": 2.0}\n{"step": 2, "a"')
    assert read_metrics(tmp_path / "m.jsonl") == [{"step": 1, "a": 2.0}]
    assert read_metrics(tmp_path / "none") == []


def test_tables_align_numbers_to_the_right():
    text = table([{"name": "a", "x": 1.0}, {"name": "long", "x": 12.34567, "y": "z"}])
    assert text.splitlines() == ["name      x  y", "----  -----  -", "a         1", "long  12.35  z"]
    assert [cell(v) for v in (float("nan"), 2.0, 0.00012345, "x")] == ["nan", "2", "0.0001234", "x"]


def test_a_demo_belongs_to_a_domain(capsys, monkeypatch):
    monkeypatch.setattr("fewstep.core.cli.demo.domain_verbs", lambda domain: {})
    assert main(["demo", "threed"]) == USER_ERROR
    assert "no demo" in capsys.readouterr().err


def test_the_script_is_installed_and_passes_exit_codes_on():
    script = str(Path(sys.executable).parent / "fewstep")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (DONE, "")
    done = subprocess.run([script, "lidra"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (USER_ERROR, "", 1)
