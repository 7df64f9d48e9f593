"""Settings: what is read is what was written, and what is wrong is named with its key."""

from __future__ import annotations

from pathlib import Path

import pytest
from core.toys import ToyDomain

from fewstep.core import recipes
from fewstep.core.errors import UserError
from fewstep.core.training.config import dump, load_config, split_overrides
from fewstep.core.training.settings import EMAConfig, OptimConfig, PhaseOptimConfig, TrainConfig


@pytest.fixture(autouse=True)
def toy_recipe(monkeypatch):
    monkeypatch.setitem(recipes.BUILT_IN, "toy", ("core.toys", "ToyRecipe"))


@pytest.fixture
def load(tmp_path):
    def read(text: str = "recipe: {name: toy}", *overrides: str):
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return load_config(path, overrides, domain=ToyDomain())

    return read


def test_defaults_and_names(load):
    config = load()
    assert (config.name, config.seed, config.recipe_name, config.domain_name) == ("run", 0, "toy", "toy")
    assert config.train == TrainConfig()
    assert config.optim == OptimConfig()
    assert config.domain == ToyDomain.config_type()


def test_everything_written_is_read(load):
    config = load(
        """
        name: a
        seed: 7
        recipe: {name: toy, critic_every: 2, times: [0.1, 1e-1]}
        domain: {name: toy, network: {width: 8}, folder: some/where, sizes: [1, 2]}
        train: {steps: 5, batch: 4, micro_batch: 2, ema: {kind: power, std: 0.05}, trackers: [wandb]}
        optim: {lr: 1e-3, betas: [0, 0.9], phases: {critic: {lr: 1e-2, name: sgd}}}
        """
    )
    assert (config.name, config.seed) == ("a", 7)
    assert config.recipe.critic_every == 2
    assert config.recipe.times == (0.1, 0.1)
    assert (config.domain.network.width, config.domain.folder, config.domain.sizes) == (8, Path("some/where"), (1, 2))
    assert (config.train.micro_batch, config.train.ema, config.train.trackers) == (
        2,
        EMAConfig(kind="power", std=0.05),
        ("wandb",),
    )
    assert config.optim.phases == {"critic": PhaseOptimConfig(lr=1e-2, name="sgd")}
    critic, student = config.optim.for_phase("critic"), config.optim.for_phase("student")
    assert (critic.lr, critic.name, critic.betas) == (1e-2, "sgd", (0.0, 0.9))
    assert (student.lr, student.name) == (1e-3, "adamw")


def test_reading_what_was_dumped_gives_the_same(load):
    config = load(
        "{name: a, recipe: {name: toy, weight: 1e-7}, domain: {folder: x}, train: {micro_batch: 16}, "
        "optim: {phases: {critic: {lr: 3e-5, betas: [0.5, 0.9]}}}}"
    )
    again = load(dump(config))
    assert again == config
    assert dump(again) == dump(config)


@pytest.mark.parametrize("form", [["train.steps=9"], ["--train.steps=9"], ["--train.steps", "9"]])
def test_three_forms_of_an_override(load, form):
    assert load("{recipe: {name: toy}, train: {steps: 3, batch: 2}}", *form).train == TrainConfig(steps=9, batch=2)


