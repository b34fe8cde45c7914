"""f(S) in float64 from the definition, and the gate: is this the greedy selection? Shares no code with the package.

No n x n array: rows are normalised and multiplied in blocks, by numpy here and by torch in device.py. Cosine only, with
unit rows u_i (0 where a row is zero): s_ij = u_i.u_j <= 1.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bench.cases import FL, FLQ, GC, LD, Case, quality, task_budgets, task_labels, task_sizes

BLOCK = 4096
POSITIONS = 20  # picks that are checked
CANDIDATES = 500  # others that each of them must beat
NEXT = 50  # of these, the picks that follow it: where an order is wrong, they are the ones that should have come first
SUM_TOLERANCE = 1e-6  # relative, sum of gains and f(S)
PAIR = 1e-6  # error of one float32 similarity, quantised: 2^-22 and the rounding of a chain of d products
SUMMED = 1e-8  # the same for each of many pairs in a sum, where errors have either sign
REFERENCE_WORK = 4e8  # picks x pairs for the naive float64 reference


class Pool:
    """Unit rows in float64, made in blocks when asked for, and what the objectives need of them.

    halves: rounded to float16, as tensor cores get them, by way of float32, as torch does. pair is the error of one
    similarity: products of float16 are exact, but a tensor core cuts off a bit in every step of 16, which is a bias.
    A rounded row's length is 1 only to five digits: a cosine beyond 1 is 1, and where `again` rows are normalised once
    more, as log-determinant does.
    """

    def __init__(self, x, halves: bool = False, again: bool = False):
        self.x, (self.n, self.d) = x, x.shape
        self.halves, self.again = halves, again
        self.pair = max(PAIR, (self.d / 16 + 2) * 2.0**-23) if halves else PAIR

    def unit(self, rows: np.ndarray | slice) -> np.ndarray:
        y = _normed(np.asarray(self.x[rows], np.float64))
        if self.halves:
            y = y.astype(np.float32).astype(np.float16).astype(np.float64)
        return _normed(y) if self.halves and self.again else y

    def blocks(self, rows: np.ndarray):
        for i in range(0, len(rows), BLOCK):
            yield slice(i, min(i + BLOCK, len(rows))), self.unit(rows[i : i + BLOCK])

    def total(self, rows: np.ndarray) -> np.ndarray:
        """sum_i u_i, (d,)"""
        return sum((y.sum(axis=0) for _, y in self.blocks(rows)), np.zeros(self.d))

    def gram(self, rows: np.ndarray) -> np.ndarray:
        """sum_i u_i u_i', (d, d)"""
        return sum((y.T @ y for _, y in self.blocks(rows)), np.zeros((self.d, self.d)))

    def own(self, rows: np.ndarray) -> np.ndarray:
        """s_ii, (m,)"""
        return np.concatenate([np.minimum(np.square(y).sum(axis=1), 1) for _, y in self.blocks(rows)])

    def nearest(self, rows: np.ndarray, picks: np.ndarray) -> np.ndarray:
        """max_{j in picks} s_ij for i in rows, (m,)"""
        out = np.full(len(rows), -1.0)
        for start in range(0, len(picks), BLOCK):
            chosen = self.unit(picks[start : start + BLOCK]).T
            for part, y in self.blocks(rows):
                out[part] = np.maximum(out[part], (y @ chosen).max(axis=1))
        return np.minimum(out, 1, out=out)

    def excess(self, rows: np.ndarray, level: np.ndarray, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """sum_{i in rows} max(s_ij - level_i, 0) for j in cols, and how many terms are not 0; level is theirs, (m,)"""
        gains, pairs, chosen = np.zeros(len(cols)), np.zeros(len(cols)), self.unit(cols).T
        for part, y in self.blocks(rows):
            over = y @ chosen
            if self.halves:
                np.minimum(over, 1, out=over)
            over -= level[part, None]
            pairs += np.count_nonzero(over > 0, axis=0)
            gains += np.maximum(over, 0, out=over).sum(axis=0)
        return gains, pairs


def _normed(y: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(y, axis=1, keepdims=True)
    return np.divide(y, norms, out=np.zeros_like(y), where=norms > 0)


def value(case: Case, x: np.ndarray, chosen: np.ndarray, make=Pool) -> float:
    """f(S) of any set of rows, whoever chose them; a row that was chosen twice counts once."""
    return SPECS[case.objective](case, make(x)).value(np.unique(chosen))


class FacilityLocation:
    """f(S) = sum_i max(0, max_{j in S} s_ij)"""

    def __init__(self, case: Case, pool: Pool):
        self.pool = pool
        self.level = np.zeros(pool.n)
        self.open = np.ones(pool.n, bool)

    def add(self, picks: np.ndarray) -> None:
        if not len(picks):
            return
        if not self.pool.halves:  # s_ij <= s_ii: no chosen row needs another one
            self.open[picks] = False
            self.level[picks] = self.pool.own(picks)
        others = np.flatnonzero(self.open)
        self.level[others] = np.maximum(self.level[others], self.pool.nearest(others, picks))

    def value(self, picks: np.ndarray) -> float:
        self.add(picks)
        return float(self.level.sum())

    def gains(self, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gains of cols, and how far an evaluation may be off: pool.pair for every pair that counts."""
        others = np.flatnonzero(self.open)
        gains, pairs = self.pool.excess(others, self.level[others], cols)
        return gains, self.pool.pair * (pairs + 1)


class Quality(FacilityLocation):
    """f(S) = (1 - alpha) sum_i max(0, max_{j in S} s_ij) + alpha n / k sum_{j in S} q_j"""

    def __init__(self, case: Case, pool: Pool):
        super().__init__(case, pool)
        self.share = 1 - case.parameters["alpha"]
        self.scores = case.quality_weight * quality(case)
        self.quality = 0.0

    def add(self, picks: np.ndarray) -> None:
        super().add(picks)
        self.quality += float(self.scores[picks].sum())

    def value(self, picks: np.ndarray) -> float:
        return self.share * super().value(picks) + self.quality

    def gains(self, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        gains, tolerance = super().gains(cols)
        return self.share * gains + self.scores[cols], self.share * tolerance


class GraphCut:
    """f(S) = sum_{i in V, j in S} s_ij - lam sum_{i, j in S} s_ij = u_V.u_S - lam |u_S|^2, u_A the sum over A"""

    def __init__(self, case: Case, pool: Pool):
        self.pool, self.lam = pool, case.parameters["lam"]
        self.whole = pool.total(np.arange(pool.n))
        self.picked, self.count = np.zeros(pool.d), 0

    def add(self, picks: np.ndarray) -> None:
        self.count += len(picks)
        self.picked += self.pool.total(picks)

    def value(self, picks: np.ndarray) -> float:
        self.add(picks)
        return float(self.whole @ self.picked - self.lam * self.picked @ self.picked)

    def gains(self, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y = self.pool.unit(cols)
        gains = y @ (self.whole - 2 * self.lam * self.picked) - self.lam * np.square(y).sum(axis=1)
        pairs = self.pool.n + 2 * self.lam * self.count
        return gains, np.full(len(cols), self.pool.pair + SUMMED * pairs)


class LogDet:
    """f(S) = log det(s_SS + lam I) = log det A + (|S| - d) log lam, A = lam I_d + U_S'U_S.

    The residual of j is lam (1 + u_j' A^-1 u_j).
    """

    def __init__(self, case: Case, pool: Pool):
        self.pool, self.lam = pool, case.parameters["lam"]
        self.a, self.count = self.lam * np.eye(pool.d), 0

    def add(self, picks: np.ndarray) -> None:
        self.count += len(picks)
        self.a += self.pool.gram(picks)

    def value(self, picks: np.ndarray) -> float:
        self.add(picks)
        return float(np.linalg.slogdet(self.a)[1] + (self.count - self.pool.d) * np.log(self.lam))

    def gains(self, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y = self.pool.unit(cols)
        inside = (y * np.linalg.solve(self.a, y.T).T).sum(axis=1)
        return np.log(self.lam * (1 + inside)), np.full(len(cols), self.pool.pair)


SPECS = {FL: FacilityLocation, GC: GraphCut, LD: LogDet, FLQ: Quality}


def check(
    case: Case, x, picks: np.ndarray, gains: np.ndarray, halves: bool = False, make=Pool
) -> tuple[str, dict]:
    """("pass" or "fail: why", details). A selection passes if it is what greedy chooses, up to rounding:

    k different rows; at POSITIONS picks the gain recomputed is the one reported, and at least that of every other
    candidate of a sample; the gains add up to f(S) recomputed. halves: from rows rounded to float16, as the provider
    did. make: who multiplies, Pool or what has its methods. details: value, and the worst of each.

    With tasks every one has its budget, in rows of its own, and gains that add up to its f; the picks of a few, large
    and small, are checked as above.
    """
    if case.tasks:
        return _check_tasks(case, x, picks, gains, halves, make)
    problem = check_shape(case, picks, gains)
    if problem:
        return f"fail: {problem}", {}
    pool, rng = make(x, halves, case.objective == LD), np.random.default_rng(case.seed)
    state = SPECS[case.objective](case, pool)
    open_ = np.ones(case.n, bool)
    at, behind, off = 0, 0.0, 0.0
    for t in positions(case):
        state.add(picks[at:t])
        open_[picks[at:t]] = False
        at = t
        others = np.flatnonzero(open_)
        sample = rng.choice(others, min(CANDIDATES - NEXT, len(others)), replace=False)
        cols = np.unique(np.concatenate([picks[t : t + 1 + NEXT], sample]))
        fresh, tolerance = state.gains(cols)
        mine = int(np.flatnonzero(cols == picks[t])[0])
        best = int(fresh.argmax())
        allowed = tolerance[mine] + tolerance[best]
        behind = max(behind, (fresh[best] - fresh[mine]) / allowed)
        off = max(off, abs(fresh[mine] - gains[t]) / tolerance[mine])
        if behind > 1:
            pick, other = (
                f"row {picks[t]} with gain {fresh[mine]:.9g}",
                f"row {cols[best]} gives {fresh[best]:.9g}",
            )
            return f"fail: pick {t} is {pick}, {other}", {}
        if off > 1:
            return f"fail: pick {t} reports gain {gains[t]:.9g}, recomputed {fresh[mine]:.9g}", {}
    f = state.value(picks[at:])
    error, problem = _sum_of(gains, f, pool)
    if problem:
        return f"fail: {problem}", {}
    details = {"value": f, "steps": len(positions(case)), "behind": behind, "off": off, "sum_error": error}
    return "pass", details


def _sum_of(gains: np.ndarray, f: float, pool: Pool) -> tuple[float, str | None]:
    """(how far the gains' sum is from f(S), relative, what is wrong with it)"""
    error = abs(float(gains.sum()) - f) / abs(f)
    if error > max(SUM_TOLERANCE, pool.pair):
        return error, f"gains add up to {gains.sum():.9g}, f(S) recomputed is {f:.9g}"
    return error, None


def _check_tasks(case: Case, x, picks: np.ndarray, gains: np.ndarray, halves: bool, make) -> tuple[str, dict]:
    """check() of a case with tasks. Picks are in the tasks' order; details: value is the sum of the tasks' f."""
    problem = check_shape(case, picks, gains)
    if problem:
        return f"fail: {problem}", {}
    sizes = task_sizes(case)
    ends = np.cumsum(task_budgets(sizes, case.k))[:-1]
    rows = np.split(np.argsort(task_labels(case), kind="stable"), np.cumsum(sizes)[:-1])
    looked, total, worst = looked_at(case), 0.0, {"steps": 0, "behind": 0.0, "off": 0.0, "sum_error": 0.0}
    for task, (pool, mine, own) in enumerate(
        zip(rows, np.split(picks, ends), np.split(gains, ends), strict=True)
    ):
        strange = np.setdiff1d(mine, pool)
        if len(strange):
            return f"fail: row {strange[0]} is among the {len(mine)} picks of task {task}, and not of it", {}
        place = np.searchsorted(pool, mine)
        part = replace(case, n=len(pool), k=len(mine), tasks=None)
        if task in looked:
            verdict, details = check(part, x[pool], place, own, halves, make)
            if verdict != "pass":
                return f"{verdict}, in task {task} of {len(pool)} rows", {}
        else:
            unit = make(x[pool], halves, case.objective == LD)
            f = SPECS[case.objective](part, unit).value(place)
            error, problem = _sum_of(own, f, unit)
            if problem:
                return f"fail: {problem}, in task {task} of {len(pool)} rows", {}
            details = {"value": f, "sum_error": error}
        total += details.pop("value")
        worst["steps"] += details.pop("steps", 0)
        worst |= {name: max(worst[name], value) for name, value in details.items()}
    return "pass", {"value": total, "tasks": looked, **worst}


def looked_at(case: Case) -> list[int]:
    """Tasks whose picks are checked: the largest, and a seeded one of each third, from large to small."""
    rng = np.random.default_rng([case.seed, 5])
    return sorted({0, *(int(rng.choice(third)) for third in np.array_split(np.arange(case.tasks), 3))})


def positions(case: Case) -> list[int]:
    """Picks to check: the first ones, then evenly to the last."""
    count = POSITIONS if case.n <= 60_000 else POSITIONS // 2
    even = np.linspace(0, case.k - 1, count - 3).astype(int)
    return sorted({t for t in (0, 1, 2, *even.tolist()) if t < case.k})


def check_shape(case: Case, picks: np.ndarray, gains: np.ndarray) -> str | None:
    if len(picks) != case.k or len(gains) != case.k:
        return f"{len(picks)} picks and {len(gains)} gains for k = {case.k}"
    if len(np.unique(picks)) != case.k:
        return "a row was chosen twice"
    if picks.min() < 0 or picks.max() >= case.n:
        return f"a row outside of 0..{case.n - 1}"
    return None


def check_reference(case: Case, x: np.ndarray, picks: np.ndarray, halves: bool = False) -> str:
    """The first picks of a small pool against the reference, in float64 from the definition: "pass" or "fail: why".

    x is the pool, or its first rows. Every pick has the best gain, and f(S) is that of the reference's own greedy run,
    unless a tie let the two part ways (log-determinant of cosines starts with one: all rows have the same first gain).
    """
    from bench.providers import specification
    from smartgpu import reference
    from smartgpu.similarity import as_similarity

    k = int(min(len(picks), max(REFERENCE_WORK // len(x) ** 2, 1)))
    pool, kind = Pool(x, halves, case.objective == LD), case.similarity
    tolerance = pool.pair if case.objective == LD else pool.pair + SUMMED * len(x)
    if halves:
        unit = pool.unit(slice(None))
        x, kind = (
            np.minimum(unit @ unit.T, 1) if case.objective in (FL, FLQ) else unit @ unit.T,
            "precomputed",
        )
        if case.objective in (FL, FLQ):  # a bias: errors of many pairs do not cancel
            tolerance = pool.pair * len(x)
    kind, spec = as_similarity(kind), specification(case, len(x))
    problem, parted = reference.Problem(x, kind, spec), False
    open_ = np.ones(len(x), bool)
    for t in range(k):
        gains = np.where(open_, problem.gains(picks[:t]), -np.inf)
        mine = gains[picks[t]]
        if mine < gains.max() - tolerance:
            return f"fail: pick {t} of {len(x)} rows has gain {mine:.9g}, the reference's best is {gains.max():.9g}"
        open_[picks[t]] = False
        gains[picks[t]] = -np.inf
        parted |= bool(gains.max() >= mine - tolerance)
    run = reference.greedy(x, k, spec, kind)
    found = problem.value(picks[:k])
    if not parted and abs(found - run.value) > max(SUM_TOLERANCE, pool.pair) * abs(run.value):
        return f"fail: f of the first {k} picks of {len(x)} rows is {found:.9g}, the reference's is {run.value:.9g}"
    return "pass"
