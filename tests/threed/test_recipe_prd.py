"""PRD: score differences by the numbers of its sheet, times, graphs that end with their part, and that it converges."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from threed.planes_bed import TINY, ColourJudge, Says, linear_student, student_of_planes
from torch.testing import assert_close

from fewstep.core.analytic import GaussianTeacher, MixtureTeacher
from fewstep.core.errors import UserError
from fewstep.core.guidance import Guided, guidance_terms, plain
from fewstep.core.process import VP, times
from fewstep.core.recipe import Actors, Batch, LossTerms
from fewstep.core.recipes.rollout import Noised, Sample
from fewstep.core.rng import Rng
from fewstep.core.times import TimeConfig
from fewstep.threed.planes.model import make_generator
from fewstep.threed.recipes.prd import PRD, PRDConfig, TeacherConfig, annealed, part_grid, shifted_time, told_to

F64 = torch.float64
SD = VP.scaled_linear()
CSD = TeacherConfig(guidance_scale=7.5)
QUIET = {"sparsity": 0.0, "eikonal": 0.0}


class Fixed(Rng):
    """Draws that a test says: the sheet's noise at the sheet's time."""

    def normal_like(self, stream, x):
        return torch.tensor([[0.5, -1.0]], dtype=x.dtype).expand_as(x) if stream.endswith("eps") else x * 0

    def uniform(self, stream, shape=()):
        return torch.full((len(self.ids), *shape), 0.4 / 0.999, dtype=F64)


def recipe_of(config=None, *, judges=None, double=True):
    generator = make_generator(TINY, 0)
    student = student_of_planes(generator.double() if double else generator)
    found = judges or {"mv": ColourJudge(Says(lambda x, t, cond: 0.1 * x, SD))}
    dtype = F64 if double else torch.float32
    config = config or PRDConfig(teacher=replace(CSD, against="noise"), **QUIET)
    return PRD(config, Actors({"student": student, "judges": found}, SD, TINY.shape, dtype=dtype))


def batch_of(recipe, n=2):
    tokens = recipe.generator.words.tokens(["a red cone", "a blue box", "a green torus"][:n])
    return Batch(n, {"tokens": tokens, "mv/label": torch.arange(n), "sd/label": torch.arange(n)})


def everything(recipe):
    return [p for p in recipe.generator.parameters() if p.requires_grad]


class TwoClasses(MixtureTeacher):
    """The sheet's teacher: two classes, the condition is the first."""

    def __init__(self):
        super().__init__(SD, [0.5, 0.5], [[1.0, -2.0], [-1.0, 0.5]], [0.5, 0.5])


@pytest.mark.parametrize(("normalizer", "wanted"), [("clean", (-0.763912, 0.954890)), ("noisy", (-0.636886, 0.796107))])
def test_classifier_score_distillation_by_the_golden_numbers(normalizer, wanted):
    teacher = TwoClasses()
    recipe = recipe_of(PRDConfig(teacher=CSD, normalizer=normalizer, time=TimeConfig(low=0.0, high=1.0), **QUIET))
    y = torch.tensor([[0.3, 0.7]], dtype=F64, requires_grad=True)
    cond = {"label": torch.tensor([0])}
    judge = ColourJudge(Labelled(teacher))
    value, apart = recipe.score(judge, CSD, Sample(y, cond), Fixed(0, 0, (0,)), 0)
    (gradient,) = torch.autograd.grad(value.sum(), y)
    assert_close(gradient[0], torch.tensor(wanted, dtype=F64), atol=2e-6, rtol=0)
    assert apart.shape == (1,)


class Labelled(Says):
    """The two classes' exact noise: that of class 0 under label 0, of both under -1."""

    def __init__(self, mixture: MixtureTeacher) -> None:
        first = GaussianTeacher(SD, torch.tensor([1.0, -2.0], dtype=F64), 0.5)

        def eps(x, t, cond):
            known = (cond["label"] >= 0)[:, None]
            return torch.where(known, first.eps(x, t, {}), mixture.eps(x, t, {}))

        super().__init__(eps, SD)


def test_the_direction_is_that_of_the_guidance_times_its_excess():
    recipe, cond = recipe_of(PRDConfig(teacher=CSD, **QUIET)), {"label": torch.tensor([0])}
    y, judge = torch.tensor([[0.3, 0.7]], dtype=F64, requires_grad=True), ColourJudge(Labelled(TwoClasses()))
    at = Fixed(0, 0, (0,))
    t = recipe.config.time.draw(SD, at, "t", 0)
    c = SD.coefficients(t)
    x_t = SD.add_noise(y.detach(), at.normal_like("eps", y), t)
    there = (judge.teacher.eps(x_t, t, cond) - judge.teacher.eps(x_t, t, judge.teacher.null(cond)))[0]
    for scale in (3.0, 7.5):
        settings = replace(CSD, guidance_scale=scale)
        value, _ = recipe.score(judge, settings, Sample(y, cond), at, 0)
        guided = judge.teacher.eps(x_t, t, judge.teacher.null(cond)) + scale * there
        w = (c.sigma / c.alpha * (guided - at.normal_like("eps", y))).abs().mean()
        wanted = (scale - 1) * (c.sigma / c.alpha) * there / (w + 0.1)
        assert_close(torch.autograd.grad(value.sum(), y)[0][0], wanted)


