"""Point clouds in files.

What a cloud is: :mod:`.cloud`. Reading and writing by suffix: :mod:`.files`. Columns of a point: :mod:`.layout`.
A file per format: :mod:`.rows` (``.bin``), :mod:`.ply`, :mod:`.pcd` with :mod:`.lzf`, :mod:`.npy`.
"""

from fewstep.lidar.clouds.cloud import Cloud, Points
from fewstep.lidar.clouds.files import read_cloud, write_cloud
from fewstep.lidar.clouds.layout import SUFFIXES, is_cloud

__all__ = ["SUFFIXES", "Cloud", "Points", "is_cloud", "read_cloud", "write_cloud"]
