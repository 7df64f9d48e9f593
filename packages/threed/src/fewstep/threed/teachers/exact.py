"""A teacher that knows: its clean prediction is the true picture of a prompt from a camera. For tests and proofs.

Its data: pictures of a prompt from a view are a narrow Gaussian about the true one, and without a prompt the mixture
of such Gaussians of several prompts, or a Gaussian about flat grey; denoised in closed form.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond, Denoiser
from fewstep.core.errors import check
from fewstep.core.networks.backbone import entry
from fewstep.core.prediction import Kind, Prediction
from fewstep.core.process import Process
from fewstep.core.tensors import expand_to, precise
from fewstep.threed.cameras import Camera, ViewRanges
from fewstep.threed.judges import Judge
from fewstep.threed.shapes import all_prompts, build, read, render
from fewstep.threed.teachers.spaces import Pixels
from fewstep.threed.teachers.texts import EMPTY
from fewstep.threed.teachers.view_model import to_samples
from fewstep.threed.views import Views

PROMPT, MEANS, PROMPTED = "prompt", "means", "prompted"


def true_pictures(prompts: Sequence[str], camera: Camera, *, samples: int = 3) -> Float[Tensor, "p v 4 h w"]:
    """Return colours over white in [0, 1] and coverage of every prompt's solid from every camera, in float32."""
    pose, intrinsics = camera.world_to_camera.double().cpu(), camera.intrinsics.double().cpu()
    out = []
    for prompt in prompts:
        seen = render(build(read(prompt)), pose, intrinsics, camera.width, camera.height, samples=samples)
        out.append(torch.cat([seen.rgb, seen.alpha], 1).float())
    return torch.stack(out)


class ExactPictures(Denoiser):
    """The posterior mean of pictures that are Gaussian, with deviation ``std``, about some of cond["means"].

    cond["means"] "b k *d": the first is the prompt's, the others those of no prompt, in equal shares;
    cond["prompted"] "b": whether the first is meant.
    """

    def __init__(self, process: Process, std: float = 0.05) -> None:
        check(std > 0, f"an exact teacher needs a deviation above 0, got {std:g}")
        self.process, self.std = process, std

    def null(self, cond: Cond) -> Cond:
        """Return the condition of no prompt, from the same view."""
        return dict(cond) | {PROMPTED: torch.zeros_like(entry(cond, PROMPTED, type(self).__name__))}

    def predict(self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond) -> Prediction:
        """Return the exact clean prediction."""
        who = type(self).__name__
        x, c = precise(x_t), self.process.coefficients(t)
        means, prompted = entry(cond, MEANS, who).to(x), entry(cond, PROMPTED, who)
        alpha, sigma = expand_to(c.alpha, x), expand_to(c.sigma, x)
        spread = alpha**2 * self.std**2 + sigma**2
        away = (x[:, None] - alpha[:, None] * means).square().flatten(2).sum(2)
        likely = -away / (2 * spread.flatten(1))
        first = torch.arange(means.shape[1], device=x.device) == 0
        share = likely.masked_fill(first != prompted[:, None], -torch.inf).softmax(1)
        mean = torch.einsum("bk,bk...->b...", share, means)
        return Prediction(mean + alpha * self.std**2 / spread * (x - alpha * mean), Kind.X0)


class ExactJudge(Judge):
    """An :class:`ExactPictures` of the world of solids that judges renders of ``size`` pixels, each view alone.

    others: prompts of which the unconditional law is made, with the prompt itself; none: it is about flat grey. Every
    view costs the exact pictures of all of them. Raises UserError for a prompt that is not of the grammar.
    """

    views = 1

    def __init__(
        self, process: Process, ranges: ViewRanges, *, size: int = 32, others: Sequence[str] = (), std: float = 0.05
    ) -> None:
        self.teacher, self.ranges, self.space = ExactPictures(process, std), ranges, Pixels(size)
        self.size, self.shape = self.space.size, self.space.shape
        self.others = tuple(str(read(text)) for text in others)
        self._known = [str(prompt) for prompt in all_prompts()]

    def encode(self, texts: Sequence[str]) -> Cond:
        """Return the numbers of prompts among those of the grammar."""
        check(all(text.strip() for text in texts), EMPTY)
        return {PROMPT: torch.tensor([self._known.index(str(read(text))) for text in texts])}

    def told(self, camera: Camera, cond: Cond) -> Cond:
        """Return the true pictures."""
        numbers = entry(cond, PROMPT, type(self).__name__)
        rows = [self.means(self._known[number], camera.select(i, i + 1)) for i, number in enumerate(numbers.tolist())]
        prompted = torch.ones(len(rows), dtype=torch.bool, device=numbers.device)
        return {**cond, MEANS: torch.stack(rows).to(camera.intrinsics.device), PROMPTED: prompted}

    def means(self, prompt: str, camera: Camera) -> Float[Tensor, "k 3 h w"]:
        """Return the picture of a prompt as a sample, and those that the unconditional law is about."""
        texts = [prompt, *(text for text in self.others if text != prompt)]
        pictures = to_samples(true_pictures(texts, camera)[:, 0, :3])
        without = pictures if self.others else torch.zeros_like(pictures)
        return torch.cat([pictures[:1], without])

    def x0(self, seen: Views, camera: Camera) -> Tensor:
        """Return the colours in [-1, 1]."""
        return self.space.of(seen, camera)

    def pictures(self, samples: Tensor) -> Tensor:
        """Return the samples as colours."""
        return self.space.pictures(samples)
