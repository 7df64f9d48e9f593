"""What a collapse usually comes from: a table of signals of the run, most telling first, and a usual cause."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

SIGNALS = ("discriminator_margin", "head_deviation", "motion_energy_data", "latent_std", "grad_norm", "guidance_scale")
"""What is understood: the discriminator's mean logit of real minus that of fake samples; the distance of a learnt
motion head's output from its input over the input's size; the training clips' motion energy in [-1, 1]; the student's
latents' standard deviation, scaled; the norm of the gradient; the guidance scale of training."""


@dataclass(frozen=True)
class Cause:
    """A cause of collapses of ``kind``, taken when ``fits`` says so of ``signal``; ``text`` has room for its value."""

    kind: str
    signal: str
    fits: Callable[[float], bool]
    text: str


CAUSES = (
    Cause(
        "still",
        "motion_energy_data",
        lambda x: x < 1e-4,
        "the clips trained on hardly move (motion energy {:.2g}): widen the frame interval or choose others",
    ),
    Cause(
        "still",
        "discriminator_margin",
        lambda x: x > 4,
        "the frame discriminator wins (margin {:.2g}) and sees no motion: lower its rate or the loss's weight",
    ),
    Cause(
        "still",
        "head_deviation",
        lambda x: x > 1,
        "the learnt motion head has left its input behind (deviation {:.2g}) and may ignore motion: lower its rate",
    ),
    Cause(
        "single colour",
        "latent_std",
        lambda x: x < 0.1 or x > 5,
        "latents have a standard deviation of {:.2g}, not about 1: see that they are scaled exactly once",
    ),
    Cause(
        "single colour",
        "grad_norm",
        lambda x: x > 100,
        "gradients of norm {:.2g} have torn the weights: lower optim.lr and set train.grad_clip",
    ),
    Cause(
        "single colour",
        "discriminator_margin",
        lambda x: x > 4,
        "the discriminator wins (margin {:.2g}) and teaches nothing any more: lower its rate",
    ),
    Cause(
        "oversaturated",
        "guidance_scale",
        lambda x: x > 5,
        "the guidance scale of {:.3g} is too high for few steps: lower it, and sample the student with scale 1",
    ),
    Cause(
        "oversaturated",
        "latent_std",
        lambda x: x > 2,
        "latents have a standard deviation of {:.2g}, not about 1: see that they are scaled exactly once",
    ),
    Cause(
        "not finite",
        "grad_norm",
        lambda x: x > 100,
        "gradients of norm {:.2g}: lower optim.lr and set train.grad_clip",
    ),
)
USUAL = {
    "still": "the loss on frames outweighs the loss on motion, or the clips trained on hardly move",
    "single colour": "a learning rate too high for the student, or latents scaled twice: take an earlier checkpoint",
    "oversaturated": "guidance applied twice (in training and in sampling), or a scale too high for few steps",
    "not finite": "a learning rate too high, or half precision that overflows: lower optim.lr, try bf16",
}


def likely_cause(kind: str, signals: Mapping[str, float]) -> str:
    """Return the first cause the signals point to, or the usual one; signals that are not there point nowhere."""
    for cause in CAUSES:
        if cause.kind == kind and cause.signal in signals and cause.fits(signals[cause.signal]):
            return cause.text.format(signals[cause.signal])
    return USUAL[kind]
