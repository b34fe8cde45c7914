"""Objectives: what makes a chosen set good. Adding one is one file here and one row in NAMED."""

from __future__ import annotations

from smartgpu.objectives.base import Ground, Objective, State
from smartgpu.objectives.clustered import Clustered
from smartgpu.objectives.coverage import FeatureBased, MaxCoverage, ProbabilisticSetCover, SetCover
from smartgpu.objectives.disparity import DisparityMin, DisparitySum, SumRedundancy
from smartgpu.objectives.facility_location import FacilityLocation
from smartgpu.objectives.graph_cut import GraphCut
from smartgpu.objectives.log_det import LogDet
from smartgpu.objectives.modular import Modular
from smartgpu.objectives.quality import QualityDiversity
from smartgpu.objectives.saturated import ConcaveOverModular, SaturatedCoverage
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
COVERAGE = (FeatureBased, MaxCoverage, SaturatedCoverage, DisparitySum, DisparityMin, SumRedundancy)
NAMED: dict[str, type[Objective]] = OBJECTIVES | {
    kind.name: kind for kind in COVERAGE
}  # what a name stands for

__all__ = [
    "NAMED",
    "OBJECTIVES",
    "Clustered",
    "ConcaveOverModular",
    "DisparityMin",
    "DisparitySum",
    "FacilityLocation",
    "FacilityLocationCG",
    "FacilityLocationCMI",
    "FacilityLocationMI",
    "FacilityLocationQueryMI",
    "FeatureBased",
    "Ground",
    "GraphCut",
    "GraphCutCG",
    "GraphCutMI",
    "LogDet",
    "LogDetCG",
    "LogDetCMI",
    "LogDetMI",
    "MaxCoverage",
    "Modular",
    "Objective",
    "ProbabilisticSetCover",
    "QualityDiversity",
    "SaturatedCoverage",
    "SetCover",
    "State",
    "SumRedundancy",
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
    return NAMED[choose(value, NAMED, "objective")]()
