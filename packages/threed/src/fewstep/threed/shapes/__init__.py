"""A world of coloured solids with prompts, and the truth about them: pictures, depth, points of the surface, a mesh."""

from fewstep.threed.shapes.prompts import Prompt, Thing, all_prompts, read
from fewstep.threed.shapes.rendering import Renders, render
from fewstep.threed.shapes.solids import Solid, build, draw
from fewstep.threed.shapes.split import split_prompts
from fewstep.threed.shapes.surface import Mesh, SurfacePoints, extract_mesh, sample_surface

__all__ = [
    "Mesh",
    "Prompt",
    "Renders",
    "Solid",
    "SurfacePoints",
    "Thing",
    "all_prompts",
    "build",
    "draw",
    "extract_mesh",
    "read",
    "render",
    "sample_surface",
    "split_prompts",
]
