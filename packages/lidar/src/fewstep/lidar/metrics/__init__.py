"""Metrics of completed scans. Points are arrays or tensors "n 3" in metres, sensor frame.

:mod:`.distances`: Chamfer distance, precision, recall. :mod:`.occupancy`: completion IoU, Jensen-Shannon distances.
:mod:`.transport`: earth mover's distance. :mod:`.legacy`: what publications computed instead. :class:`.scores.Scores`:
all of them over many scans, and :data:`.scores.PROTOCOL`, what each is; :mod:`.crop`: which predictions are scored.
"""

from fewstep.lidar.metrics.clouds import Points
from fewstep.lidar.metrics.crop import crop_prediction
from fewstep.lidar.metrics.distances import Chamfer, Hits, chamfer, precision_recall_f
from fewstep.lidar.metrics.legacy import legacy_emd, legacy_iou, legacy_rmse
from fewstep.lidar.metrics.occupancy import Agreement, CompletionIoU, jsd_3d, jsd_bev
from fewstep.lidar.metrics.scores import PROTOCOL, Score, Scores
from fewstep.lidar.metrics.transport import Transport, emd, emd_floor, sinkhorn_emd

__all__ = [
    "PROTOCOL",
    "Agreement",
    "Chamfer",
    "CompletionIoU",
    "Hits",
    "Points",
    "Score",
    "Scores",
    "Transport",
    "chamfer",
    "crop_prediction",
    "emd",
    "emd_floor",
    "jsd_3d",
    "jsd_bev",
    "legacy_emd",
    "legacy_iou",
    "legacy_rmse",
    "precision_recall_f",
    "sinkhorn_emd",
]
