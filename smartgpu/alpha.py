"""alpha_path: what each alpha of QDIT chooses, to choose one from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from smartgpu.backends import resolve
from smartgpu.objectives import FacilityLocation, Ground, QualityDiversity
from smartgpu.objectives.quality import SCALE, check_alpha
from smartgpu.options import Options, make_options
from smartgpu.selecting import Call, Wanted, attempt
from smartgpu.selection import Selection
from smartgpu.similarity import Similarity

ALPHAS = tuple(i / 10 for i in range(11))
WORST = (1, 5)  # percentiles of the similarity to the nearest chosen row
TAIL = 5  # percentile of the quality of the chosen


@dataclass(frozen=True)
class AlphaPoint:
    """What the k rows of one alpha are like.

    coverage      facility location's f(S) / f(V), given rows included
    worst         {1: ..., 5: ...}: percentiles of the similarity of the pool's rows to their nearest chosen row
    quality_mean, quality_tail, quality_min  of the chosen, as given: mean, 5th percentile, least
    overlap       with the rows of the alpha before, |A and B| / |A or B|; None for the first
    """

    alpha: float
    coverage: float
    worst: dict[int, float]
    quality_mean: float
    quality_tail: float
    quality_min: float
    overlap: float | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "worst": {str(p): v for p, v in self.worst.items()}}


@dataclass(frozen=True)
class AlphaPath:
    """The points of a path, in the order of alpha, the selection of each, and the alpha to start from."""

    points: tuple[AlphaPoint, ...]
    selections: tuple[Selection, ...]
    suggested: float

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, without the rows."""
        first = self.selections[0]
        spec = {name: value for name, value in first.objective.items() if name != "alpha"}
        return {
            "n": first.n,
            "k": first.k,
            "points": [point.to_dict() for point in self.points],
            "suggested": self.suggested,
            "objective": spec,
            "similarity": first.similarity,
            "options": first.options,
            "backend": first.backend,
            "dtype": first.dtype,
            "versions": first.versions,
        }

    def __str__(self) -> str:
        first = self.selections[0]
        head = ["alpha", "coverage", *(f"worst {p} %" for p in WORST)]
        head += ["mean quality", f"lowest {TAIL} %", "lowest", "kept"]
        rows = [
            [
                f"{p.alpha:g}{'*' if p.alpha == self.suggested else ' '}",
                f"{p.coverage:.2%}",
                *(f"{v:.3f}" for v in p.worst.values()),
                *(f"{v:.4g}" for v in (p.quality_mean, p.quality_tail, p.quality_min)),
                "-" if p.overlap is None else f"{p.overlap:.0%}",
            ]
            for p in self.points
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [f"{first.k} of {first.n} rows, quality by scale {first.objective['scale']!r}", ""]
        for row in [head, *rows]:
            lines.append("  " + "  ".join(f"{v:>{w}}" for v, w in zip(row, widths, strict=True)).rstrip())
        lines += [
            "",
            "  coverage: f(S) / f(V) of facility location; worst: least similar to their nearest chosen row",
            "  kept: rows in common with the alpha before, of all in either",
            f"  * {self.suggested:g} is furthest above the line between the ends in (coverage, mean quality)",
        ]
        return "\n".join(lines)


def alpha_path(
    X: Any,
    k: int | float,
    quality: Any,
    alphas: Sequence[float] = ALPHAS,
    scale: str = SCALE,
    similarity: str | Similarity = "cosine",
    *,
    missing: str | None = None,
    weights: Any = None,
    represented: Any = None,
    given: Any = None,
    exclude: Any = None,
    **options: Any,
) -> AlphaPath:
    """Select k rows by QualityDiversity for each of several alphas, and measure quality and coverage of each.

    alphas      distinct numbers in [0, 1]; the path goes through them in ascending order
    X, k, similarity, given, exclude, options  as for select(), but for checkpoint and backend "reference"
    quality, scale, missing, weights, represented  as for QualityDiversity

    Returns an AlphaPath: .points, one AlphaPoint for each alpha; .selections; .suggested, the alpha whose point lies
    furthest above the straight line between the ends of the path, with coverage and mean quality both scaled so that
    the ends are at 0 and 1 (the lowest alpha among equals; the first where the ends do not differ in quality, the last
    where they do not differ in coverage): beyond it, a step costs more of one than it brings of the other. It is a
    place to start, not the best alpha for training. Costs one selection for each alpha on one preparation of the pool,
    and k / n of a sweep to measure it. Raises as select() does, before any work.
    """
    path = sorted(check_alpha(alpha) for alpha in alphas)
    if not path:
        raise ValueError("alphas is empty: give the numbers in [0, 1] to compare")
    if len(set(path)) < len(path):
        raise ValueError(f"alphas must be distinct, got {alphas!r}")
    how = make_options(options)
    if how.checkpoint is not None:
        raise ValueError("checkpoint is for one selection: alpha_path makes one for each alpha")
    if resolve(how.backend) == "reference":
        raise ValueError("alpha_path is for backends 'numpy' and 'triton', got 'reference'")
    spec = QualityDiversity(path[0], quality, scale, missing, weights, represented)
    wanted = Wanted(k, given=given, exclude=exclude)
    return attempt(lambda how: _Path(X, spec, path, similarity, how, wanted), how)


class _Path:
    """The checked arguments of a path: several calls on one pool, of which one has what all need."""

    def __init__(
        self, X: Any, spec: QualityDiversity, path: list[float], similarity: Any, options: Options, wanted
    ):
        # the objective of both terms takes the most memory
        self.call = Call.check(X, spec.at(0.5), similarity, options, wanted)
        self.spec, self.path = spec if resolve(options.backend) == "triton" else spec.on_host(), path

    def run(self, instead: Options | None = None) -> AlphaPath:
        call, job = self.call, self.call.job
        ground = job.ground(call.memory)
        selections = []
        for alpha in self.path:
            one = replace(job, objective=self.spec.at(alpha)).sized(call.count)
            selections.append(replace(call, job=one, ground=ground, seconds=None).run())
        cover = Cover(self.spec.cover, ground)
        points = []
        for at, selection in enumerate(selections):
            before = selections[at - 1].indices if at else None
            points.append(self._point(self.path[at], selection, before, cover))
        best = suggest([p.coverage for p in points], [p.quality_mean for p in points])
        return AlphaPath(tuple(points), tuple(selections), self.path[best])

    def _point(
        self, alpha: float, selection: Selection, before: np.ndarray | None, cover: Cover
    ) -> AlphaPoint:
        rows = selection.indices
        coverage, worst = cover(np.concatenate([self.call.given, rows]))
        quality = self.spec.quality[rows]
        return AlphaPoint(
            alpha=alpha,
            coverage=coverage,
            worst=worst,
            quality_mean=float(quality.mean()),
            quality_tail=float(np.percentile(quality, TAIL)),
            quality_min=float(quality.min()),
            overlap=None if before is None else overlap(rows, before),
            seconds=sum(selection.seconds.values()),
        )


class Cover:
    """What rows cover, by facility location: called with rows (m,), (f(S) / f(V), {percentile: similarity})."""

    def __init__(self, spec: FacilityLocation, ground: Ground):
        self.backend = ground.backend(spec.represented)
        self.weights = np.ones(self.backend.r) if spec.weights is None else spec.weights
        self.total = spec.bind(ground).total()

    def __call__(self, rows: np.ndarray) -> tuple[float, dict[int, float]]:
        level = self.backend.new_level()
        self.backend.raise_level(level, rows)
        s = self.backend.level_values(level) * self.backend.quantum
        share = float((self.weights * s).sum() / self.total) if self.total else 0.0
        return share, {p: float(v) for p, v in zip(WORST, np.percentile(s, WORST), strict=True)}


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """|A and B| / |A or B| of distinct rows."""
    both = len(np.intersect1d(a, b))
    return both / (len(a) + len(b) - both)


def suggest(coverage: Sequence[float], quality: Sequence[float]) -> int:
    """The point furthest above the line between the first and the last, both figures scaled to [0, 1] by these ends."""
    c, q = np.asarray(coverage), np.asarray(quality)
    if q[-1] <= q[0]:  # nothing is won
        return 0
    if c[0] <= c[-1]:  # nothing is lost
        return len(c) - 1
    above = (c - c[-1]) / (c[0] - c[-1]) + (q - q[0]) / (q[-1] - q[0]) - 1
    return int(np.argmax(np.round(above, 12)))
