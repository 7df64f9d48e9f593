"""Motion-consistency distillation: exact networks, what learns from what, and every switch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from core.gaussian_bed import MEAN, STD, ExactConsistency, ExactGaussian
from core.recipe_bed import QuickRng as Quick
from core.tiny_loop import mlp_teacher
from torch import nn
from torch.testing import assert_close

from fewstep.core.denoiser import Backbone, Denoiser, NetworkDenoiser, Plain
from fewstep.core.errors import UserError
from fewstep.core.grids import knot_grid
from fewstep.core.guidance import Guided
from fewstep.core.networks.roles import RolesConfig, build_roles
from fewstep.core.prediction import Kind, Prediction
from fewstep.core.process import VP, CosineVP, times
from fewstep.core.recipe import Actors, Batch
from fewstep.core.recipes.consistency import Consistency, ConsistencyConfig
from fewstep.core.rng import Rng
from fewstep.core.sampling import run_plan
from fewstep.core.solvers import Move, find_solver
from fewstep.video.appearance.discriminator import FrameDiscriminatorConfig
from fewstep.video.motion.head import MotionHeadConfig
from fewstep.video.motion.representation import MotionConfig
from fewstep.video.recipes.appearance import AppearanceConfig, PenaltyAdaptation
from fewstep.video.recipes.motion_consistency import MotionConsistency, MotionConsistencyConfig

SHAPE = (3, 4, 8, 8)
VP1000 = VP.scaled_linear()
JUDGE = FrameDiscriminatorConfig(widths=(8,), head_width=8)
SEEN = AppearanceConfig(discriminator=JUDGE)
NONE = AppearanceConfig(weight=0.0)
HEAD = MotionConfig(head=MotionHeadConfig(layers=2, width=8, channels=3))
F64 = torch.float64


def clips(rng: Rng, images: int = 2) -> Batch:
    x0 = MEAN + STD * rng.normal("x0", SHAPE)
    pictures = rng.normal("images", (images, 3, 8, 8)).tanh()
    return Batch(len(rng.ids), {"label": rng.integers("label", 3), "images": pictures}, x0)


def network(**options):
    return mlp_teacher(VP1000, 3 * 4 * 8 * 8, width=16, num_classes=3, **options)


def make(config: MotionConsistencyConfig, teacher: Denoiser | None = None, **options) -> MotionConsistency:
    source = network(**options)
    built = build_roles(source, MotionConsistency.role_specs(config), RolesConfig(), 0, shape=SHAPE)
    if teacher is not None:
        built["teacher"] = teacher
    return MotionConsistency(config, Actors(built, VP1000, SHAPE))


def oracle(config: MotionConsistencyConfig, student: Denoiser, teacher: Denoiser) -> MotionConsistency:
    return MotionConsistency(
        config, Actors({"student": student, "teacher": teacher}, student.process, SHAPE, dtype=F64)
    )


def step_of(recipe, phase, n=4, step=0, batch=None):
    rng = Rng.for_batch(0, step, n).fork(phase)
    return recipe.loss(phase, clips(rng) if batch is None else batch, rng, step)


def settings_of(**changes) -> MotionConsistencyConfig:
    return MotionConsistencyConfig(**{"appearance": NONE, "self_share": 0.0, **changes})


def touched(recipe) -> set[str]:
    """Roles some of whose parameters have a gradient that is not zero."""
    found = set()
    for name in recipe.actors.roles:
        grads = [p.grad for p in recipe.actors.module(name).parameters()]
        if any(g is not None and bool(g.any()) for g in grads):
            found.add(name)
    return found


def clear(recipe) -> None:
    for name in recipe.actors.roles:
        recipe.actors.module(name).zero_grad(set_to_none=True)


# ---------------------------------------------------------------- a Gaussian teacher


class ExactEnd(ExactGaussian):
    """The exact consistency map of N(MEAN, STD^2), to clean data."""

    def predict(self, x_t, t, cond):
        alpha = self.process.coefficients(t).alpha.reshape(-1, *[1] * (x_t.ndim - 1))
        spread = self.spread(t).reshape(alpha.shape)
        return Prediction(self.mean + self.std * (x_t - alpha * self.mean) / spread, Kind.X0)


@pytest.mark.parametrize(
    ("knots", "expected"), [(10, 0.0722), (20, 0.0326), (50, 0.0105), (100, 0.0041), (200, 0.0013)]
)
def test_the_exact_map_has_the_sheet_s_residual(knots, expected):
    """Maps and steps are affine in x: two points of its law give the mean square over it."""
    grid, teacher, exact = knot_grid(VP1000, knots), ExactGaussian(VP1000), ExactEnd(VP1000)
    c = VP1000.coefficients(grid.times)
    residuals = []
    for sign in (-1.0, 1.0):
        x = (c.alpha * MEAN + sign * teacher.spread(grid.times))[:, None]
        x_s, _ = find_solver("ddim").step(Move(teacher, x, grid.times, grid.previous))
        residuals.append(exact.x0(x_s, grid.previous, {}) - exact.x0(x, grid.times, {}))
    rms = (torch.stack(residuals).square().mean(0)).sqrt().max().item()
    assert rms == pytest.approx(expected, rel=0.03)


def test_four_steps_of_the_exact_map_sample_the_law_and_four_of_ddim_do_not():
    config, rng = settings_of(), Rng.for_batch(0, 0, 1)
    plan = MotionConsistency.plan(config, VP1000, 4)
    assert plan.times == (999, 759, 499, 259)
    noise = rng.normal("z", (200_000, 1), F64)[0]
    exact = run_plan(
        MotionConsistency.student_view(config, ExactEnd(VP1000)), plan, noise, {}, Quick(0, 0, tuple(range(len(noise))))
    )
    assert exact.mean().item() == pytest.approx(0.30, abs=0.005)
    assert exact.std().item() == pytest.approx(0.50, abs=0.005)
    x, ends = noise, (759.0, 499.0, 259.0, None)
    for t, s in zip(plan.times, ends, strict=True):
        end = None if s is None else times(s, len(x))
        x, _ = find_solver("ddim").step(Move(ExactGaussian(VP1000), x, times(t, len(x)), end))
    assert x.std().item() == pytest.approx(0.275, abs=0.01)


# ---------------------------------------------------------------- the start of a step


def test_states_at_the_top_are_pure_noise_and_no_others():
    recipe = make(settings_of(num_knots=50))
    rng = Rng.for_batch(0, 0, 200)
    batch = Batch(200, {}, torch.full((200, *SHAPE), 5.0))
    start = recipe.start(batch, {}, rng, 0)
    eps, top = rng.normal_like("eps", batch.x0), start.t == 999
    assert 0 < top.sum() < 20
    assert torch.equal(start.x_t[top], eps[top])
    assert_close(start.x_t[~top], VP1000.add_noise(batch.x0, eps, start.t)[~top].float())
    assert set(start.t.tolist()) <= {20.0 * n + 19 for n in range(50)}
    assert torch.equal(start.s, (start.t - 20).clamp_min(0))
    plain = make(settings_of(noise_at_top=False)).start(batch, {}, rng, 0)
    assert bool((plain.x_t[top].mean() - eps[top].mean()) > 0.1)


def test_at_the_first_knot_the_target_is_the_teacher_s_step_bit_for_bit():
    seen = {}

    class Watched(MotionConsistency):
        def consistency_terms(self, online, target, start):
            seen.update(online=online, target=target, start=start)
            return super().consistency_terms(online, target, start)

    config = settings_of()
    source = make(config)
    recipe = Watched(config, source.actors)
    rng = Rng.for_batch(1, 0, 150)
    batch = clips(rng)
    recipe.loss("student", batch, rng, 0)
    cond = {"label": batch.cond["label"], "guidance": 6 + 10 * rng.uniform("guidance")}
    start = seen["start"]
    teacher = Guided(recipe.actors.denoiser("teacher"), "guidance")
    with torch.no_grad():
        x_s, _ = find_solver("ddim").step(Move(teacher, start.x_t, start.t, start.s, cond))
    first = start.s == 0
    assert 0 < first.sum() < 15
    assert torch.equal(seen["target"][first], x_s[first])
    assert not torch.allclose(seen["target"][~first], x_s[~first], atol=1e-3)


def test_the_share_of_self_made_trajectories_is_drawn_per_step():
    recipe = make(settings_of(self_share=0.3))
    own = []
    for step in range(60):
        rng = Rng.for_batch(0, step, 2)
        own.append(recipe.start(clips(rng), {"label": torch.tensor([0, 1])}, rng, step).own)
    assert 8 <= sum(own) <= 30
    rng = Rng.for_batch(0, 3, 4)  # every micro-batch of a step agrees
    flags = {
        recipe.start(clips(r), {"label": torch.tensor([0])}, r, 3).own for r in (rng.select(i, i + 1) for i in range(4))
    }
    assert len(flags) == 1


def test_self_made_trajectories_start_from_the_student_s_plain_prediction_of_noise():
    recipe = make(settings_of(self_share=1.0))
    rng, cond = Rng.for_batch(0, 0, 3), {"label": torch.tensor([0, 1, 2])}
    start = recipe.start(Batch(3), cond, rng, 0)  # no data needed
    noise = rng.normal("own/noise", SHAPE)
    x0 = recipe.actors.denoiser("student").x0(noise, times(999.0, 3), cond)
    expected = VP1000.add_noise(x0, rng.normal_like("eps", x0), start.t)
    below = start.t < 999
    assert below.any()
    assert_close(start.x_t[below], expected[below].float())
    with pytest.raises(UserError, match="clean samples"):
        make(settings_of()).start(Batch(3), cond, rng, 0)


# ---------------------------------------------------------------- against plain consistency distillation


@pytest.mark.parametrize("boundary", ["lcm", "edm", "jump"])
def test_with_everything_off_it_is_latent_consistency_distillation(boundary):
    shared = {"boundary": boundary, "distance": "huber_element", "guidance_scale": 3.0, "guidance_max": None}
    ours = make(settings_of(**shared, noise_at_top=False, time_scale=10.0))
    theirs = Consistency(ConsistencyConfig(**shared), ours.actors)
    rng = Rng.for_batch(0, 0, 6)
    batch = clips(rng)
    expected = theirs.loss("student", batch, rng, 0).total()
    assert_close(ours.loss("student", batch, rng, 0).total(), expected)
    only = make(settings_of(**shared, noise_at_top=False, time_scale=10.0, motion_weight=0.0, clip_weight=1.0))
    assert_close(only.loss("student", batch, rng, 0).total(), expected)


def test_the_boundary_is_lcm_s_at_the_configured_time_scale():
    near = torch.full((2, *SHAPE), 0.4), times(19.0, 2), {"label": torch.tensor([0, 1])}
    x0 = network().x0(*near)
    for scale in (0.01, 4.0):
        found = MotionConsistency.student_view(settings_of(time_scale=scale), network()).x0(*near)
        skip = 0.25 / ((scale * 19) ** 2 + 0.25)
        assert_close(found, skip * near[0] + (1 - skip) ** 0.5 * x0)
    assert MotionConsistencyConfig().time_scale == 4.0
    with pytest.raises(UserError, match="table"):
        MotionConsistency.student_view(settings_of(), ExactConsistency(CosineVP()))


# ---------------------------------------------------------------- the learned head


def test_a_new_head_changes_neither_the_loss_nor_the_student_s_gradient():
    grads, losses = [], []
    for motion in (MotionConfig(), HEAD):
        recipe = make(settings_of(motion=motion))
        terms = step_of(recipe, "student")
        terms.total().mean().backward()
        losses.append(terms.total().detach())
        grads.append([p.grad for p in recipe.actors.module("student").parameters()])
    assert_close(*losses)
    assert_close(*grads)
    assert terms.metrics["head_deviation"].tolist() == [0.0] * 4
    head = recipe.actors.module("motion_head")
    assert not any(p.grad.any() for p in head.blocks.parameters())
    assert head.out.weight.grad.any()


def test_the_head_s_average_follows_it():
    recipe = make(settings_of(motion=HEAD))
    head, average = (recipe.actors.module(name) for name in ("motion_head", "motion_head_average"))
    for a, b in zip(head.parameters(), average.parameters(), strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        head.out.bias.fill_(1.0)
    recipe.after_step(0)
    recipe.after_step(1)
    assert_close(average.out.bias, torch.full((3,), 1 - 0.95**2))
    assert float(step_of(recipe, "student").metrics["head_deviation"].min()) > 0


# ---------------------------------------------------------------- what learns from what


@pytest.mark.parametrize("target", ["stopgrad", "ema"])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_each_phase_reaches_the_roles_it_trains(target, share):
    recipe = make(settings_of(appearance=SEEN, motion=HEAD, target=target, self_share=share))
    trains = {phase.name: set(phase.trains) for phase in recipe.phases(recipe.config)}
    assert trains == {"student": {"student", "motion_head"}, "discriminator": {"discriminator"}}
    terms = step_of(recipe, "student")
    terms.total().mean().backward()
    # the discriminator is passed through on the way to the student; the loop keeps it frozen in this phase
    assert touched(recipe) == {"student", "motion_head", "discriminator"}
    clear(recipe)
    only = {name: value for name, value in step_of(recipe, "student").terms.items() if name == "motion"}
    only["motion"].mean().backward()
    assert touched(recipe) == {"student", "motion_head"}
    clear(recipe)
    step_of(recipe, "discriminator").total().mean().backward()
    assert touched(recipe) == {"discriminator"}


def test_target_teacher_and_own_samples_are_evaluated_without_a_graph():
    modes = []

    class Spy(ExactConsistency):
        def predict(self, x_t, t, cond):
            modes.append(torch.is_grad_enabled())
            return super().predict(x_t, t, cond)

    config = settings_of(self_share=1.0, guidance_scale=1.0, guidance_max=None)
    recipe = oracle(config, Spy(VP1000), Spy(VP1000))
    recipe.loss("student", Batch(2), Rng.for_batch(0, 0, 2), 0)
    assert modes == [False, False, False, True]  # own samples, teacher, target, student


def test_gradients_flow_through_a_decoder_that_gets_none():
    recipe = make(settings_of(appearance=SEEN))
    decoder = nn.Conv2d(3, 3, 1).requires_grad_(False)
    recipe.actors.roles["decoder"] = decoder
    terms = step_of(recipe, "student")
    terms.terms["adversarial"].mean().backward()
    assert touched(recipe) >= {"student"}
    assert all(p.grad is None for p in decoder.parameters())
    with torch.no_grad():
        decoder.weight.zero_()
    clear(recipe)
    step_of(recipe, "student").terms["adversarial"].mean().backward()
    assert "student" not in touched(recipe)  # it was the only way


# ---------------------------------------------------------------- appearance


def test_the_discriminator_sees_images_on_its_real_side_and_the_student_s_frames_on_the_other():
    seen = []
    plain = AppearanceConfig(discriminator=JUDGE, augment=False, penalty_weight=0.0)
    recipe = make(settings_of(appearance=plain))
    recipe.discriminator_was = recipe.appearance.discriminator.forward
    recipe.appearance.discriminator.forward = lambda frames, caption: (
        seen.append(frames),
        recipe.discriminator_was(frames, caption),
    )[1]
    rng = Rng.for_batch(0, 0, 3).fork("discriminator")
    batch = clips(rng)
    recipe.loss("discriminator", batch, rng, 0)
    assert torch.equal(seen[0], batch.cond["images"].flatten(0, 1))
    assert seen[1].shape == (6, 3, 8, 8)
    assert not seen[1].requires_grad


def test_without_an_image_set_frames_of_the_clips_are_real():
    recipe = make(settings_of(appearance=AppearanceConfig(real="clip", augment=False, discriminator=JUDGE)))
    rng = Rng.for_batch(0, 0, 2)
    x0 = clips(rng).x0
    real = recipe.appearance.real(x0, {}, rng).frames.unflatten(0, (2, 2))
    for sample in range(2):
        for part in range(2):
            frames = x0[sample].transpose(0, 1)[2 * part : 2 * part + 2]
            assert any(torch.equal(real[sample, part], frame) for frame in frames)
    terms = recipe.loss("discriminator", Batch(2, {"label": torch.tensor([0, 1])}, x0), rng, 0)
    assert set(terms.terms) == {"discriminator", "penalty"}
    with pytest.raises(UserError, match="image set"):
        make(settings_of(appearance=SEEN)).loss("discriminator", Batch(2, {"label": torch.tensor([0, 1])}, x0), rng, 0)


def test_captions_reach_the_discriminator_and_not_the_network():
    class Strict(ExactConsistency):
        def predict(self, x_t, t, cond):
            assert set(cond) <= {"label"}
            return super().predict(x_t, t, cond)

    told = FrameDiscriminatorConfig(widths=(8,), head_width=8, caption=5)
    config = settings_of(appearance=AppearanceConfig(discriminator=told), guidance_scale=1.0, guidance_max=None)
    made = make(config)
    roles = {"student": Strict(VP1000), "teacher": Strict(VP1000), "discriminator": made.actors.roles["discriminator"]}
    recipe = MotionConsistency(config, Actors(roles, VP1000, SHAPE))
    rng = Rng.for_batch(0, 0, 3)
    plain = clips(rng)
    captions = {"caption": rng.normal("caption", (5,)), "image_caption": rng.normal("image", (5,))}
    batch = Batch(3, {**plain.cond, **captions}, plain.x0)
    values = recipe.loss("discriminator", batch, rng, 0).total()
    swapped = {**batch.cond, "image_caption": captions["caption"]}
    assert not torch.allclose(recipe.loss("discriminator", Batch(3, swapped, plain.x0), rng, 0).total(), values)
    with pytest.raises(UserError, match="captions"):
        recipe.loss("discriminator", plain, rng, 0)


def test_images_of_another_size_are_refused_by_the_penalty_in_one_line():
    recipe = make(settings_of(appearance=SEEN))
    rng = Rng.for_batch(0, 0, 2)
    batch = clips(rng)
    larger = {**batch.cond, "images": torch.zeros(2, 1, 3, 16, 16)}
    with pytest.raises(UserError, match="frames' size"):
        recipe.loss("discriminator", Batch(2, larger, batch.x0), rng, 0)


def test_the_penalty_s_weight_grows_five_times_when_it_is_steep_and_has_waited():
    """On the sheet's rule: penalties of 100 and more, no sooner than ``patience`` steps after the last change."""
    seen = AppearanceConfig(penalty_weight=0.5, penalty_growth=5.0, penalty_limit=100.0, penalty_patience=3)
    adaptation, weights = PenaltyAdaptation(seen), []
    for penalty in (200.0, 200.0, 200.0, 200.0, 99.0, 99.0, 99.0, 300.0, 300.0):
        half = torch.tensor([penalty, penalty])  # of which the step's mean is what counts
        for part in (half + 50, half - 50):
            adaptation.see(part)
        adaptation.after_step(None)
        weights.append(adaptation.weight)
    assert weights == [0.5, 0.5, 2.5, 2.5, 2.5, 2.5, 2.5, 12.5, 12.5]
    again = PenaltyAdaptation(seen)
    again.load_state(adaptation.state())
    assert (again.weight, again.since) == (12.5, 1)
    with pytest.raises(UserError, match="penalty_growth"):
        again.load_state({})