def test_overrides_reach_every_kind_of_value(load):
    config = load(
        "recipe: {name: toy}", "name=12", "domain.network.width=4", "optim.lr=1e-5", "optim.phases.critic.lr=1e-6",
        "train.compile=true", "train.trackers=[trackio]", "domain.sizes=[3]", "domain.folder=null",
        "train.micro_batch=auto", "train.sample_steps=[1,4]", "recipe.times=[0.5, 1]", "recipe.name=toy",
    )  # fmt: skip
    assert (config.name, config.domain.network.width, config.optim.lr) == ("12", 4, 1e-5)
    assert config.optim.phases["critic"].lr == 1e-6
    assert (config.train.compile, config.train.trackers, config.domain.sizes) == (True, ("trackio",), (3,))
    assert (config.domain.folder, config.train.micro_batch, config.train.sample_steps) == (None, "auto", (1, 4))
    assert config.recipe.times == (0.5, 1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{recipe: {name: toy}, train: {stepz: 3}}", r"unknown key 'train.stepz', did you mean 'train.steps'\?"),
        ("{recipe: {name: toy, wieght: 3}}", r"unknown key 'recipe.wieght', did you mean 'recipe.weight'\?"),
        (
            "{recipe: {name: toy}, domain: {network: {with: 3}}}",
            "'domain.network.with', did you mean 'domain.network.width'",
        ),
        ("{recipe: {name: toy}, trian: {steps: 3}}", r"unknown key 'trian', did you mean 'train'\?"),
        ("{recipe: {name: toy}, steps: 3}", r"unknown key 'steps', did you mean 'train.steps'\?"),
        (
            "{recipe: {name: toy}, optim: {phases: {critic: {rl: 3}}}}",
            r"unknown key 'optim.phases.critic.rl', did you mean",
        ),
        ("{recipe: {name: toy}, optim: {phases: {critik: {lr: 3}}}}", "optim.phases.critik: .* did you mean 'critic'"),
        ("{recipe: {name: toi}}", "no recipe 'toi': did you mean 'toy'"),
        ("{recipe: {name: toy}, domain: {name: video}}", "this config is for the domain 'video', not 'toy'"),
        ("{domain: {name: toy}}", "recipe.name is missing"),
        ("{recipe: {name: toy}, train: {steps: many}}", "run.yaml: train.steps: expected a whole number, got 'many'"),
        ("{recipe: {name: toy}, train: {steps: 1.5}}", "train.steps: expected a whole number, got 1.5"),
        ("{recipe: {name: toy}, train: {steps: }}", "train.steps: expected a whole number, got nothing"),
        ("{recipe: {name: toy}, train: {compile: 3}}", "train.compile: expected true or false, got 3"),
        (
            "{recipe: {name: toy}, train: {precision: fp8}}",
            "train.precision: expected one of fp32, bf16, fp16, got 'fp8'",
        ),
        (
            "{recipe: {name: toy}, train: {micro_batch: half}}",
            "train.micro_batch: expected a whole number or auto, got 'half'",
        ),
        (
            "{recipe: {name: toy}, train: {ema: power}}",
            "train.ema is a group of settings, got 'power'; .* train.ema.kind",
        ),
        ("{recipe: {name: toy}, train: run.yaml}", "train is a group of settings, got 'run.yaml'"),
        ("{recipe: toy}", "recipe must be a group of settings with a name, got 'toy'"),
        ("{recipe: {name: toy}, optim: {betas: [1]}}", r"optim.betas: expected a list of 2: .* got \[1\]"),
        (
            "{recipe: {name: toy}, optim: {phases: {critic: {lr: fast}}}}",
            "optim.phases.critic.lr: expected a number .* 'fast'",
        ),
        ("{recipe: {name: toy}, optim: {phases: {critic: 3}}}", "optim.phases.critic is a group of settings, got 3"),
        ("{recipe: {name: toy}, optim: {phases: 3}}", "optim.phases: expected a mapping, got 3"),
        ("{recipe: {name: toy}, name: [1]}", r"name: expected text, got \[1\]"),
        ("{recipe: {name: toy, critic_every: 0}}", "critic_every must be at least 1, got 0"),
        ("{recipe: {name: toy}, train: {batch: 9, micro_batch: 2}}", "train.micro_batch=2 must divide train.batch=9"),
        ("{recipe: {name: toy}, train: {ema: {decay: 1}}}", r"ema.decay must lie in \[0, 1\), got 1"),
        (
            "{recipe: {name: toy}, optim: {phases: {critic: {lr: -1}}}}",
            "optim.phases.critic.lr must be positive, got -1",
        ),
        ("a: [", "run.yaml:1: not valid YAML"),
        ("{recipe: {name: toy}, recipe: {name: toy}}", "run.yaml:1: not valid YAML .*'recipe' is given twice"),
        ("[1, 2]", "must hold settings"),
        ("", "must hold settings"),
    ],
)
def test_what_is_wrong_is_named_on_one_line(load, text, message):
    with pytest.raises(UserError, match=message) as caught:
        load(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (["train.steps"], "'train.steps': no value given; write train.steps=VALUE"),
        (["--train.steps"], "no value given"),
        (["--train.compile", "--seed", "1"], "no value given; write train.compile=VALUE"),
        (["train..steps=3"], "not a dotted key"),
        (["name.x=3"], "unknown key|name"),
        (["train.steps=3", "train.steps.x=3"], "train.steps is a value, not a group"),
        (["train.stepz=3"], "did you mean 'train.steps'"),
        (["train.steps=none"], "train.steps: expected a whole number, got 'none'"),
        (["train.steps=null"], "train.steps: expected a whole number, got 'null'"),
    ],
)
def test_wrong_overrides(load, override, message):
    with pytest.raises(UserError, match=message):
        load("recipe: {name: toy}", *override)


