"""smartgpu: choose training data from large pools with submodular functions, exactly.

>>> import smartgpu
>>> selection = smartgpu.select(X, k=1000)          # X (n, d): one embedding per row
>>> selection.indices, selection.gains, selection.value
"""

import logging as _logging

from smartgpu.alpha import AlphaPath, alpha_path
from smartgpu.api import plan, rank, select
from smartgpu.backends.gpu import DeviceLostError, DeviceMemoryError
from smartgpu.constraints import Quotas
from smartgpu.evaluation import Evaluation, evaluate
from smartgpu.many import select_many
from smartgpu.mixture import Mixture, mix
from smartgpu.near import Near
from smartgpu.objectives import (
    FacilityLocation,
    FacilityLocationCG,
    FacilityLocationCMI,
    FacilityLocationMI,
    FacilityLocationQueryMI,
    GraphCut,
    GraphCutCG,
    GraphCutMI,
    LogDet,
    LogDetCG,
    LogDetCMI,
    LogDetMI,
    Modular,
    QualityDiversity,
    WeightedSum,
)
from smartgpu.options import Options
from smartgpu.planning import Plan
from smartgpu.reporting import report
from smartgpu.selection import Assignment, Selection
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
from smartgpu.version import __version__

_logging.getLogger("smartgpu").addHandler(_logging.NullHandler())

__all__ = [
    "AlphaPath",
    "Assignment",
    "Cosine",
    "CosineShifted",
    "CosineSquared",
    "DeviceLostError",
    "DeviceMemoryError",
    "Dot",
    "Evaluation",
    "ExpEuclidean",
    "FacilityLocation",
    "FacilityLocationCG",
    "FacilityLocationCMI",
    "FacilityLocationMI",
    "FacilityLocationQueryMI",
    "GraphCut",
    "GraphCutCG",
    "GraphCutMI",
    "LogDet",
    "LogDetCG",
    "LogDetCMI",
    "LogDetMI",
    "MaxMinusSqeuclidean",
    "Mixture",
    "Modular",
    "Near",
    "Options",
    "Plan",
    "Precomputed",
    "QualityDiversity",
    "Quotas",
    "Rbf",
    "Selection",
    "WeightedSum",
    "__version__",
    "alpha_path",
    "evaluate",
    "mix",
    "plan",
    "rank",
    "report",
    "select",
    "select_many",
]
