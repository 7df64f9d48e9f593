from __future__ import annotations

import math

import pytest
import torch
from core.gaussian_bed import MEAN, PROCESSES, STD, ExactGaussian
from core.tiny_loop import make_recipe, mlp_teacher, train
from torch.testing import assert_close

from fewstep.core.denoiser import NetworkDenoiser, Plain
from fewstep.core.errors import UserError
from fewstep.core.networks.log_variance import LogVariance
from fewstep.core.networks.roles import RolesConfig, build_roles
from fewstep.core.networks.unet2d import UNet2DBackbone
from fewstep.core.prediction import Clean, Kind, Prediction, compose
from fewstep.core.process import CosineVP, TrigFlow
from fewstep.core.recipe import Actors, Batch
from fewstep.core.recipes.scm import SCM, SCMConfig
from fewstep.core.rng import Rng
from fewstep.core.sampling import run_plan
from fewstep.core.tensors import expand_to

TRIG = TrigFlow(sigma_data=0.5)


def data(rng: Rng, dtype=torch.float64) -> Batch:
    return Batch(len(rng.ids), {}, MEAN + STD * rng.normal("x0", (1,), dtype))


class ToClean(ExactGaussian):
    """A denoiser whose x0 is the exact map to clean data, m + (s/V)(x - alpha m): sCM's exact student."""

    def predict(self, x_t, t, cond):
        c = self.process.coefficients(t)
        a, s = expand_to(c.alpha, x_t), expand_to(c.sigma, x_t)
        x0 = self.mean + self.std / expand_to(self.spread(t), x_t) * (x_t - a * self.mean)
        return Prediction(compose(Clean(x0, (x_t - a * x0) / s), Kind.V, t, self.process), Kind.V)


def oracle(config, student, teacher) -> SCM:
    roles = {"student": student, "teacher": teacher, "log_variance": LogVariance(0).double()}
    return SCM(config, Actors(roles, student.process, (1,), dtype=torch.float64))


def losses(recipe, step=10**6, n=64):
    rng = Rng.for_batch(0, step, n)
    terms = recipe.loss("student", data(rng), rng, step)
    return terms, rng


# ---------------------------------------------------------------- exact networks


@pytest.mark.parametrize("name", ["trigflow", "cosine", "flow", "edm", "vp"])
def test_exact_student_has_no_tangent_whatever_the_process(name):
    """Teacher and student of any process, read through TrigFlow: the tangent vanishes and the head alone remains."""
    process = PROCESSES[name]
    recipe = oracle(SCMConfig(normalization="none"), ToClean(process), ExactGaussian(process, Kind.V))
    terms, rng = losses(recipe)
    # a table's angle is piecewise linear, so the derivative is exact between its knots too
    assert terms.metrics["tangent_rms"].max() < 1e-9
    u = recipe.actors.module("log_variance")(recipe.angles(rng))
    assert_close(terms.terms["tangent"].double(), u.double(), rtol=0, atol=1e-6)


def test_exact_student_of_the_guided_teacher():
    """Guided Gaussians of one variance flow like the Gaussian of the guided mean; only that student is exact."""

    class Two(ExactGaussian):
        def null(self, cond):
            return {"mean": torch.zeros_like(cond["mean"])}

        def predict(self, x_t, t, cond):
            return ExactGaussian(self.process, Kind.V, mean=cond["mean"][:, None]).predict(x_t, t, {})

    rms = {}
    for derivative in ("exact", "finite_difference"):
        for mean in (4.0 * 0.4, 0.4):
            config = SCMConfig(guidance_scale=4.0, normalization="none", variance_head=False, derivative=derivative)
            student = ToClean(CosineVP(), mean=mean)
            recipe = oracle(config, student, Two(CosineVP()))
            rng = Rng.for_batch(0, 0, 64)
            batch = Batch(64, {"mean": torch.full((64,), 0.4).double()}, data(rng).x0)
            rms[derivative, mean] = recipe.loss("student", batch, rng, 10**6).metrics["tangent_rms"].mean().item()
    assert rms["exact", 1.6] < 1e-7
    assert rms["finite_difference", 1.6] < 1e-3
    assert rms["exact", 0.4] > 0.1
    assert rms["finite_difference", 0.4] > 0.1


def test_finite_difference_tends_to_the_exact_derivative():
    """With a wrong student, where there is a tangent: second order in the step."""
    values = {}
    for step in (None, 0.04, 0.02):
        options = {} if step is None else {"derivative": "finite_difference", "difference_step": step}
        config = SCMConfig(normalization="none", variance_head=False, p_std=0.5, **options)
        terms, _ = losses(oracle(config, ToClean(TRIG, mean=-0.5, std=0.8), ExactGaussian(TRIG, Kind.V)))
        values[step] = terms.terms["tangent"]
    errors = [(values[step] - values[None]).abs().max().item() for step in (0.04, 0.02)]
    assert 3.0 < errors[0] / errors[1] < 5.0


