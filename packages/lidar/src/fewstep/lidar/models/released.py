"""Weights of the released networks: their names and kernel layout, turned into this package's.

Read from checkpoints without running anything in them: torch's loader is restricted to tensors and plain containers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.errors import UserError, check
from fewstep.lidar.models.backbone import LidarBackbone
from fewstep.lidar.models.files import save_denoiser, save_refiner
from fewstep.lidar.models.refiner import Refiner
from fewstep.lidar.models.unet import NetworkConfig

# prefixes of denoiser and encoder: LiDiff's, those of ScoreLiDAR's and Distillation-DPO's students, the tuned teacher's
DENOISERS = (("model.", "partial_enc."), ("generator.", "partial_enc."), ("DiffModel.", "DM_encoder."))
REFINER = "model_refine."
