"""Quality beside coverage: of the chosen rows, of random ones, of the best rated, and of the whole pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from smartgpu.mixture import Mixture
from smartgpu.objectives import Modular
from smartgpu.objectives.base import per_row
from smartgpu.objectives.quality import fill
from smartgpu.selection import Selection

TAIL = 5  # percentile
BARS = 40  # of the histogram
PATH = ("alpha", "coverage", "quality_mean", "quality_tail", "quality_min")  # of a point of an alpha path


@dataclass(frozen=True)
class Rated:
    """The quality of n rows.

    values  (n,) float64, NaN where a row has none        used  whether the rows were chosen by it
    path    what each alpha chooses, as AlphaPath.to_dict() says it, or None
    """

    values: np.ndarray
    used: bool = False
    path: dict[str, Any] | None = None

    @classmethod
    def of(
        cls,
        result: Selection | Mixture,
        values: Any,
        path: dict[str, Any] | None = None,
        missing: str | None = None,
    ) -> Rated:
        """Where a result was chosen by these values, with what took the place of missing ones there.

        missing  the rule for those, where the objective does not say it

        ValueError for other than n finite numbers, of which some may be missing but not all.
        """
        values = per_row("quality", values, result.n, missing=True)
        gone = np.isnan(values)
        if gone.all():
            raise ValueError("quality is missing in every row")
        spec = result.objective if isinstance(result, Selection) else result.options["row_objective"]
        rule = spec.get("missing") or missing
        if "quality" in spec and (rule is not None or not gone.any()):
            filled = fill(values, rule)
            if Modular(filled).describe()["scores"]["sha256"] == spec["quality"]["sha256"]:
                return cls(filled, True, path)
        return cls(values, False, path)

    def take(self, rows: np.ndarray) -> Rated:
        return Rated(self.values[rows], self.used, self.path)

    def means(self, codes: np.ndarray, groups: int) -> np.ndarray:
        """(groups,) mean quality of the rows of each group, NaN where none is rated."""
        there = ~np.isnan(self.values)
        sums = np.bincount(codes[there], self.values[there], groups)
        counts = np.bincount(codes[there], minlength=groups)
        return np.divide(sums, counts, out=np.full(groups, np.nan), where=counts > 0)


def number(value: float) -> float | None:
    """None for NaN, which JSON has not."""
    return None if np.isnan(value) else float(value)


def quality_section(
    rated: Rated,
    rows: np.ndarray,
    free: np.ndarray,
    coverage: float,
    drawn: Sequence[np.ndarray],
    random: Sequence[float],
    covered: Callable[[np.ndarray], float],
) -> dict[str, Any]:
    """The section of a report, as JSON values.

    rows    chosen, of coverage `coverage`           free     rows that could be chosen
    drawn   random sets of as many, of coverage `random`      covered  coverage of a set of rows
    """
    values = rated.values
    best = free[np.argsort(-np.nan_to_num(values[free], nan=-np.inf), kind="stable")][: len(rows)]
    return {
        "used": rated.used,
        "rated": int((~np.isnan(values)).sum()),
        "tail": TAIL,
        "chosen": {**summary(values[rows]), "coverage": coverage},
        "best": {**summary(values[best]), "coverage": covered(best)},
        "pool": summary(values),
        "random": {
            "mean": [summary(values[each])["mean"] for each in drawn],
            "coverage": [float(share) for share in random],
        },
        "histogram": _histogram(values, values[rows]),
        "path": rated.path and _path(rated.path),
    }


def summary(values: np.ndarray) -> dict[str, Any]:
    """Mean, 5th percentile, median, least and most of those that are there; None where none is."""
    there = values[~np.isnan(values)]
    if not len(there):
        return {"rated": 0, **dict.fromkeys(("mean", "tail", "median", "least", "most"))}
    tail, median = np.percentile(there, (TAIL, 50))
    numbers = {
        "mean": there.mean(),
        "tail": tail,
        "median": median,
        "least": there.min(),
        "most": there.max(),
    }
    return {"rated": len(there), **{name: float(value) for name, value in numbers.items()}}


def _histogram(pool: np.ndarray, chosen: np.ndarray) -> dict[str, Any]:
    """Shares of the pool and of the chosen rows: at every value where these are few, else in equal bins."""
    pool, chosen = (values[~np.isnan(values)] for values in (pool, chosen))
    at = np.unique(pool)
    if len(at) <= BARS:
        width = float(np.diff(at).min(initial=np.inf))
        width = width if np.isfinite(width) else 1.0
        counts = [np.bincount(np.searchsorted(at, values), minlength=len(at)) for values in (pool, chosen)]
    else:
        edges = np.linspace(at[0], at[-1], BARS + 1)
        at, width = (edges[1:] + edges[:-1]) / 2, float(edges[1] - edges[0])
        counts = [np.histogram(values, edges)[0] for values in (pool, chosen)]
    shares = [(count / max(count.sum(), 1)).tolist() for count in counts]
    return {"at": at.tolist(), "width": width, "pool": shares[0], "chosen": shares[1]}


def _path(path: dict[str, Any]) -> dict[str, Any]:
    points = [{name: point[name] for name in PATH} for point in path["points"]]
    return {
        "k": path["k"],
        "scale": path["objective"]["scale"],
        "suggested": path["suggested"],
        "points": points,
    }
