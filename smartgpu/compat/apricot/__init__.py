"""apricot's selectors, by this package: the names, arguments and conventions of apricot-select 0.6.1.

    from smartgpu.compat.apricot import FacilityLocationSelection

    selector = FacilityLocationSelection(100, metric="cosine", optimizer="lazy")
    subset = selector.fit_transform(X)          # selector.ranking, selector.gains

docs/from_apricot.md says how to move over, docs/differences.md where answers differ.
"""

from smartgpu.compat.apricot import functions, optimizers
from smartgpu.compat.apricot.functions import (
    BaseGraphSelection,
    BaseSelection,
    CustomGraphSelection,
    CustomSelection,
    FacilityLocationSelection,
    FeatureBasedSelection,
    GraphCutSelection,
    MaxCoverageSelection,
    MixtureSelection,
    SaturatedCoverageSelection,
    SumRedundancySelection,
)

__version__ = "0.6.1"  # of the interface

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
    "functions",
    "optimizers",
]
