"""What the degradation pipelines can be set to, and the published presets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from fewstep.core.errors import check, nearest

Range = tuple[float, float]


def check_range(name: str, value: Range, low: float, high: float) -> None:
    """Raise UserError unless ``value`` is an ascending pair inside [low, high]."""
    inside = len(value) == 2 and low <= value[0] <= value[1] <= high
    check(inside, f"{name}: must be an ascending pair within [{low:g}, {high:g}], got {value}")


def check_probability(name: str, value: float) -> None:
    """Raise UserError unless ``value`` is in [0, 1]."""
    check(0 <= value <= 1, f"{name}: must be a probability in [0, 1], got {value}")


def _check_mix(name: str, value: tuple[float, ...], length: int) -> None:
    good = len(value) == length and min(value) >= 0 and abs(sum(value) - 1) < 1e-6
    check(good, f"{name}: must be {length} probabilities of sum 1, got {value}")


@dataclass(frozen=True, kw_only=True)
class KernelConfig:
    """How blur kernels are drawn: odd sizes, with probability ``sinc`` a sinc, else one of six of ``mix``."""

    sizes: tuple[int, int] = (7, 21)  # smallest and largest
    padded: int = 21  # every kernel is put in the middle of zeros of this size
    sinc: float = 0.1
    mix: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)  # gaussian, generalized, plateau: iso, aniso each
    sigma: Range = (0.2, 3.0)  # pixels
    beta_generalized: Range = (0.5, 4.0)
    beta_plateau: Range = (1.0, 2.0)

    def __post_init__(self) -> None:
        """Raise UserError for sizes that are even or do not fit and for ranges that are none."""
        check_range("kernel.sizes", self.sizes, 1, 99)
        odd = all(size % 2 == 1 for size in (*self.sizes, self.padded))
        check(odd, f"kernel.sizes, kernel.padded: must be odd, got {self.sizes}, {self.padded}")
        check(self.padded >= self.sizes[1], f"kernel.padded: {self.padded} is smaller than the size {self.sizes[1]}")
        check_probability("kernel.sinc", self.sinc)
        _check_mix("kernel.mix", self.mix, 6)
        check_range("kernel.sigma", self.sigma, 1e-3, 100)
        # half of the betas are drawn below 1, half above
        for name, value in (("generalized", self.beta_generalized), ("plateau", self.beta_plateau)):
            check_range(f"kernel.beta_{name}", value, 0.1, 10)
            check(value[0] <= 1 <= value[1], f"kernel.beta_{name}: the range must hold 1, got {value}")


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """Gaussian noise with probability ``gaussian``, else Poisson; ``gray`` of them the same in all channels."""

    gaussian: float = 0.5
    sigma: Range = (1.0, 30.0)  # of 255
    poisson_scale: Range = (0.05, 3.0)
    gray: float = 0.4

    def __post_init__(self) -> None:
        """Raise UserError for what is no probability or range."""
        check_probability("noise.gaussian", self.gaussian)
        check_probability("noise.gray", self.gray)
        check_range("noise.sigma", self.sigma, 0, 255)
        check_range("noise.poisson_scale", self.poisson_scale, 0, 100)


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One round of blur, resize and noise."""

    blur: float = 1.0  # probability
    kernel: KernelConfig = KernelConfig()
    resize_mix: tuple[float, ...] = (0.2, 0.7, 0.1)  # up, down, keep
    resize: Range = (0.15, 1.5)  # down is drawn below 1, up above
    noise: NoiseConfig = NoiseConfig()

    def __post_init__(self) -> None:
        """Raise UserError for what is no probability or range."""
        check_probability("stage.blur", self.blur)
        _check_mix("stage.resize_mix", self.resize_mix, 3)
        check_range("stage.resize", self.resize, 0.01, 8)
        check(self.resize[0] <= 1 <= self.resize[1], f"stage.resize: the range must hold 1, got {self.resize}")


def _second(sizes: tuple[int, int] = (7, 21), padded: int = 21) -> StageConfig:
    return StageConfig(
        blur=0.8,
        kernel=KernelConfig(sizes=sizes, padded=padded, sigma=(0.2, 1.5)),
        resize_mix=(0.3, 0.4, 0.3),
        resize=(0.3, 1.2),
        noise=NoiseConfig(sigma=(1.0, 25.0), poisson_scale=(0.05, 2.5)),
    )


