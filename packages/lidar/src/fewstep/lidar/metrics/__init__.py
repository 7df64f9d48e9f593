"""Metrics of completed scans. Points are arrays or tensors "n 3" in metres, sensor frame.

:mod:`.distances`: Chamfer distance, precision, recall. :mod:`.occupancy`: completion IoU, Jensen-Shannon distances.
"""

from fewstep.lidar.metrics.clouds import Points
from fewstep.lidar.metrics.distances import Chamfer, Hits, chamfer, precision_recall_f
from fewstep.lidar.metrics.occupancy import CompletionIoU, jsd_3d, jsd_bev

__all__ = ["Chamfer", "CompletionIoU", "Hits", "Points", "chamfer", "jsd_3d", "jsd_bev", "precision_recall_f"]
