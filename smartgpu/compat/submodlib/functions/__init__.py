"""The functions, and the modules that the peer has them in: submodlib.functions.facilityLocation, and so on."""

from __future__ import annotations

import sys
from types import ModuleType

from smartgpu.compat.submodlib._base import SetFunction
from smartgpu.compat.submodlib._coverage import (
    ConcaveOverModular,
    ConcaveOverModularFunction,
    FeatureBased,
    FeatureBasedFunction,
    ProbabilisticSetCoverConditionalGainFunction,
    ProbabilisticSetCoverConditionalMutualInformationFunction,
    ProbabilisticSetCoverFunction,
    ProbabilisticSetCoverMutualInformationFunction,
    SetCoverConditionalGainFunction,
    SetCoverConditionalMutualInformationFunction,
    SetCoverFunction,
    SetCoverMutualInformationFunction,
)
from smartgpu.compat.submodlib._similarity import (
    ClusteredFunction,
    DisparityMinFunction,
    DisparitySumFunction,
    FacilityLocationFunction,
    GraphCutFunction,
    LogDeterminantFunction,
)
from smartgpu.compat.submodlib._targets import (
    FacilityLocationConditionalGainFunction,
    FacilityLocationConditionalMutualInformationFunction,
    FacilityLocationMutualInformationFunction,
    FacilityLocationVariantMutualInformationFunction,
    GraphCutConditionalGainFunction,
    GraphCutMutualInformationFunction,
    LogDeterminantConditionalGainFunction,
    LogDeterminantConditionalMutualInformationFunction,
    LogDeterminantMutualInformationFunction,
)

FUNCTIONS = (
    FacilityLocationFunction,
    GraphCutFunction,
    SetCoverFunction,
    ProbabilisticSetCoverFunction,
    FeatureBasedFunction,
    LogDeterminantFunction,
    DisparityMinFunction,
    DisparitySumFunction,
    SetFunction,
    ClusteredFunction,
    FacilityLocationMutualInformationFunction,
    FacilityLocationVariantMutualInformationFunction,
    ConcaveOverModularFunction,
    GraphCutMutualInformationFunction,
    LogDeterminantMutualInformationFunction,
    ProbabilisticSetCoverMutualInformationFunction,
    SetCoverMutualInformationFunction,
    GraphCutConditionalGainFunction,
    FacilityLocationConditionalGainFunction,
    LogDeterminantConditionalGainFunction,
    ProbabilisticSetCoverConditionalGainFunction,
    SetCoverConditionalGainFunction,
    FacilityLocationConditionalMutualInformationFunction,
    LogDeterminantConditionalMutualInformationFunction,
    SetCoverConditionalMutualInformationFunction,
    ProbabilisticSetCoverConditionalMutualInformationFunction,
)
__all__ = [function.__name__ for function in FUNCTIONS]


def _module(function: type) -> ModuleType:
    """FacilityLocationFunction's module is facilityLocation."""
    name = function.__name__
    short = name if name == "SetFunction" else name.removesuffix("Function")
    module = ModuleType(f"{__name__}.{short[0].lower()}{short[1:]}", function.__doc__)
    module.SetFunction, module.__dict__[name] = SetFunction, function
    for concave in (FeatureBased, ConcaveOverModular):
        if concave.__name__ == short:
            module.__dict__[short] = concave
    return module


for _each in map(_module, FUNCTIONS):
    sys.modules[_each.__name__] = _each
    globals()[_each.__name__.rpartition(".")[2]] = _each
