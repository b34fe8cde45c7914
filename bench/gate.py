"""f(S) in float64 from the definition, and the gate: is this the greedy selection? Shares no code with the package.

No n x n array: rows are normalised and multiplied in blocks. Cosine only, with unit rows u_i (0 where a row is zero):
s_ij = u_i.u_j <= s_ii, so that every chosen row is its own best representative.
"""

from __future__ import annotations

import numpy as np

from bench.cases import FL, GC, LD, Case

BLOCK = 4096
POSITIONS = 20  # picks that are checked
CANDIDATES = 500  # others that each of them must beat
NEXT = 50  # of these, the picks that follow it: where an order is wrong, they are the ones that should have come first
SUM_TOLERANCE = 1e-6  # relative, sum of gains and f(S)
PAIR = 1e-6  # error of one float32 similarity, quantised: 2^-22 and the rounding of a chain of d products
SUMMED = 1e-8  # the same for each of many pairs in a sum, where errors have either sign
REFERENCE_WORK = 4e8  # picks x pairs for the naive float64 reference


class Pool:
    """Unit rows in float64, made in blocks when asked for.

    halves: rounded to float16, as tensor cores get them. pair is the error of one similarity: products of float16 are
    exact, but a tensor core cuts off a bit in every step of 16, which is a bias.
    """

    def __init__(self, x: np.ndarray, halves: bool = False):
        self.x, self.n, self.d = x, *x.shape
        self.halves = halves
        self.pair = max(PAIR, (self.d / 16 + 2) * 2.0**-23) if halves else PAIR

    def unit(self, rows: np.ndarray | slice) -> np.ndarray:
        y = np.asarray(self.x[rows], np.float64)
        norms = np.linalg.norm(y, axis=1, keepdims=True)
        y = np.divide(y, norms, out=np.zeros_like(y), where=norms > 0)
        return y.astype(np.float16).astype(np.float64) if self.halves else y

    def blocks(self, rows: np.ndarray | None = None):
        """(row numbers, unit rows) of all rows, or of `rows`."""
        rows = np.arange(self.n) if rows is None else rows
        for i in range(0, len(rows), BLOCK):
            yield rows[i : i + BLOCK], self.unit(rows[i : i + BLOCK])


def value(case: Case, x: np.ndarray, chosen: np.ndarray) -> float:
    """f(S) of any set of rows, whoever chose them; a row that was chosen twice counts once."""
    return SPECS[case.objective](case, Pool(x)).value(np.unique(chosen))


class FacilityLocation:
    """f(S) = sum_i max(0, max_{j in S} s_ij)"""

    def __init__(self, case: Case, pool: Pool):
        self.pool = pool
        self.level = np.zeros(pool.n)
        self.open = np.ones(pool.n, bool)

    def add(self, picks: np.ndarray) -> None:
        self.open[picks] = False
        for rows, y in self.pool.blocks(picks):
            self.level[rows] = np.square(y).sum(axis=1)  # s_ii: no chosen row needs another one
        others = np.flatnonzero(self.open)
        for start in range(0, len(picks), BLOCK):
            chosen = self.pool.unit(picks[start : start + BLOCK]).T
            for rows, y in self.pool.blocks(others):
                self.level[rows] = np.maximum(self.level[rows], (y @ chosen).max(axis=1))

    def value(self, picks: np.ndarray) -> float:
        self.add(picks)
        return float(self.level.sum())

    def gains(self, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gains of cols, and how far an evaluation may be off: pool.pair for every pair that counts."""
        gains, pairs, y = np.zeros(len(cols)), np.zeros(len(cols)), self.pool.unit(cols).T
        for rows, z in self.pool.blocks(np.flatnonzero(self.open)):
            excess = z @ y
            excess -= self.level[rows, None]
            pairs += np.count_nonzero(excess > 0, axis=0)
            gains += np.maximum(excess, 0, out=excess).sum(axis=0)
        return gains, self.pool.pair * (pairs + 1)


class GraphCut:
    """f(S) = sum_{i in V, j in S} s_ij - lam sum_{i, j in S} s_ij = u_V.u_S - lam |u_S|^2, u_A the sum over A"""

    def __init__(self, case: Case, pool: Pool):
        self.pool, self.lam = pool, case.parameters["lam"]
        self.whole = sum((y.sum(axis=0) for _, y in pool.blocks()), np.zeros(pool.d))
        self.picked, self.count = np.zeros(pool.d), 0

    def add(self, picks: np.ndarray) -> None:
        self.count += len(picks)
        for _, y in self.pool.blocks(picks):
            self.picked += y.sum(axis=0)

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
        for _, y in self.pool.blocks(picks):
            self.a += y.T @ y

    def value(self, picks: np.ndarray) -> float:
        self.add(picks)
        return float(np.linalg.slogdet(self.a)[1] + (self.count - self.pool.d) * np.log(self.lam))

    def gains(self, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y = self.pool.unit(cols)
        inside = (y * np.linalg.solve(self.a, y.T).T).sum(axis=1)
        return np.log(self.lam * (1 + inside)), np.full(len(cols), self.pool.pair)


SPECS = {FL: FacilityLocation, GC: GraphCut, LD: LogDet}


def check(
    case: Case, x: np.ndarray, picks: np.ndarray, gains: np.ndarray, halves: bool = False
) -> tuple[str, dict]:
    """("pass" or "fail: why", details). A selection passes if it is what greedy chooses, up to rounding:

    k different rows; at POSITIONS picks the gain recomputed is the one reported, and at least that of every other
    candidate of a sample; the gains add up to f(S) recomputed. halves: from rows rounded to float16, as the provider
    did. details: value, and the worst of each.
    """
    problem = check_shape(case, picks, gains)
    if problem:
        return f"fail: {problem}", {}
    pool, rng = Pool(x, halves), np.random.default_rng(case.seed)
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
    error = abs(float(gains.sum()) - f) / abs(f)
    if error > max(SUM_TOLERANCE, pool.pair):
        return f"fail: gains add up to {gains.sum():.9g}, f(S) recomputed is {f:.9g}", {}
    details = {"value": f, "steps": len(positions(case)), "behind": behind, "off": off, "sum_error": error}
    return "pass", details


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

    Every pick has the best gain, and f(S) is that of the reference's own greedy run, unless a tie let the two part ways
    (log-determinant of cosines starts with one: every row has the same first gain).
    """
    from smartgpu import reference
    from smartgpu.objectives import as_objective
    from smartgpu.similarity import as_similarity

    k = int(min(len(picks), max(REFERENCE_WORK // len(x) ** 2, 1)))
    pool = Pool(x, halves)
    if halves:
        x = pool.unit(slice(None))
    spec, kind = as_objective(case.objective), as_similarity("dot" if halves else case.similarity)
    spec = type(spec)(**case.parameters)
    problem, parted = reference.Problem(x, kind, spec), False
    open_ = np.ones(len(x), bool)
    for t in range(k):
        gains = np.where(open_, problem.gains(picks[:t]), -np.inf)
        mine = gains[picks[t]]
        tolerance = pool.pair if case.objective == LD else pool.pair + SUMMED * len(x)
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
