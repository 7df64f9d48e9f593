"""Metrics against closed forms of Gaussians, and under the moves that must not change them."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.linalg import sqrtm
from scipy.stats import wasserstein_distance
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.core.metrics.diversity import class_accuracy, diversity, mean_pairwise_distance
from fewstep.core.metrics.frechet import Moments, frechet_distance, frechet_infinity, moments, root
from fewstep.core.metrics.kernel import median_bandwidth, mmd, polynomial_kernel, rbf_kernel
from fewstep.core.metrics.measure import FeatureSpace, Reference
from fewstep.core.metrics.neighbours import neighbourhood
from fewstep.core.metrics.paired import psnr, ssim
from fewstep.core.metrics.sliced import directions, sliced_wasserstein, wasserstein_1d
from fewstep.core.rng import Rng


def normal(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return Rng(seed, 0, tuple(range(n))).normal("x", (d,), torch.float64)


def covariance(d: int, seed: int) -> torch.Tensor:
    a = normal(d, d, seed)
    return a @ a.T / d + 0.1 * torch.eye(d, dtype=torch.float64)


def rotation(d: int, seed: int = 5) -> torch.Tensor:
    return torch.linalg.qr(normal(d, d, seed)).Q


# Frechet


def test_frechet_of_diagonal_gaussians_is_the_closed_form():
    m1, m2 = torch.tensor([0.5, -1.0, 2.0]).double(), torch.tensor([0.0, 1.0, 2.0]).double()
    s1, s2 = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([3.0, 0.25, 0.5]).double()
    value = frechet_distance(Moments(m1, s1.square().diag(), 9), Moments(m2, s2.square().diag(), 9))
    assert value == pytest.approx(float((m1 - m2).square().sum() + (s1 - s2).square().sum()), abs=1e-12)


def test_frechet_of_full_gaussians_is_the_formula_with_a_general_matrix_root():
    a, b = covariance(6, 1), covariance(6, 2)
    expected = float((a + b).trace()) - 2 * sqrtm((a @ b).numpy()).real.trace()
    zero = torch.zeros(6).double()
    assert frechet_distance(Moments(zero, a, 9), Moments(zero, b, 9)) == pytest.approx(expected, abs=1e-10)


def test_frechet_survives_covariances_without_full_rank():
    x = torch.cat([normal(50, 3), torch.zeros(50, 5).double()], 1)
    assert frechet_distance(moments(x), moments(x)) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(moments(x), moments(x + 2)) == pytest.approx(8 * 4, abs=1e-9)


def test_frechet_is_unchanged_by_rotation_shift_and_order_and_scales_with_the_square():
    x, y, q = normal(80, 4, 1), 1.5 * normal(70, 4, 2) + 1, rotation(4)
    value = frechet_distance(moments(x), moments(y))
    assert frechet_distance(moments(y), moments(x)) == pytest.approx(value, rel=1e-12)
    assert frechet_distance(moments(x @ q + 3), moments(y.flip(0) @ q + 3)) == pytest.approx(value, rel=1e-12)
    assert frechet_distance(moments(2 * x), moments(2 * y)) == pytest.approx(4 * value, rel=1e-12)


def test_moments_are_those_of_torch():
    x = normal(33, 4)
    assert_close(moments(x.float()).cov, x.float().double().T.cov())
    with pytest.raises(UserError, match="at least 2"):
        moments(x[:1])


def test_root_squares_back():
    c = covariance(5, 3)
    assert_close(root(c) @ root(c), c)


def test_extrapolation_removes_most_of_the_bias():
    """Equal laws: the plain estimate is biased upwards, about d (d + 3) / (4 n) for unit covariance; the limit is 0."""
    d, n = 8, 2000
    exact = Moments(torch.zeros(d).double(), torch.eye(d).double(), 10**9)
    plain = [frechet_distance(moments(normal(n, d, seed)), exact) for seed in range(8)]
    better = [frechet_infinity(normal(n, d, seed), exact, Rng(seed, 0, ())) for seed in range(8)]
    expected = (d + d * (d + 1) / 4) / n
    assert sum(plain) / 8 == pytest.approx(expected, rel=0.3)
    assert abs(sum(better) / 8) < 0.35 * expected


# kernels


def test_polynomial_mmd_is_the_sum_over_pairs():
    x, y = normal(4, 3, 1), normal(5, 3, 2) + 0.5

    def k(a: torch.Tensor, b: torch.Tensor) -> float:
        return (float(a @ b) / 3 + 1) ** 3

    within = sum(k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j) / 12
    within += sum(k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j) / 20
    between = sum(k(a, b) for a in x for b in y) / 20
    assert mmd(x, y) == pytest.approx(within - 2 * between, rel=1e-12)


def test_rbf_mmd_of_shifted_gaussians_is_the_closed_form():
    """E k = (h^2 / (h^2 + 2))^(d/2) exp(-|c|^2 / (2 (h^2 + 2))) for unit Gaussians a shift c apart."""
    h, d, shift = 1.5, 2, torch.tensor([0.8, -0.3]).double()
    scale = (h**2 / (h**2 + 2)) ** (d / 2)
    expected = 2 * scale * (1 - math.exp(-float(shift.square().sum()) / (2 * (h**2 + 2))))
    x, y = normal(3000, d, 1), normal(3000, d, 2) + shift
    assert mmd(x, y, rbf_kernel(h)) == pytest.approx(expected, rel=0.15)


def test_unbiased_mmd_of_equal_laws_has_mean_zero_and_the_biased_one_has_not():
    pairs = [(normal(30, 3, seed), normal(30, 3, 100 + seed)) for seed in range(60)]
    fair = torch.tensor([mmd(x, y, rbf_kernel(1.0)) for x, y in pairs])
    biased = torch.tensor([mmd(x, y, rbf_kernel(1.0), unbiased=False) for x, y in pairs])
    assert abs(fair.mean()) < 3 * fair.std() / math.sqrt(60)
    assert biased.min() > 0


def test_kernels_are_their_formulas():
    x, y = normal(3, 4, 1), normal(2, 4, 2)
    assert_close(polynomial_kernel(x, y)[1, 0], (x[1] @ y[0] / 4 + 1) ** 3)
    assert_close(rbf_kernel(0.7)(x, y)[2, 1], torch.exp(-(x[2] - y[1]).square().sum() / (2 * 0.49)))
    assert median_bandwidth(torch.tensor([[0.0], [1.0], [3.0]])) == pytest.approx(2.0)


# sliced Wasserstein


def test_wasserstein_of_one_dimension_agrees_with_scipy_for_different_sizes():
    x, y = normal(7, 1, 1), normal(11, 1, 2) * 2 + 1
    expected = wasserstein_distance(x[:, 0].numpy(), y[:, 0].numpy())
    assert wasserstein_1d(x, y, power=1).item() == pytest.approx(expected, rel=1e-12)


def test_sliced_wasserstein_of_a_shift_is_the_shift_along_each_direction():
    x, shift = normal(40, 5), torch.tensor([1.0, 0.0, -2.0, 0.5, 0.0]).double()
    exact = (directions(5, 128) @ shift).square().mean().sqrt()
    assert sliced_wasserstein(x, x + shift, count=128) == pytest.approx(float(exact), rel=1e-12)
    many = sliced_wasserstein(x, x + shift, count=8192)
    assert many == pytest.approx(float(shift.norm()) / math.sqrt(5), rel=0.03)


def test_sliced_wasserstein_ignores_order_and_repetition():
    x, y = normal(12, 3, 1), normal(9, 3, 2)
    value = sliced_wasserstein(x, y)
    assert sliced_wasserstein(x.flip(0), y) == pytest.approx(value, rel=1e-12)
    assert sliced_wasserstein(torch.cat([x, x]), torch.cat([y, y, y])) == pytest.approx(value, rel=1e-12)
    assert sliced_wasserstein(x, x.flip(0)) == pytest.approx(0, abs=1e-12)


# neighbours, diversity


def test_neighbourhood_of_equal_far_and_collapsed_sets():
    x = normal(120, 3)
    same = neighbourhood(x, x)
    assert (same.precision, same.recall, same.coverage) == (1.0, 1.0, 1.0)
    far = neighbourhood(x, x + 100)
    assert far == (0.0, 0.0, 0.0, 0.0)
    collapsed = neighbourhood(x, x[:1] + 1e-3 * normal(120, 3, 7))
    assert collapsed.precision == 1.0
    assert collapsed.recall < 0.1
    assert collapsed.coverage < 0.2


def test_density_and_coverage_of_equal_laws_have_their_expectations():
    """Density has mean 1 and coverage tends to 1 - 2^-k for sets of equal size (arXiv 2002.09797, section 3.2)."""
    result = neighbourhood(normal(800, 4, 1), normal(800, 4, 2), k=5)
    assert result.density == pytest.approx(1, abs=0.12)
    assert result.coverage == pytest.approx(1 - 2**-5, abs=0.03)


def test_diversity_is_one_for_the_data_zero_for_collapse_and_linear_in_scale():
    x = torch.cat([normal(20, 3, 1), normal(30, 3, 2) + 5])
    labels = torch.tensor([0] * 20 + [1] * 30)
    assert diversity(x, x, labels, labels) == pytest.approx(1, rel=1e-12)
    centre = torch.stack([x[labels == c].mean(0) for c in (0, 1)])[labels]
    assert diversity(centre, x, labels, labels) == pytest.approx(0, abs=1e-6)
    assert diversity(centre + 0.5 * (x - centre), x, labels, labels) == pytest.approx(0.5, rel=1e-9)
    assert diversity(3 * x, x) == pytest.approx(3, rel=1e-9)


def test_mean_pairwise_distance_counts_each_pair_once():
    assert mean_pairwise_distance(torch.tensor([[0.0], [1.0], [3.0]])) == pytest.approx(2.0)


def test_class_accuracy_counts_matches():
    assert class_accuracy(torch.eye(3), torch.tensor([0, 1, 1])) == pytest.approx(2 / 3)


# pairs of images


def test_psnr_and_ssim_agree_with_scikit_image_per_image():
    a = Rng(0, 0, (0, 1)).uniform("a", (1, 24, 24)).float() * 2 - 1
    b = (a + 0.1 * Rng(0, 0, (0, 1)).normal("b", (1, 24, 24))).clamp(-1, 1)
    b[1] = a[1] * 0.5
    for i in range(2):
        x, y = a[i, 0].numpy(), b[i, 0].numpy()
        assert psnr(b, a, span=2.0)[i].item() == pytest.approx(peak_signal_noise_ratio(x, y, data_range=2), rel=1e-5)
        how = {"data_range": 1, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        expected = structural_similarity((x + 1) / 2, (y + 1) / 2, **how)
        assert ssim(b, a, low=-1.0, high=1.0)[i].item() == pytest.approx(expected, abs=1e-5)
    with pytest.raises(UserError, match="window"):
        ssim(a[..., :8], b[..., :8], low=-1.0, high=1.0)


# all together


def test_reference_measures_itself_perfectly_and_names_its_protocol():
    x, labels = normal(60, 4), torch.arange(60) % 3
    weights = normal(4, 3, 9)
    space = FeatureSpace("plane", "the samples themselves", lambda s: s, lambda s: s @ weights)
    true = (x @ weights).argmax(1)
    found = {m.name: m for m in Reference(space, x, labels).measure(x, labels)}
    assert found["frechet"].value == pytest.approx(0, abs=1e-9)
    assert found["sliced_wasserstein"].value == pytest.approx(0, abs=1e-9)
    assert found["diversity"].value == pytest.approx(1)
    assert found["precision"].value == found["coverage"].value == 1
    assert (found["frechet"].samples, found["frechet"].reference) == (60, 60)
    assert "plane" in found["frechet"].protocol
    accuracy = {m.name: m.value for m in Reference(space, x, labels).measure(x, true)}["accuracy"]
    assert accuracy == 1


def test_reference_refuses_samples_that_are_not_finite():
    x = normal(10, 2)
    reference = Reference(FeatureSpace("plane", "", lambda s: s), x)
    with pytest.raises(UserError, match="not finite"):
        reference.measure(torch.where(x > 1, torch.nan, x))
