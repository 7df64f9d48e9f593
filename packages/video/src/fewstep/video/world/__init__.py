"""A drawn world: moving shapes, digits and textures, filmed well or badly, with captions and the truth about motion."""

from fewstep.video.world.config import HIGH, LOW, Quality, WorldConfig
from fewstep.video.world.drawn import Clips, DrawnWorld
from fewstep.video.world.folder import write_world
from fewstep.video.world.scenes import Motion
from fewstep.video.world.statistics import MotionStatistics, agreement, compare, statistics
from fewstep.video.world.tracking import Measured, displacements, measure

__all__ = [
    "HIGH",
    "LOW",
    "Clips",
    "DrawnWorld",
    "Measured",
    "Motion",
    "MotionStatistics",
    "Quality",
    "WorldConfig",
    "agreement",
    "compare",
    "displacements",
    "measure",
    "statistics",
    "write_world",
]
