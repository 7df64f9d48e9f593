"""A teacher that knows: its clean prediction is the true picture of a prompt from a camera. For tests and proofs.

Pictures are those of a fixed set of cameras, rendered once: data of which every prompt and view is a narrow Gaussian
about its picture, and the unconditional law the mixture of all prompts seen from that view, both in closed form.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.core.denoiser import Cond, Denoiser
from fewstep.core.errors import check
from fewstep.core.networks.backbone import entry
from fewstep.core.prediction import Kind, Prediction
from fewstep.core.process import Process
from fewstep.core.recipes.rollout import Sample
from fewstep.core.rng import Rng
from fewstep.core.tensors import expand_to, precise
from fewstep.threed.cameras import Camera, ViewRanges
from fewstep.threed.judges import Judge
from fewstep.threed.shapes import build, read, render
from fewstep.threed.teachers.view_model import to_rgb, to_samples
from fewstep.threed.views import Views

PICTURE, VIEW = "picture", "view"
NOTHING = -1  # the prompt of the unconditional prediction


def true_pictures(prompts: Sequence[str], camera: Camera, *, samples: int = 3) -> Float[Tensor, "p v 4 h w"]:
    """Return colours over white in [0, 1] and coverage of every prompt's solid from every camera, in float32."""
    out = []
    for prompt in prompts:
        seen = render(build(read(prompt)), camera.world_to_camera.double(), camera.intrinsics.double(), camera.width,
                      camera.height, samples=samples)  # fmt: skip
        out.append(torch.cat([seen.rgb, seen.alpha], 1).float())
    return torch.stack(out)


class ExactPictures(Denoiser):
    """The posterior mean of pictures in [-1, 1] of cond["picture"] seen from cond["view"], each with deviation ``std``.

    pictures: "p v 3 h w" in [0, 1].  A picture of -1 asks for the mixture of all.
    """

    def __init__(self, pictures: Float[Tensor, "p v 3 h w"], process: Process, std: float = 0.05) -> None:
        check(std > 0, f"an exact teacher needs a deviation above 0, got {std:g}")
        self.means, self.process, self.std = to_samples(pictures), process, std

    def null(self, cond: Cond) -> Cond:
        """Return the condition of no prompt, from the same view."""
        return dict(cond) | {PICTURE: torch.full_like(entry(cond, PICTURE, type(self).__name__), NOTHING)}

    def predict(self, x_t: Float[Tensor, "b 3 h w"], t: Float[Tensor, " b"], cond: Cond) -> Prediction:
        """Return the exact clean prediction."""
        which, view = entry(cond, PICTURE, type(self).__name__), entry(cond, VIEW, type(self).__name__)
        x, c = precise(x_t), self.process.coefficients(t)
        alpha, sigma = expand_to(c.alpha, x), expand_to(c.sigma, x)
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        found = torch.empty_like(x)
        known = which != NOTHING
        found[known] = self.means.to(x)[which[known], view[known]]
        for row in torch.nonzero(~known)[:, 0].tolist():  # one by one: all prompts of a view are large
            means = self.means[:, int(view[row])].to(x)
            away = (x[row] - alpha[row] * means).square().flatten(1).sum(1)
            spread = 2 * (alpha[row] ** 2 * self.std**2 + sigma[row] ** 2).reshape(())
            found[row] = torch.einsum("p,pchw->chw", (-away / spread).softmax(0), means)
        return Prediction(found + gain * (x - alpha * found), Kind.X0)


class ExactJudge(Judge):
    """An :class:`ExactPictures` that judges renders from its own cameras, each view alone.

    prompts: by the number in cond["picture"], which a batch's condition must have.
    """

    def __init__(self, prompts: Sequence[str], camera: Camera, process: Process, std: float = 0.05) -> None:
        check(camera.width == camera.height, f"judges see squares, got {camera.width}x{camera.height}")
        self.camera, self.views, self.size, self.shape = camera, 1, camera.width, (3, camera.width, camera.width)
        self.prompts, self.ranges = tuple(prompts), ViewRanges()
        self.teacher = ExactPictures(true_pictures(prompts, camera)[:, :, :3], process, std)

    def encode(self, texts: Sequence[str]) -> Cond:
        """Return the numbers of prompts; UserError for one it has no pictures of."""
        for text in texts:
            check(
                text in self.prompts, f"'{text[:80]}': an exact teacher knows its own {len(self.prompts)} prompts only"
            )
        return {PICTURE: torch.tensor([self.prompts.index(text) for text in texts])}

    def pictures(self, samples: Tensor) -> Tensor:
        """Return samples as colours."""
        return to_rgb(samples)

    def cameras(self, rng: Rng, ranges: ViewRanges | None = None) -> Camera:
        """Return one of its cameras per sample; ``ranges`` are not its to choose."""
        index = rng.integers("view", len(self.camera)).cpu()
        return Camera(self.camera.world_to_camera[index], self.camera.intrinsics[index], self.size, self.size)

    def sample(self, seen: Views, camera: Camera, cond: Cond) -> Sample:
        """Return the pictures in [-1, 1], and which prompt and view they are of."""
        told = {PICTURE: entry(cond, PICTURE, type(self).__name__), VIEW: self._views(camera).to(seen.rgb.device)}
        return Sample(to_samples(seen.rgb), told)

    def _views(self, camera: Camera) -> Int[Tensor, " b"]:
        away = torch.cdist(camera.world_to_camera.flatten(1).cpu(), self.camera.world_to_camera.flatten(1))
        check(bool((away.amin(1) < 1e-4).all()), "an exact teacher knows its own cameras only: use those it gives")
        return away.argmin(1)
