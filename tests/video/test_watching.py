"""Every alarm fires on its collapse and is silent on healthy clips; a watch stops a run that stays collapsed."""

from __future__ import annotations

import io
import math

import pytest
import torch
from core.tiny_loop import mlp_teacher
from core.toys import ToyDomain
from video.clip_bed import alternating, discs, noise, still

from fewstep.core.domain import Problem
from fewstep.core.errors import TrainingError, UserError
from fewstep.core.networks.roles import RolesConfig, build_roles
from fewstep.core.process import VP
from fewstep.core.recipe import Actors, Batch
from fewstep.core.rng import Rng
from fewstep.core.training.config import load_config
from fewstep.core.training.loop import train
from fewstep.core.training.trackers import read_metrics
from fewstep.video.previews import write_previews
from fewstep.video.recipes.motion_consistency import MotionConsistency
from fewstep.video.watching.alarms import KINDS, Thresholds, alarms, health
from fewstep.video.watching.causes import CAUSES, GUIDANCE, LATENTS, SIGNALS, USUAL, likely_cause
from fewstep.video.watching.watch import Watch, WatchConfig, amounts, make_watch, shares

HEALTHY = discs(8)
COLLAPSED = {
    "not finite": HEALTHY.where(HEALTHY < 0.5, torch.tensor(math.nan)),
    "single colour": 0.2 + 0.01 * noise(*HEALTHY.shape).float(),
    "still": still(HEALTHY) + 0.003 * noise(*HEALTHY.shape).float(),
    "oversaturated": (20 * noise(*HEALTHY.shape)).float(),
}