def test_a_grown_weight_is_the_loss_s_and_in_the_checkpoint():
    steep = {"penalty_weight": 0.5, "penalty_growth": 5.0, "penalty_limit": 1e-9, "penalty_patience": 1}
    recipe = make(settings_of(appearance=replace(SEEN, **steep)))
    rng = Rng.for_batch(0, 0, 2)
    assert recipe.loss("discriminator", clips(rng), rng, 0).weights["penalty"] == 0.5
    recipe.after_step(0)
    assert recipe.loss("discriminator", clips(rng), rng, 1).weights["penalty"] == 2.5
    assert recipe.state()["penalty"].tolist() == [2.5, 0.0]
    assert make(settings_of(appearance=SEEN)).state() == {}


def test_micro_batches_see_the_same_losses():
    recipe = make(settings_of(appearance=SEEN, motion=HEAD, self_share=0.5))
    recipe.appearance.discriminator.eval()  # the power iteration of spectral norms moves in training
    for step in (0, 1, 2):
        for phase in ("student", "discriminator"):
            rng = Rng.for_batch(0, step, 6).fork(phase)
            batch = clips(rng)
            whole = recipe.loss(phase, batch, rng, step).total()
            parts = [recipe.loss(phase, batch.select(i, i + 2), rng.select(i, i + 2), step).total() for i in (0, 2, 4)]
            assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- switches


