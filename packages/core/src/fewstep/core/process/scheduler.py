"""The process that a diffusers scheduler describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewstep.core.errors import UserError
from fewstep.core.process.base import Process
from fewstep.core.process.continuous import EDM, RectifiedFlow, TrigFlow
from fewstep.core.process.tables import VP

READABLE = "give the pipeline one with betas (DDIMScheduler and the like), a FlowMatch or an EDM scheduler"


def process_from_scheduler(config: Mapping[str, Any]) -> tuple[Process, str]:
    """Return the process and the prediction kind's name that a diffusers scheduler config describes.

    Raises UserError for a scheduler this version cannot read, and for a config that names no class and has no betas.
    """
    name = str(config.get("_class_name", ""))
    if name.startswith("FlowMatch") or config.get("use_flow_sigmas"):
        return RectifiedFlow(shift=float(config.get("shift") or config.get("flow_shift") or 1.0)), "flow"
    if name.startswith("EDM"):
        keys = ("sigma_min", "sigma_max", "sigma_data", "rho")
        return EDM(**{k: float(config[k]) for k in keys if config.get(k) is not None}), "x0"
    if name == "SCMScheduler":
        return TrigFlow(sigma_data=float(config.get("sigma_data", 0.5))), "velocity"
    if not (
        {"beta_schedule", "beta_start", "trained_betas"} & config.keys() or name in ("DDPMScheduler", "DDIMScheduler")
    ):
        what = (
            f"this version cannot read a {name}: {READABLE}"
            if name
            else "no '_class_name' and no betas in it: add the class"
        )
        raise UserError(f"scheduler config: {what}")
    kinds = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}
    prediction = str(config.get("prediction_type", "epsilon"))
    if prediction not in kinds:
        raise UserError(f"scheduler config: prediction_type '{prediction}' is unknown; valid: {', '.join(kinds)}")
    return VP.from_scheduler(config), kinds[prediction]
