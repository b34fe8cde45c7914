"""What a report says, as plain numbers: coverage against random draws and a bound, and which rows are far or absorbed.

Coverage is facility location's, whatever chose the rows: F(S) = sum_i max(0, max_{j in S} s_ij) over the measured rows
i, as a share of F(V). The measured rows are all rows of the pool, or a sample of it that is drawn once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from smartgpu.arrays import on_host
from smartgpu.job import Job
from smartgpu.labels import Labels
from smartgpu.objectives import FacilityLocation
from smartgpu.options import Options
from smartgpu.reporting.projection import project
from smartgpu.reporting.quality import Rated, quality_section
from smartgpu.reporting.words import shown
from smartgpu.similarity import Dot, Matrix, Precomputed, Similarity

SAMPLE = 20_000  # rows on which coverage is measured, by default
DRAWS = 8  # random sets of as many rows
POINTS = 120  # of a curve, about
MAP_POOL, MAP_CHOSEN = 3_000, 1_000  # rows on the map
BINS = 40
SHARES = (0.90, 0.95, 0.99)  # of what all chosen rows reach: suggested budgets
NEAR = 0.05  # of s_ii: an unchosen row that lies this close to a chosen one is absorbed by it
WORST, ABSORBERS, ABSORBED = 12, 10, 3  # rows shown with their text
TEXT, HOVER, LABEL = 280, 140, 80  # characters shown


@dataclass(frozen=True)
class Choice:
    """The rows that a report is about.

    n         rows of the pool
    rows      (k,) int64 of them; a prefix of them is a smaller choice of the same kind
    gains     (k,) float64, of the objective that chose them, or None
    covered   (k + 1,) float64, F of each prefix, where it is known; or None
    given     rows that were there before, and count        exclude  rows that could not be chosen
    marks     sizes of prefixes that were written as files
    """

    n: int
    rows: np.ndarray
    gains: np.ndarray | None = None
    covered: np.ndarray | None = None
    given: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    exclude: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    marks: Sequence[int] = ()


@dataclass(frozen=True)
class Known:
    """What is known of each row besides its embedding.

    text   rows (m,) -> m values, or None    task  labels of n rows, or None    rated  their quality, or None
    """

    text: Callable[[np.ndarray], Sequence[Any]] | None = None
    task: Labels | None = None
    rated: Rated | None = None

    def task_of(self, row: int) -> str | None:
        return self.task and shown(self.task.names[self.task.codes[row]], LABEL)["text"]

    def of(self, rows: np.ndarray) -> dict[str, dict[str, Any]]:
        """row -> what tables show of it."""
        rows = np.unique(rows)
        if self.text:
            texts = [shown(value, TEXT) for value in self.text(rows)]
        else:
            texts = [{"text": None, "length": 0}] * len(rows)
        return {
            str(row): {**text, "task": self.task_of(row)}
            for row, text in zip(rows.tolist(), texts, strict=True)
        }


def measure(
    X: Any,
    similarity: Similarity,
    choice: Choice,
    known: Known,
    *,
    draws: int = DRAWS,
    sample: int | None = SAMPLE,
    seed: int = 0,
    projection: str = "auto",
    groups: np.ndarray | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The sections of a report that come from the pool, as JSON values.

    X, similarity  as for select()              options  backend, threads, memory, progress
    sample   rows that are measured; None is all. A precomputed similarity is always measured whole
    draws    random sets, each of k rows of those that could be chosen
    groups   (n,) int64: random sets with as many rows of every group as were chosen are drawn as well

    Cost, with m measured rows: O(m d (n + k (draws + 2))), one sweep of m x n for the bound. Raises as select() does.
    """
    job = Job.check(X, FacilityLocation(), similarity, Options(**options))
    if job.n != choice.n:
        raise ValueError(f"X must be the pool that was chosen from, {choice.n} rows, got {job.n}")
    if isinstance(job.x, Matrix) and job.x.shape[0] != job.n:
        raise ValueError(
            f"a report needs the similarities of all rows with all rows, (n, n), got {job.x.shape}"
        )
    ruler = Ruler(job, sample, seed)
    sizes = curve_sizes(len(choice.rows), choice.marks)
    curve = ruler.curve(choice.rows, sizes, choice.given)
    free = np.setdiff1d(np.arange(job.n), np.concatenate([choice.given, choice.exclude]))
    drawn = [_draw(seed, number, free, len(choice.rows)) for number in range(draws)]
    random = [ruler.curve(rows, sizes, choice.given) for rows in drawn]
    best = max(range(draws), key=lambda number: random[number][-1])
    best = drawn[best] if random[best][-1] > curve[-1] else None
    position, similar = ruler.nearest(np.concatenate([choice.rows, choice.given]))
    distance = ruler.own - similar
    chosen = np.concatenate([choice.rows, choice.given])[position]
    worst = worst_rows(ruler, distance, chosen)
    absorbed = absorbed_rows(ruler, distance, chosen, choice)
    named = [row["row"] for row in worst] + [row["nearest"] for row in worst]
    for group in absorbed["groups"]:
        named += [group["row"], *(row["row"] for row in group["rows"])]
    exact = known_curve(choice, ruler, sizes, curve)
    head = headline(ruler, choice, exact, random, free, best)
    quality = known.rated and quality_section(
        known.rated,
        choice.rows,
        free,
        head["coverage"],
        drawn,
        head["random"]["values"],
        lambda rows: ruler.coverage(rows, choice.given),
    )
    head["random_of_same_budgets"] = None
    if groups is not None:
        drawn = [_draw_groups(seed, number, free, choice.rows, groups) for number in range(draws)]
        ends = [ruler.coverage(rows, choice.given) for rows in drawn]
        head["random_of_same_budgets"] = band(ends)
    return {
        "measured": {
            "rows": len(ruler.rows),
            "of": job.n,
            "sampled": ruler.sampled,
            "seed": seed,
            "draws": draws,
        },
        "headline": head,
        "curve": {
            "k": sizes.tolist(),
            "coverage": curve.tolist(),
            "gain": None if choice.gains is None else [None, *choice.gains[sizes[1:] - 1].tolist()],
            "random": {
                name: which(random, axis=0).tolist()
                for name, which in (("low", np.min), ("mean", np.mean), ("high", np.max))
            },
        },
        "quality": quality,
        "budgets": suggestions(*exact),
        "map": _map(job, ruler, choice, known, seed, projection),
        "distance": histogram(distance),
        "worst": worst,
        "absorbed": absorbed,
        "rows": known.of(np.array(named, np.int64)),
        "backend": ruler.backend.name,
    }


