"""Exact teachers: denoisers of known data laws, with their densities, Jacobians, flow maps and samples.

They stand wherever a network would, under any process and prediction kind, and are how losses and recipes are proved.
"""

from fewstep.core.analytic.exact import ExactDenoiser, log_ratio
from fewstep.core.analytic.gaussian import GaussianTeacher, linear_generator_score
from fewstep.core.analytic.mixture import ALL_CLASSES, MixtureTeacher
from fewstep.core.analytic.quadrature import GaussGrid, gauss_grid

__all__ = [
    "ALL_CLASSES",
    "ExactDenoiser",
    "GaussGrid",
    "GaussianTeacher",
    "MixtureTeacher",
    "gauss_grid",
    "linear_generator_score",
    "log_ratio",
]
