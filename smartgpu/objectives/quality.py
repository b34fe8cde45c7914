"""QDIT: quality and diversity, with the scale between the two named."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from smartgpu.objectives.base import Objective, per_row
from smartgpu.objectives.facility_location import FacilityLocation
from smartgpu.objectives.modular import Modular
from smartgpu.objectives.weighted_sum import WeightedSum
from smartgpu.similarity import Matrix, Similarity, choose

SCALES = ("paper", "mean", "minmax", "zscore", "rank")
SCALE = "mean"
MISSING = ("mean", "median", "min")


@dataclass(frozen=True, eq=False)
class QualityDiversity(Objective):
    """f(S) = (1 - alpha) FL(S) + alpha c sum_{j in S} t(q_j): diverse rows of high quality (QDIT).

    alpha        a number in [0, 1]. 0 is facility location bit for bit, 1 the k rows of highest quality, the lowest
                 index among equals
    quality      (n,) numbers of any sign, one per row; NaN or None where a row has none
    scale        what t and c are. The paper does not say in which units the two terms are added, so it is named:
                 "paper"   t(q) = q, c = 1: the literal sums. FL grows with n and Q with k, so alpha is worth another
                           trade on every pool
                 "mean"    t(q) = q, c = W / k: n times (1 - alpha) mean coverage + alpha mean quality of the chosen
                 "minmax"  as "mean", of t(q) = (q - min q) / (max q - min q)
                 "zscore"  as "mean", of t(q) = (q - mean q) / std q
                 "rank"    as "mean", of t(q) = rank of q / (n - 1), 1 for the best; equals share their mean rank
                 W is the sum of the weights, n without; k the rows asked for, which select(), rank(), ... know
    missing      "mean", "median" or "min" of the quality that is there takes the place of what is not; None refuses
    weights, represented  as for FacilityLocation

    t comes from the whole pool, once: a group of rows (take, mix) keeps the values. Submodular whatever the sign of q,
    since quality's gains do not change, and monotone where t(q) >= 0. Raises ValueError for an alpha outside [0, 1],
    infinite or missing quality, and a constant one under "minmax" and "zscore", which nothing can scale.
    Source: Bukharin et al., Data Diversity Matters for Robust Instruction Tuning (arXiv 2311.14736); scales but
    "paper" are ours.
    """

    alpha: float
    quality: Any
    scale: str = SCALE
    missing: str | None = None
    weights: Any = None
    represented: Any = None
    name: ClassVar[str] = "quality_diversity"

    def __post_init__(self) -> None:
        choose(self.scale, SCALES, "scale")
        if self.missing is not None:
            choose(self.missing, MISSING, "missing")
        quality = fill(per_row("quality", self.quality, missing=True), self.missing)
        cover = FacilityLocation(self.weights, self.represented)
        self._set(
            alpha=check_alpha(self.alpha),
            quality=quality,
            weights=cover.weights,
            represented=cover.represented,
            _cover=cover,
            _values=scaled(quality, self.scale),
        )

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _with(self, **values: Any) -> QualityDiversity:
        """This spec with other values, which are checked already."""
        out = copy.copy(self)
        out._set(**values)
        return out

    def at(self, alpha: float) -> QualityDiversity:
        """The same with another alpha."""
        return self._with(alpha=check_alpha(alpha))

    @property
    def cover(self) -> FacilityLocation:
        """The term of diversity."""
        return self._cover

    @property
    def counted(self) -> bool:
        return self.scale != "paper" and 0 < self.alpha < 1

    def check(self, x: np.ndarray | Matrix, kind: Similarity) -> None:
        self._cover.check(x, kind)
        per_row("quality", self.quality, x.shape[1] if isinstance(x, Matrix) else len(x))

    def need_monotone(self, x: np.ndarray | Matrix | None, kind: Similarity | None) -> None:
        if self.alpha > 0 and (self._values < 0).any():
            what = f"quality >= 0 by scale {self.scale!r}"
            raise ValueError(f"coverage needs a monotone objective: {what}, got {self._values.min()}")

    def need_swaps(self) -> int:
        return 1

    def on_host(self) -> QualityDiversity:
        cover = self._cover.on_host()
        return self._with(_cover=cover, represented=cover.represented)

    def take(self, rows: np.ndarray) -> QualityDiversity:
        cover = self._cover.take(rows)
        return self._with(
            quality=self.quality[rows], _values=self._values[rows], _cover=cover, weights=cover.weights
        )

    def sized(self, r: int, k: int) -> Sized:
        cover = self._cover
        if cover.weights is not None:
            r = float(cover.weights.sum())
        elif cover.represented is not None:
            r = len(cover.represented)
        c = 1.0 if self.scale == "paper" else r / k
        terms = ((1 - self.alpha, cover), (self.alpha * c, Modular(self._values)))
        return Sized(terms, {**self.describe(), "k": k, "c": c})


@dataclass(frozen=True, eq=False)
class Sized(WeightedSum):
    """The sum that a QualityDiversity is for k rows; it still says what it comes from."""

    said: dict[str, Any] = field(default_factory=dict)

    def on_host(self) -> Sized:
        return Sized(super().on_host().terms, self.said)

    def sized(self, r: int, k: int) -> Sized:
        return self

    def describe(self) -> dict:
        return dict(self.said)


def check_alpha(alpha: Any) -> float:
    """alpha as a float. TypeError, ValueError where it is no number in [0, 1]."""
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float, np.integer, np.floating)):
        raise TypeError(f"alpha must be a number in [0, 1], got {alpha!r}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1]: 0 is diversity alone, 1 quality alone, got {alpha}")
    return float(alpha)


def fill(quality: np.ndarray, rule: str | None) -> np.ndarray:
    """(n,) with NaN replaced by the mean, median or min of the others. ValueError where none are there, or no rule."""
    gone = np.isnan(quality)
    if not gone.any():
        return quality
    if gone.all():
        raise ValueError("quality is missing in every row")
    if rule is None:
        raise ValueError(
            f"quality is missing (NaN or None) in {gone.sum()} rows, the first is row {gone.argmax()}: leave them out, "
            f"or name what takes its place: missing= one of {', '.join(MISSING)}"
        )
    there = quality[~gone]
    return np.where(gone, {"mean": np.mean, "median": np.median, "min": np.min}[rule](there), quality)


def scaled(quality: np.ndarray, scale: str) -> np.ndarray:
    """(n,) float64: t(q) of QualityDiversity."""
    if scale in ("paper", "mean") or not len(quality):
        return quality
    if scale == "rank":
        _, at, counts = np.unique(quality, return_inverse=True, return_counts=True)
        ranks = np.cumsum(counts) - (counts + 1) / 2  # of equals the mean, from 0
        return ranks[at.reshape(-1)] / max(len(quality) - 1, 1)
    low, high = quality.min(), quality.max()
    if low == high:
        raise ValueError(f"quality is {low} in every row: scale {scale!r} has nothing to scale; use 'mean'")
    with np.errstate(over="ignore", invalid="ignore"):
        if scale == "minmax":
            out = (quality - low) / (high - low)
        else:
            out = (quality - quality.mean()) / quality.std()
    if not np.isfinite(out).all():
        raise ValueError(f"quality spans {low} to {high}, too far for scale {scale!r}")
    return out