class Ruler:
    """F and distances on the measured rows; own (m,) is s_ii, 0 at least, total is F(V)."""

    def __init__(self, job: Job, sample: int | None, seed: int):
        n = job.n
        self.job, self.rows = job, np.arange(n)
        self.sampled = sample is not None and sample < n and not isinstance(job.x, Matrix)
        self.points = None
        if self.sampled:
            self.rows = np.sort(_generator(seed, "measured").choice(n, sample, replace=False))
            self.points = on_host(job.x[self.rows])
        self.backend = job.ground().backend(self.points)
        self.own = np.maximum(self.backend.diagonal()[self.rows], 0) * self.backend.quantum
        # s_ii is the largest similarity of row i, but for a dot product, a matrix of the user's, and rounded features
        if isinstance(job.kind, Dot | Precomputed) or self.backend.rounded:
            self.total = self.backend.level_sum(self.backend.row_max()) * self.backend.quantum
        else:
            self.total = float(self.own.sum())

    def share(self, value: float) -> float:
        """Of F(V); 1 where there is nothing to cover."""
        return value / self.total if self.total else 1.0

    def curve(self, rows: np.ndarray, sizes: np.ndarray, given: np.ndarray) -> np.ndarray:
        """Coverage of given and the first sizes[t] of rows, (len(sizes),) float64; sizes ascend from 0."""
        level, out = self.backend.new_level(), np.empty(len(sizes))
        if len(given):
            self.backend.raise_level(level, given)
        before = 0
        for at, size in enumerate(sizes.tolist()):
            if size > before:
                self.backend.raise_level(level, rows[before:size])
            out[at] = self.share(self.backend.level_sum(level) * self.backend.quantum)
            before = size
        return out

    def coverage(self, rows: np.ndarray, given: np.ndarray) -> float:
        return float(self.curve(rows, np.array([0, len(rows)]), given)[-1])

    def bound(self, rows: np.ndarray, given: np.ndarray, free: np.ndarray) -> tuple[float, float]:
        """(F(rows), a bound that no set of as many free rows exceeds, given ones included).

        By submodularity F(T) <= F(S) + sum over T of the gains that S leaves, so the |S| largest of them bound it.
        """
        level = self.backend.new_level()
        self.backend.raise_level(level, np.concatenate([given, rows]))
        value = self.backend.level_sum(level) * self.backend.quantum
        left = np.setdiff1d(free, rows, assume_unique=True)
        gains = np.sort(self.backend.excess(level)[left])[::-1][: len(rows)] * self.backend.quantum
        return value, max(min(value + float(gains.sum()), self.total), value)

    def nearest(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each measured row the position of its nearest of `rows`, itself where that ties, and the similarity."""
        order = np.argsort(rows, kind="stable")  # ascending: ties go to the lowest row
        where, q = self.backend.nearest(rows[order])
        position = order[where]
        at = np.full(self.job.n, -1)
        at[rows] = np.arange(len(rows))
        own = at[self.rows]
        stay = (own >= 0) & (self.backend.diagonal()[self.rows] >= q)
        position[stay] = own[stay]
        return position, q * self.backend.quantum


# ---- curves


def curve_sizes(k: int, marks: Sequence[int] = ()) -> np.ndarray:
    """About POINTS sizes from 0 to k, dense at both ends of the scale; all of them where they are few."""
    if k <= POINTS:
        return np.arange(k + 1)
    spread = np.concatenate([np.geomspace(1, k, POINTS // 2), np.linspace(0, k, POINTS // 2), marks])
    return np.unique(np.rint(spread).astype(np.int64))


def known_curve(
    choice: Choice, ruler: Ruler, sizes: np.ndarray, curve: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(sizes, coverage) from which budgets are read: of every prefix where the gains tell it, else as measured.

    They do not where rows counted that are not known here (given from elsewhere), or precision differed.
    """
    if choice.covered is None or ruler.sampled or not ruler.total:
        return sizes, curve
    told = choice.covered / ruler.total
    if not np.allclose(told[sizes], curve, rtol=1e-9, atol=1e-12):
        return sizes, curve
    return np.arange(len(told)), told


def suggestions(sizes: np.ndarray, curve: np.ndarray) -> list[dict[str, Any]]:
    """Budgets to think of: the knee, and the fewest rows that reach SHARES of the coverage of all chosen rows.

    The knee is where the curve lies highest above the straight line from its first to its last point.
    """
    out = []
    rise = curve[-1] - curve[0]
    if len(sizes) > 2 and rise > 0:
        above = (curve - curve[0]) / rise - sizes / sizes[-1]
        out.append(("knee", int(above[1:].argmax()) + 1))
    reached = curve >= np.array(SHARES)[:, None] * curve[-1] * (1 - 1e-12)
    out += [(f"{share:.0%}", max(int(row.argmax()), 1)) for share, row in zip(SHARES, reached, strict=True)]
    return [{"name": name, "k": int(sizes[at]), "coverage": float(curve[at])} for name, at in out]


def band(values: Sequence[float]) -> dict[str, Any]:
    return {
        "low": float(np.min(values)),
        "mean": float(np.mean(values)),
        "high": float(np.max(values)),
        "values": [float(v) for v in values],
    }


def headline(
    ruler: Ruler,
    choice: Choice,
    exact: tuple[np.ndarray, np.ndarray],
    random: list[np.ndarray],
    free: np.ndarray,
    best: np.ndarray | None,
) -> dict[str, Any]:
    """k rows of n against random draws and the bound; matched: the first rows that cover what the best draw does.

    best: a draw that covers more than the chosen rows do, and so bounds better
    """
    value, bound = ruler.bound(choice.rows, choice.given, free)
    ends = band([draw[-1] for draw in random])
    if best is not None:
        bound = max(min(bound, ruler.bound(best, choice.given, free)[1]), value)
    sizes, covered = exact
    reached = covered >= ends["high"]
    return {
        "k": len(choice.rows),
        "n": ruler.job.n,
        "given": len(choice.given),
        "excluded": len(choice.exclude),
        "coverage": ruler.share(value),
        "value": value,
        "total": ruler.total,
        "random": ends,
        "matched": int(sizes[reached.argmax()]) if reached.any() else None,
        "bound": {"value": bound, "coverage": ruler.share(bound), "share": value / bound if bound else 1.0},
    }


# ---- rows


def histogram(distance: np.ndarray) -> dict[str, Any]:
    low, high = float(distance.min()), float(distance.max())
    low = min(low, 0.0)
    counts, edges = np.histogram(distance, BINS, (low, high if high > low else low + 1.0))
    percentiles = (50, 90, 99, 100)
    at = np.percentile(distance, percentiles)
    return {
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "percentiles": {str(p): float(v) for p, v in zip(percentiles, at, strict=True)},
    }


def worst_rows(ruler: Ruler, distance: np.ndarray, chosen: np.ndarray) -> list[dict[str, Any]]:
    """The measured rows that are farthest from their nearest chosen row, ties by row number."""
    order = np.argsort(-distance, kind="stable")[:WORST]
    return [
        {"row": int(ruler.rows[i]), "distance": float(distance[i]), "nearest": int(chosen[i])}
        for i in order
        if distance[i] > 0
    ]


def absorbed_rows(ruler: Ruler, distance: np.ndarray, chosen: np.ndarray, choice: Choice) -> dict[str, Any]:
    """Rows that were not chosen because one that was says nearly the same: distance <= NEAR s_ii.

    copies counts those at distance 0, near the others. groups: the chosen rows that absorb most.
    """
    taken = np.isin(ruler.rows, np.concatenate([choice.rows, choice.given]))
    close = ~taken & (ruler.own > 0) & (distance <= NEAR * ruler.own)
    at = np.flatnonzero(close)
    copies = int((distance[at] <= 0).sum())
    owners, counts = np.unique(chosen[at], return_counts=True)
    groups = []
    for number in np.lexsort((owners, -counts))[:ABSORBERS].tolist():
        mine = at[chosen[at] == owners[number]]
        # the least alike first: that copies are alike needs no proof
        first = mine[np.argsort(-distance[mine], kind="stable")][:ABSORBED]
        rows = [{"row": int(ruler.rows[i]), "distance": float(distance[i])} for i in first]
        groups.append({"row": int(owners[number]), "count": int(counts[number]), "rows": rows})
    return {"copies": copies, "near": len(at) - copies, "by": len(owners), "within": NEAR, "groups": groups}


def _map(
    job: Job, ruler: Ruler, choice: Choice, known: Known, seed: int, projection: str
) -> dict[str, Any] | None:
    """A sample of the pool and of the chosen rows in the plane, with task and text."""
    if isinstance(job.x, Matrix):
        return None
    others = np.setdiff1d(np.arange(job.n), choice.rows)
    draw = _generator(seed, "map")
    rows = np.sort(draw.choice(others, min(MAP_POOL, len(others)), replace=False))
    picks = np.sort(draw.choice(len(choice.rows), min(MAP_CHOSEN, len(choice.rows)), replace=False))
    rows = np.concatenate([rows, choice.rows[picks]])
    fit = ruler.rows[:: -(-len(ruler.rows) // SAMPLE)]
    plane = project(on_host(job.x[fit]), on_host(job.x[rows]), job.kind, projection, seed)
    texts = known.text(rows) if known.text else None
    return {
        **plane.about,
        "fitted_on": len(fit),
        "pool": {"shown": len(rows) - len(picks), "of": len(others)},
        "chosen": {"shown": len(picks), "of": len(choice.rows)},
        "points": {
            "row": rows.tolist(),
            "rank": [None] * (len(rows) - len(picks)) + picks.tolist(),
            "x": plane.x.tolist(),
            "y": plane.y.tolist(),
            "task": None if known.task is None else [known.task_of(row) for row in rows.tolist()],
            "text": None if texts is None else [shown(text, HOVER)["text"] for text in texts],
        },
    }


# ---- random draws


def _generator(*key: Any) -> np.random.Generator:
    """Another stream for every use, the same on every run."""
    numbers = [part if isinstance(part, int) else int.from_bytes(part.encode()[:8], "little") for part in key]
    return np.random.default_rng(numbers)


def _draw(seed: int, number: int, free: np.ndarray, k: int) -> np.ndarray:
    """k of the free rows, in random order."""
    return _generator(seed, "draw", number).choice(free, k, replace=False)


def _draw_groups(seed: int, number: int, free: np.ndarray, rows: np.ndarray, group: np.ndarray) -> np.ndarray:
    """As many free rows of each group as `rows` has."""
    draw = _generator(seed, "group", number)
    order = draw.permutation(free)
    order = order[np.argsort(group[order], kind="stable")]
    of = group[order]
    first = np.searchsorted(of, of)  # where its group starts
    wanted = np.bincount(group[rows], minlength=int(group.max()) + 1)
    return order[np.arange(len(order)) - first < wanted[of]]