def test_every_term_has_a_switch():
    cases = {
        (): {"motion"},
        (("clip_weight", 0.5),): {"motion", "clip"},
        (("motion_weight", 0.0), ("clip_weight", 1.0)): {"clip"},
        (("appearance", SEEN),): {"motion", "adversarial"},
        (("appearance", AppearanceConfig(start=1, discriminator=JUDGE)),): {"motion"},
    }
    for changes, expected in cases.items():
        recipe = make(settings_of(**dict(changes)))
        terms = step_of(recipe, "student")
        assert set(terms.terms) == expected
        assert all(value.shape == (4,) for value in (*terms.terms.values(), *terms.metrics.values()))
    late = make(settings_of(appearance=AppearanceConfig(start=1, discriminator=JUDGE)))
    assert set(step_of(late, "student", step=1).terms) == {"motion", "adversarial"}
    weighed = make(settings_of(clip_weight=0.5, motion_weight=2.0))
    terms = step_of(weighed, "student")
    assert_close(terms.total(), 2 * terms.terms["motion"] + 0.5 * terms.terms["clip"])
    assert [phase.name for phase in MotionConsistency.phases(settings_of())] == ["student"]
    assert [spec.name for spec in MotionConsistency.role_specs(settings_of())] == ["student", "teacher"]