def test_warmup_fades_the_derivative_in():
    config = SCMConfig(normalization="none", variance_head=False, prior=False, warmup_steps=100)
    recipe = oracle(config, ToClean(TRIG), ExactGaussian(TRIG, Kind.V))
    start, late = (losses(recipe, step)[0].metrics["tangent_rms"] for step in (0, 100))
    assert late.max() < 1e-9
    assert start.mean() > 0.01


def test_consistency_training_needs_no_teacher_and_is_unbiased():
    """The data's own velocity averages to the teacher's, and the tangent is linear in it."""
    config = SCMConfig(mode="training", normalization="none", variance_head=False)
    assert [spec.name for spec in SCM.role_specs(config)] == ["student"]
    recipe = SCM(config, Actors({"student": ToClean(TRIG)}, TRIG, (1,), dtype=torch.float64))
    n, t = 400_000, torch.tensor([0.9]).double()
    x0 = MEAN + STD * Rng.for_batch(0, 0, 1).normal("x0", (n,), torch.float64)
    eps = Rng.for_batch(0, 0, 1).normal("eps", (n,), torch.float64)
    x_t = TRIG.add_noise(x0, eps, t)
    velocity = recipe.velocity(x0, eps, x_t, t, {})
    teacher = ExactGaussian(TRIG, Kind.V).velocity(x_t, t, {})
    for low, high in ((-0.5, 0.0), (0.2, 0.5), (0.6, 1.5)):
        window = (x_t > low) & (x_t < high)
        assert (velocity - teacher)[window].mean().abs() < 4 * (velocity - teacher)[window].std() / window.sum() ** 0.5


# ---------------------------------------------------------------- the recipe


@pytest.mark.parametrize("head", [True, False])
def test_gradient_reaches_student_and_head_only(head):
    config = SCMConfig(variance_head=head, guidance_scale=2.0, guidance_max=4.0)
    recipe = make_recipe(SCM, config, mlp_teacher(CosineVP(), num_classes=2, time_scale=0.01), dtype=torch.float64)
    assert recipe.phases(config)[0].trains == (("student", "log_variance") if head else ("student",))
    rng = Rng.for_batch(0, 0, 8)
    batch = Batch(8, {"label": rng.integers("label", 2)}, data(rng).x0)
    recipe.loss("student", batch, rng, 10**6).total().mean().backward()
    for name in recipe.actors.roles:
        grads = [p.grad for p in recipe.actors.module(name).parameters()]
        if name == "teacher":
            assert all(g is None for g in grads)
        else:
            assert any(g is not None and g.abs().max() > 0 for g in grads)


def test_micro_batches_see_the_same_losses():
    recipe = oracle(SCMConfig(), ToClean(TRIG, std=0.8), ExactGaussian(TRIG, Kind.V))
    rng = Rng.for_batch(3, 50, 6)
    batch = data(rng)
    whole = recipe.loss("student", batch, rng, 50).terms["tangent"]
    parts = [recipe.loss("student", batch.select(i, i + 3), rng.select(i, i + 3), 50).terms["tangent"] for i in (0, 3)]
    assert_close(torch.cat(parts), whole, rtol=1e-10, atol=1e-12)


def test_angles_follow_the_law_and_stay_within_the_student_s_levels():
    recipe = oracle(SCMConfig(), ToClean(TRIG), ExactGaussian(TRIG))
    t = recipe.angles(Rng.for_batch(0, 0, 4000))
    level = (0.5 * t.tan()).log()
    assert level.mean().item() == pytest.approx(-1.0, abs=0.1)
    assert level.std().item() == pytest.approx(1.4, abs=0.1)
    wide = oracle(SCMConfig(p_std=8.0), ToClean(PROCESSES["vp"]), ExactGaussian(PROCESSES["vp"]))
    tau = 0.5 * wide.angles(Rng.for_batch(0, 0, 4000)).tan()
    ends = PROCESSES["vp"].tau(torch.tensor([0.0, 999.0]).double())
    assert_close(torch.stack([tau.min(), tau.max()]), ends, rtol=1e-9, atol=0)
    edge = oracle(SCMConfig(p_std=8.0), ToClean(TRIG), ExactGaussian(TRIG)).angles(Rng.for_batch(0, 0, 4000))
    assert edge.min() >= 1e-4
    assert edge.max() <= math.pi / 2 - 1e-4


def test_float32_losses_are_finite_at_both_ends():
    recipe = make_recipe(SCM, SCMConfig(p_std=8.0), mlp_teacher(CosineVP(), time_scale=0.01))
    rng = Rng.for_batch(0, 0, 64)
    terms = recipe.loss("student", data(rng, torch.float32), rng, 10**6)
    terms.total().mean().backward()
    assert terms.terms["tangent"].isfinite().all()
    assert all(p.grad.isfinite().all() for p in recipe.actors.module("student").parameters())


