"""What a collapse usually comes from: a table of signals of the run, most telling first, and a usual cause."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

ACCURACY, MARGIN = "discriminator/accuracy", "discriminator/margin"
HEAD, DATA = "student/head_deviation", "student/data_motion"
GRADIENT, GUIDANCE, LATENTS = "grad_norm/student", "guidance_scale", "latent_std"
SIGNALS = (ACCURACY, MARGIN, HEAD, DATA, GRADIENT, GUIDANCE, LATENTS)
"""What is understood, by the names runs log it under: how often the discriminator of frames is right, its mean logit of
real minus that of generated frames; the distance of a learnt motion head's output from its input over the input's size;
the training clips' motion over their variance; the norm of the gradient. Of settings the greatest guidance scale of
training, and of previews the standard deviation of the student's latents, scaled."""


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
        DATA,
        lambda x: x < 4e-4,
        "the clips trained on hardly move ({:.2g} of their variance): widen the frame interval or choose others",
    ),
    Cause(
        "still",
        ACCURACY,
        lambda x: x > 0.97,
        "the frame discriminator wins (right {:.0%} of the time) and sees no motion: lower its rate or weight",
    ),
    Cause(
        "still",
        MARGIN,
        lambda x: x > 4,
        "the frame discriminator wins (margin {:.2g}) and sees no motion: lower its rate or the loss's weight",
    ),
    Cause(
        "still",
        HEAD,
        lambda x: x > 1,
        "the learnt motion head has left its input behind (deviation {:.2g}) and may ignore motion: lower its rate",
    ),
    Cause(
        "single colour",
        LATENTS,
        lambda x: x < 0.1 or x > 5,
        "latents have a standard deviation of {:.2g}, not about 1: see that they are scaled exactly once",
    ),
    Cause(
        "single colour",
        GRADIENT,
        lambda x: x > 100,
        "gradients of norm {:.2g} have torn the weights: lower optim.lr and set train.grad_clip",
    ),
    Cause(
        "single colour",
        ACCURACY,
        lambda x: x > 0.97,
        "the discriminator wins (right {:.0%} of the time) and teaches nothing any more: lower its rate",
    ),
    Cause(
        "single colour",
        MARGIN,
        lambda x: x > 4,
        "the discriminator wins (margin {:.2g}) and teaches nothing any more: lower its rate",
    ),
    Cause(
        "oversaturated",
        GUIDANCE,
        lambda x: x > 5,
        "the guidance scale of {:.3g} is too high for few steps: lower it, and sample the student with scale 1",
    ),
    Cause(
        "oversaturated",
        LATENTS,
        lambda x: x > 2,
        "latents have a standard deviation of {:.2g}, not about 1: see that they are scaled exactly once",
    ),
    Cause(
        "not finite",
        GRADIENT,
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