def test_negative_prompts_with_weights_guide_as_everywhere():
    told = Says(lambda x, t, cond: torch.sin(x * (2.0 + cond["label"][:, None])), SD)
    recipe, rng = recipe_of(PRDConfig(teacher=CSD, **QUIET)), Rng(0, 0, (0, 1))
    y = rng.normal("y", (3,)).double()
    cond = {"label": torch.tensor([0, 1])}
    cond |= {"negative/label": torch.tensor([[2], [3]]), "negative/weights": torch.tensor([[-0.7], [-0.2]], dtype=F64)}
    at = Noised(y, y, torch.tensor([400.0, 800.0], dtype=F64), torch.ones(2), torch.ones(2))
    guided, base = recipe.predictions(told, CSD, Sample(y, cond), at, 7.5, rng, 0)
    assert_close(guided, Guided(told, 7.5).eps(y, at.t, cond))
    terms = guidance_terms(told, cond)
    assert_close(base, terms.combine([told.eps(y, at.t, each) for each in terms.conds], 1.0))
    assert float((guided - Guided(told, 7.5).eps(y, at.t, plain(cond))).abs().max()) > 0.1


def test_unguided_classifier_score_distillation_is_nothing_and_told_so():
    recipe, y = recipe_of(PRDConfig(teacher=CSD, **QUIET)), torch.ones(1, 2, dtype=F64, requires_grad=True)
    one = replace(CSD, guidance_scale=1.0, guidance_end=2.0)
    value, _ = recipe.score(ColourJudge(Labelled(TwoClasses())), one, Sample(y, {"label": torch.tensor([0])}),
                            Fixed(0, 0, (0,)), 0)  # fmt: skip
    assert not torch.autograd.grad(value.sum(), y)[0].any()
    with pytest.raises(UserError, match="says nothing"):
        TeacherConfig(guidance_scale=1.0)


def test_views_judged_jointly_are_averaged_and_normalised_one_by_one():
    teacher = Says(lambda x, t, cond: torch.tanh(x) + cond["label"].reshape(-1, *[1] * (x.ndim - 1)), SD)
    recipe = recipe_of(PRDConfig(teacher=CSD, **QUIET))
    y = torch.randn(2, 4, 3, 2, 2, dtype=F64, requires_grad=True)
    cond, rng = {"label": torch.tensor([1, 2])}, Rng(0, 0, (0, 1))
    joint = ColourJudge(teacher, views=4)
    value, _ = recipe.score(joint, CSD, Sample(y, cond), rng, 0)
    (together,) = torch.autograd.grad(value.sum(), y)
    t = recipe.config.time.draw(SD, rng, "noised/t", 0)
    eps = rng.normal_like("noised/eps", y)
    tau = (SD.coefficients(t).sigma / SD.coefficients(t).alpha)[:, None, None, None, None]
    x_t = SD.add_noise(y.detach(), eps, t)
    apart = teacher.eps(x_t, t, cond) - teacher.eps(x_t, t, teacher.null(cond))
    guided = teacher.eps(x_t, t, teacher.null(cond)) + 7.5 * apart
    w = (tau * (guided - eps)).abs().flatten(2).mean(2)[:, :, None, None, None]
    assert_close(together, tau * 6.5 * apart / (w + 0.1) / 4)


def test_a_shift_of_time_tells_a_constant_teacher_nothing_new():
    teacher = Says(lambda x, t, cond: cond["label"].to(x).reshape(-1, *[1] * (x.ndim - 1)).expand_as(x), SD)
    y, cond = torch.randn(3, 2, dtype=F64, requires_grad=True), {"label": torch.tensor([1, 2, 3])}
    recipe, found = recipe_of(PRDConfig(teacher=CSD, **QUIET)), []
    for ratio in (0.0, 0.1, 0.5):
        value, _ = recipe.score(ColourJudge(teacher), replace(CSD, asd_ratio=ratio), Sample(y, cond),
                                Rng(0, 0, (0, 1, 2)), 0)  # fmt: skip
        found.append(torch.autograd.grad(value.sum(), y)[0])
    assert found[0].abs().min() > 0
    assert_close(found[1], found[0])
    assert_close(found[2], found[0])


