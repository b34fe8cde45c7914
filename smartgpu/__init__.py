"""smartgpu: choose training data from large pools with submodular functions, exactly.

>>> import smartgpu
>>> selection = smartgpu.select(X, k=1000)          # X (n, d): one embedding per row
>>> selection.indices, selection.gains, selection.value
"""

import logging as _logging

from smartgpu import baselines
from smartgpu.alpha import AlphaPath, alpha_path
from smartgpu.api import plan, rank, select
from smartgpu.backends.gpu import DeviceLostError, DeviceMemoryError
from smartgpu.constraints import Quotas
from smartgpu.evaluation import Evaluation, evaluate
from smartgpu.graph import graph
from smartgpu.many import select_many
from smartgpu.mixture import Mixture, mix
from smartgpu.near import Near
from smartgpu.objectives import (
    Clustered,
    ConcaveOverModular,
    DisparityMin,
    DisparitySum,
    FacilityLocation,
    FacilityLocationCG,
    FacilityLocationCMI,
    FacilityLocationMI,
    FacilityLocationQueryMI,
    FeatureBased,
    GraphCut,
    GraphCutCG,
    GraphCutMI,
    LogDet,
    LogDetCG,
    LogDetCMI,
    LogDetMI,
    MaxCoverage,
    Modular,
    ProbabilisticSetCover,
    QualityDiversity,
    SaturatedCoverage,
    SetCover,
    SumRedundancy,
    WeightedSum,
)
from smartgpu.options import Options
from smartgpu.partition import select_partitioned
from smartgpu.planning import Plan
from smartgpu.reporting import report
from smartgpu.selection import Assignment, Selection
from smartgpu.sieve import SieveStreaming, select_stream
from smartgpu.similarity import (
    Cosine,
    CosineShifted,
    CosineSquared,
    Dot,
    ExpEuclidean,
    MaxMinusSqeuclidean,
    Precomputed,
    Rbf,
)
from smartgpu.tokens import token_costs
from smartgpu.version import __version__

_logging.getLogger("smartgpu").addHandler(_logging.NullHandler())

__all__ = [
    "AlphaPath",
    "Assignment",
    "Clustered",
    "ConcaveOverModular",
    "Cosine",
    "CosineShifted",
    "CosineSquared",
    "DeviceLostError",
    "DeviceMemoryError",
    "DisparityMin",
    "DisparitySum",
    "Dot",
    "Evaluation",
    "ExpEuclidean",
    "FacilityLocation",
    "FacilityLocationCG",
    "FacilityLocationCMI",
    "FacilityLocationMI",
    "FacilityLocationQueryMI",
    "FeatureBased",
    "GraphCut",
    "GraphCutCG",
    "GraphCutMI",
    "LogDet",
    "LogDetCG",
    "LogDetCMI",
    "LogDetMI",
    "MaxCoverage",
    "MaxMinusSqeuclidean",
    "Mixture",
    "Modular",
    "Near",
    "Options",
    "Plan",
    "Precomputed",
    "ProbabilisticSetCover",
    "QualityDiversity",
    "Quotas",
    "Rbf",
    "SaturatedCoverage",
    "Selection",
    "SieveStreaming",
    "SetCover",
    "SumRedundancy",
    "WeightedSum",
    "__version__",
    "alpha_path",
    "baselines",
    "evaluate",
    "graph",
    "mix",
    "plan",
    "rank",
    "report",
    "select",
    "select_many",
    "select_partitioned",
    "select_stream",
    "token_costs",
]
