"""Cameras, in one convention: everything inside this package speaks it, and converters stand at the borders.

A camera looks along its +z, with x to the right of the image and y down (OpenCV's axes). The world is right-handed
with y up, as in glTF. Azimuth 0 stands on +z, the front of an object, azimuth 90 on +x: counter-clockwise seen from
above. Pixel (row i, column j) has its centre at (j + 0.5, i + 0.5).
"""

from fewstep.threed.cameras.camera import Camera, intrinsics_of
from fewstep.threed.cameras.conventions import (
    AZIMUTH_OFFSETS_DEG,
    COLMAP,
    CONVENTIONS,
    MVDREAM,
    NERFSTUDIO,
    OPENCV,
    OPENGL,
    THREESTUDIO,
    Convention,
    from_convention,
    to_convention,
)
from fewstep.threed.cameras.orbit import look_at, orbit, orbit_angles, turntable
from fewstep.threed.cameras.sampling import ViewRanges, multi_view, random_views

__all__ = [
    "AZIMUTH_OFFSETS_DEG",
    "COLMAP",
    "CONVENTIONS",
    "MVDREAM",
    "NERFSTUDIO",
    "OPENCV",
    "OPENGL",
    "THREESTUDIO",
    "Camera",
    "Convention",
    "ViewRanges",
    "from_convention",
    "intrinsics_of",
    "look_at",
    "multi_view",
    "orbit",
    "orbit_angles",
    "random_views",
    "to_convention",
    "turntable",
]
