"""Where the first frames of image-to-video models come from: the clips trained on, a picture, the window before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.data.crops import cover, crop_at
from fewstep.core.denoiser import Cond, Denoiser
from fewstep.core.domain import DataSource
from fewstep.core.errors import check
from fewstep.core.models.family import Size
from fewstep.core.networks.given import GIVEN, drop_frames
from fewstep.core.recipe import Batch, StepPlan
from fewstep.core.rng import Rng
from fewstep.core.sampling import run_plan, teacher_sample
from fewstep.video.windows import Sampler

Encode = Callable[[Tensor], Tensor]
Decode = Callable[[Tensor], Tensor]


class WithFirstFrames:
    """Data whose condition has the first latent frames of each sample's own clip.

    How many is drawn for each sample from 1 to ``most``, and 0 for a share ``none`` of them, so that one network makes
    videos from text alone, from a picture, and from the end of another window.
    """

    def __init__(self, source: DataSource, most: int = 1, none: float = 0.0) -> None:
        check(most >= 1, f"at least one given frame, got {most}")
        check(0 <= none < 1, f"the share of clips that are given nothing must lie in [0, 1), got {none:g}")
        self.source, self.most, self.none = source, most, none

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.source)

    def batch(self, rng: Rng, device: torch.device | str) -> Batch:
        """Return the source's batch, the frames in its condition; UserError for data without clips, or short ones."""
        batch = self.source.batch(rng, device)
        clips = batch.clean_samples("image to video")
        check(self.most < clips.shape[2], f"{self.most} given frames leave nothing of {clips.shape[2]} latent frames")
        counts = 1 + (rng.uniform("given/count") * self.most).long()
        counts = torch.where(rng.uniform("given/none") < self.none, 0, counts)
        return replace(batch, cond=dict(batch.cond) | drop_frames(clips, counts))


def given_picture(picture: Float[Tensor, "b 3 h w"], size: Size, encode: Encode) -> Float[Tensor, "b c 1 h w"]:
    """Return the latent of pictures in [-1, 1] as the first frame of clips of ``size``.

    A picture is resized until it covers the frame and cut to its middle; ``encode``: of a codec of videos. Raises
    UserError for an autoencoder that does not make one latent frame of one picture.
    """
    middle = (size.height, size.width)
    fitted = [crop_at(cover(each, *middle), middle, (0.5, 0.5)) for each in picture.add(1).div(2)]
    latents = encode(torch.stack(fitted).clamp(0, 1)[:, :, None] * 2 - 1)
    check(latents.shape[2] == 1, f"one picture became {latents.shape[2]} latent frames: this autoencoder makes none")
    return latents


def window_sampler(
    denoiser: Denoiser,
    plan: StepPlan | int,
    shape: tuple[int, ...],
    cond: Cond,
    rng: Rng,
    *,
    encode: Encode,
    decode: Decode,
) -> Sampler:
    """Return a sampler of windows of pixels: a student's along its ``plan``, or a teacher's in so many steps.

    Given frames are encoded anew for each window: in a causal autoencoder's latents the first frame stands for one
    frame and others for several, so that latents of the end of a window are no beginning of the next. Each window has
    noise of its own. Nothing given: the network is told so.
    """
    noise_shape = tuple(shape)

    def sample(index: int, given: Tensor | None) -> Tensor:
        own = rng.fork(f"window/{index}")
        told = encode(given) if given is not None else torch.zeros(len(rng.ids), shape[0], 0, *shape[2:])
        like = next(iter(cond.values()), told)
        full = {**cond, GIVEN: told.to(like.device)}
        with torch.no_grad():
            if isinstance(plan, int):
                latents = teacher_sample(denoiser, noise_shape, full, own, steps=plan)
            else:
                latents = run_plan(denoiser, plan, own.normal("noise", noise_shape).to(like.device), full, own)
        return decode(latents)

    return sample