@pytest.mark.parametrize("ratio", [0.0, 0.1, 1.0])
def test_shifted_times_lie_between_the_time_and_its_share_of_the_way_from_the_lowest(ratio):
    law, rng = TimeConfig(low=0.02, high=0.98), Rng.for_batch(0, 0, 500)
    t = law.draw(SD, rng, "t")
    later = shifted_time(SD, law, t, ratio, rng.uniform("asd"), 0)
    low = 0.02 * 999
    assert torch.equal(later, later.round())
    assert ((later >= t) & (later <= t + ratio * (t - low)) & (later <= 999) & (later >= 1)).all()
    assert ratio == 0 or (later > t).any()


def test_the_shift_is_asked_of_the_teacher_at_the_noisier_time_with_the_same_noise():
    asked = []
    teacher = Says(lambda x, t, cond: asked.append((x, t)) or 0 * x, SD)
    settings, rng = replace(CSD, asd_ratio=0.5), Rng(0, 0, (0, 1))
    recipe, y = recipe_of(PRDConfig(teacher=settings, **QUIET)), torch.randn(2, 5, dtype=F64)
    eps, t = torch.randn(2, 5, dtype=F64), torch.tensor([600.0, 800.0], dtype=F64)
    c = SD.coefficients(t)
    at = Noised(SD.add_noise(y, eps, t), eps, t, c.alpha, c.sigma)
    recipe.predictions(teacher, settings, Sample(y, {"label": torch.zeros(2)}), at, 7.5, rng, 0)
    x, later = asked[-1]
    assert_close(x, SD.add_noise(y, eps, later))


def test_the_parts_times_are_the_shifted_leading_grid():
    recipe = recipe_of()
    assert recipe.times(Rng(0, 0, (0,))) == (999, 749, 499, 249)
    alpha = SD.coefficients(torch.tensor(recipe.times(Rng(0, 0, (0,))))).alpha
    assert_close(alpha, torch.tensor([0.06826, 0.23796, 0.52694, 0.82185], dtype=F64), atol=1e-5, rtol=0)
    assert PRD.plan(recipe.config, SD, 4).times == (999, 749, 499, 249)
    with pytest.raises(UserError, match="4 step"):
        PRD.plan(recipe.config, SD, 2)


def test_more_moments_than_parts_are_drawn_one_from_each_part():
    recipe = recipe_of(PRDConfig(moments=52, **QUIET))
    grid = part_grid(SD, 52)
    assert len(grid) == 52
    assert grid[0] == 999
    drawn = [recipe.times(Rng(0, step, (0,))) for step in range(200)]
    for part in range(4):
        assert {moments[part] for moments in drawn} == set(grid[13 * part : 13 * part + 13])


def test_no_gradient_goes_from_one_part_into_the_one_before():
    recipe = recipe_of()
    batch, rng, generator = batch_of(recipe), Rng(0, 0, (0, 1)), recipe.generator
    params = everything(recipe)
    accumulated = [torch.zeros_like(p) for p in params]
    for terms in recipe.losses("student", batch, rng, 0):
        for total, one in zip(accumulated, _gradients(terms, params), strict=True):
            total += one
    z = rng.normal("student/noise", TINY.shape, F64)
    apart = [torch.zeros_like(p) for p in params]
    student = recipe.actors.denoiser("student")
    for index, moment in enumerate((999.0, 749.0, 499.0, 249.0)):  # separate graphs from the same inputs
        t = times(moment, 2)
        x = SD.add_noise(z, rng.normal_like(f"student/renoise/{index}", z), t)
        clean = student.x0(x, t, batch.cond)
        terms = recipe.judged(generator.field(clean), batch.cond, rng.fork(f"part{index}"), 0)
        for total, one in zip(apart, _gradients(terms, params), strict=True):
            total += one
        z = clean.detach()
        assert z.grad_fn is None
    for one, other in zip(accumulated, apart, strict=True):
        assert_close(one, other)
    assert sum(float(each.abs().sum()) for each in apart) > 0


def _gradients(terms: LossTerms, params):
    found = torch.autograd.grad(terms.total().mean(), params, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(params, found, strict=True)]


def test_the_loss_as_a_whole_is_the_sum_of_its_parts():
    config = PRDConfig(teacher=replace(CSD, against="noise"), points=16)
    recipe = recipe_of(config)
    batch, rng = batch_of(recipe), Rng(0, 0, (0, 1))
    parts = list(recipe.losses("student", batch, rng, 0))
    assert [part.more for part in parts] == [True, True, True, False]
    assert set(parts[0].terms) == {"mv", "sparsity", "eikonal"}
    whole = recipe.loss("student", batch, rng, 0)
    assert_close(whole.total(), torch.stack([part.total() for part in parts]).sum(0))
    assert whole.metrics.keys() == parts[0].metrics.keys()