def test_the_drawn_scale_is_kept_from_the_student_unless_it_is_to_be_told():
    seen = {}

    class Spy(ExactConsistency):
        def predict(self, x_t, t, cond):
            seen["student"] = "guidance" in cond
            return super().predict(x_t, t, cond)

    class Teacher(ExactGaussian):
        def null(self, cond):
            return cond

    for told in (False, True):
        config = settings_of(tell_guidance=told)
        rng = Rng.for_batch(0, 0, 2)
        oracle(config, Spy(VP1000), Teacher(VP1000)).loss("student", clips(rng), rng, 0)
        assert seen["student"] == told
        assert config.extras() == (("guidance",) if told else ())
        assert config.plan_extras() == ({"guidance": 11.0} if told else {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "training", "guidance_scale": 1.0, "guidance_max": None}, "teacher"),
        ({"time_scale": 0.0}, "time_scale"),
        ({"self_share": 1.5}, "self_share"),
        ({"motion_weight": -1.0}, "motion_weight"),
        ({"motion_weight": 0.0}, "teach nothing"),
        ({"motion_weight": 0.0, "clip_weight": 1.0, "motion": HEAD}, "head"),
        ({"guidance_scale": 3.0, "guidance_max": None, "tell_guidance": True}, "guidance_max"),
    ],
)
def test_contradictory_settings_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        MotionConsistencyConfig(**changes)


