"""A view model with random weights on disk: enough of a teacher to train a scene against."""

from __future__ import annotations

from pathlib import Path

from fewstep.core.recipe import StepPlan
from fewstep.threed.problems.model_of_views import fresh
from fewstep.threed.settings import ThreedConfig, ViewNetworkConfig
from fewstep.threed.teachers.view_model import export_model


def untrained(folder: Path) -> Path:
    """Write a view model that knows the words of the solids and nothing else; returns the folder."""
    network = ViewNetworkConfig(size=16, widths=(16, 16), attention=(False, True), text_width=16)
    model = fresh(ThreedConfig(network=network), 0)
    export_model(model.denoiser, StepPlan((999.0,)), folder, {"name": "untrained"}, model)
    return folder