def test_samples_are_judged_alike_alone_and_in_a_batch():
    teachers = {"mv": TeacherConfig(against="noise"), "sd": TeacherConfig(against="noise", views=2)}
    judges = {name: ColourJudge(Says(lambda x, t, cond: x.sin(), SD), views=4 if name == "mv" else 1)
              for name in teachers}  # fmt: skip
    recipe = recipe_of(PRDConfig(teachers=teachers, points=16), judges=judges)
    batch, rng = batch_of(recipe, 3), Rng(0, 3, (0, 1, 2))
    whole = recipe.loss("student", batch, rng, 3)
    for row in range(3):
        alone = recipe.loss("student", batch.select(row, row + 1), rng.select(row, row + 1), 3)
        for name, value in alone.terms.items():
            assert_close(value[0], whole.terms[name][row])


def test_regularisers_fade_and_colours_hear_less():
    config = PRDConfig(teacher=replace(CSD, against="noise", guidance_end=2.5), points=16, anneal_steps=10)
    recipe = recipe_of(config)
    batch, rng = batch_of(recipe), Rng(0, 0, (0, 1))
    for step, share in ((0, 1.0), (5, 0.5)):
        terms = next(recipe.losses("student", batch, rng, step))
        assert terms.weights["sparsity"] == pytest.approx(share / 4)
        assert terms.weights["eikonal"] == pytest.approx(share / 4)
    assert set(next(recipe.losses("student", batch, rng, 10)).terms) == {"mv"}
    assert [annealed(1.0, 0.01, 10, step) for step in (0, 5, 10, 99)] == pytest.approx([1.0, 0.505, 0.01, 0.01])


def test_each_teacher_hears_its_own_prompt():
    cond = {"tokens": torch.zeros(1), "sd/label": torch.ones(1), "mv/label": torch.full((1,), 2.0)}
    assert told_to("mv", cond) == {"label": cond["mv/label"]}
    assert told_to("none", cond) == {}


class FlatField:
    """What a toy's latents look like: themselves, as one grey picture a sample."""

    colour_gradient = 1.0

    def __init__(self, z):
        self.z = z

    def views(self, camera, background=1.0, rng=None):
        from fewstep.threed.views import Views

        rgb = self.z.flatten(1)[:, :12].reshape(-1, 3, 2, 2)
        return Views(rgb, rgb[:, :1] * 0, rgb[:, :1] * 0, rgb * 0)


@pytest.mark.slow
def test_a_linear_student_moves_its_renders_to_the_mean_of_an_exact_teacher():
    mean = torch.linspace(-1, 1, 12, dtype=F64).reshape(3, 2, 2)
    student = linear_student(12)
    teacher = GaussianTeacher(SD, mean, 0.3)
    recipe = recipe_of(PRDConfig(teacher=TeacherConfig(guidance_scale=1.0, against="noise"),
                                 time=TimeConfig(low=0.02, high=0.98), **QUIET))  # fmt: skip
    recipe.judges = {"flat": ColourJudge(teacher, size=2)}
    recipe.actors = Actors({"student": student}, SD, (6, 1, 1, 2), dtype=F64)

    class Flat:
        def field(self, z):
            return FlatField(z)

    recipe.generator = Flat()
    optimizer = torch.optim.Adam(student.backbone.parameters(), lr=2e-2)
    errors = []
    for step in range(300):
        rng = Rng.for_batch(0, step, 16)
        for group in optimizer.param_groups:
            group["lr"] = 2e-2 * (1 - step / 300)
        optimizer.zero_grad()
        for terms in recipe.losses("student", Batch(16), rng, step):
            terms.total().mean().backward()
        optimizer.step()
        with torch.no_grad():
            x = rng.normal("look", (6, 1, 1, 2), F64)
            made = student.x0(x, times(999.0, 16), {}).reshape(-1, 3, 2, 2).mean(0)
            errors.append((made - mean).norm().item())
    assert errors[0] > 10 * sum(errors[-10:]) / 10


def test_what_cannot_be_trained_is_told():
    with pytest.raises(UserError, match="no teacher 'zero'"):
        recipe_of(PRDConfig(teachers={"zero": CSD}))
    with pytest.raises(UserError, match="one teacher or more"):
        PRD(PRDConfig(), Actors({"student": student_of_planes(make_generator(TINY, 0)), "judges": {}}, SD, TINY.shape))
    with pytest.raises(UserError, match="generator of planes"):
        PRD(PRDConfig(), Actors({"student": linear_student(3), "judges": {"mv": None}}, SD, TINY.shape))
    for wrong in ({"moments": 6}, {"floor": 0.0}, {"renderers": ()}, {"points": 0}):
        with pytest.raises(UserError):
            PRDConfig(**wrong)