@pytest.mark.parametrize(("mode", "checkpointing"), [("full", False), ("lora", False), ("full", True)])
def test_image_network_with_attention_trains_a_step(mode, checkpointing):
    """Class-conditional UNet with attention, guidance range, variance head, exact derivative: the whole recipe."""
    backbone = UNet2DBackbone.make(1, 8, widths=(16, 16), attention=(False, True), num_classes=3, seed=1)
    teacher = NetworkDenoiser(backbone, CosineVP(), Plain(Kind.V))
    config = SCMConfig(guidance_scale=1.5, guidance_max=3.0, warmup_steps=1)
    roles = build_roles(teacher, SCM.role_specs(config), RolesConfig(mode=mode, rank=2, checkpointing=checkpointing), 0)
    recipe = SCM(config, Actors(roles, CosineVP(), (1, 8, 8)))
    rng = Rng.for_batch(0, 0, 4)
    batch = Batch(4, {"label": rng.integers("label", 3)}, rng.normal("x0", (1, 8, 8)) * 0.5)
    recipe.loss("student", batch, rng, 5).total().mean().backward()
    grads = [p.grad for p in recipe.actors.module("student").parameters()]
    moved = sum(g is not None and bool(g.abs().max() > 0) for g in grads)
    assert moved > len(grads) / 3  # factors that multiply a zero factor have no gradient at first
    assert all(g is None or g.isfinite().all() for g in grads)


def test_plans_are_on_the_student_s_own_clock():
    assert SCM.plan(SCMConfig(), TRIG, 1).times == (math.pi / 2,)
    assert SCM.plan(SCMConfig(), TRIG, 2).times == (math.pi / 2, pytest.approx(1.1))
    assert len(SCM.plan(SCMConfig(), TRIG, 4).times) == 4
    vp = SCM.plan(SCMConfig(), PROCESSES["vp"], 2)
    assert vp.times[0] == 999
    tau = PROCESSES["vp"].tau(torch.tensor(vp.times[1]).double()).item()
    assert tau == pytest.approx(0.5 * math.tan(1.1), rel=0.01)
    own = SCM.plan(SCMConfig(student_angles=(1.5683, 1.3, 1.1, 0.6)), TRIG, 4)
    assert own.times == pytest.approx((1.5683, 1.3, 1.1, 0.6))
    # re-noising in any process is the same sampler: x0 is the consistency function
    exact = [ToClean(p) for p in (TRIG, CosineVP())]
    rng, noise = Rng.for_batch(0, 0, 3), Rng.for_batch(0, 0, 3).normal("noise", (1,), torch.float64)
    samples = [run_plan(s, SCM.plan(SCMConfig(), s.process, 2), noise, {}, rng) for s in exact]
    assert_close(*samples, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma_data": 0.0}, "sigma_data"),
        ({"difference_step": 0.5}, "difference_step"),
        ({"student_angles": (2.0,)}, "pi/2"),
        ({"mode": "training", "guidance_scale": 2.0}, "no teacher"),
        ({"init": "fresh"}, "training"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        SCMConfig(**settings)


def test_processes_with_an_anchor_are_refused():
    process = PROCESSES["residual"]
    with pytest.raises(UserError, match="anchor"):
        oracle(SCMConfig(), ExactGaussian(process), ExactGaussian(process))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trigflow", "cosine"])
def test_student_learns_from_a_pretrained_network(name):
    from fewstep.core.recipes.diffusion import Diffusion, DiffusionConfig

    process = PROCESSES[name]
    kind, scale = (Kind.VELOCITY, 10.0) if name == "trigflow" else (Kind.V, 0.01)
    teacher = make_recipe(Diffusion, DiffusionConfig(), mlp_teacher(process, kind=kind, time_scale=scale))

    def batch(rng: Rng) -> Batch:
        return data(rng, torch.float32)

    train(teacher, batch, steps=800, batch=256, lr=3e-3)
    network = teacher.actors.denoiser("student")
    recipe = make_recipe(SCM, SCMConfig(warmup_steps=200), network, teacher=ExactGaussian(process))
    train(recipe, batch, steps=600, batch=128, lr=1e-3)
    for steps, tolerance in ((1, 0.15), (2, 0.1)):
        rng = Rng.for_batch(1, 0, 1000)
        with torch.no_grad():
            plan = recipe.plan(recipe.config, process, steps)
            x = run_plan(recipe.actors.denoiser("student"), plan, rng.normal("noise", (1,)), {}, rng)
        assert x.mean().item() == pytest.approx(MEAN, abs=tolerance)
        assert x.std().item() == pytest.approx(STD, abs=tolerance)
