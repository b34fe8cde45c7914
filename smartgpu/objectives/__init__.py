"""Objectives: what makes a chosen set good. Adding one is one file here and one row in OBJECTIVES."""

from __future__ import annotations

from smartgpu.objectives.base import Ground, Objective, State
from smartgpu.objectives.facility_location import FacilityLocation
from smartgpu.objectives.graph_cut import GraphCut
from smartgpu.objectives.log_det import LogDet
from smartgpu.objectives.modular import Modular
from smartgpu.objectives.quality import QualityDiversity
from smartgpu.objectives.targets import (
    FacilityLocationCG,
    FacilityLocationCMI,
    FacilityLocationMI,
    FacilityLocationQueryMI,
    GraphCutCG,
    GraphCutMI,
)
from smartgpu.objectives.targets_log_det import LogDetCG, LogDetCMI, LogDetMI
from smartgpu.objectives.weighted_sum import WeightedSum
from smartgpu.similarity import choose

OBJECTIVES: dict[str, type[Objective]] = {kind.name: kind for kind in (FacilityLocation, GraphCut, LogDet)}

__all__ = [
    "OBJECTIVES",
    "FacilityLocation",
    "FacilityLocationCG",
    "FacilityLocationCMI",
    "FacilityLocationMI",
    "FacilityLocationQueryMI",
    "Ground",
    "GraphCut",
    "GraphCutCG",
    "GraphCutMI",
    "LogDet",
    "LogDetCG",
    "LogDetCMI",
    "LogDetMI",
    "Modular",
    "Objective",
    "QualityDiversity",
    "State",
    "WeightedSum",
    "as_objective",
]


def as_objective(value: str | Objective) -> Objective:
    """An objective by name, with its defaults, or as an object. Raises ValueError for an unknown name."""
    if isinstance(value, Objective):
        return value
    if value == Modular.name:
        raise ValueError("objective 'modular' needs one score per row: use smartgpu.Modular(scores)")
    if value == QualityDiversity.name:
        raise ValueError(f"objective {value!r} needs quality: use smartgpu.QualityDiversity(alpha, quality)")
    return OBJECTIVES[choose(value, OBJECTIVES, "objective")]()