@dataclass(frozen=True, kw_only=True)
class TwoStageConfig:
    """The Real-ESRGAN pipeline (arXiv 2107.10833): two stages, then sinc and JPEG in either order, 8 bit."""

    first: StageConfig = StageConfig()
    first_jpeg: Range = (30.0, 95.0)
    second_probability: float = 1.0
    second: StageConfig = field(default_factory=_second)  # its sizes are relative to the size asked for
    final_sinc: float = 0.8
    final_sizes: tuple[int, int] = (7, 21)
    final_jpeg: Range = (30.0, 95.0)
    back_to_size: bool = False  # enlarge the result to the input's size (bicubic)

    def __post_init__(self) -> None:
        """Raise UserError for what is no probability or range."""
        check_range("first_jpeg", self.first_jpeg, 1, 100)
        check_range("final_jpeg", self.final_jpeg, 1, 100)
        check_probability("second_probability", self.second_probability)
        check_probability("final_sinc", self.final_sinc)
        check_range("final_sizes", self.final_sizes, 1, 99)
        check(all(s % 2 == 1 for s in self.final_sizes), f"final_sizes: must be odd, got {self.final_sizes}")


@dataclass(frozen=True, kw_only=True)
class JitterConfig:
    """Colours of bad pictures changed: each channel shifted, then brightness, contrast, saturation and hue adjusted."""

    shift_probability: float = 0.0  # GFPGAN: 0.3
    shift: float = 20.0  # at most, up or down, of 255
    adjust_probability: float = 0.0  # GFPGAN: 0.3
    brightness: Range = (0.5, 1.5)  # factors
    contrast: Range = (0.5, 1.5)
    saturation: Range = (0.0, 1.5)
    hue: Range = (-0.1, 0.1)  # of a full turn

    def __post_init__(self) -> None:
        """Raise UserError for what is no probability or range."""
        check_probability("jitter.shift_probability", self.shift_probability)
        check_probability("jitter.adjust_probability", self.adjust_probability)
        check(0 <= self.shift <= 255, f"jitter.shift: must be within [0, 255], got {self.shift}")
        for name in ("brightness", "contrast", "saturation"):
            check_range(f"jitter.{name}", getattr(self, name), 0, 10)
        check_range("jitter.hue", self.hue, -0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class FaceConfig:
    """GFPGAN's degradation of faces (arXiv 2101.04061): blur, shrink, noise, JPEG, back to size, colours, 8 bit."""

    kernel_size: int = 41
    anisotropic: float = 0.5  # probability
    sigma: Range = (0.1, 15.0)  # pixels
    downscale: Range = (0.8, 32.0)
    noise: Range = (0.0, 20.0)  # deviation, of 255
    jpeg: Range = (30.0, 100.0)
    gray: float = 0.01  # probability of a gray result
    back_to_size: bool = True  # else the size asked for
    jitter: JitterConfig = JitterConfig()

    def __post_init__(self) -> None:
        """Raise UserError for an even kernel and for what is no probability or range."""
        check(0 < self.kernel_size < 100 and self.kernel_size % 2 == 1, f"kernel_size: odd, got {self.kernel_size}")
        check_probability("anisotropic", self.anisotropic)
        check_probability("gray", self.gray)
        check_range("sigma", self.sigma, 1e-3, 100)
        check_range("downscale", self.downscale, 0.1, 128)
        check_range("noise", self.noise, 0, 255)
        check_range("jpeg", self.jpeg, 1, 100)


@dataclass(frozen=True, kw_only=True)
class BicubicConfig:
    """MATLAB's antialiased bicubic, the classical benchmark's degradation."""

    round: bool = True  # to 8 bit, as published numbers have it


DegradationConfig = TwoStageConfig | FaceConfig | BicubicConfig

_RESSHIFT = TwoStageConfig(
    first=StageConfig(kernel=KernelConfig(sizes=(3, 19))),
    second_probability=0.5,
    second=_second((3, 13), 15),
    final_sizes=(3, 13),
)
PRESETS: dict[str, DegradationConfig] = {
    "realesrgan": TwoStageConfig(),
    "resshift": _RESSHIFT,  # also SinSR, TAD-SR, InvSR
    "osediff": replace(TwoStageConfig(), back_to_size=True),  # also InstaRevive
    "gfpgan": FaceConfig(),
    "gfpgan-colour": FaceConfig(jitter=JitterConfig(shift_probability=0.3, adjust_probability=0.3)),
    "bicubic-matlab": BicubicConfig(),
}


def preset(name: str) -> DegradationConfig:
    """Return the published degradation called ``name``; UserError for an unknown one."""
    check(name in PRESETS, f"degradation '{name}': unknown; {nearest(name, PRESETS)}")
    return PRESETS[name]
