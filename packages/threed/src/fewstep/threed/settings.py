"""Settings of the threed domain."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fewstep.core.errors import check
from fewstep.core.image.settings import ProcessConfig
from fewstep.core.models.settings import ModelConfig
from fewstep.core.networks.roles import RolesConfig
from fewstep.threed.cameras import ViewRanges
from fewstep.threed.orbit.problem import OrbitConfig
from fewstep.threed.planes.model import PlanesConfig
from fewstep.threed.teachers.directions import DirectionConfig

Student = Literal["scene", "planes", "orbit", "views"]
SOLIDS_CAMERAS = ViewRanges(elevation_deg=(-10.0, 40.0), fov_y_deg=(40.0, 40.0), relative_distance=(1.165, 1.165))


@dataclass(frozen=True, kw_only=True)
class ViewNetworkConfig:
    """An untrained view model: pictures of ``size`` pixels, read as blocks of ``patch`` x ``patch``.

    ``widths``: channels per resolution, each half of the one before. ``attention``: which of them attend, to the
    prompt too. ``layers``: residual blocks per resolution. ``text_width``: of a word's embedding.
    """

    size: int = 32
    patch: int = 2
    widths: tuple[int, ...] = (64, 64, 64)
    attention: tuple[bool, ...] = (False, True, True)
    layers: int = 1
    text_width: int = 64

    def __post_init__(self) -> None:
        check(self.size >= 8, f"domain.network.size must be at least 8, got {self.size}")
        check(self.patch >= 1, f"domain.network.patch must be at least 1, got {self.patch}")
        check(bool(self.widths) and min(self.widths) > 0, "domain.network.widths needs positive channel numbers")
        check(self.layers >= 1, f"domain.network.layers must be at least 1, got {self.layers}")


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """What is optimised for one prompt.

    ``kind``: ``gaussians``; ``density``, a triplane's density (DreamFusion's kind of field); ``neus`` or ``volsdf``,
    its signed distance. ``count``: of Gaussians, from a ball of ``radius``, with spherical harmonics of ``degree``.
    ``planes``: side and channels of the triplane. ``sections``: of a ray, and ``fine`` more where the scene is.
    ``sharpness``: k of a signed distance. ``background``: ``white``, or ``random`` greys, which keeps a scene from
    painting its background. ``opacity`` and ``eikonal``: weights of the two regularisers.
    """

    kind: Literal["gaussians", "density", "neus", "volsdf"] = "gaussians"
    count: int = 1500
    degree: int = 0
    radius: float = 0.5
    planes: tuple[int, int] = (32, 16)
    sections: int = 32
    fine: int = 0
    sharpness: float = 30.0
    background: Literal["white", "random"] = "white"
    opacity: float = 0.0
    eikonal: float = 0.1

    def __post_init__(self) -> None:
        check(self.count >= 1, f"domain.scene.count must be at least 1, got {self.count}")
        check(0 <= self.degree <= 4, f"domain.scene.degree must be between 0 and 4, got {self.degree}")
        check(0 < self.radius < 1, f"domain.scene.radius must be between 0 and 1, got {self.radius:g}")
        check(min(self.planes) >= 1, f"domain.scene.planes must be positive, got {list(self.planes)}")
        check(self.sections >= 2, f"domain.scene.sections must be at least 2, got {self.sections}")
        check(self.sharpness > 0, f"domain.scene.sharpness must be positive, got {self.sharpness:g}")
        check(min(self.opacity, self.eikonal) >= 0, "domain.scene.opacity and .eikonal must not be negative")


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """How teachers are asked that do not come with what they know of cameras and prompts.

    ``size``: pixels along a side of renders, resized to what the teacher sees (0: that). ``directions``: what a
    text-to-image pipeline is told of the view. ``negative``: a negative prompt that comes with the condition, where a
    recipe compares with the empty one too (that in its place is ``domain.model.negative_prompt``). ``views``: that a
    multi-view pipeline sees at once. ``azimuth_offset_deg``: added to azimuths for a pipeline that is told cameras and
    whose front is elsewhere. ``image``: the picture, with alpha, that image-conditioned pipelines are shown: the front
    of the object, from ``image_elevation_deg``. ``deviation``: of pictures about the true ones to the teacher
    ``exact``, which compares a prompt with ``others`` (names as in ``domain.prompts``; empty: with a flat grey).
    """

    size: int = 0
    directions: DirectionConfig = DirectionConfig()
    negative: str = ""
    views: int = 4
    azimuth_offset_deg: float = 0.0
    image: str = ""
    image_elevation_deg: float = 10.0
    deviation: float = 0.05
    others: str = ""

    def __post_init__(self) -> None:
        check(self.size == 0 or self.size >= 8, f"domain.judge.size must be 0 or at least 8, got {self.size}")
        check(self.views >= 1, f"domain.judge.views must be at least 1, got {self.views}")
        check(self.deviation > 0, f"domain.judge.deviation must be positive, got {self.deviation:g}")
        check(
            abs(self.image_elevation_deg) < 90,
            f"domain.judge.image_elevation_deg lies between -90 and 90, got {self.image_elevation_deg:g}",
        )


@dataclass(frozen=True, kw_only=True)
class ThreedConfig:
    """The threed domain.

    ``student``: a ``scene`` of one prompt, whose renders the teacher judges; ``planes``: a network that makes scenes of
    prompts; ``orbit``: one that makes scenes of a picture (all of its settings in ``orbit``); or ``views``: a model of
    pictures of solids, as teachers are made. ``teacher``: a shipped view model's name, a folder one was exported to, or
    a run's folder; a diffusers pipeline (a folder, a hub id, ``tiny:sd``): text-to-image, multi-view with a camera's 16
    numbers as its U-Net's class embedding, Zero123, SV3D; or ``exact``, which knows the solids. Empty: none.
    ``judge``: how it is asked; ``model``: how a pipeline is opened. ``teachers``: further ones by a name of one's own,
    for recipes that listen to several. ``prompt``: of a scene. ``prompts``: those a network is trained on: ``things``,
    ``on``, ``all`` or a text file; ``pictures``: of each. ``cameras``: where views are taken from; those of a view
    model are its own. ``process``: of an untrained network.
    """

    student: Student = "scene"
    teacher: str = "solids"
    teachers: dict[str, str] = field(default_factory=dict)
    prompt: str = "a red cone"
    prompts: str = "things"
    pictures: int = 64
    scene: SceneConfig = SceneConfig()
    planes: PlanesConfig = PlanesConfig()
    orbit: OrbitConfig = OrbitConfig()
    network: ViewNetworkConfig = ViewNetworkConfig()
    process: ProcessConfig = ProcessConfig(name="vp-scaled-linear")
    judge: JudgeConfig = JudgeConfig()
    cameras: ViewRanges = SOLIDS_CAMERAS
    roles: RolesConfig = RolesConfig()
    model: ModelConfig = ModelConfig()

    def __post_init__(self) -> None:
        check(self.pictures >= 1, f"domain.pictures must be at least 1, got {self.pictures}")
        check(
            "teacher" not in self.teachers, "domain.teachers: 'teacher' is the name of domain.teacher: choose another"
        )
