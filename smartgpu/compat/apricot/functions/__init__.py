"""The selectors, one module each, under the module names that code imports."""

from smartgpu.compat.apricot.functions.base import BaseGraphSelection, BaseSelection
from smartgpu.compat.apricot.functions.custom import CustomGraphSelection, CustomSelection
from smartgpu.compat.apricot.functions.facilityLocation import FacilityLocationSelection
from smartgpu.compat.apricot.functions.featureBased import FeatureBasedSelection
from smartgpu.compat.apricot.functions.graphCut import GraphCutSelection
from smartgpu.compat.apricot.functions.maxCoverage import MaxCoverageSelection
from smartgpu.compat.apricot.functions.mixture import MixtureSelection
from smartgpu.compat.apricot.functions.saturatedCoverage import SaturatedCoverageSelection
from smartgpu.compat.apricot.functions.sumRedundancy import SumRedundancySelection

__all__ = [
    "BaseGraphSelection",
    "BaseSelection",
    "CustomGraphSelection",
    "CustomSelection",
    "FacilityLocationSelection",
    "FeatureBasedSelection",
    "GraphCutSelection",
    "MaxCoverageSelection",
    "MixtureSelection",
    "SaturatedCoverageSelection",
    "SumRedundancySelection",
]