def kinds(clips: torch.Tensor, **options) -> list[str]:
    return [alarm.kind for alarm in alarms(clips, **options)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("teacher", [None, discs(5, 2)])
def test_each_collapse_raises_its_alarm_and_no_other(kind, teacher):
    assert kinds(COLLAPSED[kind], teacher=teacher) == [kind]


@pytest.mark.parametrize("teacher", [None, discs(5, 2), 0.5 * discs(5, 2) + 0.2])
@pytest.mark.parametrize("clips", [HEALTHY, discs(8, 4, speed=0.7), 0.6 * HEALTHY, HEALTHY.double(), HEALTHY[:1]])
def test_healthy_clips_raise_none(clips, teacher):
    assert kinds(clips, teacher=teacher) == []


def test_strong_colours_are_oversaturated_and_so_are_values_out_of_range():
    moving = 2 * (discs(4, 7) > -0.5).float() - 1  # pure black and white, red, green...
    assert kinds(moving) == ["oversaturated"]
    assert kinds(3 * HEALTHY) == ["oversaturated"]


def test_a_style_the_teacher_shares_is_no_collapse():
    loud = 2 * (discs(8, 7) > -0.5).float() - 1
    calm = discs(8, 5, speed=0.05)
    dark = 0.05 * HEALTHY - 0.9
    for clips, kind in ((loud, "oversaturated"), (calm, "still"), (dark, "single colour"), (still(HEALTHY), "still")):
        assert kinds(clips) == [kind]
        assert kinds(clips, teacher=clips.flip(0)) == []


def test_a_crisp_student_of_a_washed_out_teacher_is_not_oversaturated():
    crisp = HEALTHY.clone()
    crisp[..., :12] = -1.0  # more than a third of the values at an end of the range, of the teacher's none
    assert kinds(crisp, teacher=0.4 * HEALTHY) == []


def test_a_lively_teacher_shows_a_slow_creep_for_a_still():
    creep = discs(8, 1, speed=0.2)
    assert kinds(creep) == []
    assert kinds(creep, teacher=discs(8, 2, speed=5)) == ["still"]


def test_stills_are_counted_beyond_those_the_teacher_makes():
    teacher = torch.cat([HEALTHY[:4], still(HEALTHY)[4:]])
    assert kinds(teacher.flip(0), teacher=teacher) == []
    mostly = torch.cat([HEALTHY[:1], still(HEALTHY)[1:]])
    (alarm,) = alarms(mostly, teacher=teacher)
    assert (alarm.kind, alarm.share, alarm.first) == ("still", 7 / 8, 1)


def test_an_alarm_needs_the_share_of_clips_asked_for():
    some = torch.cat([HEALTHY[:6], still(HEALTHY)[6:]])
    assert kinds(some) == []
    assert kinds(some, thresholds=Thresholds(clips=0.25)) == ["still"]


def test_one_clip_that_is_not_finite_is_enough_and_spoils_no_other_number():
    clips = HEALTHY.clone()
    clips[5, 1, 2, 3, 4] = math.inf
    (alarm,) = alarms(clips)
    assert (alarm.kind, alarm.share, alarm.first) == ("not finite", 1 / 8, 5)
    seen = health(clips)
    assert seen.contrast[:5].equal(health(HEALTHY).contrast[:5])
    with pytest.raises(UserError, match="teacher"):
        alarms(HEALTHY, teacher=clips)


def test_order_mirroring_and_channels_change_no_alarm():
    for clips in (*COLLAPSED.values(), HEALTHY):
        for other in (clips.flip(0), clips.flip(-1), clips.flip(2), clips.flip(1)):
            assert kinds(other) == kinds(clips)


def test_single_frames_and_flashes_are_no_stills():
    assert kinds(HEALTHY[:, :, :1]) == []
    assert kinds(alternating()) == ["single colour"]
    with pytest.raises(UserError, match="no clips"):
        alarms(HEALTHY[:0])


def test_statistics_of_known_clips():
    seen = health(alternating())
    assert [float(x) for x in (seen.contrast, seen.movement, seen.clipped, seen.chroma)] == [0.0, 2.0, 1.0, 0.0]
    red = torch.full((1, 3, 2, 4, 4), -1.0)
    red[:, 0] = 1
    assert float(health(red).chroma) == 1.0
    stripes = torch.tensor([-0.5, 0.5]).repeat(2).expand(1, 3, 2, 4, 4)
    assert float(health(stripes).contrast) == 0.5


@pytest.mark.parametrize("name", ["contrast", "clips", "excess"])
@pytest.mark.parametrize("value", [0.0, -1.0, 1.5, math.nan])
def test_thresholds_out_of_range_are_refused(name, value):
    with pytest.raises(UserError, match=name):
        Thresholds(**{name: value})


# causes


def test_every_kind_has_a_usual_cause_and_every_signal_a_use():
    assert set(USUAL) == set(KINDS)
    assert {cause.kind for cause in CAUSES} == set(KINDS)
    assert {cause.signal for cause in CAUSES} == set(SIGNALS)
    assert [likely_cause(kind, {}) for kind in KINDS] == [USUAL[kind] for kind in KINDS]


def test_signals_name_the_cause():
    (alarm,) = alarms(COLLAPSED["still"], signals={"discriminator/margin": 9.5, "guidance_scale": 12.0})
    assert "discriminator wins (margin 9.5)" in alarm.cause
    assert alarm.text().startswith("still: 100% of the clips, movement 0.00")
    assert "likely cause: the frame discriminator" in alarm.text()
    (alarm,) = alarms(COLLAPSED["oversaturated"], signals={"discriminator/margin": 9.5, "guidance_scale": 12.0})
    assert "guidance scale of 12" in alarm.cause
    assert likely_cause("still", {"discriminator/margin": 0.3}) == USUAL["still"]


def network(**options):
    return mlp_teacher(VP.scaled_linear(), 3 * 4 * 8 * 8, width=16, **options)


class Moving:
    """Clips with pictures beside them."""

    def __len__(self) -> int:
        return 8

    def batch(self, rng: Rng, device) -> Batch:
        images = rng.normal("images", (2, 3, 8, 8)).tanh()
        return Batch(len(rng.ids), {"images": images}, rng.normal("x0", (3, 4, 8, 8)))


def run_of(tmp_path, look) -> list[dict[str, float]]:
    """Train motion-consistency for some steps under a watch; returns the lines of its log."""
    settings = ("recipe.appearance.discriminator.widths=[8]", "recipe.motion.head.layers=2", "recipe.guidance_scale=1")
    head = ("recipe.motion.head.width=8", "recipe.motion.head.channels=3", "recipe.guidance_max=null")
    loop = ("train.steps=4", "train.batch=4", "train.log_every=1", "train.preview_every=2", "train.preview_samples=2")
    name = ("recipe.name=motion-consistency", "train.sample_steps=[1,2]", "train.teacher_steps=2")
    config = load_config(None, [*name, *settings, *head, *loop], domain=ToyDomain())
    built = build_roles(network(), MotionConsistency.role_specs(config.recipe), RolesConfig(), 0, shape=(3, 4, 8, 8))
    actors = Actors(built, VP.scaled_linear(), (3, 4, 8, 8))
    problem = Problem(
        actors,
        Moving(),
        conditions=lambda n, seed: {},
        evaluate=lambda x, cond: {},
        render=lambda rows, stem: write_previews(rows, stem, 8.0),
        export=lambda *_: None,
        watch=look,
    )
    train(config, problem, MotionConsistency(config.recipe, actors), tmp_path / "run", stream=io.StringIO())
    return read_metrics(tmp_path / "run")


def test_the_signals_are_what_a_run_of_motion_consistency_logs(tmp_path):
    told: dict[str, float] = {}
    rows: list[str] = []

    def look(step, shown, signals):
        told.update(signals)
        rows[:] = [label for label, _ in shown]
        return make_watch(WatchConfig(), lambda x: x)(step, shown, signals)

    lines = run_of(tmp_path, look)
    logged = {name for line in lines for name in line}
    assert set(SIGNALS) - {LATENTS} <= told.keys()
    assert set(SIGNALS) - {LATENTS, GUIDANCE} <= logged
    assert rows == ["teacher, 2 steps", "student, 1 step", "student, 2 steps"]
    watched = {f"watch/motion_ratio/{k}" for k in ("1 step", "2 steps")}
    watched |= {f"watch/flicker/{k}" for k in ("teacher", "1 step", "2 steps")} | {"collapse/still/1 step"}
    assert watched <= logged
    assert [line["step"] for line in lines if "collapse/still/1 step" in line] == [0, 2, 4]


# the watch


def rows(*students: torch.Tensor, teacher: torch.Tensor = HEALTHY) -> list[tuple[str, torch.Tensor]]:
    return [("teacher, 50 steps", teacher), *((f"student, {k + 1} steps", x) for k, x in enumerate(students))]


def test_it_speaks_and_goes_on_unless_told_to_stop():
    watch = Watch()
    for step in range(1, 9):
        (line,) = watch.look(step, rows(COLLAPSED["still"]))
        assert line.startswith(f"step {step}, student, 1 steps: still")
    assert watch.look(9, rows(HEALTHY)) == []


def test_it_stops_after_patience_looks_in_a_row():
    watch = Watch(stop=True, patience=3)
    for step, clips in enumerate((COLLAPSED["still"], COLLAPSED["still"], HEALTHY, *[COLLAPSED["still"]] * 2), 1):
        watch.look(step, rows(clips))
    with pytest.raises(TrainingError, match=r"still.*likely cause"):
        watch.look(6, rows(COLLAPSED["still"]))


def test_one_row_that_is_well_keeps_the_run_going():
    watch = Watch(stop=True, patience=1)
    assert len(watch.look(1, rows(COLLAPSED["single colour"], HEALTHY))) == 1
    with pytest.raises(TrainingError):
        watch.look(2, rows(COLLAPSED["single colour"], COLLAPSED["still"]))


def test_values_that_are_not_finite_stop_at_once():
    with pytest.raises(TrainingError, match="not finite"):
        Watch(stop=True, patience=9).look(1, rows(COLLAPSED["not finite"]))


def test_looks_before_the_end_of_grace_only_speak():
    watch = Watch(stop=True, patience=1, grace=100)
    assert all(watch.look(step, rows(COLLAPSED["still"])) for step in (0, 50, 100))
    with pytest.raises(TrainingError):
        watch.look(101, rows(COLLAPSED["still"]))
    with pytest.raises(UserError, match="patience"):
        Watch(patience=0)


def test_the_hook_decodes_names_the_cause_and_returns_numbers():
    look = make_watch(WatchConfig(stop=True, patience=1, grace=5), lambda latents: latents / 10)
    latents = [(label, 10 * x) for label, x in rows(still(HEALTHY), 0.5 * HEALTHY)]
    seen = look(5, latents, {"guidance_scale": 1.0, "discriminator/accuracy": 0.99})
    (line,) = seen.lines
    assert "right 99% of the time" in line
    assert seen.values["watch/motion_ratio/1 steps"] == 0.0
    assert seen.values["watch/motion_ratio/2 steps"] == pytest.approx(0.25)
    assert seen.values["collapse/still/1 steps"] == 1.0
    assert seen.values["collapse/still/2 steps"] == 0.0
    with pytest.raises(TrainingError, match="still"):
        look(6, latents[:2], {})
    (line,) = look(2, [("student, 1 step", 10 * COLLAPSED["single colour"])], {}).lines
    assert "scaled exactly once" not in line
    (line,) = look(2, [("student, 1 step", 0.1 * COLLAPSED["single colour"])], {}).lines
    assert "scaled exactly once" in line
    assert not any("motion_ratio" in name for name in amounts(rows(HEALTHY, teacher=still(HEALTHY))))


@pytest.mark.parametrize("changes", [{"patience": 0}, {"grace": -1}])
def test_settings_that_cannot_be(changes):
    with pytest.raises(UserError, match=r"domain\.watch"):
        WatchConfig(**changes)


def test_without_students_nothing_happens():
    assert Watch(stop=True, patience=1).look(1, rows()) == []


def test_shares_are_numbers_for_every_kind():
    assert set(shares([]).values()) == {0.0}
    assert shares(alarms(COLLAPSED["still"]))["collapse/still"] == 1.0
    assert list(shares([])) == [f"collapse/{kind.replace(' ', '_')}" for kind in KINDS]
