"""Training samples out of pairs of pictures, and the held-out ones that students are looked at and measured on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond
from fewstep.core.image.rendering import render_rows
from fewstep.core.recipe import Batch
from fewstep.core.rng import Rng
from fewstep.restoration.data.source import Pairs, RestorationSource
from fewstep.restoration.metrics import protocol, psnr_y, ssim_y
from fewstep.restoration.models.captions import CaptionEncoder
from fewstep.restoration.models.spaces import Space
from fewstep.restoration.perceptual import gmsd, gmsd_protocol, spectral_distance, spectrum_protocol

Encode = Callable[[Tensor], Tensor]


def sample_condition(pairs: Pairs, encode: Encode) -> dict[str, Tensor]:
    """Return the condition of pairs: the enlarged low-quality pictures as samples, and what else the pairs have.

    The low-quality pictures themselves are there when they are of one size.
    """
    cond = {"anchor": encode(2 * pairs.up - 1)}
    lq = pairs.lq_batch()
    if lq is not None:
        cond["lq"] = 2 * lq - 1
    if pairs.milder is not None:
        cond["milder"] = encode(2 * pairs.milder - 1)
    return cond


class SampleSource:
    """Batches of samples: ``x0`` "b c h w" in the model's space, and the condition of :func:`sample_condition`.

    ``told``: encodes captions, and ``share`` of the samples come with their own, the others with the prompt.
    """

    def __init__(
        self, source: RestorationSource, space: Space, told: CaptionEncoder | None = None, share: float = 1.0
    ) -> None:
        self.source, self.space, self.told, self.share = source, space, told, share

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.source)

    @torch.no_grad()
    def batch(self, rng: Rng, device: torch.device | str) -> Batch:
        """Return the samples of a step, each a function of (seed, step, sample)."""
        pairs = self.source.pairs(rng).to(device)
        cond = sample_condition(pairs, self.space.encode)
        if self.told is not None:
            own = (rng.uniform("captions") < self.share).tolist()
            captions = [caption if mine else "" for caption, mine in zip(pairs.captions, own, strict=True)]
            cond |= {name: value.to(device) for name, value in self.told(captions).items()}
        return Batch(len(rng.ids), cond, self.clean(2 * pairs.hr - 1), device)

    def clean(self, pixels: Float[Tensor, "b 3 k l"]) -> Float[Tensor, "b c h w"]:
        """Return what counts as a clean sample."""
        return self.space.encode(pixels)


class PictureSource(SampleSource):
    """The same with the pictures themselves as ``x0`` "b 3 h w", in [-1, 1]: what decoders learn from."""

    def clean(self, pixels: Float[Tensor, "b 3 k l"]) -> Float[Tensor, "b c h w"]:
        """Return the pictures."""
        return pixels


class ShownPictures:
    """Crops of held-out pictures: the same for every run of a config, however many are asked for.

    ``pixels``: samples are pictures in [-1, 1], nothing decodes them. ``told``: encodes captions, and every picture
    comes with its own.
    """

    def __init__(
        self, source: RestorationSource, space: Space, *, pixels: bool = False, told: CaptionEncoder | None = None
    ) -> None:
        self.source, self.space, self.are_pixels, self.told = source, space, pixels, told
        self.protocol = f"crops of held-out pictures; {protocol(0)}; {gmsd_protocol(0)}; {spectrum_protocol(0)}"
        self._pairs: dict[int, Pairs] = {}

    def pairs(self, n: int) -> Pairs:
        """Return the first ``n`` pairs."""
        if n not in self._pairs:
            self._pairs[n] = self.source.held_pairs(n)
        return self._pairs[n]

    @torch.no_grad()
    def conditions(self, n: int, device: torch.device | str = "cpu") -> Cond:
        """Return the conditions of the first ``n`` pairs; ``cond["picture"]`` "n" tells :meth:`evaluate` which."""
        cond = sample_condition(self.pairs(n).to(device), self.space.encode)
        if self.told is not None:
            cond |= {name: value.to(device) for name, value in self.told(self.pairs(n).captions).items()}
        return cond | {"picture": torch.arange(n, device=device)}

    @torch.no_grad()
    def pictures(self, samples: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 k l"]:
        """Return pictures in [0, 1] of samples, on the CPU."""
        like = next(self.space.parameters(), samples)
        decoded = samples if self.are_pixels else self.space.decode(samples.to(like.device))
        return ((decoded.float().cpu() + 1) / 2).clamp(0, 1)

    def evaluate(self, samples: Float[Tensor, "n c h w"], cond: Cond) -> dict[str, float]:
        """Return means over pictures of PSNR and SSIM on luma, of GMSD and of the spectral distance."""
        rows = cond["picture"].cpu()
        made, truth = self.pictures(samples), self.pairs(int(rows.max()) + 1).hr[rows]
        return {
            "PSNR-Y": float(psnr_y(made, truth).mean()),
            "SSIM-Y": float(ssim_y(made, truth).mean()),
            "GMSD": float(gmsd(made, truth).mean()),
            "spectrum": float(spectral_distance(made, truth).mean()),
        }

    def render(self, rows: Sequence[tuple[str, Tensor]], stem: Path) -> Path:
        """Write rows of samples as one picture, the low-quality input above and the truth below."""
        shown = self.pairs(max(len(samples) for _, samples in rows))
        drawn = [(label, 2 * self.pictures(samples) - 1) for label, samples in rows]
        return render_rows([("input", 2 * shown.up - 1), *drawn, ("truth", 2 * shown.hr - 1)], stem)