def test_configs_are_found_by_name(tmp_path):
    (tmp_path / "small.yaml").write_text("{recipe: {name: toy}, train: {steps: 2}}", encoding="utf-8")
    domain = ToyDomain(tmp_path)
    config = load_config("small", ["recipe.critic_every=3"], domain=domain)
    assert (config.name, config.train.steps, config.recipe.critic_every) == ("small", 2, 3)
    with pytest.raises(UserError, match="no config 'smal': did you mean 'small'"):
        load_config("smal", domain=domain)
    with pytest.raises(UserError, match="no such config file"):
        load_config(tmp_path / "none.yaml", domain=domain)
    with pytest.raises(UserError, match="within a domain only"):
        load_config("small")


def test_a_config_need_not_have_a_file():
    assert load_config(None, ["recipe.name=toy"], domain=ToyDomain()).recipe_name == "toy"
    with pytest.raises(UserError, match="no domain 'vidoe' is installed: did you mean 'video'"):
        load_config(None, ["recipe.name=toy", "domain.name=vidoe"])


def test_unreadable_files(tmp_path, load):
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"bytes\.yaml: not a text file"):
        load_config(tmp_path / "bytes.yaml", domain=ToyDomain())
    with pytest.raises(UserError, match="no such config file"):
        load_config(tmp_path, domain=ToyDomain())


def test_no_import_path_is_followed(load):
    for text in (
        "{recipe: {name: os.path}}",
        "{recipe: {name: toy, class_path: os.path}}",
        "{recipe: {name: toy}, x: !!python/name:os.path }",
    ):
        with pytest.raises(UserError):
            load(text)


def test_values_with_equals_signs_survive():
    assert split_overrides(["domain.folder=a=b", "--name", "x=y"]) == [("domain.folder", "a=b"), ("name", "x=y")]


def test_a_config_extends_another_group_by_group(tmp_path):
    (tmp_path / "below.yaml").write_text(
        "recipe: {name: dmd2, fake_updates: 7}\ndomain: {name: image}\ntrain: {steps: 9, batch: 6}\n", encoding="utf-8"
    )
    (tmp_path / "middle.yaml").write_text("extends: below.yaml\ntrain: {batch: 8}\n", encoding="utf-8")
    (tmp_path / "own.yaml").write_text("extends: middle.yaml\ntrain: {steps: 3}\noptim: {lr: 0.5}\n", encoding="utf-8")
    found = load_config(tmp_path / "own.yaml", ["train.log_every=2"])
    assert (found.recipe.fake_updates, found.train.batch, found.train.steps) == (7, 8, 3)
    assert (found.optim.lr, found.train.log_every, found.name) == (0.5, 2, "own")
    (tmp_path / "resolved.yaml").write_text(dump(found), encoding="utf-8")
    assert "extends" not in dump(found)
    assert load_config(tmp_path / "resolved.yaml") == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: own.yaml\n", "which extends it in turn"),
        ("extends: other.yaml\n", "which extends it in turn"),
        ("extends: absent.yaml\n", "cannot be read"),
        ("extends: 3\n", "must name a YAML file"),
    ],
)
def test_what_cannot_be_extended(text, message, tmp_path):
    (tmp_path / "own.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "other.yaml").write_text("extends: own.yaml\n", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_config(tmp_path / "own.yaml")