@pytest.mark.parametrize("changes", [{"weight": -1.0}, {"frames": 0}, {"penalty_weight": -1.0}])
def test_impossible_appearance_is_refused(changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        AppearanceConfig(**changes)


def test_samples_that_are_no_clips_are_refused():
    with pytest.raises(UserError, match="clips"):
        MotionConsistency(settings_of(), Actors({"student": network(), "teacher": network()}, VP1000, (4,)))
    roles = {"student": network(), "teacher": network(), "discriminator": nn.Identity()}
    with pytest.raises(UserError, match="FrameDiscriminator"):
        MotionConsistency(settings_of(appearance=SEEN), Actors(roles, VP1000, SHAPE))


# ---------------------------------------------------------------- learning


class Affine(Backbone):
    """``eps = a_t x + b_t``, one pair of numbers per index of the table, those of the exact teacher at first."""

    def __init__(self) -> None:
        super().__init__()
        t = torch.arange(1000, dtype=F64)
        c = VP1000.coefficients(t)
        slope = c.sigma / (c.alpha**2 * STD**2 + c.sigma**2)
        self.table = nn.Parameter(torch.stack([slope, -slope * c.alpha * MEAN], 1))

    def forward(self, x, time, cond):
        a, b = self.table[time.long()].T
        shape = (-1, *[1] * (x.ndim - 1))
        return a.reshape(shape) * x + b.reshape(shape)


def affine() -> NetworkDenoiser:
    return NetworkDenoiser(Affine(), VP1000, Plain(Kind.EPS))


def settle(recipe: MotionConsistency, shape, dtype, rates, *, steps, batch, pictures=None) -> torch.Tensor:
    """Train, and return samples of four steps."""
    student = recipe.actors.denoiser("student")
    optimizers = {
        phase: torch.optim.Adam(recipe.actors.module(phase).parameters(), rate, betas=(0.0, 0.99))
        for phase, rate in rates.items()
    }
    for step in range(steps):
        for phase, optimizer in optimizers.items():
            rng = Quick(0, step, tuple(range(batch))).fork(phase)
            cond = {} if pictures is None else {"images": pictures + STD * rng.normal("images", (2, *shape[:1], 8, 8))}
            data = Batch(batch, cond, MEAN + STD * rng.normal("x0", shape, dtype))
            optimizer.param_groups[0]["lr"] = rates[phase] * (1 - step / steps if phase == "student" else 1)
            optimizer.zero_grad()
            recipe.loss(phase, data, rng, step).total().mean().backward()
            optimizer.step()
    plan = MotionConsistency.plan(recipe.config, VP1000, 4)
    rng = Quick(1, 0, tuple(range(400)))
    with torch.no_grad():
        return run_plan(recipe.student_view(recipe.config, student), plan, rng.normal("z", shape, dtype), {}, rng)


def test_a_trained_student_samples_better_in_four_steps_than_ddim():
    """DDIM's four steps shrink the standard deviation from 0.5 to 0.275."""
    shape = (1, 4, 3, 3)
    config = settings_of(guidance_scale=1.0, guidance_max=None, num_knots=25, distance="l2")
    recipe = MotionConsistency(config, Actors({"student": affine(), "teacher": affine()}, VP1000, shape, dtype=F64))
    made = settle(recipe, shape, F64, {"student": 0.02}, steps=300, batch=64)
    assert made.mean().item() == pytest.approx(MEAN, abs=0.08)
    assert 0.38 < made.std().item() < 0.6


@pytest.mark.parametrize(("kind", "share"), [("difference", 1.0), ("raw", 0.0)])
@pytest.mark.slow
def test_frames_follow_the_pictures_and_motion_the_teacher(kind, share):
    """The teacher's clips are bright (0.3), the pictures dark (-0.3); the gap of neighbouring frames is the motion.

    The loss on differences lets brightness go where the pictures are and keeps the motion; on the clip itself it holds
    both. Self-made trajectories see the brightness the student gives its samples, as sampling does.
    """
    shape, judge = (1, 4, 8, 8), FrameDiscriminatorConfig(channels=1, widths=(8,), head_width=8)
    appearance = AppearanceConfig(weight=0.3, augment=False, penalty_weight=1.0, discriminator=judge)
    config = settings_of(
        guidance_scale=1.0,
        guidance_max=None,
        num_knots=10,
        motion=MotionConfig(kind=kind),
        appearance=appearance,
        self_share=share,
    )
    roles = {"student": affine(), "teacher": affine()}
    for role in roles.values():
        role.backbone.float()
    roles |= {spec.name: spec.build(0) for spec in MotionConsistency.role_specs(config) if spec.build}
    recipe = MotionConsistency(config, Actors(roles, VP1000, shape))
    rates = {"student": 0.02, "discriminator": 2e-3}
    made = settle(recipe, shape, torch.float32, rates, steps=160, batch=16, pictures=-MEAN)
    assert made.diff(dim=2).std().item() == pytest.approx(0.570, rel=0.1)  # of the same student without pictures
    if kind == "difference":
        assert -0.45 < made.mean().item() < -0.1
    else:
        assert made.mean().item() > 0.1
